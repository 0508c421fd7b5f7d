"""From a conversation to a :class:`Sample`: the one renderer that training, generation and inspection share.

A chat template is rendered with a stand-in for every message's content, so that what the template wrote and what a
person wrote never mix: special tokens come from the template and the images alone, and a typed ``<|im_end|>`` stays
eleven characters. Stretches of plain text between special tokens are encoded whole, which gives upstream's ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image
from transformers import PreTrainedTokenizerFast

from model.config import VLMConfig
from model.errors import InputError
from model.image import OpenedImage, ProcessedImage
from model.sample import Sample, Span, SpanKind
from model.tokenizer import TextEncoder

ROLES = ("system", "user", "assistant")

# Private-use characters around a number; the template never sees a person's text, so nothing can imitate them.
_SLOT = re.compile("\ue000(\\d+)\ue001")

Picture = Image.Image | OpenedImage | ProcessedImage


@dataclass(frozen=True)
class Message:
    """What one side said. ``images`` come before the text, as in nanoVLM."""

    role: str
    text: str
    images: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class _Piece:
    """Either text to be encoded or, if ``token_id`` is set, ``count`` copies of one token."""

    text: str
    kind: SpanKind
    message: int | None = None
    image: int | None = None
    tile: int | None = None
    trained: bool = False
    token_id: int | None = None
    count: int = 1


class ChatRenderer:
    """Renders conversations for one tokenizer and configuration.

    ``image_token_id`` is the id at image positions. Checkpoints before June 2025 have no such token (their images are
    put before the text as embeddings); theirs is the first id beyond the vocabulary.
    """

    def __init__(self, config: VLMConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer)
        self._special = dict(tokenizer.get_added_vocab())
        self._special_pattern = re.compile(
            "(" + "|".join(re.escape(token) for token in sorted(self._special, key=len, reverse=True)) + ")"
        )
        image_token = config.image_token
        self.image_token_id: int = config.lm_vocab_size if image_token is None else self._special[image_token]
        eos = config.extra.get("lm_eos_token_id") if config.lm_chat_template is None else None
        self.eos_token_id: int = tokenizer.eos_token_id if eos is None else int(eos)
        self._template = None
        if config.lm_chat_template is not None:
            environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
            try:
                self._template = environment.from_string(config.lm_chat_template)
            except TemplateError as error:
                raise InputError(f"lm_chat_template in config.json is no valid template ({error}).") from error

    def encode_text(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """See :meth:`model.tokenizer.TextEncoder.encode`."""
        return self._encoder.encode(text)

    def render(
        self,
        conversation: Conversation,
        process: Callable[[Image.Image | OpenedImage], ProcessedImage],
        add_generation_prompt: bool = False,
    ) -> Sample:
        """The sample of ``conversation``; ``process`` makes tiles of images that aren't processed yet. With
        ``add_generation_prompt`` it ends where the assistant would begin. InputError for an unknown role, no message,
        images elsewhere than with the user, or a sequence beyond ``lm_max_position_embeddings``."""
        messages = conversation.messages
        if not messages:
            raise InputError("The conversation has no message; write a question first.")
        for message in messages:
            if message.role not in ROLES:
                raise InputError(f"A message has the role “{message.role}”; allowed are {', '.join(ROLES)}.")
            if message.images and message.role != "user":
                raise InputError(f"An image belongs to a {message.role} message; put it into a user message.")
        images = tuple(
            picture if isinstance(picture, ProcessedImage) else process(picture)
            for message in messages
            for picture in message.images
        )
        pieces = self._pieces(messages, images, add_generation_prompt)
        sample = self._encode(pieces, images)
        limit = self.config.lm_max_position_embeddings
        if len(sample) > limit:
            raise InputError(
                f"The prompt is {len(sample):,} tokens long and this model reads at most {limit:,}; "
                "use fewer or smaller images, or less text."
            )
        return sample

    def _pieces(
        self, messages: Sequence[Message], images: tuple[ProcessedImage, ...], add_generation_prompt: bool
    ) -> list[_Piece]:
        contents: list[list[_Piece]] = []
        first_image = 0
        for index, message in enumerate(messages):
            content: list[_Piece] = []
            for image in range(first_image, first_image + len(message.images)):
                content += self._image_pieces(images[image], index, image, len(images) > 1)
            first_image += len(message.images)
            kind: SpanKind = "answer" if message.role == "assistant" else "text"
            content.append(_Piece(message.text, kind, index, trained=message.role == "assistant"))
            contents.append(content)

        pieces: list[_Piece] = []
        if self._template is None:
            # The plain prompt has no place for images: they come before all of it.
            pieces = [piece for content in contents for piece in content[:-1]]
            contents = [content[-1:] for content in contents]
        before = None  # the message whose turn the template is closing
        parts = _SLOT.split(self._render_template(messages, add_generation_prompt))
        if [int(slot) for slot in parts[1::2]] != list(range(len(messages))):
            raise InputError("The chat template does not write every message exactly once, in order; correct it.")
        for part, text in enumerate(parts):
            if part % 2:
                before = int(text)
                pieces += contents[before]
            else:
                pieces += self._template_pieces(text, messages, before, part // 2)
        return pieces

    def _render_template(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        slots = [f"\ue000{index}\ue001" for index in range(len(messages))]
        if self._template is None:
            # nanoVLM up to June 2025; the end token is written by its name so that it is found like the template's.
            eos = str(self.tokenizer.convert_ids_to_tokens(self.eos_token_id))
            formats = {"user": "Question: {} Answer:", "assistant": "{}" + eos, "system": "{} "}
            return "".join(formats[message.role].format(slot) for message, slot in zip(messages, slots, strict=True))
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": slot} for m, slot in zip(messages, slots, strict=True)],
                add_generation_prompt=add_generation_prompt,
                bos_token=self.tokenizer.bos_token or "",
                eos_token=self.tokenizer.eos_token,
            )
        except TemplateError as error:
            raise InputError(f"lm_chat_template in config.json can't render this conversation ({error}).") from error

    def _template_pieces(self, text: str, messages: Sequence[Message], before: int | None, after: int) -> list[_Piece]:
        """What the template wrote between message ``before`` and message ``after`` (the last is the generation
        prompt). The end token of an assistant's turn and the blank text behind it are trained on: they are how the
        model learns to stop."""
        pieces: list[_Piece] = []
        closing = before
        ended = False
        for chunk in self._special_pattern.split(text):
            if not chunk:
                continue
            token_id = self._special.get(chunk)
            if token_id is not None and ended:
                closing = None
            ended = ended or token_id is not None
            if token_id is None and chunk.strip():
                closing = None
            owner = after if closing is None else closing
            trained = closing is not None and messages[closing].role == "assistant"
            pieces.append(
                _Piece(chunk, "role" if token_id is None else "special", owner, trained=trained, token_id=token_id)
            )
        return pieces

    def _image_pieces(self, image: ProcessedImage, message: int, index: int, several: bool) -> list[_Piece]:
        def run(tile: int) -> _Piece:
            return _Piece("", "image", message, index, tile, token_id=self.image_token_id, count=tokens)

        def marker(token: str, tile: int) -> _Piece:
            return _Piece(token, "region", message, index, tile, token_id=self._special[token])

        tokens = self.config.tokens_per_tile
        if not self.config.splits_images:
            return [run(0)]
        pieces = [_Piece(f"<image: {index}>", "region", message, index)] if several else []
        rows, cols = image.grid
        if self.config.global_image_token is not None:
            pieces += [marker(self.config.global_image_token, 0), run(0)]
        if (rows, cols) == (1, 1) and self.config.global_image_token is not None:
            return pieces  # the only tile is the thumbnail
        for row in range(rows):
            for col in range(cols):
                tile = row * cols + col + image.has_thumbnail
                pieces += [marker(self.config.region_token(row, col), tile), run(tile)]
        return pieces

    def _encode(self, pieces: Sequence[_Piece], images: tuple[ProcessedImage, ...]) -> Sample:
        ids: list[int] = []
        owners: list[_Piece] = []
        pending: list[_Piece] = []

        def flush() -> None:
            if not pending:
                return
            encoded, offsets = self._encoder.encode("".join(piece.text for piece in pending))
            ends, stop = [], 0
            for piece in pending:
                stop += len(piece.text)
                ends.append(stop)
            for token_id, (_, token_stop) in zip(encoded, offsets, strict=True):
                # A token across a border belongs to the later piece. An answer that begins with blanks shares a
                # token with the template's line break; it is trained on, where upstream loses it.
                owner = next(n for n, end in enumerate(ends) if token_stop <= end)
                ids.append(token_id)
                owners.append(pending[owner])
            pending.clear()

        for piece in pieces:
            if piece.token_id is None:
                pending.append(piece)
                continue
            flush()
            ids += [piece.token_id] * piece.count
            owners += [piece] * piece.count
        flush()
        return Sample(
            input_ids=torch.tensor(ids, dtype=torch.long),
            loss_mask=torch.tensor([piece.trained for piece in owners], dtype=torch.bool),
            spans=_spans(owners),
            images=images,
            attention_mask=torch.ones(len(ids), dtype=torch.bool),
            segment_ids=torch.zeros(len(ids), dtype=torch.long),
        )


def _spans(owners: Sequence[_Piece]) -> tuple[Span, ...]:
    spans: list[Span] = []
    for position, piece in enumerate(owners):
        if position and piece is owners[position - 1]:
            spans[-1] = replace(spans[-1], stop=position + 1)
        else:
            spans.append(Span(piece.kind, position, position + 1, piece.message, piece.image, piece.tile))
    return tuple(spans)
