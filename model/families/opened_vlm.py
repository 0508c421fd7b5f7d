"""What every loaded model answers in the same way, whatever its family: text, rows, embeddings, the answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from model.chat import ChatRenderer, Conversation
from model.collator import Batch, collate
from model.devices import describe_placement
from model.families.choice_rules import ChoiceRules
from model.generate import Step, check_room, continue_row
from model.sample import Sample, see
from model.tokenizer import decode, token_text

if TYPE_CHECKING:
    from PIL import Image

    from model.families.protocol import InspectableVLM
    from model.image import OpenedImage, ProcessedImage


class OpenedVLM(ABC):
    """Part of :class:`model.families.protocol.InspectableVLM`."""

    tokenizer: PreTrainedTokenizerFast
    renderer: ChatRenderer
    generation_defaults: Mapping[str, float] = MappingProxyType({})
    choice_rules = ChoiceRules()
    extra_layers: int = 0
    """Features of so many deeper layers of the encoder are added behind the language model's first layers."""

    @property
    @abstractmethod
    def weights(self) -> nn.Module:
        """What holds every weight."""

    @property
    @abstractmethod
    def embedding(self) -> nn.Embedding:
        """Of tokens."""

    @property
    @abstractmethod
    def image_token_id(self) -> int: ...

    @property
    @abstractmethod
    def pad_token_id(self) -> int: ...

    @abstractmethod
    def process_image(self, image: Image.Image | OpenedImage) -> ProcessedImage: ...

    @property
    def notes(self) -> tuple[str, ...]:
        return self.choice_rules.notes

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.weights.parameters())

    @property
    def placement(self) -> str:
        return describe_placement(self.weights, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def encode_text(self, text: str) -> list[int]:
        return self.renderer.encode_text(text)

    def encode_answer(self, text: str) -> list[int]:
        return self.renderer.encode_answer(text)

    def decode_text(self, ids: Sequence[int]) -> str:
        return decode(self.tokenizer, list(ids))

    def token_text(self, token_id: int) -> str:
        return token_text(self.tokenizer, token_id)

    def prepare(self, conversation: Conversation, add_generation_prompt: bool = False) -> Sample:
        """See :meth:`model.chat.ChatRenderer.render`."""
        images = sum(len(message.images) for message in conversation.messages)
        return self.renderer.render(conversation, self.for_images(images).process_image, add_generation_prompt)

    def arrange_features(self, image: ProcessedImage, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See :meth:`model.families.protocol.InspectableVLM.arrange_features`."""
        return tuple(parts)

    def for_images(self, count: int) -> Self:
        """See :meth:`model.families.protocol.InspectableVLM.for_images`."""
        return self

    def collate(self, samples: list[Sample], *, document_mask: bool = False) -> Batch:
        """:func:`model.collator.collate` with this tokenizer's padding, on this model's device."""
        return collate(samples, pad_token_id=self.pad_token_id, document_mask=document_mask).to(self.device)

    @torch.no_grad()
    def embed_ids(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        is_image = ids == self.image_token_id
        embeds: Tensor = self.embedding(ids.masked_fill(is_image, 0).to(self.device))
        if self.extra_layers:
            embeds = torch.cat((embeds, embeds.new_zeros(len(ids), self.extra_layers * embeds.shape[-1])), dim=-1)
        expected = 0 if features is None else len(features)
        if int(is_image.sum()) != expected:
            raise ValueError(f"{int(is_image.sum())} image tokens can't hold {expected} features.")
        if features is not None:
            embeds[is_image.to(self.device)] = features.to(embeds)
        return embeds

    def generate(
        self: InspectableVLM,
        sample: Sample,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[Step]:
        """Streams the continuation of ``sample``; see :func:`model.generate.continue_row`. ``temperature`` 0 is greedy;
        ``seed`` None draws a fresh one. InputError if there is no room, too."""
        row = self.place(sample)
        room = check_room(max_new_tokens, len(row), self.max_positions)
        features = [
            part
            for image in row.images
            for part in self.arrange_features(image, self.encode(self.encoder_inputs(image)))
        ]
        embeds = self.embed_ids(row.input_ids, torch.cat(features) if features else None)
        cache, visible, positions = self.new_cache(len(row) + room), see(row, False), row.position_ids

        def read(token_id: int) -> Tensor:
            nonlocal visible, positions
            positions = (positions.amax() + 1).expand(len(positions), 1)
            visible = torch.cat((visible[-1:], torch.ones(1, 1, dtype=torch.bool)), dim=1)
            token = self.embed_ids(torch.tensor([token_id]))
            return self.decode(token[None], positions, visible[None, None], cache)[0]

        yield from continue_row(
            self,
            row,
            self.decode(embeds[None], positions, visible[None, None], cache)[0, -1:],
            read,
            room=room,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
