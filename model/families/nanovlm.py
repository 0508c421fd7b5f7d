"""The vision-language model: encoder → projector → decoder, image tokens replaced in the sequence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from model.chat import ChatRenderer
from model.collator import IGNORE_LABEL, Batch, shift_labels
from model.config import VLMConfig
from model.errors import InputError
from model.families.nanovlm_chat import NanoVLMChat
from model.families.opened_vlm import OpenedVLM
from model.image import (
    Geometry,
    ImagePlan,
    OpenedImage,
    ProcessedImage,
    cut_image,
    geometry_of,
    plan_image,
    process_image,
)
from model.language import KVCache, LanguageModel
from model.layers import rotate
from model.masks import find_documents, make_mask, mask_visible
from model.memory import guard_memory
from model.projector import Projector
from model.sample import Row, Sample, TokenGrid
from model.tap import Tap
from model.tokenizer import token_text
from model.vision import VisionEncoder


class VLM(nn.Module, OpenedVLM):
    """A nanoVLM-compatible model with its tokenizer. Parameters have nanoVLM's names (``vision_encoder``, ``MP``,
    ``decoder``); weights are PyTorch's defaults until loaded or trained."""

    def __init__(self, config: VLMConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.renderer = ChatRenderer(tokenizer, NanoVLMChat(config, tokenizer))
        self.vision_encoder = VisionEncoder(config)
        self.MP = Projector(config)
        self.decoder = LanguageModel(config)
        self.folder: Path | None = None
        """Where its checkpoint was read; None for a model that was made here."""
        self._fingerprint: tuple[tuple[Any, ...], str] | None = None

    @property
    def image_token_id(self) -> int:
        return self.renderer.image_token_id

    @property
    def eos_token_id(self) -> int:
        return self.renderer.eos_token_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.eos_token_id,)

    @property
    def notes(self) -> tuple[str, ...]:
        if beyond := self.config.beyond:
            return (f"nanoVLM's own code can't read this checkpoint, which has {', '.join(beyond)}.",)
        if self.config.generation != "v0.1":
            return ()
        return ("v0.1: the image is no part of the token sequence; it is shown where the model sees it.",)

    @property
    def weights(self) -> nn.Module:
        return self

    @property
    def embedding(self) -> nn.Embedding:
        return self.decoder.token_embedding

    @property
    def numbers_images(self) -> bool:
        return True

    @property
    def pad_token_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over the configuration and every weight; changes when any of them does."""
        # In-place updates raise a tensor's version, so an unchanged model is not hashed twice.
        state = self.state_dict(keep_vars=True)
        versions = tuple((tensor.data_ptr(), tensor._version) for tensor in state.values())
        if self._fingerprint is None or self._fingerprint[0] != versions:
            digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
            for name in sorted(state):
                tensor = state[name].detach().cpu().contiguous()
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy())
            self._fingerprint = versions, digest.hexdigest()
        return self._fingerprint[1]

    # --- what analyses rely on: see model.families.protocol ---

    def count_parts(self) -> dict[str, int]:
        parts = {"image encoder": self.vision_encoder, "projector": self.MP, "language model": self.decoder}
        return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}

    @property
    def n_layers(self) -> int:
        return self.config.lm_n_blocks

    @property
    def n_heads(self) -> int:
        return self.config.lm_n_heads

    @property
    def max_positions(self) -> int:
        return self.config.lm_max_position_embeddings

    @property
    def family(self) -> str:
        return f"nanoVLM {self.format_version}"

    @property
    def format_version(self) -> str:
        return self.config.generation

    @property
    def image_token(self) -> str:
        return self.config.image_token or "<image>"

    def token_text(self, token_id: int) -> str:
        return self.image_token if token_id == self.image_token_id else token_text(self.tokenizer, token_id)

    @property
    def image_key(self) -> Hashable:
        return self.geometry, self.config.global_image_token is not None

    @property
    def geometry(self) -> Geometry:
        return geometry_of(self.config)

    @property
    def patch_px(self) -> int:
        return self.config.patch_px

    def plan_image(self, size: tuple[int, int]) -> ImagePlan:
        return plan_image(size, self.config)

    def cut_image(
        self, pictures: Sequence[np.ndarray], original_size: tuple[int, int], notes: tuple[str, ...] = ()
    ) -> ProcessedImage:
        return cut_image(pictures, original_size, self.config, notes)

    def count_tokens(self, image: ProcessedImage) -> tuple[int, ...]:
        return (self.config.tokens_per_tile,) * len(image.boxes)

    def place(self, sample: Sample) -> Row:
        cells = self.config.cells_per_side
        grids = tuple(
            TokenGrid(
                span.image,
                span.tile,
                span.start,
                cells,
                cells,
                sample.images[span.image].boxes[span.tile],
                sample.images[span.image].thumbnail_tile == span.tile,
            )
            for span in sample.spans
            if span.kind == "image" and span.image is not None and span.tile is not None
        )
        return Row(**vars(sample), position_ids=torch.arange(len(sample))[None], grids=grids)

    def encoder_inputs(self, image: ProcessedImage) -> tuple[Tensor, ...]:
        return tuple(image.tiles)

    @guard_memory
    @torch.no_grad()
    def encode(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        tiles = torch.stack(list(inputs)).to(self.device, self.dtype)
        return list(self.MP(self.vision_encoder(tiles)))

    @guard_memory
    def new_cache(self, positions: int) -> KVCache:
        return self.decoder.new_cache(1, positions)

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
        mask = mask_visible(visible, embeds.dtype, embeds.device)
        return self.decoder(embeds, mask, position_ids.to(embeds.device), cache=cache, tap=tap)

    def rotate_keys(self, keys: Tensor, by: int) -> Tensor:
        cos, sin = self.decoder.rotary_embd(torch.tensor([[by]], device=keys.device), self.max_positions)
        return rotate(keys, cos, sin)

    @guard_memory
    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        return self.decoder.head(hidden).float()

    @guard_memory
    @torch.no_grad()
    def read_out(self, states: Tensor) -> Tensor:
        """See :meth:`model.families.protocol.InspectableVLM.read_out`."""
        return self.logits(self.decoder.norm(states.to(self.device, self.dtype)))

    def convert(self, dtype: torch.dtype) -> VLM:
        from model.checkpoint import copy_vlm  # which knows of this module

        return copy_vlm(self).to(dtype)

    def redraw(self, seed: int) -> VLM:
        from model.training.fresh import fresh_vlm  # which knows of this module

        return fresh_vlm(self.config, self.tokenizer, seed)

    def watch(self, before_block: Callable[[], None]) -> None:
        for block in (*self.vision_encoder.blocks, *self.decoder.blocks):
            block.register_forward_pre_hook(lambda *_: before_block())

    def process_image(self, image: Image.Image | OpenedImage) -> ProcessedImage:
        """See :func:`model.image.process_image`."""
        return process_image(image, self.config)

    def embed(self, batch: Batch) -> Tensor:
        """``[batch pos lm_hidden_dim]``: token embeddings, with the projector's output at the image tokens. InputError
        if there are not exactly as many image tokens as features."""
        is_image = batch.input_ids == self.image_token_id
        embeds = self.decoder.token_embedding(batch.input_ids.masked_fill(is_image, 0))
        expected = len(batch.tiles) * self.config.tokens_per_tile
        if (found := int(is_image.sum())) != expected:
            raise InputError(
                f"The rows hold {found} image tokens and the {len(batch.tiles)} tiles give {expected} features; "
                "each image token needs exactly one."
            )
        if not expected and not batch.blank:
            return embeds
        tiles = batch.tiles if expected else self.vision_encoder.blank()
        tiles = tiles.to(self.MP.proj.weight.dtype)  # pixels are float32 whatever the weights are
        patches = self.vision_encoder(tiles) if batch.features is None else batch.features
        features = self.MP(patches).flatten(0, 1)
        if not expected:
            return embeds + 0.0 * features.sum()
        return embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))

    def hidden(self, batch: Batch, tap: Tap | None = None) -> Tensor:
        """The decoder's output after its last norm, ``[batch pos lm_hidden_dim]``."""
        embeds = self.embed(batch)
        segments = batch.segment_ids if batch.document_mask else None
        mask = make_mask(batch.attention_mask, segments, embeds.dtype)
        return self.decoder(embeds, mask, batch.position_ids, tap=tap)

    def forward(self, batch: Batch, tap: Tap | None = None) -> Tensor:
        """Logits ``[batch pos vocab]``; the one at a position predicts the token after it."""
        return self.decoder.head(self.hidden(batch, tap))

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats over the labels, each predicted from the position before it. Only positions that
        predict a label meet the vocabulary. InputError if there is no label."""
        targets = shift_labels(batch.labels)
        trained = targets != IGNORE_LABEL
        logits = self.decoder.head(self._states(batch, trained))
        return F.cross_entropy(logits.float(), targets[trained])

    def _states(self, batch: Batch, chosen: Tensor) -> Tensor:
        """Of :meth:`hidden`, those of the ``chosen [batch pos]`` positions alone, ``[chosen lm_hidden_dim]``. Padding
        and separators, which nobody attends to, are left out of the pass, and no mask is made."""
        attended = batch.attention_mask
        apart = batch.document_mask and bool((batch.segment_ids != batch.segment_ids[:, :1]).any())
        # A label right behind padding is predicted from padding, which sees padding: that takes the mask.
        if bool((chosen & ~attended).any()) or (not apart and bool(attended.all())):
            return self.hidden(batch)[chosen]
        documents = find_documents(attended, batch.segment_ids if apart else None)
        embeds, positions = self.embed(batch)[attended][None], batch.position_ids[attended][None]
        states = self.decoder(embeds, documents, positions, rope_length=attended.shape[1])
        return states[0, chosen[attended]]
