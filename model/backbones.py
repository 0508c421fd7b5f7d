"""Starting from published weights: an image encoder (SigLIP, SigLIP 2, CLIP, DINOv2) and a language model of Llama's
kind (Llama, SmolLM2, Mistral, Qwen2, Qwen3), read from folders as transformers writes them.

Weights are renamed, never trained or rounded. What an encoder does to pixels or behind a layer, and what our blocks
have no place for, is worked into the weights next to it, which computes the same: mean and spread of the pixels into
the first convolution, DINOv2's scales into the layers before them, the class token's place into its embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.config import VLMConfig
from model.errors import InputError
from model.families.checkpoint_files import CONFIG, INDEX, WEIGHTS, check_numbers, check_weights, read_object
from model.language import LanguageModel
from model.values import is_number, is_whole, name_value
from model.vision import VisionEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

VISION = ("siglip", "siglip_vision_model", "clip", "clip_vision_model", "dinov2")
LANGUAGE = ("llama", "mistral", "qwen2", "qwen3")
"""Values of ``model_type`` that are read here."""
_VIT_NAMES = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_DINO_NAMES = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attention.output.dense": "attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_DINO_SCALES = {"attention.output.dense": "layer_scale1.lambda1", "mlp.fc2": "layer_scale2.lambda1"}
_LM_NAMES = {
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.out_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}
_PIXELS = {
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and spread of the pixels that each kind was trained on, where a checkpoint doesn't say."""
_STEADY_ROPES = ("default", "linear", "llama3")
"""Kinds of rotary positions whose angles depend on nothing but the position."""


class _Settings(dict[str, Any]):
    """A transformers configuration that says which key it lacks."""

    def __init__(self, values: Mapping[str, Any], folder: Path) -> None:
        super().__init__(values)
        self.folder = folder

    def __missing__(self, key: str) -> Any:
        raise InputError(f"{self.folder / CONFIG} has no {key}; it must be that of the model asked for.")

    def whole(self, key: str) -> int:
        value = self[key]
        if not is_whole(value) or value < 1:
            raise InputError(f"{self.folder / CONFIG} has {key} = {name_value(value)}; it must be a positive integer.")
        return int(value)


@dataclass(frozen=True)
class VisionOptions:
    """How an encoder is read. ``feature_layer``: behind which block the features are taken, counted from the end as
    transformers' ``hidden_states`` are: −1 behind the last one and its norm (nanoVLM), −2 behind the one before,
    without a norm (LLaVA, Liu et al. 2023); None is −2 for CLIP and −1 else. ``tile_px``: the side of a picture, None
    for the encoder's own; places are interpolated to another (bicubic, as transformers does). ``normalise``: pixels are
    scaled as the encoder was trained; nanoVLM hands SigLIP its pixels as they are."""

    feature_layer: int | None = None
    tile_px: int | None = None
    normalise: bool = True


def import_vision(folder: str | Path, options: VisionOptions | None = None) -> tuple[dict[str, Any], VisionEncoder]:
    """The image encoder in ``folder`` and its settings under this project's ``vit_*`` names. Text towers and pooling
    heads are left out. InputError for another kind of model, for weights that are missing, and for sizes that don't go
    together."""
    folder, options = Path(folder), options or VisionOptions()
    settings, kind = read_vision(folder, options)
    side = settings["vit_img_size"] // settings["vit_patch_size"]
    # Of the sizes that belong to no encoder any will do that go together.
    config = VLMConfig(
        **settings, mp_pixel_shuffle_factor=1, mp_image_token_length=side * side, max_img_size=settings["vit_img_size"]
    )
    prefix = "dinov2." if kind == "dinov2" else "vision_model."
    source = {name.removeprefix(prefix): tensor for name, tensor in _read_shards(folder).items()}
    try:
        state = (_rename_dino if kind == "dinov2" else _rename_clip)(source, config)
    except KeyError as error:
        raise InputError(f"{folder} is no whole {kind} checkpoint: it lacks {error.args[0]}.") from None
    state["patch_embedding.position_embedding"] = _resize_places(state["patch_embedding.position_embedding"], side)
    if options.normalise:
        _fold_pixels(state, *_read_pixels(folder, kind))
    encoder = VisionEncoder(config)
    _fill(encoder, state, folder)
    return settings, encoder.eval()


