"""CLIP and SigLIP of transformers behind the seam of encoders: the checkpoint's own weights, image settings and
tokenizer, read by the same rules as those of vision-language models.

A vector of a patch in the space of the texts is nothing that these models were trained to have. CLIP's: the projection
that was trained for the class token, applied to the patch's state (as MaskCLIP does, Zhou et al. 2022, arXiv
2112.01071, there behind the last layer's values). SigLIP's: what its pooling head makes of this one patch alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from model.devices import place
from model.encoders.patched_images import PatchedImages
from model.encoders.protocol import EncodedImage, ImageReader, LossKind, PatchGrid
from model.errors import InputError
from model.families.checkpoint_files import (
    CONFIG,
    load_chat_tokenizer,
    load_image_processor,
    load_weights,
    read_object,
)
from model.families.cropped_images import CroppedImages
from model.families.transformers_vlm import PixelScale
from model.families.vision_attention import make_readable, reading
from model.image import ImagePlan, OpenedImage, ProcessedImage, build_image, open_image
from model.losses import unit
from model.memory import guard_memory
from model.picture import LayingOut


class TransformersEncoder:
    """``folder``: a checkpoint. InputError for anything that can't be used."""

    name: str
    image_processors: ClassVar[tuple[str, ...]]
    loss_kind: LossKind
    about_patches: str
    missing = ""
    has_text = True
    class_tokens = 0
    """What stands before the patches."""

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        raise NotImplementedError

    def __init__(self, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        placement = place(device, dtype, {}, None)
        self._folder_config = read_object(folder / CONFIG)
        processor = load_image_processor(folder, self.image_processors)
        self.model = cast(Any, load_weights(self.model_class(), folder, placement))
        self.vision = self.model.config.vision_config
        self.text = self.model.config.text_config
        self.tokenizer = load_chat_tokenizer(folder, int(self.text.vocab_size))
        self._pixels = PixelScale.of(processor)
        self._geometry = self._read_geometry(processor)
        make_readable(self.model.vision_model.encoder.layers)
        # SigLIP's has no name of its own: its heads keep the width of their towers.
        self.width = int(getattr(self.model.config, "projection_dim", None) or self.vision.hidden_size)
        self.n_layers, self.n_heads = int(self.vision.num_hidden_layers), int(self.vision.num_attention_heads)

    # --- images ---

    def _read_geometry(self, processor: Any) -> LayingOut:
        size = dict(processor.size) if processor.do_resize else {}
        shortest, whole = size.get("shortest_edge"), (size.get("width"), size.get("height"))
        crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
        geometry = CroppedImages(
            shortest=int(shortest) if shortest else None,
            size=None if shortest or not all(whole) else (int(whole[0] or 0), int(whole[1] or 0)),
            crop=None if crop is None else (int(crop["width"]), int(crop["height"])),
            filter=int(processor.resample),
        )
        geometry.check_side(int(self.vision.image_size))
        return geometry

    @property
    def reader(self) -> ImageReader:
        return self

    @property
    def geometry(self) -> LayingOut:
        return self._geometry

    @property
    def image_key(self) -> Hashable:
        return cast(Hashable, self._geometry)

    def plan_image(self, size: tuple[int, int]) -> ImagePlan:
        found = self._geometry.lay_out(size)
        return ImagePlan(
            original_size=found.original_size,
            resized_size=found.resized_size,
            grid=found.grid,
            has_thumbnail=False,
            tiles=1,
            tokens=0,
            seen=found.seen,
            notes=found.notes,
        )

    def process_image(self, image: Image.Image | OpenedImage) -> ProcessedImage:
        opened = image if isinstance(image, OpenedImage) else open_image(image)
        return self.cut_image(self._geometry.reduce(opened.pixels), opened.size, opened.notes)

    def cut_image(
        self, pictures: Sequence[np.ndarray], original_size: tuple[int, int], notes: tuple[str, ...] = ()
    ) -> ProcessedImage:
        return build_image(pictures, self._geometry.lay_out(original_size), notes)

    # --- what analyses rely on: see model.encoders.protocol ---

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self._folder_config, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def scale(self) -> float:
        return float(self.model.logit_scale.exp())

    @property
    def patch_scale(self) -> float:
        return self.scale

    @property
    def bias(self) -> float:
        return 0.0

    @guard_memory
    @torch.no_grad()
    def encode_image(self, image: ProcessedImage) -> EncodedImage:
        states, pooled = self._see(image)
        rows, cols = self._count(image)
        patches = self._project_patches(states[0, self.class_tokens :][: rows * cols])
        return EncodedImage(unit(pooled)[0], unit(patches), (PatchGrid(rows, cols, image.boxes[0]),))

    @guard_memory
    @torch.no_grad()
    def read_attention(self, image: ProcessedImage, patch: int) -> Tensor:
        rows, cols = self._count(image)
        lead = torch.full((self.class_tokens,), -1)
        with reading(torch.cat((lead, torch.arange(rows * cols))), patch) as found:
            self._see(image)
        return found.patterns

    @guard_memory
    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        # What a person types never becomes a special token; texts that are too long are cut.
        inputs = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=int(self.text.max_position_embeddings),
            split_special_tokens=True,
            return_tensors="pt",
        ).to(self.model.device)
        return unit(self._read(inputs))

    def watch(self, before_block: Callable[[], None]) -> None:
        for block in (*self.model.vision_model.encoder.layers, *self.model.text_model.encoder.layers):
            block.register_forward_pre_hook(lambda *_: before_block())

    # --- what differs ---

    def _see(self, image: ProcessedImage) -> tuple[Tensor, Tensor]:
        """The last states ``[1 pos d]`` and the image's own vector ``[1 width]``."""
        pixels = self._pixels.apply(image.pictures[0])[None].to(self.model.device, self.model.dtype)
        found = self.model.get_image_features(pixel_values=pixels)
        return found.last_hidden_state, found.pooler_output

    def _count(self, image: ProcessedImage) -> tuple[int, int]:
        """Rows and columns of patches."""
        width, height = image.resized_size
        patch = int(self.vision.patch_size)
        return height // patch, width // patch

    def _project_patches(self, states: Tensor) -> Tensor:
        """``[patch width]`` of ``[patch d]``."""
        raise NotImplementedError

    def _read(self, inputs: Any) -> Tensor:
        return cast(Tensor, self.model.get_text_features(input_ids=inputs["input_ids"]).pooler_output)


