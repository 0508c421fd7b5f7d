"""How InternVL cuts images: sizes and order are transformers' (``image_processing_pil_got_ocr2.py``).

Of all grids with an allowed number of tiles, the one whose aspect ratio is nearest; both sides are stretched to it, so
the aspect ratio changes. The thumbnail is made of the original image and stands last. Needs no torch: runs in the
process that decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.picture import ImageLayout, whole_box


@dataclass(frozen=True)
class NearestGridImages:
    """``tile``: px of a side of a tile; ``fewest`` and ``most``: how many tiles there may be, without the thumbnail;
    ``filter``: PIL's number of the resampling filter."""

    tile: int
    fewest: int
    most: int
    filter: int

    def lay_out(self, size: tuple[int, int]) -> ImageLayout:
        """See :class:`model.picture.LayingOut`."""
        rows, cols = self._choose_grid(size)
        resized, whole = (cols * self.tile, rows * self.tile), whole_box(size)
        if rows * cols == 1:
            return ImageLayout(size, resized, (1, 1), (whole,))
        boxes = (*whole.parts(rows, cols), whole)
        return ImageLayout(size, resized, (rows, cols), boxes, thumbnail=len(boxes) - 1)

    def reduce(self, picture: Image.Image) -> tuple[np.ndarray, ...]:
        """See :class:`model.picture.ImageGeometry`."""
        rows, cols = self._choose_grid(picture.size)
        resized = self._resize(picture, cols, rows)
        return (resized,) if rows * cols == 1 else (resized, self._resize(picture, 1, 1))

    def _resize(self, picture: Image.Image, cols: int, rows: int) -> np.ndarray:
        return np.array(picture.resize((cols * self.tile, rows * self.tile), Image.Resampling(self.filter)))

    def _choose_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, cols). Grids are tried from few tiles to many, narrow ones first; of two that are equally near, the
        later is taken if the image has more than half of its pixels."""
        if self.most <= 1:
            return 1, 1
        width, height = size
        sides = range(1, self.most + 1)
        shapes = [(cols, rows) for cols in sides for rows in sides if self.fewest <= cols * rows <= self.most]
        best, nearest = (1, 1), float("inf")
        for cols, rows in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
            off = abs(width / height - cols / rows)
            larger = off == nearest and width * height > 0.5 * self.tile * self.tile * cols * rows
            if off < nearest or larger:
                best, nearest = (rows, cols), off
        return best
