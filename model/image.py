"""From an uploaded picture to the tiles that the image encoder sees.

    open_image (model.picture) → OpenedImage → process_image → ProcessedImage
    plan_image: what an image of a given size will become, before any pixel is touched

The sizes and pixels are upstream's exactly (nanoVLM, ``data/custom_transforms.py``): the long side becomes a multiple
of the tile, the short side is rounded *up* to one (so the aspect ratio changes), PIL's bicubic filter does the work on
8-bit values, and the thumbnail is an antialiased bilinear reduction of that resized image, not of the original.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model.config import VLMConfig
from model.errors import InputError
from model.picture import MAX_PIXELS as MAX_PIXELS
from model.picture import Geometry, OpenedImage, open_image, resize, resized_size


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
class ProcessedImage:
    """An image as the encoder sees it.

    ``resized [height width 3]`` uint8 is all that is kept of the pixels, a quarter of what the tiles take.
    ``boxes`` has one :class:`Box` per tile (the whole image for the thumbnail). Sizes are (width, height).
    """

    resized: Tensor
    grid: tuple[int, int]
    boxes: tuple[Box, ...]
    has_thumbnail: bool
    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> bytes:
        """Of the pixels and how they are cut: equal for images that the encoder can't tell apart."""
        cut = f"{self.grid} {self.has_thumbnail} {tuple(self.resized.shape)}"
        found = hashlib.blake2b(cut.encode(), digest_size=16)
        found.update(self.resized.contiguous().numpy().data)
        return found.digest()

    @property
    def tiles(self) -> Tensor:
        """``[tile 3 tile_px tile_px]`` float32 in [0, 1], made anew each time; tile 0 is the thumbnail if
        ``has_thumbnail``, then row by row. ``len(boxes)`` counts them without making any."""
        rows, cols = self.grid
        height, width = self.resized.shape[0] // rows, self.resized.shape[1] // cols
        pixels = self.resized.permute(2, 0, 1).float().div_(255.0)
        tiles = pixels.view(3, rows, height, cols, width).permute(1, 3, 0, 2, 4).reshape(-1, 3, height, width)
        if self.has_thumbnail:
            size = (height, width)
            thumbnail = F.interpolate(pixels[None], size, mode="bilinear", antialias=True, align_corners=False)
            tiles = torch.cat((thumbnail, tiles))
        return tiles.contiguous()


def geometry_of(config: VLMConfig) -> Geometry:
    """What of ``config`` the resizing needs."""
    return Geometry(config.vit_img_size, config.max_img_size, config.resize_to_max_side_len, config.splits_images)


def plan_image(size: tuple[int, int], config: VLMConfig) -> ImagePlan:
    """The plan for an image of ``size`` (width, height) in pixels. InputError if either is below 1, or if the grid
    needs tile markers that the checkpoint lacks."""
    if min(size) < 1:
        raise InputError(f"An image of {size[0]} × {size[1]} px has no pixels; each side must be at least 1.")
    resized = resized_size(size, geometry_of(config))
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
    return resize(image, geometry_of(config))


def process_image(image: Image.Image | OpenedImage, config: VLMConfig) -> ProcessedImage:
    """Resizes, cuts into tiles and puts the thumbnail first. A PIL image that isn't upright RGB goes through
    :func:`open_image`. InputError as there, and as in :func:`plan_image`."""
    opened = image if isinstance(image, OpenedImage) else open_image(image)
    plan_image(opened.pixels.size, config)
    resized = np.array(resize_image(opened.pixels, config), dtype=np.uint8)
    return cut_image(resized, opened.pixels.size, config, opened.notes)


def cut_image(
    resized: np.ndarray, original_size: tuple[int, int], config: VLMConfig, notes: tuple[str, ...] = ()
) -> ProcessedImage:
    """The tiles of an image that is at the model's size already: ``resized [height width 3]``, uint8. InputError as in
    :func:`plan_image`."""
    plan = plan_image(original_size, config)
    rows, cols = plan.grid
    width, height = plan.original_size
    whole = Box(0.0, 0.0, float(width), float(height))
    boxes = tuple(whole.part(rows, cols, row, col) for row in range(rows) for col in range(cols))
    return ProcessedImage(
        resized=torch.from_numpy(resized),
        grid=plan.grid,
        boxes=(whole, *boxes) if plan.has_thumbnail else boxes,
        has_thumbnail=plan.has_thumbnail,
        original_size=plan.original_size,
        resized_size=plan.resized_size,
        notes=notes,
    )
