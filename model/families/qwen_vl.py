"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: one picture of its own shape, and positions with three axes (Wang et al. 2024,
arXiv 2409.12191; Bai et al. 2025, arXiv 2502.13923 and 2511.21631).

No tiles: an image is one grid of tokens, each of them merged from 2 × 2 patches. Its tokens share one place in time and
count rows and columns on the other axes, and the text behind goes on from the largest of them (M-RoPE). Qwen3-VL adds
features of deeper layers of its encoder behind the language model's first layers (DeepStack, Meng et al. 2024, arXiv
2406.04334): they stand beside what enters layer 0, in one wider feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.chat import ImagePiece
from model.errors import InputError
from model.families.qwen_vl_images import FittedImages
from model.families.transformers_vlm import TransformersVLM
from model.image import ProcessedImage
from model.sample import Sample

_AXES = 3
"""Time, row and column."""


class Qwen2VL(TransformersVLM):
    name = "Qwen2-VL"
    image_processors: ClassVar[tuple[str, ...]] = ("Qwen2VLImageProcessor",)

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import Qwen2VLForConditionalGeneration

        return Qwen2VLForConditionalGeneration

    def __init__(self, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(folder, device, dtype)
        # How far apart two positions are is counted in tokens by such layers, and an image has fewer places than that.
        if self.text.window is not None and self.text.window < self.max_positions:
            raise InputError(
                f"The language model of this {self.name} looks back {self.text.window:,} tokens at most in some "
                "layers (use_sliding_window); beside positions of three axes that is not known here."
            )

    def read_geometry(self, processor: Any) -> FittedImages:
        own = int(processor.patch_size), int(processor.merge_size), int(processor.temporal_patch_size)
        wanted = self.patch_px, self._merge_size, self._frames
        if own != wanted:
            raise InputError(
                f"The settings for images cut patches of {own[0]} px, {own[1]} × {own[1]} to a token, {own[2]} deep, "
                f"and the image encoder reads {wanted[0]} px, {wanted[1]} × {wanted[1]}, {wanted[2]}; correct "
                "preprocessor_config.json."
            )
        size = dict(processor.size)
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        if processor.do_resize and not (least and most):
            raise InputError(
                f"The checkpoint brings images to the size {size}; known here are shortest_edge and longest_edge, the "
                "least and the most pixels."
            )
        return FittedImages(
            self.cell_px, int(least or 0), int(most or 0), int(processor.resample), bool(processor.do_resize)
        )

    @property
    def _vision(self) -> Any:
        return cast(Any, self.model.config).vision_config

    @property
    def _frames(self) -> int:
        """Pictures that a patch is deep: an image stands still for all of them."""
        return int(self._vision.temporal_patch_size)

    @property
    def patch_px(self) -> int:
        return int(self._vision.patch_size)

    @property
    def _merge_size(self) -> int:
        """Patches along a side of an image token."""
        return int(self._vision.spatial_merge_size)

    @property
    def cell_px(self) -> int:
        return self.patch_px * self._merge_size

    @property
    def vision_blocks(self) -> Sequence[nn.Module]:
        return list(cast(Any, self.model).model.visual.blocks)

    def write_image(self, image: ProcessedImage) -> list[ImagePiece]:
        # What stands around them is the chat template's.
        (tokens,) = self.count_tokens(image)
        return [ImagePiece("image", 0, ids=(self.image_token_id,) * tokens)]

    def place_positions(self, sample: Sample) -> Tensor:
        """``[3 pos]``: the same number on all axes for text; time, row and column for an image, counted from where
        text would stand."""
        place, found = 0, []
        for span in sample.spans:
            if span.kind == "image" and span.image is not None and span.tile is not None:
                rows, cols = self.count_cells(sample.images[span.image], span.tile)
                own = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(rows), torch.arange(cols)).T
                taken = max(rows, cols)
            else:
                own = torch.arange(len(span)).expand(_AXES, -1)
                taken = len(span)
            found.append(own + place)
            place += taken
        return torch.cat(found, dim=1) if found else torch.zeros((_AXES, 0), dtype=torch.long)

    @torch.no_grad()
    def read_patches(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        # One by one: sizes differ, and an image's features don't depend on its company to the last bit.
        return [self._read_picture(picture.to(self.device, self.dtype)) for picture in inputs]

    def project(self, patches: Sequence[Tensor]) -> list[Tensor]:
        return [self._merge(states) for states in patches]

    def _read_picture(self, picture: Tensor) -> Tensor:
        """``[patch d]``: the patches of one image token are neighbours, tokens row by row."""
        return cast(Tensor, self._run_encoder(picture).last_hidden_state)

    def _merge(self, states: Tensor) -> Tensor:
        return cast(Tensor, self._encoder.merger(states))

    @property
    def _encoder(self) -> Any:
        return cast(Any, self.model).model.visual

    def _run_encoder(self, picture: Tensor) -> Any:
        return self._encoder(self.cut_patches(picture), grid_thw=self._lay_grid(picture))

    def _lay_grid(self, picture: Tensor) -> Tensor:
        """``[1 3]``: frames, rows and columns of patches, as the encoder is told them."""
        rows, cols = picture.shape[1] // self.patch_px, picture.shape[2] // self.patch_px
        return torch.tensor([[1, rows, cols]], device=self.device)

    def cut_patches(self, picture: Tensor) -> Tensor:
        """``[patch value]`` of ``picture [3 height width]``, as the encoder reads it: the patches of one image token
        are neighbours, tokens row by row; a patch's values by colour, frame, row and column."""
        merge, side = self._merge_size, self.patch_px
        rows, cols = picture.shape[1] // self.cell_px, picture.shape[2] // self.cell_px
        patches = picture.reshape(3, rows, merge, side, cols, merge, side).permute(1, 4, 2, 5, 0, 3, 6)
        still = patches[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, self._frames, -1, -1)
        return still.reshape(rows * cols * merge * merge, -1)

    def map_places(self, patches: tuple[int, int], cells: tuple[int, int]) -> Tensor:
        """The patches of one cell are neighbours."""
        return torch.arange(cells[0] * cells[1]).repeat_interleave(self._merge_size**2)


class Qwen2_5VL(Qwen2VL):
    name = "Qwen2.5-VL"

    def map_places(self, patches: tuple[int, int], cells: tuple[int, int]) -> Tensor:
        return self._order_cells(torch.tensor([[1, *patches]])).repeat_interleave(self._merge_size**2)

    def _order_cells(self, grid: Tensor) -> Tensor:
        """``[cell]``: their numbers, one window after the other, as its blocks work through them; ``grid`` as
        :meth:`_lay_grid` gives it."""
        from transformers.vision_utils import get_vision_window_index

        return get_vision_window_index(grid, self._merge_size, int(self._vision.window_size), self.patch_px)[0]

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration

    def _read_picture(self, picture: Tensor) -> Tensor:
        # Its blocks look at windows, and its patches stay in their order: the projector's tokens are put back.
        order = self._order_cells(self._lay_grid(picture))
        states = super()._read_picture(picture).unflatten(0, (-1, self._merge_size**2))
        return states[order.argsort().to(states.device)].flatten(0, 1)


class Qwen3VL(Qwen2VL):
    name = "Qwen3-VL"

    def __init__(self, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(folder, device, dtype)
        self.extra_layers = len(self._vision.deepstack_visual_indexes)

    @classmethod
    def model_class(cls) -> type[PreTrainedModel]:
        from transformers import Qwen3VLForConditionalGeneration

        return Qwen3VLForConditionalGeneration

    def _read_picture(self, picture: Tensor) -> Tensor:
        """``[patch (1 + extra_layers)·d]``: what each of the :attr:`_mergers` reads."""
        read: dict[nn.Module, Tensor] = {}
        hooks = [one.register_forward_pre_hook(_keep_input(read)) for one in self._mergers[1:]]
        try:
            last = super()._read_picture(picture)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat((last, *(read[one] for one in self._mergers[1:])), dim=-1)

    def _merge(self, states: Tensor) -> Tensor:
        own = states.chunk(len(self._mergers), dim=-1)
        return torch.cat([merge(part.contiguous()) for merge, part in zip(self._mergers, own, strict=True)], dim=-1)

    @property
    def _mergers(self) -> list[nn.Module]:
        """The last one, then those of deeper layers in the order of these layers."""
        layers = list(self._vision.deepstack_visual_indexes)
        deeper = [self._encoder.deepstack_merger_list[layers.index(layer)] for layer in sorted(layers)]
        return [self._encoder.merger, *deeper]

    def deep_arguments(self, extra: Tensor) -> Mapping[str, Any]:
        holds = (extra != 0).any(dim=0).any(dim=-1)
        if not bool(holds.any()):
            return {}
        return {"visual_pos_masks": holds, "deepstack_visual_embeds": list(extra[:, holds])}


def _keep_input(found: dict[nn.Module, Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        found[module] = args[0]

    return keep
