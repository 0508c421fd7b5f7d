"""What an analysis may ask of a model, whatever its family: the seam between looking and what is looked at.

A family runs its language model on embeddings that the caller made and keeps, never its own road from pixels to
logits: so an image is encoded once, a row is read once, and everything that changes one answer goes on behind what was
kept. Dims: ``pos`` positions of the row, ``axes`` of rotary positions (1; 3 for M-RoPE), ``width`` of the language
model's states, ``embed`` of what enters it at one position. Where a family adds features of deeper layers of the image
encoder behind its first layers (DeepStack), ``embed`` is a multiple of ``width``: what enters layer 0, then what is
added behind layers 0, 1, …, zeros at text. So whoever keeps, exchanges or compares embeddings has all of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.chat import Conversation
from model.collator import Batch
from model.families.choice_rules import ChoiceRules
from model.image import ImagePlan, OpenedImage, ProcessedImage
from model.language import KVCache
from model.picture import ImageGeometry
from model.sample import Row, Sample
from model.tap import Tap

if TYPE_CHECKING:
    from model.generate import Step


class InspectableVLM(Protocol):
    """One loaded model. Everything here is without gradients and leaves the model as it was."""

    tokenizer: PreTrainedTokenizerFast

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over configuration and weights."""
        ...

    @property
    def family(self) -> str:
        """What its family, and its generation of it, is called, for people."""
        ...

    @property
    def format_version(self) -> str:
        """What the checkpoint's format calls itself, for people."""
        ...

    @property
    def n_parameters(self) -> int: ...

    def count_parts(self) -> dict[str, int]:
        """The weights of the “image encoder”, the “projector” and the “language model”, together all of them."""
        ...

    @property
    def n_layers(self) -> int: ...

    @property
    def n_heads(self) -> int: ...

    @property
    def max_positions(self) -> int:
        """The longest row that it reads."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer, at least one; the first is the one that is written where one is needed. A
        token that nothing can go on from (an image token in an answer) may be among them."""
        ...

    @property
    def generation_defaults(self) -> Mapping[str, float]:
        """What the checkpoint asks to be asked with, as far as it says anything: ``max_new_tokens``, and where its
        answers are drawn ``temperature``, ``top_k`` (0: off), ``top_p`` (1: off)."""
        ...

    @property
    def choice_rules(self) -> ChoiceRules:
        """What the checkpoint's settings do to logits before a token is chosen, drawn or not."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of this checkpoint, in sentences."""
        ...

    @property
    def pad_token_id(self) -> int: ...

    @property
    def image_token_id(self) -> int:
        """The id at the positions of image tokens."""
        ...

    @property
    def numbers_images(self) -> bool:
        """Whether the format writes a number (``<image: k>``) before each image where a sample has several and tiles
        have markers, as nanoVLM's does."""
        ...

    @property
    def placement(self) -> str:
        """The numbers that it computes in, and where its weights are: “float32 · cpu”."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    # --- text and rows ---

    def encode_text(self, text: str) -> list[int]:
        """Ids of text that a person typed: never a special token."""
        ...

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer that a person typed, as the model would say it behind a prompt."""
        ...

    def decode_text(self, ids: Sequence[int]) -> str:
        """Special tokens written out; never given an image token."""
        ...

    def token_text(self, token_id: int) -> str:
        """One token as it is shown."""
        ...

    def prepare(self, conversation: Conversation, add_generation_prompt: bool = False) -> Sample:
        """The row of a conversation; InputError for what can't be rendered or is too long."""
        ...

    def collate(self, samples: list[Sample], *, document_mask: bool = False) -> Batch:
        """The samples as the training code would batch them."""
        ...

    def count_tokens(self, image: ProcessedImage) -> tuple[int, ...]:
        """Image tokens of each of its tiles."""
        ...

    def place(self, sample: Sample) -> Row:
        """The sample (packed ones too) with its rotary positions and the grids of its image tokens."""
        ...

    # --- images ---

    @property
    def image_key(self) -> Hashable:
        """Equal for models that make the same :class:`ProcessedImage` of an image."""
        ...

    @property
    def geometry(self) -> ImageGeometry:
        """What is done with the pixels of an image at full size, in the process that decodes."""
        ...

    @property
    def patch_px(self) -> int:
        """Side of a patch, the cell of the image encoder's grid."""
        ...

    def plan_image(self, size: tuple[int, int]) -> ImagePlan:
        """What an image of ``size`` (width, height) will become. InputError if it can't be taken."""
        ...

    def process_image(self, image: OpenedImage) -> ProcessedImage: ...

    def cut_image(
        self, pictures: Sequence[np.ndarray], original_size: tuple[int, int], notes: tuple[str, ...] = ()
    ) -> ProcessedImage:
        """Of what :attr:`geometry` made of an image: ``[height width 3]`` uint8 each."""
        ...

    def encoder_inputs(self, image: ProcessedImage) -> tuple[Tensor, ...]:
        """What the image encoder reads, each part by itself (tiles, in nanoVLM): equal parts have equal features."""
        ...

    def encode(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """``[token embed]`` of each of :meth:`encoder_inputs`, as they stand in the row."""
        ...

    def arrange_features(self, image: ProcessedImage, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """``[token embed]`` in the order of the image's tokens, of what :meth:`encode` made of its parts: these
        themselves, where a family doesn't put them together otherwise."""
        ...

    def for_images(self, count: int) -> InspectableVLM:
        """The same model for a sample of so many images, where that changes how each is cut."""
        ...

    # --- the language model ---

    def embed_ids(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """``[pos embed]`` of ``ids [pos]``; ``features [image token embed]`` go where the image tokens are, in order.
        ValueError if there are not exactly as many."""
        ...

    def new_cache(self, positions: int) -> KVCache:
        """An empty cache for so many positions."""
        ...

    def decode(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        visible: Tensor,
        cache: KVCache | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        """States ``[1 pos width]`` after the last norm, from ``embeds [1 pos embed]``, ``position_ids [axes pos]`` and
        ``visible [1 1 pos key]`` bool: which keys (those of ``cache``, then the pass's own) each position sees. The
        cache takes the new positions in."""
        ...

    def rotate_keys(self, keys: Tensor, by: int) -> Tensor:
        """Cached ``keys [layer … pos d]`` of all layers as if they stood ``by`` positions further on. ValueError where
        the rotary scheme knows no such move."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """``[… vocab]`` float32."""
        ...

    def read_out(self, states: Tensor) -> Tensor:
        """``[… vocab]`` float32 of ``states [… width]`` of any layer, by the last norm and the head: the logit lens
        (nostalgebraist 2020). Of the last layer's states these are the model's own logits."""
        ...

    def generate(
        self,
        sample: Sample,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[Step]:
        """What it says behind ``sample``, token by token; see :func:`model.generate.continue_row`."""
        ...

    def convert(self, dtype: torch.dtype) -> InspectableVLM:
        """A copy of its own in another precision."""
        ...

    def redraw(self, seed: int) -> InspectableVLM:
        """A copy of its own with random weights, as before any training."""
        ...

    def watch(self, before_block: Callable[[], None]) -> None:
        """Has ``before_block`` called before every block, in the thread that computes; what it raises ends the
        pass."""
        ...
