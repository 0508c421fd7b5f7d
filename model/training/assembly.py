"""What a run begins from; above all a model put together from an image encoder and a language model that exist, and a
fresh projector between them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import nn
from transformers import PreTrainedTokenizerFast

from model.backbones import (
    LANGUAGE,
    VISION,
    VisionOptions,
    import_language,
    import_vision,
    read_language,
    read_part,
    read_vision,
)
from model.chat import Message
from model.checkpoint import empty_vlm, find_folder, load_vlm
from model.config import CHAT_TEMPLATE, VLMConfig, region_tokens
from model.errors import InputError
from model.families.checkpoint_files import CONFIG, read_object, read_template
from model.families.nanovlm import VLM
from model.families.nanovlm_chat import NanoVLMChat
from model.hub import HubCheckpoint, check_room, look_up
from model.projector import Projector
from model.tokenizer import load_tokenizer
from model.training.fresh import new_vlm
from model.training.parts import MOST_TOKENS, Parts
from model.training.recipe import ASSEMBLED, NEW, Recipe
from model.training.tuned import Trainee, tune
from model.values import is_whole

TURN = {"turn_start_token": "<|im_start|>", "turn_end_token": "<|im_end|>"}
"""What ChatML needs of a vocabulary."""
REGIONS = 8
"""Tiles along a side that the markers reach to, as nanoVLM's do."""


def open_base(recipe: Recipe) -> Trainee:
    """The model that a recipe begins from, whatever its family, ready to be trained. InputError where there is none, or
    its stages want of it what it isn't trained for."""
    if recipe.base in (NEW, ASSEMBLED):
        return make_base(recipe)
    opened = load_vlm(recipe.base, device="cpu", dtype=torch.float32)
    if isinstance(opened, VLM):
        return opened
    from model.families.transformers_vlm import TransformersVLM  # which takes long to import

    assert isinstance(opened, TransformersVLM)
    return tune(opened, recipe)


def make_base(recipe: Recipe) -> VLM:
    """The model that a recipe begins from where that is no checkpoint. InputError where its parts don't go together."""
    return new_vlm(recipe.seed) if recipe.parts is None else assemble(recipe.parts, recipe.seed, recipe.folder)


@dataclass(frozen=True)
class _Plan:
    """What the parts' files say without their weights. ``new_tokens``: those that the language model has no rows for
    yet, by name, and ``rows``, how many are added."""

    vision: Path
    language: Path
    config: VLMConfig
    tokenizer: PreTrainedTokenizerFast
    new_tokens: dict[str, str]
    rows: int


def size_parts(parts: Parts, folder: Path = Path(), most: int | None = None) -> list[tuple[HubCheckpoint, int]]:
    """The parts that come from the hub, with the bytes that are still to be fetched of each: told by the hub before
    anything but a configuration is fetched; none where it may not be asked. InputError for a part that isn't there, is
    gated or no part, that has more than ``most`` bytes, or for which the disk has no room."""
    found: list[tuple[HubCheckpoint, int]] = []
    for source in dict.fromkeys((parts.vision, parts.language)):
        if constants.HF_HUB_OFFLINE or (folder / Path(source).expanduser()).is_dir():
            continue
        if source.count("/") != 1 or source.startswith((".", "~", "/")):
            continue  # no name of the hub, which is said where it is opened
        checkpoint = look_up(source, kinds=(*VISION, *LANGUAGE))
        found.append((checkpoint, check_room(checkpoint, most, before=sum(missing for _, missing in found))))
    return found


def plan_parts(parts: Parts, folder: Path = Path()) -> VLM:
    """The shape of what :func:`assemble` makes, without weights: to be counted, and to check data with. Of parts on the
    hub the small files alone are fetched. InputError as there."""
    plan = _plan(parts, folder, weights=False)
    return empty_vlm(plan.config, plan.tokenizer)


