"""A small change to a model of transformers, kept beside it: LoRA on its language model, and its projector.

``adapter_config.json`` and ``adapter_model.safetensors`` are peft's, the projector among the modules that are saved
whole, so that ``PeftModel.from_pretrained(base, folder)`` gives the changed model. Here it is added into the base's
weights, and what comes out is a model like any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.errors import InputError
from model.families.checkpoint_files import read_object
from model.ranges import is_finite
from model.values import name_value

if TYPE_CHECKING:
    from model.families.transformers_vlm import TransformersVLM

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
_PREFIX = "base_model.model."
"""What peft puts before the names of the base's modules."""
_OTHER_KINDS = (
    "use_dora",
    "use_rslora",
    "use_qalora",
    "fan_in_fan_out",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "trainable_token_indices",
    "target_parameters",
)
"""Keys of peft's that mean another sum than W + alpha/r · B·A where they are set."""
_BASE = "base_fingerprint"


@dataclass(frozen=True)
class Adapter:
    """``base``: where the model lies that it changes. ``scale``: alpha/r. ``tensors`` by peft's names."""

    base: str
    scale: float
    tensors: Mapping[str, Tensor]
    base_fingerprint: str

    @property
    def changes(self) -> frozenset[str]:
        """The base's weights that don't stay as they are, by its own names."""
        names = (name.removeprefix(_PREFIX) for name in self.tensors)
        return frozenset(f"{parts[0]}.weight" if (parts := name.partition(".lora_"))[1] else name for name in names)


def holds_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> Adapter:
    """InputError for one that is damaged, or of a kind that isn't known here."""
    values = read_object(folder / CONFIG)
    kind, base = values.get("peft_type"), values.get("base_model_name_or_path")
    if kind != "LORA" or (other := [key for key in _OTHER_KINDS if values.get(key)]) or values.get("bias") != "none":
        what = name_value(kind) if kind != "LORA" else f"LORA with {', '.join(other) or 'bias'}"
        raise InputError(f"The adapter in {folder} is {what}; plain LORA without bias is known here.")
    if not isinstance(base, str) or not base.strip():
        raise InputError(
            f"{folder / CONFIG} names no base model (base_model_name_or_path is {name_value(base)}); write its folder "
            "or hub id there."
        )
    rank, alpha = (values.get(key) for key in ("r", "lora_alpha"))
    if not (isinstance(rank, int) and rank > 0 and is_finite(alpha)):
        raise InputError(
            f"{folder / CONFIG} has r = {name_value(rank)} and lora_alpha = {name_value(alpha)}; correct it, r must be "
            "a positive integer and lora_alpha a number."
        )
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            said = (file.metadata() or {}).get(_BASE, "")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder / WEIGHTS} can't be read ({error}); it may be cut off, fetch it again.") from error
    return Adapter(base, float(alpha or 0) / rank, tensors, said)


@torch.no_grad()
def add_adapter(vlm: TransformersVLM, adapter: Adapter, folder: Path) -> TransformersVLM:
    """``vlm``, the adapter's base, with the adapter added into its weights. InputError where the two don't go
    together."""
    if adapter.base_fingerprint and adapter.base_fingerprint != vlm.fingerprint:
        raise InputError(
            f"The adapter in {folder} was trained on other weights than “{adapter.base}” has now; bring those back."
        )
    fingerprint = fingerprint_adapter(vlm.fingerprint, adapter.tensors)
    weights = dict(vlm.model.named_parameters(remove_duplicate=False))
    found = {name.removeprefix(_PREFIX): tensor for name, tensor in adapter.tensors.items()}
    for name, tensor in found.items():
        module, _, matrix = name.partition(".lora_")
        if matrix == "A.weight":
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"The adapter in {folder} has numbers that are not finite in {name}.")
        weight = weights.get(f"{module}.weight" if matrix else name)
        down = found.get(f"{module}.lora_A.weight")
        if weight is None or (matrix and (matrix != "B.weight" or down is None or down.shape[0] != tensor.shape[1])):
            raise InputError(
                f"The adapter in {folder} changes {name}, which “{adapter.base}” doesn't have; name its own base."
            )
        shape = (tensor.shape[0], down.shape[1]) if matrix and down is not None else tuple(tensor.shape)
        if shape != tuple(weight.shape):
            raise InputError(
                f"The adapter in {folder} is of shape {shape} at {name} and the model is {tuple(weight.shape)}; it is "
                "another model's."
            )
        if matrix and down is not None:
            product = tensor.float() @ down.float() * adapter.scale
            weight.add_(product.to(weight))
        else:
            weight.copy_(tensor)
    vlm.adapted, vlm.__dict__["fingerprint"] = True, fingerprint
    return vlm


def fingerprint_adapter(base: str, tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over the ``base``'s and what changes it."""
    digest = hashlib.sha256(base.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_adapter(folder: Path, config: Mapping[str, Any], adapter: Adapter) -> None:
    """Into an empty folder. ``config``: peft's, as plain values."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", _BASE: adapter.base_fingerprint})
    name = Path(adapter.base).name if Path(adapter.base).is_absolute() else adapter.base
    (folder / CARD).write_text(_CARD.format(base=name, fingerprint=adapter.base_fingerprint), encoding="utf-8")


def peft_name(name: str) -> str:
    """peft's name in a file of a parameter of the model."""
    return _PREFIX + name.replace(".default.", ".")


_CARD = """---
library_name: peft
base_model: {base}
---

An adapter: what a training changed of **{base}** (fingerprint `{fingerprint}`), LoRA on its language model and, where
it was trained, its projector. It is nothing without that model:

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "this folder")
```

`python app.py --model FOLDER` opens it, too, as long as `base_model_name_or_path` in `adapter_config.json` says where
the base lies.
"""
