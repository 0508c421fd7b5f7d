"""Which checkpoints can be opened, told from the ``model_type`` of their config.json; and why others can't."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from model.errors import InputError
from model.values import name_value

if TYPE_CHECKING:
    from model.families.transformers_vlm import TransformersVLM

FAMILIES = {
    "idefics3": ("model.families.idefics3", "Idefics3"),
    "smolvlm": ("model.families.idefics3", "SmolVLM"),
    "llava": ("model.families.llava", "Llava"),
    "llava_next": ("model.families.llava_anyres", "LlavaNext"),
    "llava_onevision": ("model.families.llava_anyres", "LlavaOnevision"),
    "qwen2_vl": ("model.families.qwen_vl", "Qwen2VL"),
    "qwen2_5_vl": ("model.families.qwen_vl", "Qwen2_5VL"),
    "qwen3_vl": ("model.families.qwen_vl", "Qwen3VL"),
    "gemma3": ("model.families.gemma3", "Gemma3"),
    "internvl": ("model.families.internvl", "InternVL"),
}
"""``model_type`` → module and class. A module is imported when such a checkpoint is opened, and transformers' own code
of the family with it."""

_HYBRID = (
    "most of its layers are linear attention or convolutions, which hand an image on where no edge of attention can be "
    "cut, so taking an image away by attention would reach a part of the layers alone"
)
_CROSS = (
    "its images are no part of the row, but are read through layers of cross-attention, so that there are no image "
    "tokens to look at or to cut"
)
_PREFIX = (
    "everything before its answer sees everything else there, later text too, so nothing can be kept of a row and read "
    "on from, and an image can't be taken away from what stands behind it alone"
)
_ENCODER = (
    "it encodes images and texts and has no language model that answers (the tab “CLIP” compares with it: open it "
    "under “Models”, by app.py --encoder, or with python -m inspector clip)"
)
ENCODERS = {"clip": "ClipEncoder", "siglip": "SiglipEncoder", "siglip2": "Siglip2Encoder"}
"""``model_type`` → class in :mod:`model.encoders.transformers_encoder`, of what has no language model."""
REFUSED = {
    **dict.fromkeys(ENCODERS, _ENCODER),
    "qwen3_5": _HYBRID,
    "qwen3_5_moe": _HYBRID,
    "qwen3_next": _HYBRID,
    "lfm2_vl": _HYBRID,
    "lfm3_vl": _HYBRID,
    "minicpmv4_6": _HYBRID,
    "mllama": _CROSS,
    "idefics": _CROSS,
    "blip-2": _CROSS,
    "instructblip": _CROSS,
    "paligemma": _PREFIX,
    "colpali": _PREFIX,
    "florence2": "it is an encoder and a decoder, and its images are read by the encoder",
}
"""``model_type`` → why its images can't be inspected by the same rules."""


def find_family(config: Mapping[str, Any]) -> type[TransformersVLM] | None:
    """The family of a checkpoint's config.json; None where it names none, as nanoVLM's doesn't. InputError for one
    that can't be opened, with the reason."""
    kind = config.get("model_type")
    if kind is None:
        return None
    if not isinstance(kind, str):
        raise InputError(f"config.json has the model_type {name_value(kind)}; it must be text.")
    if kind in FAMILIES:
        if method := _quantisation(config):
            raise InputError(
                f"The weights of this checkpoint are stored quantised ({method}), which is not read here; use the "
                "checkpoint that they were made from."
            )
        module, name = FAMILIES[kind]
        found: type[TransformersVLM] = getattr(import_module(module), name)
        return found
    supported = f"supported are nanoVLM and {', '.join(sorted(FAMILIES))}"
    if kind in REFUSED:
        raise InputError(f"A {kind} model can't be inspected here: {REFUSED[kind]}; {supported}.")
    if config.get("auto_map"):
        raise InputError(
            f"A {kind[:60]} model needs code that lies beside its weights, and none is ever run from a checkpoint; "
            f"{supported}."
        )
    if not any("vision" in key or "vit" in key or "image" in key for key in config):
        raise InputError(f"This is a text model ({kind[:60]}), which sees no images; {supported}.")
    raise InputError(f"The family {kind[:60]} is not known here; {supported}.")


def _quantisation(config: Mapping[str, Any]) -> str:
    values = config.get("quantization_config")
    return str(values.get("quant_method", "unknown"))[:40] if isinstance(values, Mapping) else ""
