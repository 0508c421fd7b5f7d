"""InternVL3 and 3.5 as transformers keeps them: InternViT on tiles, pixel shuffle, Qwen2 or Qwen3 (Zhu et al. 2025,
arXiv 2504.10479).

In the row, an image is one run of image tokens between ``<img>`` and ``</img>``: nothing stands between its tiles, so
that where one ends is known from the grid alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.chat import ImagePiece
from model.errors import InputError
from model.families.internvl_images import NearestGridImages
from model.families.transformers_vlm import TransformersVLM
from model.image import ProcessedImage


class InternVL(TransformersVLM):
    name = "InternVL"
    image_processors: ClassVar[tuple[str, ...]] = ("GotOcr2ImageProcessor",)

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import InternVLForConditionalGeneration

        return InternVLForConditionalGeneration

    def read_geometry(self, processor: Any) -> NearestGridImages:
        strategy = str(cast(Any, self.model.config).vision_feature_select_strategy)
        if strategy != "default":
            raise InputError(
                f"An InternVL with the features “{strategy[:40]}” is not known here: its class token has no place in a "
                "square of patches; use one with “default”."
            )
        size = dict(processor.size)
        width, height = size.get("width"), size.get("height")
        if not width or width != height:
            raise InputError(f"The checkpoint brings images to the size {processor.size}; equal sides are known here.")
        if int(width) % self.cell_px:
            raise InputError(
                f"A tile of {width} px does not divide into image tokens of {self.cell_px} px; correct "
                "preprocessor_config.json."
            )
        # Its processor cuts into tiles whatever crop_to_patches says in the image processor's own settings.
        return NearestGridImages(
            tile=int(width),
            fewest=int(processor.min_patches),
            most=int(processor.max_patches),
            filter=int(processor.resample),
        )

    @property
    def patch_px(self) -> int:
        size = cast(Any, self.model.config).vision_config.patch_size
        return int(size[0] if isinstance(size, list | tuple) else size)

    @property
    def cell_px(self) -> int:
        return round(self.patch_px / cast(Any, self.model.config).downsample_ratio)

    def count_cells(self, image: ProcessedImage, tile: int) -> tuple[int, int]:
        side = cast(NearestGridImages, self.geometry).tile // self.cell_px
        return side, side

    @property
    def vision_blocks(self) -> Sequence[nn.Module]:
        return list(cast(Any, self.model).model.vision_tower.encoder.layer)

    @property
    def encoder_lead(self) -> int:
        return 1

    def write_image(self, image: ProcessedImage) -> list[ImagePiece]:
        counts = self.count_tokens(image)
        runs = [ImagePiece("image", tile, ids=(self.image_token_id,) * count) for tile, count in enumerate(counts)]
        return [
            self._mark(0, "start_image_token", "<img>"),
            *runs,
            self._mark(len(runs) - 1, "end_image_token", "</img>"),
        ]

    def _mark(self, tile: int, attribute: str, usual: str) -> ImagePiece:
        text = str(getattr(self.tokenizer, attribute, None) or usual)
        known = self.tokenizer.get_added_vocab().get(text)
        return ImagePiece("region", tile, text, None if known is None else (int(known),))

    @torch.no_grad()
    def read_patches(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """``[token patch·d]``: the patches of one image token lie beside one another (pixel shuffle)."""
        core, config = cast(Any, self.model).model, cast(Any, self.model.config)
        pixels = torch.stack(list(inputs)).to(self.device, self.dtype)
        states = core.vision_tower(pixel_values=pixels, output_hidden_states=True, return_dict=True)
        layer = config.vision_feature_layer
        found = states.last_hidden_state if layer == -1 else states.hidden_states[layer]
        side = int(pixels.shape[-1]) // self.patch_px
        square = found[:, 1:].reshape(len(found), side, side, -1)
        return list(core.pixel_shuffle(square, scale_factor=config.downsample_ratio).flatten(1, 2))

    def project(self, patches: Sequence[Tensor]) -> list[Tensor]:
        return list(cast(Any, self.model).model.multi_modal_projector(torch.stack(list(patches))))
