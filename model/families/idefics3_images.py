"""How Idefics3 and SmolVLM cut images: sizes and filters are transformers' (``image_processing_pil_idefics3.py``).

The long side becomes ``longest`` px, larger or smaller, then both sides a multiple of the tile, so that the aspect
ratio changes a little twice; tiles lie row by row and the thumbnail, made of the resized image, stands last. Needs no
torch: runs in the process that decodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.picture import ImageLayout, whole_box

_MOST = 4096
"""No side is made longer, whatever the settings."""


@dataclass(frozen=True)
class SplitImages:
    """``longest``: px of the long side, None where the image is not brought to a size first; ``tile``: px of a side of
    a tile; ``splits``: whether there may be several; ``filter``: PIL's number of the resampling filter."""

    longest: int | None
    tile: int
    splits: bool
    filter: int

    def lay_out(self, size: tuple[int, int]) -> ImageLayout:
        """See :class:`model.picture.LayingOut`."""
        resized = self._stretch(self._scale(size))
        grid = resized[1] // self.tile, resized[0] // self.tile
        whole = whole_box(size)
        if grid == (1, 1):
            return ImageLayout(size, resized, grid, (whole,))
        boxes = (*whole.parts(*grid), whole)
        return ImageLayout(size, resized, grid, boxes, thumbnail=len(boxes) - 1)

    def reduce(self, picture: Image.Image) -> tuple[np.ndarray, ...]:
        """See :class:`model.picture.ImageGeometry`."""
        # Each step rounds to 8 bits, so none can be left out.
        scaled = self._resize(picture, self._scale(picture.size))
        resized = self._resize(scaled, self._stretch(scaled.size))
        if resized.size == (self.tile, self.tile):
            return (np.array(resized),)
        return np.array(resized), np.array(self._resize(resized, (self.tile, self.tile)))

    def _resize(self, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        return picture.resize(size, Image.Resampling(self.filter))

    def _scale(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.longest is None:
            return size
        width, height = size
        aspect = width / height
        if width >= height:
            width, height = self.longest, int(self.longest / aspect)
            height += height % 2
        else:
            width, height = int(self.longest * aspect), self.longest
            width += width % 2
        width, height = max(width, 1), max(height, 1)
        aspect = width / height
        if width >= height and width > _MOST:
            width, height = _MOST, int(_MOST / aspect)
        elif height > width and height > _MOST:
            width, height = int(_MOST * aspect), _MOST
        return max(width, 1), max(height, 1)

    def _stretch(self, size: tuple[int, int]) -> tuple[int, int]:
        if not self.splits:
            return self.tile, self.tile
        width, height = size
        aspect = width / height
        if width >= height:
            width = self._round(width)
            height = self._round(int(width / aspect))
        else:
            height = self._round(height)
            width = self._round(int(height * aspect))
        return width, height

    def _round(self, side: int) -> int:
        return math.ceil(side / self.tile) * self.tile
