"""Images brought to one size and cropped to their middle, as CLIP's image processor does and LLaVA-1.5 with it.

Sizes and filters are transformers' (``image_processing_backends.py``, ``image_processing_pil_llava.py``). Needs no
torch: runs in the process that decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.errors import InputError
from model.picture import Box, ImageLayout, whole_box


@dataclass(frozen=True)
class CroppedImages:
    """Sizes are (width, height) in px. ``shortest``: of the short side, or else ``size`` for both, or neither.
    ``crop``: what is taken of the middle, None for all. ``filter``: PIL's number of the resampling filter.
    ``square``: the colour that an image is padded to a square with before anything else, None for no padding. ``used``:
    px of each side, from the left and the top, that image tokens stand for, None for all. ``notes`` on every image."""

    shortest: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    filter: int
    square: tuple[int, int, int] | None = None
    used: int | None = None
    notes: tuple[str, ...] = ()

    def check_side(self, side: int) -> None:
        """InputError unless pictures of any shape come out ``side`` × ``side``, as the image encoder reads them."""
        for width, height in ((2 * side, side), (side, 3 * side)):
            if self.lay_out((width, height)).resized_size != (side, side):
                raise InputError(
                    f"The settings for images don't lead to the {side} × {side} px that the image encoder reads; "
                    "correct preprocessor_config.json."
                )

    def lay_out(self, size: tuple[int, int]) -> ImageLayout:
        """See :class:`model.picture.LayingOut`."""
        padded = self._pad(size)
        resized = self._resize(padded)
        left, top = (padded[0] - size[0]) // 2, (padded[1] - size[1]) // 2
        across, down = padded[0] / resized[0], padded[1] / resized[1]
        first, last = self._crop(resized)
        seen = Box(first[0] * across - left, first[1] * down - top, last[0] * across - left, last[1] * down - top)
        shown = last[0] - first[0], last[1] - first[1]
        if self.used is not None and (self.used, self.used) != shown:
            seen = Box(seen.left, seen.top, (first[0] + self.used) * across - left, (first[1] + self.used) * down - top)
        whole = whole_box(size)
        notes = _note(seen, whole) if self.used is None else _note_rest(seen, whole)
        return ImageLayout(size, shown, (1, 1), (seen,), seen=seen if notes else None, notes=(*notes, *self.notes))

    def reduce(self, picture: Image.Image) -> tuple[np.ndarray, ...]:
        """See :class:`model.picture.ImageGeometry`."""
        if self.square is not None and picture.width != picture.height:
            size = self._pad(picture.size)
            padded = Image.new("RGB", size, self.square)
            padded.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
            picture = padded
        size = self._resize(picture.size)
        # Pillow leaves alone what has its size already; transformers asks for it all the same, to the same end.
        resized = picture.resize(size, Image.Resampling(self.filter))
        first, last = self._crop(size)
        return (np.array(resized.crop((*first, *last))),)  # black where it is larger than the image

    def _pad(self, size: tuple[int, int]) -> tuple[int, int]:
        return size if self.square is None else (max(size), max(size))

    def _resize(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.shortest is None:
            return size if self.size is None else self.size
        width, height = size
        short, long = min(size), max(size)
        other = int(self.shortest * long / short)
        return (self.shortest, other) if width <= height else (other, self.shortest)

    def _crop(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """(left, top) and (right, bottom) of what is taken, in the resized image."""
        if self.crop is None:
            return (0, 0), size
        left, top = (size[0] - self.crop[0]) // 2, (size[1] - self.crop[1]) // 2
        return (left, top), (left + self.crop[0], top + self.crop[1])


def mean_colour(mean: Sequence[float] | None) -> tuple[int, int, int]:
    """What LLaVA's image processors pad with: the mean that they normalise by, as 8-bit values."""
    values = [int(value * 255) for value in mean] if mean else [0, 0, 0]
    return values[0], values[1], values[2]


def _note_rest(seen: Box, whole: Box) -> tuple[str, ...]:
    """In words, what the encoder reads and no image token stands for."""
    if max(whole.right - seen.right, whole.bottom - seen.bottom) <= 0:
        return ()
    return (f"no image token for what is outside x 0–{seen.right:.0f}, y 0–{seen.bottom:.0f} px",)


def _note(seen: Box, whole: Box) -> tuple[str, ...]:
    """In words, what the model doesn't get or gets beside the image; nothing within a pixel of all of it."""
    found = []
    if max(seen.left, seen.top, whole.right - seen.right, whole.bottom - seen.bottom) >= 1:
        left, top = max(seen.left, 0), max(seen.top, 0)
        right, bottom = min(seen.right, whole.right), min(seen.bottom, whole.bottom)
        found.append(f"cut off outside x {left:.0f}–{right:.0f}, y {top:.0f}–{bottom:.0f} px")
    if min(seen.left, seen.top, whole.right - seen.right, whole.bottom - seen.bottom) <= -1:
        found.append("padded to the model's size")
    return tuple(found)
