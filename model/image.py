"""From an uploaded picture to the tiles that the image encoder sees.

    open_image → OpenedImage → process_image → ProcessedImage
    plan_image: what an image of a given size will become, before any pixel is touched

The sizes and pixels are upstream's exactly (nanoVLM, ``data/custom_transforms.py``): the long side becomes a multiple
of the tile, the short side is rounded *up* to one (so the aspect ratio changes), PIL's bicubic filter does the work on
8-bit values, and the thumbnail is an antialiased bilinear reduction of that resized image, not of the original.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from model.config import VLMConfig
from model.errors import InputError

MAX_PIXELS = 89_478_485
"""Largest picture that is opened: Pillow's own limit against decompression bombs, a quarter of a GiB at 3 bytes."""


@dataclass(frozen=True)
class Box:
    """A rectangle in the original image's pixels, left ≤ right and top ≤ bottom; fractions are meant."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class ImagePlan:
    """What an image will become: ``original_size`` and ``resized_size`` are (width, height) in pixels, ``grid`` is
    (rows, cols) of tiles, ``tiles`` counts the thumbnail too, ``tokens`` are all its positions in the sequence
    (image tokens and tile markers, without the ``<image: k>`` text of multi-image prompts)."""

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    grid: tuple[int, int]
    has_thumbnail: bool
    tiles: int
    tokens: int


@dataclass(frozen=True)
class OpenedImage:
    """An upright 8-bit RGB picture and what was done to make it one."""

    pixels: Image.Image
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProcessedImage:
    """An image as the encoder sees it.

    ``tiles [tile 3 tile_px tile_px]`` float32 in [0, 1]; tile 0 is the thumbnail if ``has_thumbnail``, then row by
    row. ``boxes`` has one :class:`Box` per tile (the whole image for the thumbnail). Sizes are (width, height).
    """

    tiles: Tensor
    grid: tuple[int, int]
    boxes: tuple[Box, ...]
    has_thumbnail: bool
    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    notes: tuple[str, ...] = ()


def open_image(source: str | os.PathLike[str] | bytes | Image.Image) -> OpenedImage:
    """Any picture as upright RGB: EXIF rotation applied, transparency laid over white, first frame of an animation,
    16-bit and float values scaled to 8 bits. InputError if it is no image, is cut off, or has over MAX_PIXELS."""
    name = "The image" if isinstance(source, bytes | Image.Image) else f"“{Path(source).name}”"
    if not isinstance(source, Image.Image):
        try:
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
        except OSError as error:
            raise InputError(f"{name} can't be read ({error.strerror}); choose another file.") from error
        if not data:
            raise InputError(f"{name} is empty (0 bytes); choose a PNG, JPEG, WebP, GIF, BMP or TIFF picture.")
        try:
            source = Image.open(io.BytesIO(data))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise InputError(_too_large(name)) from error
        except Exception as error:  # each decoder fails in its own way
            raise InputError(
                f"{name} is not an image that can be opened; choose a PNG, JPEG, WebP, GIF, BMP or TIFF picture."
            ) from error
    if source.width * source.height > MAX_PIXELS:
        raise InputError(_too_large(f"{name} ({source.width} × {source.height})"))
    notes: list[str] = []
    try:
        frames = getattr(source, "n_frames", 1)
        if frames > 1:
            source.seek(0)
            notes.append(f"first of {frames} frames")
        source.load()
        upright = ImageOps.exif_transpose(source)
    except Exception as error:
        raise InputError(f"{name} is damaged or cut off ({error}); save it again and upload the new file.") from error
    if source.getexif().get(0x0112, 1) != 1:
        notes.append("turned upright by its EXIF tag")
    try:
        pixels, note = _to_rgb(upright)
    except Exception as error:
        raise InputError(
            f"{name} has colours of a kind ({upright.mode}) that can't be read; save it as RGB."
        ) from error
    return OpenedImage(pixels, (*notes, *note))


def _too_large(name: str) -> str:
    return f"{name} is too large; at most {MAX_PIXELS / 1e6:.0f} million pixels are allowed, scale it down first."


def _to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    mode = image.mode
    if mode == "RGB":
        return image.copy(), ()
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema()[0] == 255:
            return rgba.convert("RGB"), ()
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB"), ("transparency laid over white",)
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image, dtype=np.float64)
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        top = values.max(initial=0.0)
        # Whole numbers are 16-bit values however dark the picture; floats say their scale by their largest.
        full_scale = max(top, 65535.0)
        if mode == "F":
            full_scale = 1.0 if top <= 1 else 255.0 if top <= 255 else full_scale
        grey = np.clip(np.rint(values * (255.0 / full_scale)), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB"), (
            f"{'float' if mode == 'F' else '16-bit'} values scaled to 8 bits",
        )
    note = (f"{mode} colours turned into RGB",) if mode in ("CMYK", "YCbCr", "LAB", "HSV") else ()
    return image.convert("RGB"), note


def _resized_size(size: tuple[int, int], config: VLMConfig) -> tuple[int, int]:
    width, height = size
    tile = config.vit_img_size
    if not config.splits_images:
        return tile, tile
    long, short = (width, height) if width >= height else (height, width)
    # Upstream's float arithmetic on purpose, odd cases too: 1092 × 1092 becomes 1536 × 2048, not square.
    target = config.max_img_size if config.resize_to_max_side_len else min(
        config.max_img_size, math.ceil(long / tile) * tile
    )  # fmt: skip
    scale = target / long
    other = max(math.ceil(short * scale / tile) * tile, tile)
    return (target, other) if width >= height else (other, target)


def plan_image(size: tuple[int, int], config: VLMConfig) -> ImagePlan:
    """The plan for an image of ``size`` (width, height) in pixels. InputError if either is below 1, or if the grid
    needs tile markers that the checkpoint lacks."""
    if min(size) < 1:
        raise InputError(f"An image of {size[0]} × {size[1]} px has no pixels; each side must be at least 1.")
    resized = _resized_size(size, config)
    cols, rows = resized[0] // config.vit_img_size, resized[1] // config.vit_img_size
    split = (rows, cols) != (1, 1)
    has_thumbnail = split and config.global_image_token is not None
    if config.splits_images and split:
        config.region_token(rows - 1, cols - 1)
    tiles = rows * cols + has_thumbnail
    # One marker per tile since tiles exist; before, an image was its image tokens and nothing else.
    tokens = tiles * (config.tokens_per_tile + config.splits_images)
    return ImagePlan(size, resized, (rows, cols), has_thumbnail, tiles, tokens)


def resize_image(image: Image.Image, config: VLMConfig) -> Image.Image:
    """The whole image at the size that is cut into tiles: what the model sees, before the cutting."""
    size = _resized_size(image.size, config)
    if size == image.size:
        return image
    method = Image.Resampling.BICUBIC if config.splits_images else Image.Resampling.BILINEAR
    # Pillow rounds to 8 bits between its two passes, so their order shows. Version 13 begins with the rows where that
    # drops many of them; earlier versions never do. Two explicit passes give the same pixels with either.
    (width, height), (new_width, new_height) = image.size, size
    rows_first = height - new_height > 2 * max(width - new_width, 0)
    between = (width, new_height) if rows_first else (new_width, height)
    return image.resize(between, method).resize(size, method)


def process_image(image: Image.Image | OpenedImage, config: VLMConfig) -> ProcessedImage:
    """Resizes, cuts into tiles and puts the thumbnail first. A PIL image that isn't upright RGB goes through
    :func:`open_image`. InputError as there, and as in :func:`plan_image`."""
    opened = image if isinstance(image, OpenedImage) else open_image(image)
    plan = plan_image(opened.pixels.size, config)
    resized = resize_image(opened.pixels, config)
    tile = config.vit_img_size
    rows, cols = plan.grid
    pixels = torch.from_numpy(np.array(resized, dtype=np.uint8)).permute(2, 0, 1).float().div_(255.0)
    tiles = pixels.view(3, rows, tile, cols, tile).permute(1, 3, 0, 2, 4).reshape(rows * cols, 3, tile, tile)
    if plan.has_thumbnail:
        thumbnail = F.interpolate(pixels[None], (tile, tile), mode="bilinear", antialias=True, align_corners=False)
        tiles = torch.cat((thumbnail, tiles))
    width, height = plan.original_size
    whole = Box(0.0, 0.0, float(width), float(height))
    boxes = tuple(
        _part(whole, rows, cols, row, col) for row in range(rows) for col in range(cols)
    )  # fmt: skip
    return ProcessedImage(
        tiles=tiles.contiguous(),
        grid=plan.grid,
        boxes=(whole, *boxes) if plan.has_thumbnail else boxes,
        has_thumbnail=plan.has_thumbnail,
        original_size=plan.original_size,
        resized_size=plan.resized_size,
        notes=opened.notes,
    )


def _part(box: Box, rows: int, cols: int, row: int, col: int) -> Box:
    width, height = box.right - box.left, box.bottom - box.top
    return Box(
        box.left + width * col / cols,
        box.top + height * row / rows,
        box.left + width * (col + 1) / cols,
        box.top + height * (row + 1) / rows,
    )


def cell_box(image: ProcessedImage, tile: int, row: int, col: int, cells: int) -> Box:
    """What the image token at ``row``, ``col`` of ``tile`` covers, in the original's pixels; ``cells`` are the image
    tokens along a side of a tile (``VLMConfig.cells_per_side``). Attention inside the encoder lets a token know of
    its whole tile: the box is where its own patches lie."""
    if not (0 <= row < cells and 0 <= col < cells):
        raise IndexError(f"Cell ({row}, {col}) is outside the {cells} × {cells} cells of a tile.")
    return _part(image.boxes[tile], cells, cells, row, col)
