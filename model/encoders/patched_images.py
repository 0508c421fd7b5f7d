"""Images resized to about so many patches, their sides as they were: SigLIP 2's (Tschannen et al. 2025, arXiv
2502.14786). Needs no torch: runs in the process that decodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.picture import ImageLayout, whole_box

SMALLEST, LARGEST, EXACT = 1e-6, 100.0, 1e-5
"""Between which factors transformers looks for the largest one, and how exactly."""


@dataclass(frozen=True)
class PatchedImages:
    """``patch`` px of a side, at most ``most`` patches. ``filter``: PIL's number of the resampling filter."""

    patch: int
    most: int
    filter: int

    def lay_out(self, size: tuple[int, int]) -> ImageLayout:
        """See :class:`model.picture.LayingOut`."""
        return ImageLayout(size, self._resize(size), (1, 1), (whole_box(size),))

    def reduce(self, picture: Image.Image) -> tuple[np.ndarray, ...]:
        """See :class:`model.picture.ImageGeometry`."""
        return (np.array(picture.resize(self._resize(picture.size), Image.Resampling(self.filter))),)

    def _resize(self, size: tuple[int, int]) -> tuple[int, int]:
        """By the largest factor, found by halving, whose patches are few enough; each side at least one patch."""
        low, high = SMALLEST, LARGEST
        while high - low >= EXACT:
            middle = (low + high) / 2
            across, down = (self._round(side * middle) for side in size)
            if (across // self.patch) * (down // self.patch) <= self.most:
                low = middle
            else:
                high = middle
        return self._round(size[0] * low), self._round(size[1] * low)

    def _round(self, side: float) -> int:
        return max(self.patch, math.ceil(side / self.patch) * self.patch)