def assemble(parts: Parts, seed: int, folder: Path = Path()) -> VLM:
    """The model, its projector and the rows of new tokens drawn with ``seed``. Relative folders start at ``folder``.
    InputError where a part can't be had or read, or the two don't go together."""
    size_parts(parts, folder)
    plan = _plan(parts, folder, weights=True)
    encoder: nn.Module
    decoder: nn.Module
    if _is_nanovlm(plan.vision):
        encoder = _load_whole(plan.vision).vision_encoder
    else:
        encoder = import_vision(plan.vision, _read_options(parts))[1]
    if _is_nanovlm(plan.language):
        decoder = _load_whole(plan.language).decoder
    else:
        decoder = import_language(plan.language, extra_tokens=plan.rows, seed=seed)[1]
    vlm = empty_vlm(plan.config, plan.tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vlm.vision_encoder, vlm.MP, vlm.decoder = encoder, Projector(plan.config), decoder
        _draw(vlm, plan.tokenizer, plan.new_tokens)
    return vlm.eval()


def _plan(parts: Parts, folder: Path, weights: bool) -> _Plan:
    vision, language = (_find_part(source, folder, weights) for source in (parts.vision, parts.language))
    own = VLMConfig.read(vision / CONFIG) if _is_nanovlm(vision) else None
    vision_settings = read_vision(vision, _read_options(parts))[0] if own is None else _pick(own, "vit_")
    sizes = _image_sizes(parts, vision_settings, own)
    names: dict[str, Any] = {"vit_model_type": _name_part(parts.vision), "lm_model_type": _name_part(parts.language)}
    if _is_nanovlm(language):
        # One that has read images keeps the tokens that it knows for them.
        theirs = VLMConfig.read(language / CONFIG)
        settings = {**vision_settings, **_pick(theirs, "lm_"), **sizes, **names}
        config = VLMConfig(
            **settings,
            extra_token_amount=theirs.extra_token_amount,
            vlm_extra_tokens=theirs.vlm_extra_tokens,
            mp_kind=parts.projector,
            vlm_load_backbone_weights=False,
        )
        return _Plan(vision, language, config, load_tokenizer(language, theirs.vlm_extra_tokens), {}, 0)
    known = read_part(language, LANGUAGE, "language model")[0].get("vocab_size")
    tokenizer, template, extra = _prepare_tokenizer(language)
    # Some vocabularies have spare rows.
    missing = max(0, len(tokenizer) - int(known or 0)) if is_whole(known) else 0
    language_settings = read_language(language, extra_tokens=missing)
    settings = {**vision_settings, **language_settings, **sizes, **names}
    config = VLMConfig(
        **settings,
        mp_kind=parts.projector,
        vlm_extra_tokens=extra,
        lm_chat_template=template,
        lm_max_length=language_settings["lm_max_position_embeddings"],
        lm_tokenizer=_name_part(parts.language),
        vlm_load_backbone_weights=False,
    )
    return _Plan(vision, language, config, tokenizer, extra, missing)


def _load_whole(folder: Path) -> VLM:
    opened = load_vlm(folder, device="cpu", dtype=torch.float32)
    assert isinstance(opened, VLM)
    return opened


def _read_options(parts: Parts) -> VisionOptions:
    return VisionOptions(parts.feature_layer, parts.tile_px, parts.normalise)


def _name_part(source: str) -> str:
    return Path(source).name


def _is_nanovlm(folder: Path) -> bool:
    """Whether it holds a whole model of this format, of which one part is taken."""
    values = read_object(folder / CONFIG, missing_ok=True)
    return "model_type" not in values and "vit_hidden_dim" in values


def _pick(config: VLMConfig, prefix: str) -> dict[str, Any]:
    """The settings of one part of a whole model."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name.startswith(prefix)}


def _draw(vlm: VLM, tokenizer: PreTrainedTokenizerFast, extra: dict[str, str]) -> None:
    """What no part brings: the projector, as nanoVLM draws it, and new tokens that a vocabulary had spare rows for."""
    with torch.no_grad():
        for layer in vlm.MP.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    layer.bias.zero_()
        table = vlm.decoder.token_embedding.weight
        ids = tokenizer.get_vocab()
        old = sorted(ids[token] for token in extra.values() if ids[token] < vlm.config.lm_base_vocab_size)
        table[old] = torch.randn(len(old), table.shape[1]) * 0.02


def _find_part(source: str, folder: Path, weights: bool) -> Path:
    local = folder / Path(source).expanduser()
    return local if local.is_dir() else find_folder(source, weights=weights)[0]


def _image_sizes(parts: Parts, vision: dict[str, Any], own: VLMConfig | None) -> dict[str, Any]:
    """The keys of the configuration that tell how a picture becomes tokens. ``own``: of the whole model that the
    encoder is taken from, which says what isn't asked for otherwise."""
    side = vision["vit_img_size"] // vision["vit_patch_size"]
    factor = parts.pixel_shuffle
    if factor is None and own is not None:
        factor = own.mp_pixel_shuffle_factor
    if factor is None:
        fitting = [n for n in range(1, side + 1) if side % n == 0]
        factor = next(n for n in fitting if (side // n) ** 2 <= MOST_TOKENS)
    if side % factor:
        fitting = [n for n in range(1, side + 1) if side % n == 0]
        raise InputError(
            f"A tile has {side} × {side} patches, which base.pixel_shuffle {factor} doesn't divide; use one of "
            f"{', '.join(map(str, fitting))}, or another base.tile_px."
        )
    largest = parts.max_img_size or (vision["vit_img_size"] if own is None else own.max_img_size)
    if largest % vision["vit_img_size"]:
        raise InputError(
            f"base.max_img_size is {largest} and a tile has {vision['vit_img_size']} px; it must be a multiple."
        )
    return {
        "mp_pixel_shuffle_factor": factor,
        "mp_image_token_length": (side // factor) ** 2,
        "max_img_size": largest,
        "resize_to_max_side_len": parts.resize_to_max_side_len,
    }


def _prepare_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerFast, str, dict[str, str]]:
    """The language model's tokenizer with the tokens that images need, its chat template, and these tokens by name.
    Where it has ChatML's tokens, ChatML is used as nanoVLM does; else its own template; else ChatML's tokens are added.
    InputError where it has image tokens already."""
    images = {"image_token": "<|image|>", "global_image_token": "<|global_image|>", **region_tokens(REGIONS, REGIONS)}
    plain = load_tokenizer(folder, {}, lend_pad=True)
    vocabulary = plain.get_vocab()
    if taken := [token for token in images.values() if token in vocabulary]:
        raise InputError(
            f"The tokenizer of {folder} has the token {taken[0]} already, as one of a model that sees images; use a "
            "language model that sees none."
        )
    chatml = all(token in plain.get_added_vocab() for token in TURN.values())
    template = CHAT_TEMPLATE if chatml else read_template(folder, plain)
    extra = dict(images)
    if template is None or not _writes(template, load_tokenizer(folder, images, lend_pad=True), images):
        template, chatml, extra = CHAT_TEMPLATE, True, {**images, **TURN}
    tokenizer = load_tokenizer(folder, extra, lend_pad=True)
    if chatml:
        # An answer ends where ChatML ends it, whatever token a base model ends a text with.
        tokenizer.eos_token = TURN["turn_end_token"]
    return tokenizer, template, extra


def _writes(template: str, tokenizer: PreTrainedTokenizerFast, images: dict[str, str]) -> bool:
    """Whether a template can be used: it writes a question and an answer in this order, and ends the answer."""
    config = VLMConfig(lm_chat_template=template, vlm_extra_tokens=images)
    messages = (Message("user", "?"), Message("assistant", "!"))
    try:
        text = NanoVLMChat(config, tokenizer).write(messages, ("\ue0000\ue001", "\ue0001\ue001"), False)
    except InputError:
        return False
    _, asked, behind = text.partition("\ue0000\ue001")
    _, answered, end = behind.partition("\ue0001\ue001")
    return bool(asked and answered and end.lstrip().startswith(str(tokenizer.eos_token)))
