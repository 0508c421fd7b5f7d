"""How many bytes a value of a page's state holds, near enough to bound them. No gradio here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from inspector.images.image_file import ImageFile

NUMBER_BYTES = 32
"""Of a number in a list: its place there and itself."""


def count_bytes(value: Any) -> int:
    """Tensors, arrays, images, text and numbers in ``value``, however deep, each object once; a model (which is
    everybody's) and what a value of unknown kind holds count nothing."""
    return _count(value, set())


def _count(value: Any, seen: set[int]) -> int:
    if value is None or isinstance(value, bool | int | float):
        return NUMBER_BYTES
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, str | bytes | bytearray):
        return sys.getsizeof(value)
    if isinstance(value, torch.nn.Module):
        return 0
    if isinstance(value, torch.Tensor):
        # Several tensors can be views of the same memory.
        storage = value.untyped_storage()
        known = storage.data_ptr() in seen
        seen.add(storage.data_ptr())
        return 0 if known else storage.nbytes()
    if isinstance(value, np.ndarray):
        base = value if value.base is None else value.base
        if base is not value and id(base) in seen:
            return 0
        seen.add(id(base))
        return value.nbytes
    if isinstance(value, Image.Image):
        return value.width * value.height * (1 if len(value.getbands()) == 1 else 4)
    if isinstance(value, ImageFile):
        return value.kept_bytes
    if isinstance(value, Mapping):
        return sys.getsizeof(value) + sum(_count(key, seen) + _count(held, seen) for key, held in value.items())
    if isinstance(value, list | tuple | Set):
        return sys.getsizeof(value) + sum(_count(held, seen) for held in value)
    if is_dataclass(value) and not isinstance(value, type):
        return sum(_count(getattr(value, field.name), seen) for field in fields(value))
    return 0
