"""A vision-language model of transformers behind the seam: what all its families share.

A family says how it cuts images (a geometry), what stands in the row for one (:meth:`TransformersVLM.write_image`), and
how its encoder is run (:meth:`TransformersVLM.encode`). The rest is here: files, text, rows, and the language model by
:class:`model.families.transformers_text.TextModel`. ``docs/families.md`` walks through one.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.chat import ChatRenderer, ImagePiece
from model.collator import Batch
from model.devices import Placement, place
from model.errors import InputError
from model.families.checkpoint_files import (
    CONFIG,
    load_chat_tokenizer,
    load_image_processor,
    load_weights,
    read_object,
    read_template,
)
from model.families.choice_rules import ChoiceRules, read_defaults
from model.families.opened_vlm import OpenedVLM
from model.families.template_chat import TemplateChat
from model.families.transformers_text import TextModel, forget_hooks
from model.families.vision_attention import make_readable, reading
from model.image import ImagePlan, OpenedImage, ProcessedImage, build_image, open_image
from model.language import KVCache
from model.masks import Documents
from model.memory import guard_memory
from model.picture import ImageLayout, LayingOut
from model.sample import Row, Sample, TokenGrid
from model.tap import Tap

_PROJECTORS = ("multi_modal_projector", "connector", "merger", "deepstack_merger", "image_newline")
"""What transformers' families call what stands between their two models."""


@dataclass(frozen=True)
class PixelScale:
    """How 8-bit values become what the encoder reads: (value · ``factor`` − ``mean``) / ``std``, each step as
    transformers' image processors do it, which are compared to the last bit."""

    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> PixelScale:
        """What an image processor of transformers does."""
        factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
        if not processor.do_normalize:
            return cls(factor, (0.0,) * 3, (1.0,) * 3)
        return cls(factor, _three(processor.image_mean), _three(processor.image_std))

    def apply(self, picture: Tensor) -> Tensor:
        """``[3 height width]`` float32 of ``picture [height width 3]`` uint8."""
        scaled: np.ndarray = (picture.numpy().astype(np.float64) * self.factor).astype(np.float32)
        pixels: np.ndarray = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _three(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values)) if isinstance(values, list | tuple) else (float(values),) * 3


