"""Idefics3 and SmolVLM(2): SigLIP on tiles, pixel shuffle, Llama or SmolLM2 (Laurençon et al. 2024, arXiv 2408.12637;
Marafioti et al. 2025, arXiv 2504.05299).

In the row, each tile is a marker and its image tokens, a line break stands behind each row of tiles, and the thumbnail
is last; an image of one tile has the thumbnail's marker alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.chat import ImagePiece
from model.errors import InputError
from model.families.idefics3_images import SplitImages
from model.families.transformers_vlm import TransformersVLM
from model.image import ProcessedImage


class Idefics3(TransformersVLM):
    name = "Idefics3"
    image_processors: ClassVar[tuple[str, ...]] = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import Idefics3ForConditionalGeneration

        return Idefics3ForConditionalGeneration

    def read_geometry(self, processor: Any) -> SplitImages:
        tile = int(dict(processor.max_image_size)["longest_edge"])
        longest = dict(processor.size).get("longest_edge")
        if processor.do_resize and not longest:
            raise InputError(f"The checkpoint brings images to the size {processor.size}; longest_edge is known here.")
        if tile % self.cell_px:
            raise InputError(
                f"A tile of {tile} px does not divide into image tokens of {self.cell_px} px; correct max_image_size."
            )
        return SplitImages(
            longest=int(longest) if longest and processor.do_resize else None,
            tile=tile,
            splits=bool(processor.do_image_splitting),
            filter=int(processor.resample),
        )

    @property
    def text_module(self) -> nn.Module:
        return cast(nn.Module, cast(Any, self.model).model.text_model)

    @property
    def patch_px(self) -> int:
        return int(cast(Any, self.model.config).vision_config.patch_size)

    @property
    def cell_px(self) -> int:
        return self.patch_px * int(cast(Any, self.model.config).scale_factor)

    @property
    def vision_blocks(self) -> Sequence[nn.Module]:
        return list(cast(Any, self.model).model.vision_model.encoder.layers)

    def write_image(self, image: ProcessedImage) -> list[ImagePiece]:
        around = self._named("fake_image_token", "<fake_token_around_image>")
        rows, cols = image.grid
        last = len(image.boxes) - 1
        pieces: list[ImagePiece] = []
        if last:
            for row in range(rows):
                for col in range(cols):
                    tile = row * cols + col
                    pieces += self._write_tile(image, tile, (around, f"<row_{row + 1}_col_{col + 1}>"))
                pieces.append(ImagePiece("region", (row + 1) * cols - 1, "\n"))
            pieces.append(ImagePiece("region", last, "\n"))
        pieces += self._write_tile(image, last, (around, self._named("global_image_token", "<global-img>")))
        return [*pieces, *self._mark(last, (around,))]

    def _write_tile(self, image: ProcessedImage, tile: int, marks: tuple[str, ...]) -> list[ImagePiece]:
        rows, cols = self.count_cells(image, tile)
        return [*self._mark(tile, marks), ImagePiece("image", tile, ids=(self.image_token_id,) * (rows * cols))]

    def _mark(self, tile: int, marks: tuple[str, ...]) -> list[ImagePiece]:
        """A marker that the vocabulary lacks, of a tile far out, is text like any other."""
        known = self._special
        if all(mark in known for mark in marks):
            return [ImagePiece("region", tile, "".join(marks), tuple(known[mark] for mark in marks))]
        return [ImagePiece("region", tile, mark, (known[mark],) if mark in known else None) for mark in marks]

    @cached_property
    def _special(self) -> dict[str, int]:
        return dict(self.tokenizer.get_added_vocab())

    def _named(self, attribute: str, usual: str) -> str:
        return str(getattr(self.tokenizer, attribute, None) or usual)

    @torch.no_grad()
    def read_patches(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        pixels = torch.stack(list(inputs)).to(self.device, self.dtype)
        return list(cast(Any, self.model).model.vision_model(pixel_values=pixels).last_hidden_state)

    def project(self, patches: Sequence[Tensor]) -> list[Tensor]:
        return list(cast(Any, self.model).model.connector(torch.stack(list(patches))))


class SmolVLM(Idefics3):
    name = "SmolVLM"
    image_processors = ("SmolVLMImageProcessor", "Idefics3ImageProcessor")

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import SmolVLMForConditionalGeneration

        return SmolVLMForConditionalGeneration