def read_vision(folder: Path, options: VisionOptions) -> tuple[dict[str, Any], str]:
    """The encoder's settings, and its kind, from its config.json alone. InputError as :func:`import_vision`."""
    values, kind = read_part(folder, VISION, "image encoder")
    vision = _Settings(values.get("vision_config") or values, folder)
    layers, patch = vision.whole("num_hidden_layers"), vision.whole("patch_size")
    layer = options.feature_layer if options.feature_layer is not None else -2 if kind == "clip" else -1
    if not (is_whole(layer) and -layers <= layer <= -1):
        raise InputError(f"feature_layer is {name_value(layer)}; this encoder has the layers −{layers} to −1.")
    size = options.tile_px or vision.whole("image_size")
    if size % patch:
        raise InputError(
            f"The encoder's pictures have {size} px, which is no multiple of its patches of {patch} px; name a tile_px "
            f"that is one, such as {size // patch * patch or patch}."
        )
    act = str(vision.get("hidden_act", "quick_gelu" if kind == "clip" else "gelu"))
    if act not in _ACTIVATIONS:
        raise InputError(f"The encoder's activation is {act[:40]}; {', '.join(_ACTIVATIONS)} are known here.")
    if vision.get("use_swiglu_ffn"):
        raise InputError("A DINOv2 with gated layers (giant) isn't read here; use small, base or large.")
    width = vision.whole("hidden_size")
    inner = int(width * vision["mlp_ratio"]) if kind == "dinov2" else vision.whole("intermediate_size")
    settings = {
        "vit_hidden_dim": width,
        "vit_inter_dim": inner,
        "vit_patch_size": patch,
        "vit_img_size": size,
        "vit_n_heads": vision.whole("num_attention_heads"),
        "vit_dropout": vision.get("attention_dropout", vision.get("attention_probs_dropout_prob", 0.0)),
        "vit_n_blocks": layers + 1 + layer,
        "vit_ln_eps": vision.get("layer_norm_eps", 1e-5 if kind == "clip" else 1e-6),
        **({} if kind == "siglip" else {"vit_class_token": True}),
        **({"vit_pre_norm": True} if kind == "clip" else {}),
        **({} if layer == -1 else {"vit_post_norm": False}),
        **({} if _ACTIVATIONS[act] == "gelu_tanh" else {"vit_activation": _ACTIVATIONS[act]}),
    }
    return settings, kind


def _rename_clip(source: Mapping[str, Tensor], config: VLMConfig) -> dict[str, Tensor]:
    """SigLIP's and CLIP's names."""
    places = source["embeddings.position_embedding.weight"][None]
    state: dict[str, Tensor] = {}
    if config.vit_class_token:
        state["patch_embedding.class_embedding"] = source["embeddings.class_embedding"] + places[:, :1]
        places = places[:, 1:]
    state["patch_embedding.position_embedding"] = places
    weight = source["embeddings.patch_embedding.weight"]
    # CLIP's has no bias.
    bias = source["embeddings.patch_embedding.bias"] if not config.vit_class_token else weight.new_zeros(len(weight))
    state |= {"patch_embedding.conv.weight": weight, "patch_embedding.conv.bias": bias}
    for end in ("weight", "bias"):
        if config.vit_pre_norm:
            state[f"pre_norm.{end}"] = source[f"pre_layrnorm.{end}"]
        if config.vit_post_norm:
            state[f"layer_norm.{end}"] = source[f"post_layernorm.{end}"]
        for layer in range(config.vit_n_blocks):
            theirs, ours = f"encoder.layers.{layer}", f"blocks.{layer}"
            state[f"{ours}.attn.qkv_proj.{end}"] = torch.cat(
                [source[f"{theirs}.self_attn.{name}_proj.{end}"] for name in "qkv"]
            )
            for their_name, our_name in _VIT_NAMES.items():
                state[f"{ours}.{our_name}.{end}"] = source[f"{theirs}.{their_name}.{end}"]
    return state


def _rename_dino(source: Mapping[str, Tensor], config: VLMConfig) -> dict[str, Tensor]:
    places = source["embeddings.position_embeddings"]
    state = {
        "patch_embedding.class_embedding": source["embeddings.cls_token"] + places[:, :1],
        "patch_embedding.position_embedding": places[:, 1:],
    }
    for end in ("weight", "bias"):
        state[f"patch_embedding.conv.{end}"] = source[f"embeddings.patch_embeddings.projection.{end}"]
        if config.vit_post_norm:
            state[f"layer_norm.{end}"] = source[f"layernorm.{end}"]
        for layer in range(config.vit_n_blocks):
            theirs, ours = f"encoder.layer.{layer}", f"blocks.{layer}"
            state[f"{ours}.attn.qkv_proj.{end}"] = torch.cat(
                [source[f"{theirs}.attention.attention.{name}.{end}"] for name in ("query", "key", "value")]
            )
            for their_name, our_name in _DINO_NAMES.items():
                tensor = source[f"{theirs}.{their_name}.{end}"]
                if scale := _DINO_SCALES.get(their_name):
                    factor = source[f"{theirs}.{scale}"]
                    tensor = tensor * (factor[:, None] if end == "weight" else factor)
                state[f"{ours}.{our_name}.{end}"] = tensor
    return state


