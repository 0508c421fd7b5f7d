"""From an uploaded picture to the tiles that the image encoder sees.

    open_image (model.picture) → OpenedImage → process_image → ProcessedImage
    plan_image: what an image of a given size will become, before any pixel is touched

The sizes and pixels are upstream's exactly (nanoVLM, ``data/custom_transforms.py``): the long side becomes a multiple
of the tile, the short side is rounded *up* to one (so the aspect ratio changes), PIL's bicubic filter does the work on
8-bit values, and the thumbnail is an antialiased bilinear reduction of that resized image, not of the original.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
from model.picture import Box as Box
from model.picture import (
    Geometry,
    ImageLayout,
    OpenedImage,
    open_image,
    resize,
    resized_size,
    whole_box,
)


@dataclass(frozen=True)
class ImagePlan:
    """What an image will become: ``original_size`` and ``resized_size`` are (width, height) in pixels, ``grid`` is
    (rows, cols) of tiles, ``tiles`` counts the thumbnail too, ``tokens`` are all its positions in the sequence
    (image tokens and tile markers, without the ``<image: k>`` text of multi-image prompts). ``seen``: what of the
    original the model gets at all, None for all of it."""

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    grid: tuple[int, int]
    has_thumbnail: bool
    tiles: int
    tokens: int
    seen: Box | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProcessedImage:
    """An image as the encoder sees it.

    ``resized [height width 3]`` uint8 is what is kept of the pixels, the tiles of ``grid`` (rows, cols) side by side: a
    quarter of what the tiles take. ``boxes`` has one :class:`Box` per tile (the whole image for the thumbnail). Sizes
    are (width, height). ``thumbnail [height width 3]`` uint8: where it is not made from ``resized``.
    ``thumbnail_last``: it stands behind the other tiles, not before them. ``seen``: what of the original the model gets
    at all, None for all of it.
    """

    resized: Tensor
    grid: tuple[int, int]
    boxes: tuple[Box, ...]
    has_thumbnail: bool
    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    notes: tuple[str, ...] = ()
    thumbnail: Tensor | None = None
    thumbnail_last: bool = False
    seen: Box | None = None

    @cached_property
    def digest(self) -> bytes:
        """Of the pixels and how they are cut: equal for images that the encoder can't tell apart."""
        cut = f"{self.grid} {self.thumbnail_tile} {tuple(self.resized.shape)}"
        found = hashlib.blake2b(cut.encode(), digest_size=16)
        found.update(self.resized.contiguous().numpy().data)
        if self.thumbnail is not None:
            found.update(self.thumbnail.contiguous().numpy().data)
        return found.digest()

    @property
    def thumbnail_tile(self) -> int | None:
        """Which of the tiles is the thumbnail."""
        if not self.has_thumbnail:
            return None
        return len(self.boxes) - 1 if self.thumbnail_last else 0

    def place_of(self, tile: int) -> tuple[int, int] | None:
        """(row, col) of a tile in the grid, from 0; None for the thumbnail."""
        if tile == self.thumbnail_tile:
            return None
        return divmod(tile - (self.has_thumbnail and not self.thumbnail_last), self.grid[1])

    @property
    def pictures(self) -> tuple[Tensor, ...]:
        """``[height width 3]`` uint8 of every tile, in their order. ValueError where the thumbnail is none of 8 bits
        (see :attr:`tiles`)."""
        rows, cols = self.grid
        height, width = self.resized.shape[0] // rows, self.resized.shape[1] // cols
        found = [
            self.resized[row * height : (row + 1) * height, col * width : (col + 1) * width]
            for row in range(rows)
            for col in range(cols)
        ]
        if self.has_thumbnail:
            if self.thumbnail is None:
                raise ValueError("This thumbnail is made of the resized image, between 8-bit values.")
            found.insert(len(found) if self.thumbnail_last else 0, self.thumbnail)
        return tuple(found)

    @property
    def tiles(self) -> Tensor:
        """``[tile 3 height width]`` float32 in [0, 1], made anew each time, in the tiles' order: the thumbnail first or
        last if ``has_thumbnail``, the others row by row, zeros to the right and below where it has another size than
        they. ``len(boxes)`` counts them without making any."""
        rows, cols = self.grid
        height, width = self.resized.shape[0] // rows, self.resized.shape[1] // cols
        pixels = self.resized.permute(2, 0, 1).float().div_(255.0)
        tiles = pixels.view(3, rows, height, cols, width).permute(1, 3, 0, 2, 4).reshape(-1, 3, height, width)
        if self.has_thumbnail:
            thumbnail = self._thumbnail_pixels(pixels, (height, width))
            both = [max(sides) for sides in zip(tiles.shape[2:], thumbnail.shape[2:], strict=True)]
            tiles, thumbnail = (
                F.pad(one, (0, both[1] - one.shape[3], 0, both[0] - one.shape[2])) for one in (tiles, thumbnail)
            )
            tiles = torch.cat((tiles, thumbnail) if self.thumbnail_last else (thumbnail, tiles))
        return tiles.contiguous()

    def _thumbnail_pixels(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        if self.thumbnail is not None:
            return self.thumbnail.permute(2, 0, 1)[None].float().div_(255.0)
        return F.interpolate(pixels[None], size, mode="bilinear", antialias=True, align_corners=False)


def build_image(pictures: Sequence[np.ndarray], layout: ImageLayout, notes: tuple[str, ...] = ()) -> ProcessedImage:
    """Of what a geometry made of an image (see :meth:`model.picture.ImageGeometry.reduce`) and said of it before."""
    resized, *others = (torch.from_numpy(picture) for picture in pictures)
    return ProcessedImage(
        resized=resized,
        grid=layout.grid,
        boxes=layout.boxes,
        has_thumbnail=layout.thumbnail is not None,
        original_size=layout.original_size,
        resized_size=layout.resized_size,
        notes=(*notes, *layout.notes),
        thumbnail=others[0] if others else None,
        thumbnail_last=layout.thumbnail is not None and layout.thumbnail > 0,
        seen=layout.seen,
    )


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
    return cut_image(geometry_of(config).reduce(opened.pixels), opened.pixels.size, config, opened.notes)


def cut_image(
    pictures: Sequence[np.ndarray], original_size: tuple[int, int], config: VLMConfig, notes: tuple[str, ...] = ()
) -> ProcessedImage:
    """The tiles of an image that is at the model's size already: ``[height width 3]``, uint8. InputError as in
    :func:`plan_image`."""
    plan = plan_image(original_size, config)
    whole = whole_box(plan.original_size)
    boxes = whole.parts(*plan.grid)
    layout = ImageLayout(
        original_size=plan.original_size,
        resized_size=plan.resized_size,
        grid=plan.grid,
        boxes=(whole, *boxes) if plan.has_thumbnail else boxes,
        thumbnail=0 if plan.has_thumbnail else None,
    )
    return build_image(pictures, layout, notes)
