"""LLaVA-1.5: one cropped square, CLIP, two linear layers, Llama (Liu et al. 2023, arXiv 2310.03744)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.chat import ImagePiece
from model.errors import InputError
from model.families.cropped_images import CroppedImages, mean_colour
from model.families.transformers_vlm import TransformersVLM
from model.image import ProcessedImage
from model.picture import LayingOut

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Kinds of image encoders, and how many tokens stand before their patches (CLIP's class token)."""


class Llava(TransformersVLM):
    name = "LLaVA"
    image_processors: ClassVar[tuple[str, ...]] = ("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor")
    # Vicuna's, for which LLaVA was trained.
    plain_template: ClassVar[str | None] = (
        "{% for message in messages %}{% set role = message['role'] %}{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: '"
        "}[role] if role != 'system' }}{% for part in message['content'] %}{{ 'IMAGE\\n' if part['type'] == 'image' "
        "else part['text'] }}{% endfor %}{{ eos_token if role == 'assistant' else ' ' }}{% endfor %}"
        "{{ 'ASSISTANT:' if add_generation_prompt }}"
    )

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import LlavaForConditionalGeneration

        return LlavaForConditionalGeneration

    def read_geometry(self, processor: Any) -> LayingOut:
        tower = self._vision.model_type
        if tower not in CLASS_TOKENS or (self._drops_first and not CLASS_TOKENS[tower]):
            raise InputError(f"A LLaVA with the image encoder {tower} is not known here; use one with CLIP or SigLIP.")
        size = dict(processor.size) if processor.do_resize else {}
        shortest, whole = size.get("shortest_edge"), (size.get("width"), size.get("height"))
        if processor.do_resize and not shortest and not all(whole):
            raise InputError(
                f"The checkpoint brings images to the size {processor.size}; known are shortest_edge, width and height."
            )
        crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
        mean = processor.image_mean
        geometry = CroppedImages(
            shortest=int(shortest) if shortest else None,
            size=None if shortest or not processor.do_resize else (int(whole[0] or 0), int(whole[1] or 0)),
            crop=None if crop is None else (int(crop["width"]), int(crop["height"])),
            filter=int(processor.resample),
            square=mean_colour(mean) if "Llava" in type(processor).__name__ and processor.do_pad else None,
        )
        geometry.check_side(self._vision.image_size)
        return geometry

    @property
    def _vision(self) -> Any:
        return cast(Any, self.model.config).vision_config

    @property
    def _drops_first(self) -> bool:
        return bool(cast(Any, self.model.config).vision_feature_select_strategy == "default")

    @property
    def patch_px(self) -> int:
        return int(self._vision.patch_size)

    @property
    def cell_px(self) -> int:
        return self.patch_px

    @property
    def vision_blocks(self) -> Sequence[nn.Module]:
        tower = cast(Any, self.model).model.vision_tower
        return list(getattr(tower, "vision_model", tower).encoder.layers)

    @property
    def encoder_lead(self) -> int:
        return CLASS_TOKENS[self._vision.model_type]

    def count_lead(self, image: ProcessedImage, tile: int) -> int:
        return 0 if self._drops_first else self.encoder_lead

    def write_image(self, image: ProcessedImage) -> list[ImagePiece]:
        (tokens,) = self.count_tokens(image)
        return [ImagePiece("image", 0, ids=(self.image_token_id,) * tokens)]

    @torch.no_grad()
    def read_patches(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        pixels = torch.stack(list(inputs)).to(self.device, self.dtype)
        tower = cast(Any, self.model).model.vision_tower
        states = tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        layers = cast(Any, self.model.config).vision_feature_layer
        found = torch.cat([states[n] for n in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        return list(found[:, int(self._drops_first) :])

    def project(self, patches: Sequence[Tensor]) -> list[Tensor]:
        return list(cast(Any, self.model).model.multi_modal_projector(torch.stack(list(patches))))
