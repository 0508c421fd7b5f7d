"""The vision-language model: encoder → projector → decoder, image tokens replaced in the sequence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from model.chat import ChatRenderer, Conversation
from model.collator import IGNORE_LABEL, Batch, collate
from model.config import VLMConfig
from model.errors import InputError
from model.generate import Step, generate_batch
from model.image import OpenedImage, ProcessedImage, process_image
from model.language import LanguageModel, build_mask
from model.projector import Projector
from model.sample import Sample
from model.tap import Tap
from model.tokenizer import decode
from model.vision import VisionEncoder


class VLM(nn.Module):
    """A nanoVLM-compatible model with its tokenizer. Parameters have nanoVLM's names (``vision_encoder``, ``MP``,
    ``decoder``); weights are PyTorch's defaults until loaded or trained."""

    def __init__(self, config: VLMConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.renderer = ChatRenderer(config, tokenizer)
        self.vision_encoder = VisionEncoder(config)
        self.MP = Projector(config)
        self.decoder = LanguageModel(config)
        self._fingerprint: tuple[tuple[Any, ...], str] | None = None

    @property
    def image_token_id(self) -> int:
        return self.renderer.image_token_id

    @property
    def eos_token_id(self) -> int:
        return self.renderer.eos_token_id

    @property
    def pad_token_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def device(self) -> torch.device:
        return self.MP.proj.weight.device

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

    def process_image(self, image: Image.Image | OpenedImage) -> ProcessedImage:
        """See :func:`model.image.process_image`."""
        return process_image(image, self.config)

    def prepare(self, conversation: Conversation, add_generation_prompt: bool = False) -> Sample:
        """See :meth:`model.chat.ChatRenderer.render`."""
        return self.renderer.render(conversation, self.process_image, add_generation_prompt)

    def collate(self, samples: list[Sample], *, document_mask: bool = False) -> Batch:
        """:func:`model.collator.collate` with this tokenizer's padding, on this model's device."""
        return collate(samples, pad_token_id=self.pad_token_id, document_mask=document_mask).to(self.device)

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
        if not expected:
            return embeds
        tiles = batch.tiles.to(self.MP.proj.weight.dtype)  # pixels are float32 whatever the weights are
        patches = self.vision_encoder(tiles) if batch.features is None else batch.features
        features = self.MP(patches).flatten(0, 1)
        return embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))

    def hidden(self, batch: Batch, tap: Tap | None = None) -> Tensor:
        """The decoder's output after its last norm, ``[batch pos lm_hidden_dim]``."""
        embeds = self.embed(batch)
        segments = batch.segment_ids if batch.document_mask else None
        mask = build_mask(batch.attention_mask, segments, embeds.shape[1], embeds.dtype)
        return self.decoder(embeds, mask, batch.position_ids, tap=tap)

    def forward(self, batch: Batch, tap: Tap | None = None) -> Tensor:
        """Logits ``[batch pos vocab]``; the one at a position predicts the token after it."""
        return self.decoder.head(self.hidden(batch, tap))

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats over the labels, each predicted from the position before it: the one place where
        labels are shifted. Only positions that predict a label meet the vocabulary. InputError if there is no label.
        """
        targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE_LABEL)
        trained = targets != IGNORE_LABEL
        if not bool(trained.any()):
            raise InputError("No position of the batch has a label, so there is nothing to learn; check the loss mask.")
        logits = self.decoder.head(self.hidden(batch)[trained])
        return F.cross_entropy(logits.float(), targets[trained])

    def generate(
        self,
        sample: Sample,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        document_mask: bool = False,
        tap: Tap | None = None,
    ) -> Iterator[Step]:
        """Streams the continuation of ``sample``; see :func:`model.generate.generate_batch`. The last step is the end
        token if the model said it."""
        ids: list[int] = []
        shown = ""
        for token_ids, logprobs in generate_batch(
            self,
            self.collate([sample], document_mask=document_mask),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            tap=tap,
        ):
            token_id = int(token_ids[0])
            text = ""
            if token_id != self.eos_token_id:
                ids.append(token_id)
                # Decoding all of it each time: a character may be made of several tokens.
                whole = decode(self.tokenizer, ids)
                if not whole.endswith("\ufffd"):
                    text, shown = whole[len(shown) :], whole
            yield Step(token_id, text, float(logprobs[0]))
