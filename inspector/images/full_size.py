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
from PIL import Image, ImageFilter, ImageStat

from model.picture import ImageGeometry, OpenedImage, open_image

EXACT_PIXELS = 256 * 256
"""Up to so many pixels a picture is sent exactly, as PNG; a larger one as JPEG."""

BLUR_PX = 256
"""What is blurred is shrunk to so long a side before, for of finer things nothing would be left: time and memory then
don't grow with the image."""
BLUR = 1 / 8
"""Standard deviation of the blur, in longer sides of what is blurred."""
PASTE_PX = 2048
"""Longest side of what is handed from one image to another."""
GREY, BLACK = (128, 128, 128), (0, 0, 0)

T = TypeVar("T")

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels, the last two outside."""

EDITS = ("blur", "grey", "mean", "black", "keep", "paste")
"""*blur*: see :data:`BLUR`; *grey*, *black*: painted so; *mean*: painted in the image's mean colour; *keep*: everything
around is painted in it; *paste*: another picture is stretched over it."""


@dataclass(frozen=True)
class PixelEdit:
    """``how`` (of :data:`EDITS`) ``rectangle`` is changed; ``source``: what is pasted."""

    how: str
    rectangle: Rectangle
    source: Image.Image | None = None


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


def find_median(opened: OpenedImage) -> Colour:
    """The median colour, each channel for itself."""
    counts = np.array(opened.pixels.histogram()).reshape(3, 256).cumsum(axis=1)
    total = int(counts[0, -1])
    # The middle value, or the mean of the two in the middle.
    low, high = ((counts > place).argmax(axis=1) for place in ((total - 1) // 2, total // 2))
    red, green, blue = ((low + high) / 2).round().astype(int).tolist()
    return red, green, blue


def find_mean(opened: OpenedImage) -> Colour:
    """The mean colour, to whole values."""
    red, green, blue = (round(mean) for mean in ImageStat.Stat(opened.pixels).mean)
    return red, green, blue


def paint_over(
    opened: OpenedImage, covers: Sequence[Sequence[Rectangle]], paint: Colour, geometry: ImageGeometry
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


def cut_out(opened: OpenedImage, box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """What lies in ``box`` (left, top, right, bottom in pixels, fractions are meant), stretched to ``size``, or as
    large in these proportions as :data:`PASTE_PX` allows."""
    scale = min(1.0, PASTE_PX / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    return opened.pixels.resize((width, height), Image.Resampling.BICUBIC, box=box)


def edit_image(
    opened: OpenedImage, edits: Sequence[PixelEdit], geometry: ImageGeometry
) -> tuple[Facts, tuple[np.ndarray, ...]]:
    """:func:`reduce_image` of the image with all ``edits``, one after the other."""
    picture = opened.pixels.copy()
    mean = find_mean(opened)
    for edit in edits:
        _edit(picture, edit, mean)
    return reduce_image(OpenedImage(picture), geometry)


def _edit(picture: Image.Image, edit: PixelEdit, mean: Colour) -> None:
    left, top, right, bottom = edit.rectangle
    size = right - left, bottom - top
    if edit.how == "keep":
        kept = picture.crop(edit.rectangle)
        picture.paste(mean, (0, 0, *picture.size))
        picture.paste(kept, edit.rectangle)
    elif edit.how == "blur":
        scale = min(1.0, BLUR_PX / max(size))
        width, height = (max(1, round(side * scale)) for side in size)
        small = picture.resize((width, height), Image.Resampling.BOX, box=edit.rectangle)
        small = small.filter(ImageFilter.GaussianBlur(max(small.size) * BLUR))
        picture.paste(small.resize(size, Image.Resampling.BICUBIC), edit.rectangle)
    elif edit.source is not None:
        picture.paste(edit.source.resize(size, Image.Resampling.BICUBIC), edit.rectangle)
    else:
        picture.paste({"grey": GREY, "black": BLACK, "mean": mean}[edit.how], edit.rectangle)


def hand_over(opened: OpenedImage) -> Image.Image:
    """All of it, for what can't be done here."""
    return opened.pixels.copy()  # without what is left of its decoder