class TransformersVLM(OpenedVLM):
    """See :class:`model.families.protocol.InspectableVLM`."""

    name: ClassVar[str]
    """What the family is called, for people."""
    image_processors: ClassVar[tuple[str, ...]]
    """Transformers' image processors that the family is known with, the usual one first. Of each the variant is used
    that needs no torchvision (``…Pil``)."""
    plain_template: ClassVar[str | None] = None
    """The chat template of checkpoints that bring none; ``IMAGE`` stands for the image token."""
    adapted = False
    """Whether an adapter was added into its weights: they lie in no one folder."""

    # --- what a family says ---

    @classmethod
    @abstractmethod
    def model_class(cls) -> type[PreTrainedModel]:
        """Transformers' class of the whole model; imported here and not before."""

    @abstractmethod
    def read_geometry(self, processor: Any) -> LayingOut:
        """What is done with an image's pixels, from the settings of the checkpoint's image processor. InputError for
        settings that aren't known here."""

    @abstractmethod
    def write_image(self, image: ProcessedImage) -> list[ImagePiece]:
        """What stands in the row for an image: its runs of image tokens, one for each tile, and what is around them."""

    @abstractmethod
    def read_patches(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the projector reads of each of :meth:`encoder_inputs`, ``[patch d]``; without gradients."""

    @abstractmethod
    def project(self, patches: Sequence[Tensor]) -> list[Tensor]:
        """``[token embed]`` of what :meth:`read_patches` gave, with gradients where they are asked for."""

    @property
    @abstractmethod
    def patch_px(self) -> int:
        """Side of a patch."""

    @property
    @abstractmethod
    def cell_px(self) -> int:
        """Side of what one image token covers of the resized image."""

    @property
    @abstractmethod
    def vision_blocks(self) -> Sequence[nn.Module]:
        """The blocks of the image encoder."""

    @property
    def text_module(self) -> nn.Module:
        """Transformers' text model."""
        return cast(nn.Module, cast(Any, self.model).model.language_model)

    @property
    def image_text(self) -> str:
        """What the chat template writes for an image: one special token."""
        return str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))

    @property
    def image_token_id(self) -> int:
        return int(cast(Any, self.model.config).image_token_id)

    def count_cells(self, image: ProcessedImage, tile: int) -> tuple[int, int]:
        """(rows, cols) of image tokens of a tile."""
        rows, cols = image.grid
        width, height = image.resized_size
        return height // rows // self.cell_px, width // cols // self.cell_px

    def count_lead(self, image: ProcessedImage, tile: int) -> int:
        """Image tokens of a tile before its first cell, which belong to no place in the image (a class token)."""
        return 0

    def count_line_ends(self, image: ProcessedImage, tile: int) -> int:
        """Image tokens of a tile at the end of each row of cells, which belong to no place (a learned line break)."""
        return 0

    def place_positions(self, sample: Sample) -> Tensor:
        """``[axes pos]``: rotary positions of a row."""
        return torch.arange(len(sample))[None]

    def find_blocks(self, sample: Sample) -> Tensor | None:
        """``[pos]``: see :attr:`model.sample.Row.blocks`."""
        return None

    def deep_arguments(self, extra: Tensor) -> Mapping[str, Any]:
        """What the text model is told of ``extra [layer batch pos width]``, the features that are added behind its
        first layers (zeros at text)."""
        return {}

    @property
    def encoder_lead(self) -> int:
        """Places of the image encoder before its patches (a class token)."""
        return 0

    @property
    def encoder_depth(self) -> int:
        """Blocks of the image encoder that have a part in what stands in the row."""
        blocks = len(self.vision_blocks)
        layers = getattr(self.config, "vision_feature_layer", None)  # of the states before, between and behind them
        chosen = (-1,) if layers is None else (layers,) if isinstance(layers, int) else layers
        return max(int(layer) % (blocks + 1) for layer in chosen)

    def map_places(self, patches: tuple[int, int], cells: tuple[int, int]) -> Tensor:
        """``[place]``: the cell in which each place of the encoder lies, of ``cells`` (rows, cols) row by row, for
        a picture of ``patches`` (rows, cols); −1 for a place in none."""
        each = self.cell_px // self.patch_px
        lines, columns = (torch.arange(count) // each for count in patches)
        found = torch.where((lines[:, None] < cells[0]) & (columns < cells[1]), lines[:, None] * cells[1] + columns, -1)
        return torch.cat((torch.full((self.encoder_lead,), -1), found.flatten()))

    # --- opening ---

    def __init__(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        quantize: str | None = None,
    ) -> None:
        """The model of a checkpoint folder, where :func:`model.devices.place` says; on the device “meta” it has no
        weights and takes no memory. InputError for anything that can't be used."""
        shape = str(device) == "meta"
        self._placed = Placement(torch.device("meta"), dtype) if shape else place(device, dtype, {}, quantize)
        self.folder = folder
        self.folder_config = read_object(folder / CONFIG)
        processor = load_image_processor(folder, self.image_processors)
        self.model = load_weights(self.model_class(), folder, self._placed)
        self.text = TextModel(self.text_module, cast(nn.Module, cast(Any, self.model).lm_head))
        make_readable(self.vision_blocks)
        self.tokenizer = load_chat_tokenizer(folder, self.embedding.num_embeddings)
        self.pixels = PixelScale.of(processor)
        self._geometry = self.read_geometry(processor)
        if self.image_text not in self.tokenizer.get_added_vocab():
            raise InputError(
                f"The tokenizer in {folder} has no special token for images at {self.image_token_id}; it is not this "
                "checkpoint's tokenizer."
            )
        settings = cast(Any, self.model.generation_config)
        self.choice_rules = ChoiceRules.read(settings, self._named_ends, self.embedding.num_embeddings)
        self.generation_defaults = read_defaults(settings)
        template = read_template(folder, self.tokenizer)
        if template is None and self.plain_template is not None:
            template = self.plain_template.replace("IMAGE", self.image_text)
        if template is None:
            raise InputError(f"{folder} has no chat template (chat_template.jinja); fetch it.")
        self.renderer = ChatRenderer(
            self.tokenizer,
            TemplateChat(
                self.tokenizer,
                template,
                image_text=self.image_text,
                image_token_id=self.image_token_id,
                eos_token_id=self.eos_ids[0],
                max_positions=self.max_positions,
                write_image=self.write_image,
            ),
        )

    @property
    def config(self) -> Any:
        """Transformers' configuration of the whole model."""
        return self.model.config

    # --- what analyses rely on: see model.families.protocol ---

    @property
    def weights(self) -> nn.Module:
        return self.model

    @property
    def embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.folder_config, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def family(self) -> str:
        return self.name

    @property
    def format_version(self) -> str:
        return self.name

    def count_parts(self) -> dict[str, int]:
        found = dict.fromkeys(("image encoder", "projector", "language model"), 0)
        language = {id(weight) for part in (self.text.model, self.text.head) for weight in part.parameters()}
        for name, weight in self.model.named_parameters():
            projects = any(step.startswith(_PROJECTORS) for step in name.split("."))
            part = "language model" if id(weight) in language else "projector" if projects else "image encoder"
            found[part] += weight.numel()
        return found

    @property
    def projectors(self) -> dict[str, nn.Module]:
        """The modules between its two models, by their names in it. A learned line break is no module and not among
        them."""
        found: dict[str, nn.Module] = {}
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2].startswith(_PROJECTORS):
                several = module.named_children() if isinstance(module, nn.ModuleList) else ()
                found |= {f"{name}.{number}": one for number, one in several} or {name: module}
        return found

    @property
    def n_layers(self) -> int:
        return self.text.n_layers

    @property
    def n_heads(self) -> int:
        return self.text.n_heads

    @property
    def max_positions(self) -> int:
        return int(self.text.config.max_position_embeddings)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        # A model that says an image token can't go on: there is no image for it.
        return (*self._named_ends, self.image_token_id)

    @cached_property
    def _named_ends(self) -> tuple[int, ...]:
        settings = cast(Any, self.model.generation_config)
        for found in (settings and settings.eos_token_id, self.text.config.eos_token_id, self.tokenizer.eos_token_id):
            if found is not None:
                return tuple(map(int, found)) if isinstance(found, list | tuple) else (int(found),)
        raise InputError("The checkpoint names no token that ends an answer (eos_token_id); correct its config.json.")

    @property
    def numbers_images(self) -> bool:
        return False

    @property
    def pad_token_id(self) -> int:
        own = self.tokenizer.pad_token_id
        return self.eos_ids[0] if own is None else int(own)

    # --- text and rows ---

    def collate(self, samples: list[Sample], *, document_mask: bool = False) -> Batch:
        placed: list[Sample] = [one if isinstance(one, Row) else self.place(one) for one in samples]
        return super().collate(placed, document_mask=document_mask)

    def count_tokens(self, image: ProcessedImage) -> tuple[int, ...]:
        found = []
        for tile in range(len(image.boxes)):
            rows, cols = self.count_cells(image, tile)
            found.append(self.count_lead(image, tile) + rows * (cols + self.count_line_ends(image, tile)))
        return tuple(found)

    def place(self, sample: Sample) -> Row:
        grids = []
        for span in sample.spans:
            if span.kind == "image" and span.image is not None and span.tile is not None:
                image = sample.images[span.image]
                rows, cols = self.count_cells(image, span.tile)
                grids.append(
                    TokenGrid(
                        image=span.image,
                        tile=span.tile,
                        start=span.start + self.count_lead(image, span.tile),
                        rows=rows,
                        cols=cols,
                        box=image.boxes[span.tile],
                        is_thumbnail=image.thumbnail_tile == span.tile,
                        between=self.count_line_ends(image, span.tile),
                    )
                )
        return Row(
            **vars(sample),
            position_ids=self.place_positions(sample),
            grids=tuple(grids),
            blocks=self.find_blocks(sample),
        )

    # --- images ---

    @property
    def geometry(self) -> LayingOut:
        return self._geometry

    @property
    def image_key(self) -> Hashable:
        return cast(Hashable, self._geometry)

    def plan_image(self, size: tuple[int, int]) -> ImagePlan:
        layout = self._lay_out(size)
        stand_in = build_image((np.zeros((0, 0, 3), np.uint8),), layout)
        return ImagePlan(
            original_size=layout.original_size,
            resized_size=layout.resized_size,
            grid=layout.grid,
            has_thumbnail=layout.thumbnail is not None,
            tiles=len(layout.boxes),
            tokens=self.renderer.count_tokens(stand_in),
            seen=layout.seen,
            notes=layout.notes,
        )

    def process_image(self, image: Image.Image | OpenedImage) -> ProcessedImage:
        """A PIL image that isn't upright RGB goes through :func:`model.open_image`."""
        opened = image if isinstance(image, OpenedImage) else open_image(image)
        return self.cut_image(self.geometry.reduce(opened.pixels), opened.size, opened.notes)

    def cut_image(
        self, pictures: Sequence[np.ndarray], original_size: tuple[int, int], notes: tuple[str, ...] = ()
    ) -> ProcessedImage:
        return build_image(pictures, self._lay_out(original_size), notes)

    def _lay_out(self, size: tuple[int, int]) -> ImageLayout:
        if min(size) < 1:
            raise InputError(f"An image of {size[0]} × {size[1]} px has no pixels; each side must be at least 1.")
        return self.geometry.lay_out(size)

    def encoder_inputs(self, image: ProcessedImage) -> tuple[Tensor, ...]:
        return tuple(self.pixels.apply(picture) for picture in image.pictures)

    @guard_memory
    @torch.no_grad()
    def encode(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return self.project(self.read_patches(inputs))

    @property
    def encoder_heads(self) -> int:
        """Heads of each block of the image encoder."""
        settings = self.config.vision_config
        return int(getattr(settings, "num_attention_heads", None) or settings.num_heads)

    @guard_memory
    def read_encoder(self, image: ProcessedImage, tile: int, cell: int) -> Tensor:
        """``[layer head cell]``: where each head of the image encoder looks from the patches of one cell of a tile, the
        mean of theirs, summed over the patches of each cell. What goes to a class token is left out."""
        part = self.encoder_inputs(image)[tile]
        height, width = part.shape[1:]
        patches = height // self.patch_px, width // self.patch_px
        with reading(self.map_places(patches, self.count_cells(image, tile)), cell) as found:
            self.read_patches([part])
        return found.patterns[: self.encoder_depth]

    # --- the language model ---

    @guard_memory
    def new_cache(self, positions: int) -> KVCache:
        return self.text.new_cache(positions, self.dtype, self.device)

    @guard_memory
    @torch.no_grad()
    def decode(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        visible: Tensor,
        cache: KVCache | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        return self.read_rows(embeds, position_ids, visible, cache, tap)

    def read_rows(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        visible: Tensor | Documents,
        cache: KVCache | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        """:meth:`decode` with gradients where they are asked for, and of several rows where there is no cache: ``embeds
        [batch pos embed]``, ``position_ids [axes batch pos]``, ``visible [batch 1 pos pos]``; or of documents in one
        flat row, that nobody looks into."""
        width = self.text.width
        more: Mapping[str, Any] = {}
        if self.extra_layers:
            more = self.deep_arguments(embeds[..., width:].unflatten(-1, (self.extra_layers, width)).movedim(-2, 0))
        return self.text.run(embeds[..., :width], position_ids, visible, cache, tap, **more)

    def rotate_keys(self, keys: Tensor, by: int) -> Tensor:
        return self.text.rotate_keys(keys, by)

    @guard_memory
    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.text.head(hidden)).float()

    @guard_memory
    @torch.no_grad()
    def read_out(self, states: Tensor) -> Tensor:
        norm = self.text.norm
        return self.logits(norm(states.to(next(norm.parameters()).device, self.dtype)).to(self.device))

    def convert(self, dtype: torch.dtype) -> TransformersVLM:
        self._check_copied()
        return self._copy(cast(Any, deepcopy(self.model)).to(dtype))

    def redraw(self, seed: int) -> TransformersVLM:
        self._check_copied()
        model = deepcopy(self.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in model.modules():
                module._is_hf_initialized = False  # type: ignore[assignment]  # else transformers leaves it alone
            for weight in model.parameters():
                weight._is_hf_initialized = False  # type: ignore[attr-defined]
            model.init_weights()
        return self._copy(model.eval())

    def share(self, changes: Collection[str]) -> TransformersVLM:
        """Another model on the same weights, but for those named ``changes``, of which it has copies to be written to.
        InputError where it can't be copied."""
        self._check_copied()
        named = dict(self.model.named_parameters(remove_duplicate=False))
        own = {id(weight) for name, weight in named.items() if name in changes}
        shared: dict[int, Any] = {id(weight): weight for weight in named.values() if id(weight) not in own}
        return self._copy(deepcopy(self.model, shared))

    @property
    def can_share(self) -> bool:
        """Whether :meth:`share` works: not where it is quantised or spread over several devices."""
        return not (self._placed.balanced or self._placed.quantize)

    def _check_copied(self) -> None:
        if not self.can_share:
            raise InputError(
                "A model that is quantised or spread over several devices can't be copied with other weights; open it "
                "on one device, without --quantize."
            )

    def _copy(self, model: PreTrainedModel) -> TransformersVLM:
        """Another model of the same shape; nobody watches it yet."""
        found = copy(self)
        found.__dict__.pop("fingerprint", None)
        found.model = model
        forget_hooks(model)
        found.text = TextModel(found.text_module, cast(nn.Module, cast(Any, model).lm_head))
        return found

    def watch(self, before_block: Callable[[], None]) -> None:
        self.text.watch(before_block, self.vision_blocks)
