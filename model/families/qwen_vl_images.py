"""How Qwen-VL sizes images: one picture, its sides multiples of what an image token covers, its area within bounds.

The sizes are transformers' (``image_processing_pil_qwen2_vl.py``). Needs no torch: runs in the process that decodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.errors import InputError
from model.picture import ImageLayout, whole_box

MOST_RATIO = 200
"""The long side over the short one, at most."""


@dataclass(frozen=True)
class FittedImages:
    """``cell_px``: px of the side of what an image token covers; ``least`` and ``most``: pixels of the resized image;
    ``filter``: PIL's number of the resampling filter. ``resizes``: False where images must have fitting sides."""

    cell_px: int
    least: int
    most: int
    filter: int
    resizes: bool = True

    def lay_out(self, size: tuple[int, int]) -> ImageLayout:
        """See :class:`model.picture.LayingOut`."""
        return ImageLayout(size, self._fit(size), (1, 1), (whole_box(size),))

    def reduce(self, picture: Image.Image) -> tuple[np.ndarray, ...]:
        """See :class:`model.picture.ImageGeometry`."""
        return (np.array(picture.resize(self._fit(picture.size), Image.Resampling(self.filter))),)

    def _fit(self, size: tuple[int, int]) -> tuple[int, int]:
        width, height = size
        if not self.resizes:
            if width % self.cell_px or height % self.cell_px:
                raise InputError(
                    f"An image of {width} × {height} px does not divide into cells of {self.cell_px} px, and this "
                    "checkpoint's settings leave sizes as they are; scale it first."
                )
            return size
        if max(size) / min(size) > MOST_RATIO:
            raise InputError(
                f"An image of {width} × {height} px is {max(size) / min(size):.0f} times as long as it is across, and "
                f"this model takes at most {MOST_RATIO}; crop it."
            )
        # Python's rounding, halves to even, as in transformers; a side may come out as 0 and is then made larger.
        sides = [round(side / self.cell_px) * self.cell_px for side in size]
        if sides[0] * sides[1] > self.most:
            shrink = math.sqrt(height * width / self.most)
            sides = [max(self.cell_px, math.floor(side / shrink / self.cell_px) * self.cell_px) for side in size]
        elif sides[0] * sides[1] < self.least:
            grow = math.sqrt(self.least / (height * width))
            sides = [math.ceil(side * grow / self.cell_px) * self.cell_px for side in size]
        return sides[0], sides[1]
