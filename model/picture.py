"""Any image file as an upright 8-bit RGB picture, and what is done with its pixels at full size.

Needs neither torch nor the rest of the package, so that a process which only decodes starts soon and stays small
(:mod:`inspector.images.decoder`). Only the decoders of :data:`FORMATS` are open, only regular files are read, at most
:data:`MAX_FILE_BYTES` of them, and the number of pixels is looked up before any is decoded.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from model.errors import InputError

MAX_PIXELS = 89_478_485
"""Largest picture that is opened: Pillow's own limit against decompression bombs, a quarter of a GiB at 3 bytes."""
MAX_FILE_BYTES = 40 << 20
"""Largest file that is opened."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's names of the decoders that are used; MPO, what some cameras call a JPEG, comes with JPEG."""
PREVIEW_PX = 768
"""Longest side of the preview that is kept of a picture."""
MAX_FRAMES = 1000
"""So many frames of an animation are counted: those of some formats lie one behind the other all through the file."""

_ALLOWED = "choose a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF picture"
_ORIENTATION = 0x0112
_TURNED = range(2, 9)
_SIXTEEN = (";16B", ";16L", ";16N")
"""Ends of the names of colours with 16 bits a channel, which are decoded to 8."""
_GREYS = {"L;2": 85, "L;4": 17}
"""Greys of fewer bits, and what one step of theirs is of 255."""
"""Values of the tag that mean something: 1 is upright, and any other is a fault that turns nothing."""
_DARK, _DARK_SHARE = 26, 0.001
"""A picture of more than 8 bits whose values, all but so few of them, come out below a tenth of the range."""
_BAND_PIXELS = 4_000_000
"""Colours are converted so many pixels at a time, so that a large picture is never there three times."""


@dataclass(frozen=True)
class OpenedImage:
    """An upright 8-bit RGB picture and what was done to make it one."""

    pixels: Image.Image
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.size

    @property
    def preview(self) -> Image.Image:
        """At most :data:`PREVIEW_PX` wide and high."""
        return shrink(self.pixels, PREVIEW_PX)


@dataclass(frozen=True)
class Header:
    """What a file says of its picture before it is decoded. ``size`` as it is stored, not yet upright; ``copies``: how
    often the pixels are in memory while the picture is opened."""

    size: tuple[int, int]
    copies: int


@dataclass(frozen=True)
class Box:
    """A rectangle in the original image's pixels, left ≤ right and top ≤ bottom; fractions are meant."""

    left: float
    top: float
    right: float
    bottom: float

    def part(self, rows: int, cols: int, row: int, col: int) -> Box:
        """Cell (``row``, ``col``) of the box divided into ``rows`` × ``cols``."""
        width, height = self.right - self.left, self.bottom - self.top
        return Box(
            self.left + width * col / cols,
            self.top + height * row / rows,
            self.left + width * (col + 1) / cols,
            self.top + height * (row + 1) / rows,
        )

    def parts(self, rows: int, cols: int) -> tuple[Box, ...]:
        """All its cells, row by row."""
        return tuple(self.part(rows, cols, row, col) for row in range(rows) for col in range(cols))


def whole_box(size: tuple[int, int]) -> Box:
    """All of an image of ``size`` (width, height)."""
    return Box(0.0, 0.0, float(size[0]), float(size[1]))


@dataclass(frozen=True)
class ImageLayout:
    """What an image of a given size becomes, before any pixel is touched. Sizes are (width, height) in pixels.

    ``resized_size``: of the tiles side by side, ``grid`` (rows, cols) of them; ``boxes``: what each tile covers of the
    original, in the tiles' order; ``thumbnail``: which of them is the whole image once more, first or last, None if
    there is none. ``seen``: what of the original the model gets at all, None for all of it.
    """

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    grid: tuple[int, int]
    boxes: tuple[Box, ...]
    thumbnail: int | None = None
    seen: Box | None = None
    notes: tuple[str, ...] = ()


class ImageGeometry(Protocol):
    """What one model does with the pixels of an image at full size. Frozen, can be pickled, and needs no torch: it
    works in the process that decodes."""

    def reduce(self, picture: Image.Image) -> tuple[np.ndarray, ...]:
        """``[height width 3]`` uint8 each: first the image at the model's size, its tiles side by side; then, where it
        can't be made from that, the thumbnail."""
        ...


