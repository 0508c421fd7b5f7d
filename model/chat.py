"""From a conversation to a :class:`Sample`: the one renderer that training, generation and inspection share.

A chat template is rendered with a stand-in for every message's content, so that what the template wrote and what a
person wrote never mix: special tokens come from the template and the images alone, and a typed ``<|im_end|>`` stays
eleven characters. Stretches of plain text between special tokens are encoded whole, which gives upstream's ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from model.errors import InputError, TooLongError
from model.image import OpenedImage, ProcessedImage
from model.sample import Role, Sample, Span, SpanKind
from model.tokenizer import TextEncoder, check_letters

ROLES = ("system", "user", "assistant")

# Private-use characters around a number; the template never sees a person's text, so nothing can imitate them.
_SLOT = re.compile("\ue000(\\d+)\ue001")

Picture = Image.Image | OpenedImage | ProcessedImage


@dataclass(frozen=True)
class Message:
    """What one side said. ``images`` come before the text, as in nanoVLM. ``ids``: the tokens of the text where they
    are known, as those of an answer that was generated are; text that is encoded again may split otherwise.
    ``trained``: whether an answer has labels; what others say never has."""

    role: str
    text: str
    images: tuple[Picture, ...] = ()
    ids: tuple[int, ...] | None = None
    trained: bool = True


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class _Piece:
    """Either text to be encoded or, if ``ids`` are set, these tokens."""

    text: str
    kind: SpanKind
    role: Role
    message: int | None = None
    image: int | None = None
    tile: int | None = None
    trained: bool = False
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ImagePiece:
    """A part of what an image is in the row: a run of image tokens (``kind`` image) or what the format writes around
    them (region). ``tile`` as in :class:`model.sample.Span`. ``ids`` are its tokens; None where ``text`` is to be
    encoded like any text of the template."""

    kind: Literal["image", "region"]
    tile: int | None
    text: str = ""
    ids: tuple[int, ...] | None = None


class ChatFormat(Protocol):
    """How one family writes a conversation: what differs between families, so that one renderer serves all.

    ``placement`` says where the images of a message go: *template*: where the template writes :attr:`image_text`, once
    for each; *message*: before the message's text; *row*: before everything.
    """

    @property
    def image_token_id(self) -> int: ...

    @property
    def eos_token_id(self) -> int:
        """The token that ends an answer; of several, the one that is written where one is needed."""
        ...

    @property
    def max_positions(self) -> int: ...

    @property
    def placement(self) -> Literal["template", "message", "row"]: ...

    @property
    def image_text(self) -> str:
        """What the template writes in the place of an image: one special token, or "" for other placements."""
        ...

    @property
    def opening_ids(self) -> tuple[int, ...]:
        """What stands before the template's text, where the tokenizer puts something there by itself."""
        ...

    def write(self, messages: Sequence[Message], slots: Sequence[str], add_generation_prompt: bool) -> str:
        """The template's text with ``slots[n]`` where the text of message n belongs. InputError if it can't write such
        a conversation."""
        ...

    def trims(self, messages: Sequence[Message]) -> tuple[tuple[bool, bool], ...]:
        """Per message, whether the template takes blanks away (before, behind) its text."""
        ...

    def write_image(self, image: ProcessedImage, index: int, several: bool) -> list[ImagePiece]:
        """Image ``index`` (from 0) of the conversation; ``several``: it is not the only one."""
        ...


