"""Gemma 3: one square of every image, SigLIP, average pooling, and a language model of two kinds of layers (Gemma Team
2025, arXiv 2503.19786).

Of six layers five look back a window only. The tokens of an image see one another, later ones too, in both kinds. Pan
and scan (long images once more in parts) is on where a program calls the processor with it: the processor overrules
what the checkpoint's files say of it, so it is off here too, and that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.chat import ImagePiece
from model.errors import InputError
from model.families.cropped_images import CroppedImages
from model.families.transformers_vlm import TransformersVLM
from model.image import ProcessedImage
from model.sample import Sample


class Gemma3(TransformersVLM):
    name = "Gemma 3"
    image_processors: ClassVar[tuple[str, ...]] = ("Gemma3ImageProcessor",)

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import Gemma3ForConditionalGeneration

        return Gemma3ForConditionalGeneration

    def read_geometry(self, processor: Any) -> CroppedImages:
        tower = self._vision.model_type
        if tower != "siglip_vision_model":
            raise InputError(f"A Gemma 3 with the image encoder {tower} is not known here; use one with SigLIP.")
        if self.text.config.use_bidirectional_attention:
            raise InputError(
                "In this Gemma 3 all tokens see one another (use_bidirectional_attention), so it writes no answers; "
                "use one that does."
            )
        side, size = int(self._vision.image_size), dict(processor.size)
        if not processor.do_resize or (size.get("width"), size.get("height")) != (side, side):
            raise InputError(
                f"The settings for images don't lead to the {side} × {side} px that the image encoder reads; correct "
                "preprocessor_config.json."
            )
        patches = side // self.patch_px
        pooled = patches // self._cells if self._cells else 0
        if not pooled or patches // pooled != self._cells:
            raise InputError(
                f"{patches} × {patches} patches can't be pooled to {self._cells} × {self._cells} image tokens; correct "
                "mm_tokens_per_image."
            )
        notes = ("pan and scan left out, as the processor of transformers does",) if processor.do_pan_and_scan else ()
        return CroppedImages(
            shortest=None,
            size=(side, side),
            crop=None,
            filter=int(processor.resample),
            used=self._cells * self.cell_px,
            notes=notes,
        )

    @property
    def _vision(self) -> Any:
        return self.config.vision_config

    @property
    def _cells(self) -> int:
        """Image tokens along a side."""
        return int(self.config.mm_tokens_per_image**0.5)

    @property
    def patch_px(self) -> int:
        return int(self._vision.patch_size)

    @property
    def cell_px(self) -> int:
        return self.patch_px * (int(self._vision.image_size) // self.patch_px // self._cells)

    @property
    def vision_blocks(self) -> Sequence[nn.Module]:
        tower = cast(Any, self.model).model.vision_tower
        return list(getattr(tower, "vision_model", tower).encoder.layers)

    @property
    def image_text(self) -> str:
        return self._named("boi_token", "boi_token_index")

    def _named(self, attribute: str, index: str) -> str:
        """A marker by what the tokenizer calls it, or else by its number in the configuration."""
        own = getattr(self.tokenizer, attribute, None)
        return str(own or self.tokenizer.convert_ids_to_tokens(int(getattr(self.config, index))))

    def count_cells(self, image: ProcessedImage, tile: int) -> tuple[int, int]:
        return self._cells, self._cells

    def write_image(self, image: ProcessedImage) -> list[ImagePiece]:
        known = self.tokenizer.get_added_vocab()
        begin, end = self.image_text, self._named("eoi_token", "eoi_token_index")
        return [
            ImagePiece("region", 0, "\n\n"),
            ImagePiece("region", 0, begin, (known[begin],)),
            ImagePiece("image", 0, ids=(self.image_token_id,) * self._cells**2),
            ImagePiece("region", 0, end, (known[end],)),
            ImagePiece("region", 0, "\n\n"),
        ]

    def find_blocks(self, sample: Sample) -> Tensor:
        is_image = sample.input_ids == self.image_token_id
        begins = is_image & ~torch.cat((is_image.new_zeros(1), is_image[:-1]))
        return (begins.long().cumsum(0) - 1).where(is_image, -1)

    @torch.no_grad()
    def read_patches(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        pixels = torch.stack(list(inputs)).to(self.device, self.dtype)
        return list(cast(Any, self.model).model.vision_tower(pixel_values=pixels).last_hidden_state)

    def project(self, patches: Sequence[Tensor]) -> list[Tensor]:
        return list(cast(Any, self.model).model.multi_modal_projector(torch.stack(list(patches))))