class LayingOut(ImageGeometry, Protocol):
    """A geometry that says beforehand what it makes of an image."""

    def lay_out(self, size: tuple[int, int]) -> ImageLayout:
        """Of an image of ``size`` (width, height). InputError if the family refuses such an image."""
        ...


@dataclass(frozen=True)
class Geometry:
    """What the size of a picture resized by nanoVLM follows from: see :class:`model.config.VLMConfig` for the
    fields."""

    tile_px: int
    max_side_px: int
    always_max_side: bool
    splits_images: bool

    def reduce(self, picture: Image.Image) -> tuple[np.ndarray, ...]:
        """See :class:`ImageGeometry`; the thumbnail is made from the resized image."""
        return (np.array(resize(picture, self), dtype=np.uint8),)


def open_image(source: str | os.PathLike[str] | bytes | Image.Image) -> OpenedImage:
    """Any picture as upright RGB: EXIF rotation applied, transparency laid over white, first frame of an animation,
    16-bit and float values scaled to 8 bits. InputError if it is no image or none of :data:`FORMATS`, is cut off, has
    over MAX_PIXELS or lies in a file of over MAX_FILE_BYTES."""
    name = name_source(source)
    image = source if isinstance(source, Image.Image) else _open_header(source, name)
    _check_pixels(image, name)
    notes: list[str] = []
    try:
        if (frames := _count_frames(image)) > 1:
            notes.append(f"first of {frames} frames" if frames <= MAX_FRAMES else f"first of over {MAX_FRAMES} frames")
        stored = _read_storing(image)
        turned = image.getexif().get(_ORIENTATION) in _TURNED  # of a TIFF known before it is decoded alone
        image.load()
        if turned or image.getexif().get(_ORIENTATION) in _TURNED:
            notes.append("turned upright by its EXIF tag")
        if image is source:
            image = ImageOps.exif_transpose(image)  # a copy: the caller's stays as it is
        else:
            ImageOps.exif_transpose(image, in_place=True)
    except MemoryError as error:
        raise InputError(_say_no_memory(name)) from error
    except Exception as error:
        raise InputError(
            f"{name} is damaged or cut off ({_shorten(error)}); save it again and upload the new file."
        ) from error
    try:
        pixels, note = _to_rgb(image)
        if stored.endswith(_SIXTEEN) and not stored.startswith("I"):  # Pillow has taken the upper half of each value
            note = "16-bit values scaled to 8 bits", *note, *_say_dark(pixels, max(h for _, h in _extrema(pixels)), 255)
    except MemoryError as error:
        raise InputError(_say_no_memory(name)) from error
    except Exception as error:
        raise InputError(f"{name} has colours of a kind ({image.mode}) that can't be read; save it as RGB.") from error
    return OpenedImage(pixels, (*notes, *note))


def read_header(source: str | os.PathLike[str] | bytes) -> Header:
    """InputError as in :func:`open_image`, but for what only decoding shows."""
    name = name_source(source)
    image = _open_header(source, name)
    _check_pixels(image, name)
    return Header(image.size, 1 if _is_plain(image) else 2)


