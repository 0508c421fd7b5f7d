"""The text tower that was trained against a nanoVLM's image encoder, in files of its own beside the checkpoint.

``text_tower.safetensors`` holds the tower, the heads and both temperatures by the names that they have in
:class:`model.clip.DualEncoder`; ``text_tower.json`` their shape, and digests of the encoder and of the vocabulary that
they belong to. With any other encoder every similarity would be a number without a meaning, so none is drawn.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.checkpoint import EMBEDDED
from model.checkpoint import WEIGHTS as MODEL_WEIGHTS
from model.clip import HEADS, DualEncoder
from model.errors import InputError
from model.families.checkpoint_files import check_fit, check_numbers, read_object
from model.families.nanovlm import VLM
from model.ranges import Range

WEIGHTS, SHAPE = "text_tower.safetensors", "text_tower.json"
FORMAT = 1
_ENCODER = "vision_encoder."
_SIZES = {"width": Range(1, 8192), "n_layers": Range(1, 256), "n_heads": Range(1, 256), "max_tokens": Range(1, 65_536)}


def save_tower(dual: DualEncoder, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes both files into ``folder``, which is there; an OSError or SafetensorError passes. ``state``: the whole
    state dict, where ``dual`` has a part of it alone."""
    whole = dual.state_dict() if state is None else state
    encoder = {name: tensor for name, tensor in whole.items() if name.startswith(_ENCODER)}
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items() if name not in encoder}
    save_file(own, folder / WEIGHTS)
    values = {
        "format": FORMAT,
        "head": dual.head,
        "width": dual.text.embedding.embedding_dim,
        "n_layers": dual.text.n_layers,
        "n_heads": dual.text.n_heads,
        "max_tokens": dual.text.max_tokens,
        "encoder_weights": _count(dual),
        "encoder": _digest(encoder),
        "vocabulary": _digest_vocabulary(dual.tokenizer),
    }
    (folder / SHAPE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes files for their owner alone


def find_tower(vlm: VLM) -> DualEncoder | None:
    """The tower that belongs to the model's image encoder: beside its checkpoint, or the embedded model's where the
    encoder is that one's. None if there is none. InputError if the one that belongs to it is damaged."""
    for folder in (vlm.folder, EMBEDDED):
        if folder is None or not (folder / SHAPE).is_file():
            continue
        values = read_object(folder / SHAPE)
        # The count first: an encoder of another size needn't be read through.
        if [values.get("format"), values.get("encoder_weights")] != [FORMAT, _count(vlm)]:
            continue
        if [values.get("encoder"), values.get("vocabulary")] == [
            _digest_encoder(vlm),
            _digest_vocabulary(vlm.tokenizer),
        ]:
            return _load_tower(vlm, folder, values)
    return None


def _load_tower(vlm: VLM, folder: Path, values: Mapping[str, object]) -> DualEncoder:
    path = folder / SHAPE
    for name, allowed in _SIZES.items():
        if not allowed.holds(values.get(name)):
            raise InputError(f"{path}: {name} {allowed.refuse(values.get(name))}.")
    if values.get("head") not in HEADS:
        raise InputError(f"{path} names the head “{str(values.get('head'))[:20]}”; known are {', '.join(HEADS)}.")
    sizes = {name: int(values[name]) for name in _SIZES}  # type: ignore[call-overload]
    if sizes["width"] % sizes["n_heads"]:
        raise InputError(f"{path}: width {sizes['width']} isn't a multiple of n_heads {sizes['n_heads']}.")
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS} can't be read ({error}); fetch it again.") from error
    with torch.random.fork_rng(devices=[]):
        dual = DualEncoder(vlm.vision_encoder, vlm.tokenizer, head=values["head"], **sizes)  # type: ignore[arg-type]
    own = _own_state(dual)
    shapes = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "not wanted": sorted(state.keys() - own.keys()),
        "of another shape": sorted(shapes),
    }
    check_fit(faults, folder)
    check_numbers(state, folder)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    for name, parameter in dual.named_parameters():
        if not name.startswith(_ENCODER):
            parameter.requires_grad_(False)
    return dual.to(vlm.device).eval()  # moves the tower: the encoder is there already


def copy_tower(source: Path, vlm: VLM, folder: Path) -> None:
    """Puts the tower in ``source``, if it belongs to ``vlm``'s image encoder, beside the checkpoint in ``folder``; one
    that was there and doesn't any more is harmless, for nobody opens it. An OSError passes."""
    if not (source / SHAPE).is_file() or read_object(source / SHAPE).get("encoder") != _digest_encoder(vlm):
        return
    for name in (WEIGHTS, SHAPE):
        staging = folder / f".{name}"
        shutil.copyfile(source / name, staging)
        staging.replace(folder / name)


def _own_state(dual: DualEncoder) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in dual.state_dict().items() if not name.startswith(_ENCODER)}


def _count(model: VLM | DualEncoder) -> int:
    return sum(weight.numel() for weight in model.vision_encoder.parameters())


def _digest_encoder(vlm: VLM) -> str:
    """Of the encoder's weights as they are stored: a model that was loaded in half precision has others."""
    path = None if vlm.folder is None else vlm.folder / MODEL_WEIGHTS
    if path is None or not path.is_file():
        return _digest({f"{_ENCODER}{name}": tensor for name, tensor in vlm.vision_encoder.state_dict().items()})
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in list(file.keys()) if name.startswith(_ENCODER)]
            return _digest({name: file.get_tensor(name) for name in names})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} can't be read ({error}); open the model anew.") from error


def _digest(state: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _digest_vocabulary(tokenizer: PreTrainedTokenizerFast) -> str:
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
