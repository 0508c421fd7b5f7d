"""What is done with the pixels of an image at full size: each takes an opened image and hands back something small.

Runs in the process that decodes (:mod:`inspector.images.decoder`), so it needs no torch and nothing of a model.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from model.picture import ImageGeometry, OpenedImage, open_image

EXACT_PIXELS = 256 * 256
"""Up to so many pixels a picture is sent exactly, as PNG; a larger one as JPEG."""

T = TypeVar("T")

Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels, the last two outside."""


@dataclass(frozen=True)
class Facts:
    """What is kept of an image when its pixels are not: the preview as the bytes of a file that a browser shows."""

    size: tuple[int, int]
    notes: tuple[str, ...]
    preview: bytes


def open_and_apply(path: Path, function: Callable[..., T], *arguments: Any) -> T:
    """``function`` of the image in the file at ``path``. InputError as in :func:`model.picture.open_image`."""
    return function(open_image(path), *arguments)


def encode_picture(picture: Image.Image) -> bytes:
    """A file for the browser: small pictures exactly, large ones as JPEG."""
    buffer = io.BytesIO()
    small = picture.width * picture.height <= EXACT_PIXELS
    picture.save(buffer, "PNG" if small else "JPEG", quality=88)
    return buffer.getvalue()


def examine(opened: OpenedImage) -> Facts:
    return Facts(opened.size, opened.notes, encode_picture(opened.preview))


def read_preview(facts: Facts) -> Image.Image:
    """The preview as a picture of its own."""
    return Image.open(io.BytesIO(facts.preview)).convert("RGB")


def reduce_image(opened: OpenedImage, geometry: ImageGeometry) -> tuple[Facts, tuple[np.ndarray, ...]]:
    """What is kept, and the image at the model's size: see :meth:`model.picture.ImageGeometry.reduce`."""
    return examine(opened), geometry.reduce(opened.pixels)


def find_median(opened: OpenedImage) -> tuple[int, int, int]:
    """The median colour, each channel for itself."""
    counts = np.array(opened.pixels.histogram()).reshape(3, 256).cumsum(axis=1)
    total = int(counts[0, -1])
    # The middle value, or the mean of the two in the middle.
    low, high = ((counts > place).argmax(axis=1) for place in ((total - 1) // 2, total // 2))
    red, green, blue = ((low + high) / 2).round().astype(int).tolist()
    return red, green, blue


def paint_over(
    opened: OpenedImage, covers: Sequence[Sequence[Rectangle]], paint: tuple[int, int, int], geometry: ImageGeometry
) -> tuple[np.ndarray, ...]:
    """The image at the model's size with the rectangles of each of ``covers`` painted over: ``[cover height width 3]``,
    uint8, of each picture that the model makes of an image."""
    found = []
    for rectangles in covers:
        picture = opened.pixels.copy()
        for rectangle in rectangles:
            picture.paste(paint, rectangle)
        found.append(geometry.reduce(picture))
    return tuple(np.stack(pictures) for pictures in zip(*found, strict=True))


def stretch_image(
    opened: OpenedImage, size: tuple[int, int], geometry: ImageGeometry
) -> tuple[Facts, tuple[np.ndarray, ...]]:
    """:func:`reduce_image` of the image stretched to ``size``."""
    pixels = opened.pixels
    fitted = pixels if pixels.size == size else pixels.resize(size, Image.Resampling.BICUBIC)
    return reduce_image(OpenedImage(fitted), geometry)


def hand_over(opened: OpenedImage) -> Image.Image:
    """All of it, for what can't be done here."""
    return opened.pixels.copy()  # without what is left of its decoder