def check_file(path: str | os.PathLike[str]) -> os.stat_result:
    """What the system knows of a regular file. InputError for anything else (devices, pipes and folders are not even
    opened), for one of over MAX_FILE_BYTES, and if there is none."""
    name = name_source(path)
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    _check_size(found, name)
    return found


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file. InputError as in :func:`check_file`, and if it can't be read."""
    name = name_source(path)
    check_file(path)
    try:
        # Whatever was put in its place since can't keep anybody waiting either.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            _check_size(found, name)
            return file.read(found.st_size)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def _check_size(found: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{name} is not a file; {_ALLOWED}.")
    _check_bytes(found.st_size, name)


def _check_bytes(count: int, name: str) -> None:
    if count > MAX_FILE_BYTES:
        # Decimals enough that a file just above the limit doesn't read as if it were at it.
        raise InputError(f"{name} has {count / 2**20:,.2f} MiB; at most {MAX_FILE_BYTES >> 20} are taken, scale it.")


def _unreadable(name: str, error: OSError | ValueError) -> InputError:
    why = getattr(error, "strerror", None) or "no file can have that name"
    return InputError(f"{name} can't be read ({why}); choose another file.")


def name_source(source: object) -> str:
    """What a sentence calls ``source``: a file by its name alone, for where it lies is nobody's business."""
    if not isinstance(source, str | os.PathLike):
        return "The image"
    # A name can be long, and hold what no text can.
    name = os.fsencode(Path(source).name).decode(errors="replace")
    return f"“{name if len(name) <= 80 else name[:60] + '…'}”"


def _shorten(error: Exception) -> str:
    """What a decoder complained of, in one line."""
    words = " ".join(str(error).split())
    return words if len(words) <= 100 else words[:99] + "…"


def _open_header(source: str | os.PathLike[str] | bytes, name: str) -> Image.Image:
    data = source if isinstance(source, bytes) else read_file(source)
    if not data:
        raise InputError(f"{name} is empty (0 bytes); {_ALLOWED}.")
    _check_bytes(len(data), name)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError as error:
        raise InputError(_say_no_memory(name)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(_say_too_large(name)) from error
    except Exception as error:  # each decoder fails in its own way
        raise InputError(f"{name} is not an image that can be opened; {_ALLOWED}.") from error


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(_say_too_large(f"{name} ({image.width} × {image.height})"))


def _say_too_large(name: str) -> str:
    return f"{name} is too large; at most {MAX_PIXELS / 1e6:.0f} million pixels are allowed, scale it down first."


def _say_no_memory(name: str) -> str:
    return f"{name} needs more memory to open than an image may take; scale it down or save it again as PNG or JPEG."


def _count_frames(image: Image.Image) -> int:
    """Frames of an animation or pages of a document, those over MAX_FRAMES counted as one more. The first is shown."""
    if getattr(image, "format", None) not in ("GIF", "TIFF"):
        return int(getattr(image, "n_frames", 1))  # stands in the header
    # Pillow's own count reads the file to its end, and looks at every page of a TIFF once for each before it.
    frames = 1
    try:
        while frames <= MAX_FRAMES:
            _step_to_frame(image, frames)
            frames += 1
    except EOFError:
        pass  # that was the last one
    if frames > 1:
        image.seek(0)
    return frames


def _step_to_frame(image: Image.Image, frame: int) -> None:
    if image.format == "GIF":
        image._seek(frame, False)  # type: ignore[attr-defined]  # as its n_frames does: steps over it, draws nothing
    else:
        image.seek(frame)


# --- colours ---


def _read_storing(image: Image.Image) -> str:
    """How a file keeps its pixels, in Pillow's name; empty where that isn't known. The transparent colour of a PNG is
    put at the scale that its pixels will have."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else None
    stored = arguments if isinstance(arguments, str) else arguments[0] if isinstance(arguments, tuple) else ""
    clear = image.info.get("transparency")
    if getattr(image, "format", None) == "PNG":
        if stored in _GREYS and isinstance(clear, int):
            image.info["transparency"] = clear * _GREYS[stored]
        elif stored.endswith(_SIXTEEN) and isinstance(clear, tuple):
            image.info["transparency"] = tuple(value >> 8 for value in clear)
    return str(stored)


def _extrema(picture: Image.Image) -> list[tuple[int, int]]:
    """The smallest and largest value of each channel."""
    return [picture.getchannel(channel).getextrema() for channel in range(3)]  # type: ignore[misc]


def _is_plain(image: Image.Image) -> bool:
    """Whether the pixels can be used as they were decoded. Other decoders stay in memory as long as their picture."""
    plain = image.mode == "RGB" and "transparency" not in image.info
    return plain and getattr(image, "format", None) in (None, "PNG", "JPEG", "BMP")


def _to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture itself if it is plain."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image if _is_plain(image) else image.copy(), ()
    deep = mode.startswith("I") or mode == "F"
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or ("transparency" in image.info and not deep):
        opaque = all(band.convert("RGBA").getchannel("A").getextrema()[0] == 255 for _, band in _bands(image))
        if opaque:
            return _convert(image, lambda band: band.convert("RGBA").convert("RGB")), ()
        return _convert(image, _lay_over_white), ("transparency laid over white",)
    if deep:
        top = max(float(_numbers(band).max(initial=0.0)) for _, band in _bands(image))
        # Whole numbers are 16-bit values however dark the picture; floats say their scale by their largest.
        full_scale = max(top, 65535.0)
        if mode == "F":
            full_scale = 1.0 if top <= 1 else 255.0 if top <= 255 else full_scale

        def scale(band: Image.Image) -> Image.Image:
            values = np.clip(np.rint(_numbers(band) * (255.0 / full_scale)), 0, 255)
            return Image.fromarray(values.astype(np.uint8)).convert("RGB")

        found = _convert(image, scale)
        kind = "float" if mode == "F" else "16-bit" if full_scale <= 65535 else "32-bit"
        notes = f"{kind} values scaled to 8 bits", *_say_dark(found, top, full_scale)
        key = image.info.get("transparency")
        if key is None:
            return found, notes
        for row, band in _bands(image):
            found.paste("white", (0, row), Image.fromarray(_numbers(band) == float(key)))
        return found, (*notes, "transparency laid over white")
    note = (f"{mode} colours turned into RGB",) if mode in ("CMYK", "YCbCr", "LAB", "HSV") else ()
    return _convert(image, lambda band: band.convert("RGB")), note


def _say_dark(picture: Image.Image, top: float, full_scale: float) -> tuple[str, ...]:
    """That a picture came out nearly black, as 12-bit values in 16 bits do, and all others beside one stray."""
    for channel in range(3):
        counts = picture.getchannel(channel).histogram()
        if sum(counts[_DARK:]) > _DARK_SHARE * sum(counts):
            return ()
    bounds = f"its brightest value is {top:,.6g}, white is {full_scale:,.6g}"
    return (f"nearly black: almost all of it comes out below {_DARK} of 255 ({bounds})",)


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, the rows from there) until all of the picture was there."""
    rows = max(1, _BAND_PIXELS // max(image.width, 1))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _convert(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    found = Image.new("RGB", image.size)
    for top, band in _bands(image):
        found.paste(convert(band), (0, top))
    return found


def _lay_over_white(band: Image.Image) -> Image.Image:
    rgba = band.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _numbers(band: Image.Image) -> np.ndarray:
    values = np.asarray(band, dtype=np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


# --- at full size ---


def shrink(image: Image.Image, longest: int) -> Image.Image:
    """A copy whose sides are ``longest`` at most, the one that Pillow's ``thumbnail`` makes: that works in place and
    would want a copy at full size."""
    width, height = image.size
    if max(width, height) <= longest:
        return image.copy()
    aspect = width / height
    if aspect <= 1:
        size = _round(longest * aspect, lambda n: abs(aspect - n / longest)), longest
    else:
        size = longest, _round(longest / aspect, lambda n: abs(aspect - longest / n) if n else 0)
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _round(number: float, error: Callable[[int], float]) -> int:
    return max(min(math.floor(number), math.ceil(number), key=error), 1)


def resize(image: Image.Image, geometry: Geometry) -> Image.Image:
    """The whole image at the size that is cut into tiles: what the model sees, before the cutting."""
    size = resized_size(image.size, geometry)
    if size == image.size:
        return image
    method = Image.Resampling.BICUBIC if geometry.splits_images else Image.Resampling.BILINEAR
    # Pillow rounds to 8 bits between its two passes, so their order shows. Version 13 begins with the rows where that
    # drops many of them; earlier versions never do. Two explicit passes give the same pixels with either.
    (width, height), (new_width, new_height) = image.size, size
    rows_first = height - new_height > 2 * max(width - new_width, 0)
    between = (width, new_height) if rows_first else (new_width, height)
    return image.resize(between, method).resize(size, method)


def resized_size(size: tuple[int, int], geometry: Geometry) -> tuple[int, int]:
    """(width, height) of what is cut into tiles."""
    width, height = size
    tile = geometry.tile_px
    if not geometry.splits_images:
        return tile, tile
    long, short = (width, height) if width >= height else (height, width)
    # Upstream's float arithmetic on purpose, odd cases too: 1092 × 1092 becomes 1536 × 2048, not square.
    target = (
        geometry.max_side_px if geometry.always_max_side else min(geometry.max_side_px, math.ceil(long / tile) * tile)
    )
    scale = target / long
    other = max(math.ceil(short * scale / tile) * tile, tile)
    return (target, other) if width >= height else (other, target)
