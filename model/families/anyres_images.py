"""How LLaVA-NeXT and LLaVA-OneVision cut images ("any resolution"): sizes are transformers'
(``image_processing_pil_llava_onevision.py``).

Of the sizes that a checkpoint lists, the one that keeps most of the image and wastes least. The image is brought to it
with its own aspect ratio, black around it, and cut into tiles; the whole image, squeezed to one tile, comes first. Of
the tiles' features one grid is made, from which rows or columns that lie in the black are taken off again. Needs no
torch: runs in the process that decodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.picture import Box, ImageLayout, whole_box


@dataclass(frozen=True)
class AnyresImages:
    """``tile``: px of a side of what the encoder reads; ``cells``: image tokens of such a side. ``sizes``: those that
    an image may be brought to, (height, width) in px, in the checkpoint's order. ``filter``: PIL's number of the
    resampling filter. ``most``: a grid of far more cells than so many tiles have is shrunk to about that; None: never.
    """

    tile: int
    cells: int
    sizes: tuple[tuple[int, int], ...]
    filter: int
    most: int | None = None

    def lay_out(self, size: tuple[int, int]) -> ImageLayout:
        """See :class:`model.picture.LayingOut`. Two parts in the row: the whole image, and the grid of all tiles."""
        chosen, resized = self.choose_size(size)
        rows, cols = chosen[0] // self.tile, chosen[1] // self.tile
        skipped_rows, skipped_cols = self._count_skipped(size, rows, cols)
        left, top = self.place(size)
        px = self.tile / self.cells
        across, down = size[0] / resized[0], size[1] / resized[1]
        grid = Box(
            (skipped_cols * px - left) * across,
            (skipped_rows * px - top) * down,
            (chosen[1] - skipped_cols * px - left) * across,
            (chosen[0] - skipped_rows * px - top) * down,
        )
        note = f"read in {rows} × {cols} tiles, of whose features one grid is made"
        if 0 in self.count_cells(size):
            note += "; so narrow that no cell of it is left"
        return ImageLayout(size, resized, (1, 1), (whole_box(size), grid), thumbnail=0, notes=(note,))

    def reduce(self, picture: Image.Image) -> tuple[np.ndarray, ...]:
        """See :class:`model.picture.ImageGeometry`."""
        _, resized = self.choose_size(picture.size)
        how = Image.Resampling(self.filter)
        return np.array(picture.resize(resized, how)), np.array(picture.resize((self.tile, self.tile), how))

    def choose_size(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """((height, width) of the tiles together, (width, height) of the image in them)."""
        width, height = size
        best, kept_most, wasted_least = self.sizes[0], 0, math.inf
        for tall, wide in self.sizes:
            scale = min(wide / width, tall / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            wasted = wide * tall - kept
            if kept > kept_most or (kept == kept_most and wasted < wasted_least):
                best, kept_most, wasted_least = (tall, wide), kept, wasted
        across, down = best[1] / width, best[0] / height
        if across < down:
            return best, (best[1], min(math.ceil(height * across), best[0]))
        return best, (min(math.ceil(width * down), best[1]), best[0])

    def place(self, size: tuple[int, int]) -> tuple[int, int]:
        """(left, top) of the image in the black."""
        chosen, resized = self.choose_size(size)
        return (chosen[1] - resized[0]) // 2, (chosen[0] - resized[1]) // 2

    def count_cells(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, cols) of the grid of all tiles, for an image of ``size`` (width, height)."""
        chosen, _ = self.choose_size(size)
        rows, cols = chosen[0] // self.tile, chosen[1] // self.tile
        skipped_rows, skipped_cols = self._count_skipped(size, rows, cols)
        tall, wide = rows * self.cells - 2 * skipped_rows, cols * self.cells - 2 * skipped_cols
        if self.most is not None:
            ratio = math.sqrt(tall * wide / (self.most * self.cells**2))
            if ratio > 1.1:
                return int(tall // ratio), int(wide // ratio)
        return tall, wide

    def _count_skipped(self, size: tuple[int, int], rows: int, cols: int) -> tuple[int, int]:
        """(rows, cols) of cells that are taken off at either end."""
        width, height = size
        tall, wide = rows * self.cells, cols * self.cells
        # Rounded as transformers does, where a hair decides whether a row is dropped.
        if width / height > wide / tall:
            return (tall - int(round(height * (wide / width), 7))) // 2, 0
        return 0, (wide - int(round(width * (tall / height), 7))) // 2
