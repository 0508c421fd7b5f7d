"""What a person asks: images, turns and a layout; and the row of tokens that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar, get_args

from inspector.bounds import Bounds
from inspector.images.image_file import ImageFile, PromptImage, process_prompt_image
from inspector.row.references import find_pointers
from model import Conversation, InputError, InspectableVLM, Message, ProcessedImage, Row, Sample, pack_samples
from model.values import name_value

T = TypeVar("T")

Layout = Literal["images-first", "per-turn", "packed"]
LAYOUTS: tuple[str, ...] = get_args(Layout)

MAX_IMAGES = Bounds().images


@dataclass(frozen=True)
class Turn:
    """A question and, if there is one, its answer (given by a person, or by the model once asked). ``answer_ids``: the
    tokens that the model generated, without the end token; None for an answer that a person gave."""

    user: str
    assistant: str = ""
    answer_ids: tuple[int, ...] | None = None

    @property
    def is_answered(self) -> bool:
        return bool(self.assistant) or self.answer_ids is not None


@dataclass(frozen=True)
class Prompt:
    """``layout``: *images-first* puts every image before the first question, as nanoVLM does; *per-turn* gives image
    i to turn i; *packed* makes a sample of each image with its turn and puts them into one row. What is left over
    (images or turns) joins the last. ``document_mask`` keeps packed samples from seeing one another. ``bounds`` are the
    server's: a prompt that is made from this one stays within them."""

    images: tuple[PromptImage, ...]
    turns: tuple[Turn, ...]
    layout: Layout = "images-first"
    document_mask: bool = False
    bounds: Bounds = field(default=Bounds(), repr=False, compare=False)

    def __post_init__(self) -> None:
        bounds = self.bounds
        if self.layout not in LAYOUTS:
            raise InputError(f"The layout is {name_value(self.layout)}; choose one of {', '.join(LAYOUTS)}.")
        if not isinstance(self.document_mask, bool):
            raise InputError(f"The document mask is {name_value(self.document_mask)}; it must be true or false.")
        check_count(len(self.images), bounds)
        if len(self.turns) > bounds.turns:
            raise InputError(
                f"There are {len(self.turns):,} turns; at most {bounds.turns} fit one prompt, remove some."
            )
        for number, turn in enumerate(self.turns, start=1):
            for text in (turn.user, turn.assistant):
                _check_text(text, number, bounds)
        if not any(turn.user.strip() for turn in self.turns):
            raise InputError("There is no question; write one and press Ask.")
        for number, turn in enumerate(self.turns, start=1):
            if not turn.user.strip():
                raise InputError(f"Turn {number} has no question; write one or remove the turn.")

    @property
    def keeps_samples_apart(self) -> bool:
        """Whether packed samples can't see one another."""
        return self.document_mask and self.layout == "packed"

    def with_answer(self, index: int, answer: str, ids: tuple[int, ...] | None = None) -> Prompt:
        turns = list(self.turns)
        turns[index] = replace(turns[index], assistant=answer, answer_ids=ids)
        return replace(self, turns=tuple(turns))


def check_count(images: int, bounds: Bounds) -> None:
    """InputError for more images than a prompt holds; asked before any of them is opened, too."""
    if images > bounds.images:
        raise InputError(f"There are {images:,} images; at most {bounds.images} fit one prompt, remove some.")


def check_pixels(images: Sequence[PromptImage], bounds: Bounds) -> None:
    """InputError if the images together have more pixels than one prompt may; none is decoded for that."""
    total = sum(
        image.count_pixels() if isinstance(image, ImageFile) else image.size[0] * image.size[1] for image in images
    )
    if total > bounds.prompt_pixels:
        raise InputError(
            f"The images have {total / 1e6:,.6g} million pixels together; at most "
            f"{bounds.prompt_pixels / 1e6:,.6g} million fit one prompt, scale them down or remove some."
        )


def check_length(text: str, what: str, bounds: Bounds) -> None:
    """InputError, about ``what``, for more text than a question or an answer may have."""
    if len(text) > bounds.text:
        raise InputError(f"{what} has {len(text):,} characters of text; at most {bounds.text:,} are allowed.")


def _check_text(text: object, turn: int, bounds: Bounds) -> None:
    if not isinstance(text, str):
        raise InputError(f"Turn {turn} has {name_value(text)} for a text; write its question and answer as text.")
    check_length(text, f"Turn {turn}", bounds)
    # JSON can hold half of a pair of UTF-16; nothing that is sent or written in UTF-8 can.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"Turn {turn} holds half a character (a lone surrogate), which is no text; remove it.")