class ChatRenderer:
    """Renders conversations for one tokenizer and format.

    ``image_token_id`` is the id at image positions.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat) -> None:
        self.tokenizer = tokenizer
        self.format = chat_format
        self._encoder = TextEncoder(tokenizer)
        self._special = {token: number for token, number in tokenizer.get_added_vocab().items() if token.strip()}
        self._special_pattern = re.compile(
            "(" + "|".join(re.escape(token) for token in sorted(self._special, key=len, reverse=True)) + ")"
        )
        added = tokenizer.added_tokens_decoder.items()
        self._takes_before = {number for number, token in added if token.lstrip}
        self._takes_behind = {number for number, token in added if token.rstrip}
        self.image_token_id = chat_format.image_token_id
        self.eos_token_id = chat_format.eos_token_id

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, as a person's: never a special token. InputError as in :class:`TextEncoder`."""
        return self._encoder.encode(text)[0]

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer that a person typed, as the model would say it behind a prompt: with what the template
        writes before an answer that is given and leaves to the model in one that is to come (a blank, mostly)."""
        return self.encode_text(self._answer_lead + text) if text else []

    @cached_property
    def _answer_lead(self) -> str:
        messages = [Message("user", ""), Message("assistant", "")]
        given, coming = self._write(messages, False), self._write(messages[:1], True)
        return given[2].removeprefix(coming[-1]) if given[2].startswith(coming[-1]) else ""

    def render(
        self,
        conversation: Conversation,
        process: Callable[[Image.Image | OpenedImage], ProcessedImage],
        add_generation_prompt: bool = False,
    ) -> Sample:
        """The sample of ``conversation``; ``process`` makes tiles of images that aren't processed yet. With
        ``add_generation_prompt`` it ends where the assistant would begin. InputError for an unknown role, no message,
        images elsewhere than with the user, a letter that is none, or a sequence beyond ``max_positions``."""
        messages = conversation.messages
        if not messages:
            raise InputError("The conversation has no message; write a question first.")
        for message in messages:
            if message.role not in ROLES:
                raise InputError(f"A message has the role “{message.role}”; allowed are {', '.join(ROLES)}.")
            if message.images and message.role != "user":
                raise InputError(f"An image belongs to a {message.role} message; put it into a user message.")
            if message.ids is None:
                check_letters(message.text)
        images = tuple(
            picture if isinstance(picture, ProcessedImage) else process(picture)
            for message in messages
            for picture in message.images
        )
        pieces = self._pieces(messages, images, add_generation_prompt)
        sample = self._encode(pieces, images)
        limit = self.format.max_positions
        if len(sample) > limit:
            raise TooLongError(
                f"The prompt is {len(sample):,} tokens long and this model reads at most {limit:,}; "
                "use fewer or smaller images, or less text."
            )
        return sample

    def count_tokens(self, image: ProcessedImage, several: bool = False) -> int:
        """Positions that an image takes in the row, markers included, when nothing stands beside it."""
        return len(
            self._encode(
                [_of_image(piece, None, 0) for piece in self.format.write_image(image, 0, several)], (), at_start=False
            )
        )

    def _pieces(
        self, messages: Sequence[Message], images: tuple[ProcessedImage, ...], add_generation_prompt: bool
    ) -> list[_Piece]:
        written = self._write_images(messages, images)
        contents: list[list[_Piece]] = []
        for index, (message, trimmed) in enumerate(zip(messages, self.format.trims(messages), strict=True)):
            kind: SpanKind = "answer" if message.role == "assistant" else "text"
            role = _role_of(messages, index)
            text = message.text.lstrip() if trimmed[0] else message.text
            text = text.rstrip() if trimmed[1] else text
            contents.append([_Piece(text, kind, role, index, trained=_is_trained(messages, index), ids=message.ids)])

        opening = self.format.opening_ids
        pieces = [_Piece("", "special", "template", ids=opening)] if opening else []
        if self.format.placement == "row":
            pieces += [piece for own in written for piece in own]
        elif self.format.placement == "message":
            images_left = iter(written)
            for message, content in zip(messages, contents, strict=True):
                content[:0] = [piece for _ in message.images for piece in next(images_left)]
        before = None  # the message whose turn the template is closing
        parts = self._write(messages, add_generation_prompt)
        if [int(slot) for slot in parts[1::2]] != list(range(len(messages))):
            raise InputError("The chat template does not write every message exactly once, in order; correct it.")
        for part, text in enumerate(parts):
            if part % 2:
                before = int(text)
                pieces += contents[before]
            elif part:
                pieces += self._template_pieces(
                    self._before_answer(messages, part // 2) or text, messages, before, part // 2
                )
            else:
                pieces += self._opening_pieces(text, messages)
        return self._place_images(pieces, written) if self.format.placement == "template" else pieces

    def _write_images(self, messages: Sequence[Message], images: tuple[ProcessedImage, ...]) -> list[list[_Piece]]:
        """The pieces of every image, in order."""
        brought = [index for index, message in enumerate(messages) for _ in message.images]
        return [
            [_of_image(piece, message, n) for piece in self.format.write_image(image, n, len(images) > 1)]
            for n, (message, image) in enumerate(zip(brought, images, strict=True))
        ]

    def _place_images(self, pieces: Sequence[_Piece], written: Sequence[list[_Piece]]) -> list[_Piece]:
        """The images where the template wrote that there is one; only it can have written that."""
        token = (self._special[self.format.image_text],)
        places = [piece for piece in pieces if piece.ids == token and piece.text == self.format.image_text]
        if len(places) != len(written):
            raise InputError(
                f"The chat template has {len(places)} places for {len(written)} images; it must write "
                f"“{self.format.image_text}” once for each."
            )
        waiting = iter(written)
        found: list[_Piece] = []
        for piece in pieces:
            found += next(waiting) if any(piece is place for place in places) else [piece]
        return found

    def _write(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[str]:
        """What the template wrote, in pieces: its own text and numbers of messages by turns."""
        slots = [f"\ue000{index}\ue001" for index in range(len(messages))]
        return _SLOT.split(self.format.write(messages, slots, add_generation_prompt))

    def _before_answer(self, messages: Sequence[Message], index: int) -> str:
        """What the model itself had read before it gave answer ``index``: some templates begin a turn that is over in
        another way than one that is to come. "" for what it didn't say."""
        if not 0 < index < len(messages) or messages[index].ids is None or messages[index].role != "assistant":
            return ""
        parts = self._write(messages[:index], True)
        return parts[-1] if parts[1::2] == [str(n) for n in range(index)] else ""

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
            role = _role_of(messages, owner)
            trained = closing is not None and _is_trained(messages, closing)
            ids = None if token_id is None else (token_id,)
            pieces.append(
                _Piece(chunk, "role" if token_id is None else "special", role, owner, trained=trained, ids=ids)
            )
        return pieces

    def _user_header(self, first: Message) -> str:
        """What the template writes before a later user message with as many images as ``first``, without what closes
        the turn before it; "" where the template can't be asked."""
        messages = [Message("user", ""), Message("assistant", ""), Message("user", "", first.images)]
        try:
            parts = self._write(messages, False)
        except InputError:
            return ""
        if parts[1::2] != ["0", "1", "2"]:
            return ""
        pieces = self._template_pieces(parts[4], messages, 1, 2)
        return "".join(piece.text for piece in pieces if piece.message == 2)

    def _opening_pieces(self, text: str, messages: Sequence[Message]) -> list[_Piece]:
        """What the template wrote before the first message. Whatever comes before the header of a user's turn (the
        beginning of the row, a system turn of the template's own) belongs to nobody's."""
        if not text:
            return []
        header = self._user_header(messages[0]) if messages[0].role == "user" else ""
        own = len(text) - len(header) if header and text.endswith(header) else 0
        pieces = self._template_pieces(text[:own], messages, None, 0)
        nobodys = [replace(piece, message=None, role="template") for piece in pieces]
        return nobodys + self._template_pieces(text[own:], messages, None, 0)

    def _encode(self, pieces: Sequence[_Piece], images: tuple[ProcessedImage, ...], *, at_start: bool = True) -> Sample:
        """``at_start``: the pieces begin the text that the tokenizer would be given as a whole."""
        ids: list[int] = []
        owners: list[_Piece] = []
        pending: list[_Piece] = []

        after_special: int | None = None

        def flush(next_id: int | None = None) -> None:
            nonlocal at_start
            if not pending:
                return
            text = "".join(piece.text for piece in pending)
            # Some special tokens take the blanks beside them along.
            start = len(text) - len(text.lstrip()) if after_special in self._takes_behind else 0
            stop = len(text.rstrip()) if next_id in self._takes_before else len(text)
            encoded, offsets = self._encoder.encode(text[start:stop], at_start=at_start)
            at_start = at_start and not text
            ends, stop = [], 0
            for piece in pending:
                stop += len(piece.text)
                ends.append(stop)
            for token_id, (_, token_stop) in zip(encoded, offsets, strict=True):
                # A token across a border belongs to the later piece. An answer that begins with blanks shares a
                # token with the template's line break; it is trained on, where upstream loses it.
                owner = next(n for n, end in enumerate(ends) if start + token_stop <= end)
                ids.append(token_id)
                owners.append(pending[owner])
            pending.clear()

        for piece in pieces:
            if piece.ids is None:
                pending.append(piece)
                continue
            flush(piece.ids[0] if piece.ids else None)
            ids += piece.ids
            owners += [piece] * len(piece.ids)
            after_special = piece.ids[-1] if piece.ids else after_special
            at_start = at_start and not piece.text and piece.kind == "special"
        flush()
        return Sample(
            input_ids=torch.tensor(ids, dtype=torch.long),
            loss_mask=torch.tensor([piece.trained for piece in owners], dtype=torch.bool),
            spans=_spans(owners),
            images=images,
            attention_mask=torch.ones(len(ids), dtype=torch.bool),
            segment_ids=torch.zeros(len(ids), dtype=torch.long),
        )


def _of_image(piece: ImagePiece, message: int | None, image: int) -> _Piece:
    return _Piece(piece.text, piece.kind, "user", message, image, piece.tile, ids=piece.ids)


def _is_trained(messages: Sequence[Message], index: int) -> bool:
    return messages[index].role == "assistant" and messages[index].trained


def _role_of(messages: Sequence[Message], owner: int) -> Role:
    """Of message ``owner``; one beyond the last is the assistant who is to answer."""
    return messages[owner].role if owner < len(messages) else "assistant"  # type: ignore[return-value]  # checked


def _spans(owners: Sequence[_Piece]) -> tuple[Span, ...]:
    spans: list[Span] = []
    for position, piece in enumerate(owners):
        if position and piece is owners[position - 1]:
            spans[-1] = replace(spans[-1], stop=position + 1)
        else:
            spans.append(Span(piece.kind, position, position + 1, piece.message, piece.image, piece.tile, piece.role))
    return tuple(spans)
