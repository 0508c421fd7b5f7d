"""What a model is put together from: names and choices, nothing read yet."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from model.config import PROJECTORS
from model.errors import InputError
from model.values import is_whole, name_value

MOST_TOKENS = 64
"""Image tokens of a tile, unless a pixel shuffle is named: nanoVLM's."""


@dataclass(frozen=True)
class Parts:
    """``vision`` and ``language``: hub ids or folders, also of a whole nanoVLM model, of which the one part is taken
    (“embedded” is the one that ships). ``projector``: "linear" (nanoVLM, LLaVA) or "mlp" (LLaVA-1.5).
    ``pixel_shuffle``: how many patches along a side become one token, None for the least that gives at most
    :data:`MOST_TOKENS`. ``feature_layer``, ``tile_px`` and ``normalise``: see :class:`model.backbones.VisionOptions`.
    ``max_img_size``: the longest side that a picture is resized to, in pixels and in whole tiles; None for one tile.
    ``resize_to_max_side_len``: whether smaller pictures are enlarged to it."""

    vision: str
    language: str
    projector: Literal["linear", "mlp"] = "linear"
    pixel_shuffle: int | None = None
    feature_layer: int | None = None
    tile_px: int | None = None
    normalise: bool = True
    max_img_size: int | None = None
    resize_to_max_side_len: bool = False

    def __post_init__(self) -> None:
        for name in ("vision", "language"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip() or "\0" in value:
                raise InputError(f"base.{name} is {name_value(value)}; it must be a folder or a hub id owner/name.")
        if self.projector not in PROJECTORS:
            raise InputError(
                f"base.projector is {name_value(self.projector)}; it must be one of {', '.join(PROJECTORS)}."
            )
        for name in ("pixel_shuffle", "tile_px", "max_img_size"):
            value = getattr(self, name)
            if value is not None and not (is_whole(value) and value > 0):
                raise InputError(f"base.{name} is {name_value(value)}; it must be a positive integer.")
        for name in ("normalise", "resize_to_max_side_len"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"base.{name} is {name_value(getattr(self, name))}; it must be true or false.")

    def to_dict(self) -> dict[str, Any]:
        """What is set, as a recipe has it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        return f"{Path(self.vision).name} + {Path(self.language).name}"
