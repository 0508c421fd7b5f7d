"""The image encoder of a vision-language model as an encoder by itself, with its text tower where one belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from model.chat import Conversation, Message
from model.clip import DualEncoder
from model.encoders.protocol import EncodedImage, ImageReader, LossKind, PatchGrid
from model.errors import InputError
from model.families.nanovlm import VLM
from model.image import ProcessedImage
from model.losses import unit
from model.memory import guard_memory
from model.sample import Row, TokenGrid
from model.vision import VisionBlock

if TYPE_CHECKING:
    from model.families.transformers_vlm import TransformersVLM

NO_TEXT = (
    "No text tower belongs to this image encoder, so captions and labels can't be compared with images; what is left: "
)


class NanoEncoder:
    """A nanoVLM's. ``dual``: the tower; see :func:`model.encoders.text_tower.find_tower`. An image of several tiles is
    represented by its first, the thumbnail, as in the contrastive stage."""

    loss_kind: LossKind = "infonce"
    bias = 0.0

    def __init__(self, vlm: VLM, dual: DualEncoder | None) -> None:
        self._vlm, self._dual = vlm, dual
        self.name = f"{vlm.family}, image encoder"
        self.width = 0 if dual is None else dual.text.embedding.embedding_dim
        self.n_layers, self.n_heads = vlm.config.vit_n_blocks, vlm.config.vit_n_heads
        self.missing = "" if dual else f"{NO_TEXT}patches compared with patches, and the encoder's attention."
        self.about_patches = (
            "a patch's last state through a head of its own, which was trained with phrases (“red circle”) of the place"
            if dual
            else "a patch's last state in the encoder, behind its last norm"
        )

    @property
    def fingerprint(self) -> str:
        return f"{self._vlm.fingerprint} {'with' if self._dual else 'without'} tower"

    @property
    def reader(self) -> ImageReader:
        return self._vlm

    @property
    def has_text(self) -> bool:
        return self._dual is not None

    @property
    def scale(self) -> float:
        return 1.0 if self._dual is None else self._scale(self._dual.log_temperature)

    @property
    def patch_scale(self) -> float:
        return 1.0 if self._dual is None else self._scale(self._dual.patch_log_temperature)

    @staticmethod
    def _scale(log_temperature: Tensor) -> float:
        return float((-DualEncoder.bounded(log_temperature.detach())).exp())

    @guard_memory
    @torch.no_grad()
    def encode_image(self, image: ProcessedImage) -> EncodedImage:
        patches = self._vlm.vision_encoder(self._tile(image)).float()
        side = round(patches.shape[1] ** 0.5)
        grids = (PatchGrid(side, side, image.boxes[0]),)
        if self._dual is None:
            return EncodedImage(None, unit(patches[0]), grids)
        return EncodedImage(self._dual.embed_images(patches)[0], self._dual.embed_patches(patches)[0], grids)

    def _tile(self, image: ProcessedImage) -> Tensor:
        return image.tiles[:1].to(self._vlm.device, self._vlm.dtype)

    @guard_memory
    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        if self._dual is None:
            raise InputError(self.missing)
        return self._dual.embed_texts(texts)

    @guard_memory
    @torch.no_grad()
    def read_attention(self, image: ProcessedImage, patch: int) -> Tensor:
        encoder = self._vlm.vision_encoder
        x, found = encoder.patch_embedding(self._tile(image)), []
        for block in cast("Iterable[VisionBlock]", encoder.blocks):
            found.append(block.attn.read_pattern(block.ln1(x), patch)[0])
            x = block(x)
        return torch.stack(found).float()

    def watch(self, before_block: Callable[[], None]) -> None:
        """Nothing: whoever watches the VLM watches this."""


class TokenEncoder:
    """Any other family's: what an image token brings into the row stands for its cell. ``vlm`` cuts one image as if it
    were alone."""

    loss_kind: LossKind = "infonce"
    scale = patch_scale = 1.0
    bias = 0.0
    has_text = False
    width = 0
    missing = f"{NO_TEXT}patches compared with patches, and the encoder's attention."
    about_patches = "what an image token brings into the row: the encoder's states behind the projector"

    def __init__(self, vlm: TransformersVLM) -> None:
        self._vlm = vlm
        self.n_layers, self.n_heads = vlm.encoder_depth, vlm.encoder_heads
        self.name = f"{vlm.family}, image encoder and projector"

    @property
    def fingerprint(self) -> str:
        return self._vlm.fingerprint

    @property
    def reader(self) -> ImageReader:
        return self._vlm

    @guard_memory
    @torch.no_grad()
    def encode_image(self, image: ProcessedImage) -> EncodedImage:
        """Where there is a thumbnail it stands for the image: its tiles would say most of it twice."""
        vlm, row, used = self._place(image)
        features = torch.cat(vlm.arrange_features(image, vlm.encode(vlm.encoder_inputs(image)))).float()
        order = (row.input_ids == vlm.image_token_id).cumsum(dim=0) - 1
        patches, grids, start = [], [], 0
        for grid in used:
            places = [grid.position(line, col) for line in range(grid.rows) for col in range(grid.cols)]
            patches.append(features[order[places].to(features.device)])
            grids.append(PatchGrid(grid.rows, grid.cols, grid.box, start))
            start += len(places)
        return EncodedImage(None, unit(torch.cat(patches)), tuple(grids))

    def _place(self, image: ProcessedImage) -> tuple[TransformersVLM, Row, Sequence[TokenGrid]]:
        """The model for one image, its row, and the grids that stand for it."""
        vlm = self._vlm.for_images(1)
        row = vlm.place(vlm.prepare(Conversation((Message("user", "?", (image,)),))))
        return vlm, row, [grid for grid in row.grids if grid.is_thumbnail] or row.grids

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        raise InputError(self.missing)

    def read_attention(self, image: ProcessedImage, patch: int) -> Tensor:
        """Of image tokens: the patches of a token are taken together."""
        vlm, _, grids = self._place(image)
        patterns, start = [], 0
        for grid in grids:
            inside = 0 <= patch - start < grid.rows * grid.cols
            shape = (self.n_layers, self.n_heads, grid.rows * grid.cols)
            # Nothing passes from one tile to another inside the encoder.
            patterns.append(vlm.read_encoder(image, grid.tile, patch - start) if inside else torch.zeros(shape))
            start += grid.rows * grid.cols
        return torch.cat(patterns, dim=-1)

    def watch(self, before_block: Callable[[], None]) -> None:
        """Nothing: whoever watches the VLM watches this."""
