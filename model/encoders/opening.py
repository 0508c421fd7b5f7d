"""Opening an encoder: the one of a vision-language model that is loaded, or a checkpoint of CLIP or SigLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from model.checkpoint import find_folder
from model.devices import place
from model.encoders.protocol import ImageTextEncoder
from model.encoders.text_tower import find_tower
from model.encoders.vlm_encoder import NanoEncoder, TokenEncoder
from model.errors import InputError
from model.families.checkpoint_files import CONFIG, read_object
from model.families.nanovlm import VLM
from model.families.protocol import InspectableVLM
from model.families.table import ENCODERS
from model.memory import check_memory, estimate_memory, read_stored, refuse_shortage
from model.values import name_value

if TYPE_CHECKING:
    from model.families.transformers_vlm import TransformersVLM


def encoder_of(vlm: InspectableVLM) -> ImageTextEncoder:
    """The image encoder of a model, with the text tower that belongs to it if there is one."""
    if isinstance(vlm, VLM):
        return NanoEncoder(vlm, find_tower(vlm))
    return TokenEncoder(cast("TransformersVLM", vlm))


def is_encoder(source: str | Path) -> bool:
    """Whether a checkpoint is one of :data:`ENCODERS`; a hub id is fetched for it. InputError where there is none."""
    return read_object(find_folder(source)[0] / CONFIG, missing_ok=True).get("model_type") in ENCODERS


def load_encoder(
    source: str | Path, *, device: torch.device | str = "auto", dtype: torch.dtype | str = "auto"
) -> ImageTextEncoder:
    """The encoder in a checkpoint folder, or of a hub id; read by the same rules as :func:`model.load_vlm`."""
    folder, _ = find_folder(source)
    kind = read_object(folder / CONFIG).get("model_type")
    if kind not in ENCODERS:
        raise InputError(f"This is no encoder of images and texts ({name_value(kind)}); known: {', '.join(ENCODERS)}.")
    placement = place(device, dtype, read_stored(folder).bytes_by_dtype, None)
    if placement.balanced:
        raise InputError("An encoder fits one device; choose --device auto, cpu, cuda, cuda:N or mps.")
    from model.encoders import transformers_encoder

    check_memory(estimate_memory(folder, placement))
    with refuse_shortage():
        found: type[transformers_encoder.TransformersEncoder] = getattr(transformers_encoder, ENCODERS[kind])
        return found(folder, placement.device, placement.dtype)