def name_missing(prompt: Prompt) -> tuple[str, ...]:
    """A sentence for each turn that names an image which the prompt doesn't have; the model answers all the same."""
    count = len(prompt.images)
    have = "no image" if not count else f"{count} image" + ("s" if count > 1 else "")
    found = []
    for number, turn in enumerate(prompt.turns, start=1):
        beyond = sorted({p.number for p in find_pointers(turn.user) if p.number is not None and p.number > count})
        if beyond:
            named = " and ".join(f"image {image}" for image in beyond)
            found.append(f"Turn {number} asks about {named}, and the prompt has {have}; add it, or ask about another.")
    return tuple(found)


def images_of_turns(prompt: Prompt) -> tuple[tuple[PromptImage, ...], ...]:
    """The images that each turn brings."""
    return _deal(prompt, prompt.images)


def _deal(prompt: Prompt, images: Sequence[T]) -> tuple[tuple[T, ...], ...]:
    """To each turn those of ``images`` (one for each of the prompt's) that it brings."""
    turns = len(prompt.turns)
    brought: list[list[T]] = [[] for _ in range(turns)]
    for index, image in enumerate(images):
        brought[0 if prompt.layout == "images-first" else min(index, turns - 1)].append(image)
    return tuple(tuple(images) for images in brought)


def conversations(prompt: Prompt, processed: Sequence[ProcessedImage]) -> tuple[Conversation, ...]:
    """One conversation per sample: all turns in one, or one turn in each if packed. A turn without an answer ends
    with its question. ``processed``: what a model sees of each image."""
    parts: list[list[Message]] = []
    for turn, images in zip(prompt.turns, _deal(prompt, processed), strict=True):
        messages = [Message("user", turn.user, images)]
        if turn.is_answered:
            messages.append(Message("assistant", turn.assistant, ids=turn.answer_ids))
        if prompt.layout == "packed" or not parts:
            parts.append(messages)
        else:
            parts[-1] += messages
    return tuple(Conversation(tuple(messages)) for messages in parts)


def prepare_samples(vlm: InspectableVLM, prompt: Prompt) -> tuple[Sample, ...]:
    """Every sample of the prompt on its own, as the training code would get it."""
    vlm = vlm.for_images(count_together(prompt))
    return tuple(vlm.prepare(conversation) for conversation in conversations(prompt, process_images(vlm, prompt)))


def count_together(prompt: Prompt) -> int:
    """The most images that one sample of the prompt has."""
    if prompt.layout != "packed":
        return len(prompt.images)
    return max(map(len, images_of_turns(prompt)), default=0)


def first_turns(prompt: Prompt, count: int) -> Prompt:
    """The first ``count`` turns, with the images that they bring."""
    brought = images_of_turns(prompt)[:count]
    return replace(prompt, turns=prompt.turns[:count], images=tuple(image for images in brought for image in images))


def process_images(
    vlm: InspectableVLM, prompt: Prompt, replaced: Mapping[int, ProcessedImage] | None = None
) -> tuple[ProcessedImage, ...]:
    """What the model sees of each image; ``replaced``: what it sees instead, by index."""
    others = replaced or {}
    return tuple(
        others[index] if index in others else process_prompt_image(image, vlm)
        for index, image in enumerate(prompt.images)
    )


def prepare_row(
    vlm: InspectableVLM,
    prompt: Prompt,
    *,
    answering: int | None = None,
    replaced: Mapping[int, ProcessedImage] | None = None,
) -> Row:
    """The one row that the model reads. ``answering``: stop where the model is to answer that turn (0-based), with
    the turns after it left out. ``replaced``: see :func:`process_images`. InputError if the row is longer than the
    model reads."""
    # Of all its images: what an earlier turn is answered to must stay the beginning of the row.
    vlm = vlm.for_images(count_together(prompt))
    shown = prompt if answering is None else first_turns(prompt, answering + 1).with_answer(answering, "")
    parts = conversations(shown, process_images(vlm, shown, replaced))
    samples = [
        vlm.prepare(part, add_generation_prompt=answering is not None and index == len(parts) - 1)
        for index, part in enumerate(parts)
    ]
    row = (
        samples[0]
        if prompt.layout != "packed"
        else pack_samples(samples, vlm.pad_token_id, separate_last=answering is None)
    )
    limit = vlm.max_positions
    if len(row) > limit:
        raise InputError(
            f"The packed row is {len(row):,} tokens long and this model reads at most {limit:,}; "
            "use fewer or smaller images, or less text."
        )
    return vlm.place(row)