def _resize_places(places: Tensor, side: int) -> Tensor:
    """``[1 place d]`` for a grid of ``side`` × ``side``."""
    known = math.isqrt(places.shape[1])
    if known == side:
        return places
    grid = places.float().reshape(1, known, known, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(1, 2).to(places.dtype)


def _read_pixels(folder: Path, kind: str) -> tuple[Tensor, Tensor]:
    """Mean and spread that the folder's image processor subtracts and divides by."""
    path = folder / "preprocessor_config.json"
    values = read_object(path, missing_ok=True)
    mean, spread = _PIXELS[kind]
    mean, spread = values.get("image_mean", mean), values.get("image_std", spread)
    for name, numbers in (("image_mean", mean), ("image_std", spread)):
        if not (isinstance(numbers, list | tuple) and len(numbers) == 3 and all(map(is_number, numbers))):
            raise InputError(f"{path} has {name} = {name_value(numbers)}; it must be three numbers.")
    if not all(number > 0 for number in spread):
        raise InputError(f"{path} has an image_std that isn't above 0; correct it.")
    return torch.tensor(mean), torch.tensor(spread)


def _fold_pixels(state: dict[str, Tensor], mean: Tensor, spread: Tensor) -> None:
    """W·(x − m)/s + b = (W/s)·x + (b − Σ W·m/s): patches don't overlap and have no border."""
    weight = state["patch_embedding.conv.weight"].float() / spread[:, None, None]
    bias = state["patch_embedding.conv.bias"].float()
    state["patch_embedding.conv.weight"] = weight
    state["patch_embedding.conv.bias"] = bias - (weight * mean[:, None, None]).sum(dim=(1, 2, 3))


def import_language(
    folder: str | Path, *, extra_tokens: int = 0, seed: int = 0
) -> tuple[dict[str, Any], LanguageModel]:
    """The decoder in ``folder`` (shards and an index are understood), and its settings under this project's ``lm_*``
    names. ``extra_tokens`` rows are added to the embedding, drawn from N(0, 0.02²) with ``seed``. InputError for
    another kind of model, for weights that are missing, and for what these blocks don't compute."""
    folder = Path(folder)
    settings, theirs_config, kind = _read_language(folder, extra_tokens)
    config = VLMConfig(**settings)
    source = {name.removeprefix("model."): tensor for name, tensor in _read_shards(folder).items()}
    generator = torch.Generator().manual_seed(seed)

    def grow(weight: Tensor) -> Tensor:
        new = torch.randn(extra_tokens, weight.shape[1], generator=generator) * 0.02
        return torch.cat((weight.float(), new))

    decoder = LanguageModel(config)
    state: dict[str, Tensor] = {"rotary_embd.inv_freq": _read_angles(theirs_config)}
    try:
        state["token_embedding.weight"] = grow(source["embed_tokens.weight"])
        tied = config.lm_tie_weights
        state["head.weight"] = state["token_embedding.weight"] if tied else grow(source["lm_head.weight"])
        state["norm.weight"] = source["norm.weight"]
        for layer in range(config.lm_n_blocks):
            theirs, ours = f"layers.{layer}", f"blocks.{layer}"
            for their_name, our_name in _LM_NAMES.items():
                state[f"{ours}.{our_name}.weight"] = source[f"{theirs}.{their_name}.weight"]
            for name in ("q", "k", "v") if config.lm_qkv_bias else ():
                state[f"{ours}.attn.{name}_proj.bias"] = source[f"{theirs}.self_attn.{name}_proj.bias"]
            for name in ("q", "k") if config.lm_qk_norm else ():
                state[f"{ours}.attn.{name}_norm.weight"] = source[f"{theirs}.self_attn.{name}_norm.weight"]
    except KeyError as error:
        raise InputError(f"{folder} is no whole {kind} checkpoint: it lacks {error.args[0]}.") from None
    _fill(decoder, state, folder)
    return settings, decoder.eval()


def read_language(folder: Path, *, extra_tokens: int = 0) -> dict[str, Any]:
    """The decoder's settings, from its config.json alone. InputError as :func:`import_language`."""
    return _read_language(folder, extra_tokens)[0]


def _read_language(folder: Path, extra_tokens: int) -> tuple[dict[str, Any], PreTrainedConfig, str]:
    from transformers import CONFIG_MAPPING  # takes a second, and few runs need it

    found, kind = read_part(folder, LANGUAGE, "language model")
    values = _Settings(found, folder)
    width, heads = values.whole("hidden_size"), values.whole("num_attention_heads")
    # What a file leaves out is as that kind of model has it.
    theirs_config = CONFIG_MAPPING[kind].from_dict(found)
    _refuse_language(theirs_config)
    head_dim = getattr(theirs_config, "head_dim", None)
    settings = {
        "lm_hidden_dim": width,
        "lm_inter_dim": values.whole("intermediate_size"),
        "lm_rms_eps": theirs_config.rms_norm_eps,
        "lm_re_base": theirs_config.rope_parameters["rope_theta"],
        "lm_max_position_embeddings": theirs_config.max_position_embeddings,
        "lm_base_vocab_size": values.whole("vocab_size"),
        "extra_token_amount": extra_tokens,
        "lm_vocab_size": values.whole("vocab_size") + extra_tokens,
        "lm_n_heads": heads,
        "lm_n_kv_heads": theirs_config.num_key_value_heads or heads,
        "lm_dropout": theirs_config.attention_dropout,
        "lm_n_blocks": values.whole("num_hidden_layers"),
        "lm_tie_weights": theirs_config.tie_word_embeddings,
        **({"lm_head_dim": head_dim} if head_dim and head_dim * heads != width else {}),
        **({"lm_qkv_bias": True} if kind == "qwen2" else {}),
        **({"lm_qk_norm": True} if kind == "qwen3" else {}),
    }
    return settings, theirs_config, kind


def _refuse_language(config: PreTrainedConfig) -> None:
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise InputError("This language model has biases where Llama has none; use one without.")
    if config.hidden_act != "silu":
        raise InputError(f"The language model's activation is {str(config.hidden_act)[:40]}; only silu is known here.")
    if getattr(config, "use_sliding_window", True) and (window := getattr(config, "sliding_window", None)):
        raise InputError(
            f"This language model sees {window} positions back only (a sliding window), which isn't trained here; use "
            "one without."
        )


def _read_angles(config: PreTrainedConfig) -> Tensor:
    """Angles per position of the rotary embedding ``[head_dim / 2]``, as transformers computes them. InputError for
    kinds that scale them by the length of a row."""
    rope = config.rope_parameters
    name = str(rope.get("rope_type", "default"))
    if name not in _STEADY_ROPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            f"The language model's rotary positions are of the kind {name[:40]}; {', '.join(_STEADY_ROPES)} are known "
            "here, over whole heads."
        )
    if name == "default":
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 1.0 / rope["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # as above

    angles, _ = ROPE_INIT_FUNCTIONS[name](config, torch.device("cpu"))
    return angles.float()


def read_part(folder: Path, known: tuple[str, ...], what: str) -> tuple[dict[str, Any], str]:
    """config.json, and which of ``known`` it is, without the ending of a part. InputError where it is none of them."""
    values = read_object(folder / CONFIG)
    kind = values.get("model_type")
    if kind not in known:
        own = " It is a vision-language model itself: open it as it is." if _is_vlm(values) else ""
        if kind == "siglip2":
            own = " It takes pictures of any shape; the ones of a fixed size (…-patch16-512) are read."
        name = f"a {str(kind)[:40]} model" if kind else "a model without a model_type, as nanoVLM's are"
        raise InputError(f"{folder} holds {name}, which isn't read as the {what}; {', '.join(known)} are.{own}")
    return values, str(kind).removesuffix("_vision_model")


def _is_vlm(values: Mapping[str, Any]) -> bool:
    return "vision_config" in values and "text_config" in values and "projection_dim" not in values


def _fill(module: torch.nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    odd = [
        f"{name} is {tuple(tensor.shape)} and should be {wanted[name]}"
        for name, tensor in state.items()
        if tuple(tensor.shape) != wanted[name]
    ]
    if odd:
        raise InputError(f"The weights in {folder} don't fit its {CONFIG}: {odd[0]}; fetch them again.")
    check_numbers(state, folder)
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()})


def _read_shards(folder: Path) -> dict[str, Tensor]:
    check_weights(folder)
    index = read_object(folder / INDEX, missing_ok=True)
    state: dict[str, Tensor] = {}
    for name in sorted(set(index["weight_map"].values())) if index else [WEIGHTS]:
        try:
            state |= load_file(folder / name)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{folder / name} can't be read ({error}); it may be cut off, fetch it again.") from error
    return state