class ClipEncoder(TransformersEncoder):
    name = "CLIP"
    image_processors = ("CLIPImageProcessor",)
    loss_kind: LossKind = "infonce"
    about_patches = (
        "a patch's last state through the projection that was trained for the class token alone; nothing trained it to "
        "mean what a text means"
    )
    class_tokens = 1

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import CLIPModel

        return CLIPModel

    def _project_patches(self, states: Tensor) -> Tensor:
        return cast(Tensor, self.model.visual_projection(self.model.vision_model.post_layernorm(states)))

    def _read(self, inputs: Any) -> Tensor:
        mask = inputs["attention_mask"]
        return cast(Tensor, self.model.get_text_features(inputs["input_ids"], attention_mask=mask).pooler_output)


class SiglipEncoder(TransformersEncoder):
    name = "SigLIP"
    image_processors: ClassVar[tuple[str, ...]] = ("SiglipImageProcessor",)
    loss_kind: LossKind = "sigmoid"
    about_patches = (
        "what the pooling head, which was trained to sum up all patches, makes of this one alone; nothing trained it "
        "to mean what a text means"
    )

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import SiglipModel

        return SiglipModel

    def __init__(self, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(folder, device, dtype)
        if not self.model.vision_model.use_head:
            raise InputError(f"The image encoder in {folder} has no pooling head; use a checkpoint that has one.")

    @property
    def bias(self) -> float:
        return float(self.model.logit_bias)

    def _project_patches(self, states: Tensor) -> Tensor:
        return cast(Tensor, self.model.vision_model.head(states[:, None]))


class Siglip2Encoder(SiglipEncoder):
    name = "SigLIP 2"
    image_processors: ClassVar[tuple[str, ...]] = ("Siglip2ImageProcessor",)

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import Siglip2Model

        return Siglip2Model

    def _read_geometry(self, processor: Any) -> LayingOut:
        if not processor.do_resize:
            raise InputError("The checkpoint leaves images as large as they are; set do_resize in its settings.")
        return PatchedImages(int(processor.patch_size), int(processor.max_num_patches), int(processor.resample))

    def _see(self, image: ProcessedImage) -> tuple[Tensor, Tensor]:
        rows, cols = self._count(image)
        patch = int(self.vision.patch_size)
        pixels = self._pixels.apply(image.pictures[0]).unfold(1, patch, patch).unfold(2, patch, patch)
        # [3 rows cols height width] → a patch's numbers as the processor lays them out: line, column, colour.
        patches = pixels.permute(1, 2, 3, 4, 0).reshape(1, rows * cols, -1).to(self.model.device, self.model.dtype)
        found = self.model.get_image_features(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32, device=patches.device),
            spatial_shapes=torch.tensor([[rows, cols]], device=patches.device),
        )
        return found.last_hidden_state, found.pooler_output
