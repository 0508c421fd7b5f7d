"""LLaVA-NeXT (Liu et al. 2024) and LLaVA-OneVision (Li et al. 2024, arXiv 2408.03326): tiles of one grid, a learned
line break at the end of each of its rows.

Where a sample has several images, OneVision reads each as one padded square with a single line break behind it; NeXT
cuts each as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from model.chat import ImagePiece
from model.errors import InputError
from model.families.anyres_images import AnyresImages
from model.families.cropped_images import CroppedImages, mean_colour
from model.families.llava import CLASS_TOKENS, Llava
from model.image import ProcessedImage
from model.picture import LayingOut


class LlavaNext(Llava):
    name = "LLaVA-NeXT"
    plain_template = None
    image_processors: ClassVar[tuple[str, ...]] = ("LlavaNextImageProcessor",)

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import LlavaNextForConditionalGeneration

        return LlavaNextForConditionalGeneration

    def read_geometry(self, processor: Any) -> LayingOut:
        config = cast(Any, self.model.config)
        drops = int(config.vision_feature_select_strategy == "default")
        if CLASS_TOKENS.get(self._vision.model_type) != drops:
            raise InputError(
                f"A {self.name} with the image encoder {self._vision.model_type} and the features "
                f"“{config.vision_feature_select_strategy}” is not known here; use one with CLIP and “default”, or "
                "SigLIP and “full”."
            )
        # Where these differ, transformers resizes and crops each tile once more by itself.
        size, crop = dict(processor.size), dict(processor.crop_size or {})
        sides = {int(side) for side in (*size.values(), *crop.values()) if side}
        tile = int(self._vision.image_size)
        sizes = tuple((int(tall), int(wide)) for tall, wide in processor.image_grid_pinpoints)
        if sides != {tile} or not sizes or any(side % tile for pair in sizes for side in pair):
            raise InputError(
                f"The settings for images don't lead to tiles of {self._vision.image_size} px, which the image encoder "
                "reads; correct preprocessor_config.json."
            )
        if sizes != tuple((int(tall), int(wide)) for tall, wide in config.image_grid_pinpoints):
            raise InputError(
                "config.json and preprocessor_config.json list other sizes for images (image_grid_pinpoints); correct "
                "one of them."
            )
        return AnyresImages(tile, tile // self.patch_px, sizes, int(processor.resample), self.read_most())

    def read_most(self) -> int | None:
        """See :attr:`AnyresImages.most`."""
        return None

    @property
    def _inner(self) -> Any:
        return cast(Any, self.model).model

    def count_cells(self, image: ProcessedImage, tile: int) -> tuple[int, int]:
        if tile == image.thumbnail_tile or not image.has_thumbnail:
            side = self._vision.image_size // self.patch_px
            return side, side
        return self._anyres.count_cells(image.original_size)

    def count_line_ends(self, image: ProcessedImage, tile: int) -> int:
        return int(image.has_thumbnail and tile != image.thumbnail_tile)

    def count_tokens(self, image: ProcessedImage) -> tuple[int, ...]:
        counts = super().count_tokens(image)
        # One line break stands behind an image that isn't cut.
        return counts if image.has_thumbnail else (*counts[:-1], counts[-1] + 1)

    @property
    def _anyres(self) -> AnyresImages:
        return cast(AnyresImages, self._geometry)

    def write_image(self, image: ProcessedImage) -> list[ImagePiece]:
        return [
            ImagePiece("image", tile, ids=(self.image_token_id,) * count)
            for tile, count in enumerate(self.count_tokens(image))
        ]

    def encoder_inputs(self, image: ProcessedImage) -> tuple[Tensor, ...]:
        if not image.has_thumbnail or image.thumbnail is None:
            return super().encoder_inputs(image)
        geometry = self._anyres
        (tall, wide), (width, height) = geometry.choose_size(image.original_size)
        left, top = geometry.place(image.original_size)
        padded = torch.from_numpy(np.zeros((tall, wide, 3), np.uint8))
        padded[top : top + height, left : left + width] = image.resized
        side = geometry.tile
        tiles = [padded[y : y + side, x : x + side] for y in range(0, tall, side) for x in range(0, wide, side)]
        return tuple(self.pixels.apply(picture) for picture in (image.thumbnail, *tiles))

    def arrange_features(self, image: ProcessedImage, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        width, height = image.original_size
        packed, _ = self._inner.pack_image_features(
            [torch.stack(list(parts))], [(height, width)], image_newline=self._inner.image_newline, **self.pack_options
        )
        return (packed[0],)

    @property
    def pack_options(self) -> dict[str, Any]:
        return {"vision_feature_select_strategy": cast(Any, self.model.config).vision_feature_select_strategy}


class LlavaOnevision(LlavaNext):
    name = "LLaVA-OneVision"
    image_processors: ClassVar[tuple[str, ...]] = ("LlavaOnevisionImageProcessor",)

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import LlavaOnevisionForConditionalGeneration

        return LlavaOnevisionForConditionalGeneration

    def read_geometry(self, processor: Any) -> LayingOut:
        found = super().read_geometry(processor)
        tile = self._vision.image_size
        self._square = CroppedImages(
            None, (tile, tile), None, int(processor.resample), square=mean_colour(processor.image_mean)
        )
        self._alone = found
        return found

    def read_most(self) -> int | None:
        kind = str(cast(Any, self.model.config).vision_aspect_ratio)
        most = kind.removeprefix("anyres_max_")
        if not most.isdecimal() or not int(most):
            raise InputError(f"The aspect ratio of this checkpoint's images is {kind[:40]}; known is anyres_max_9.")
        return int(most)

    def for_images(self, count: int) -> LlavaOnevision:
        found = copy(self)
        found._geometry = self._square if count > 1 else self._alone
        return found

    @property
    def _anyres(self) -> AnyresImages:
        return cast(AnyresImages, self._alone)

    @property
    def pack_options(self) -> dict[str, Any]:
        return {"vision_aspect_ratio": cast(Any, self.model.config).vision_aspect_ratio}
