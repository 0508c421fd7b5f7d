"""What a row of tokens is made of: images, questions, marks and samples, which question can see which image, and
whether the row is several samples packed into one.

Nothing here runs the model. Images, questions, messages and samples count from 1; positions count from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

from inspector.row.token_table import tile_name
from model import Sample, Span

Positions = tuple[int, int]
"""A half-open run of positions (start, stop)."""

RowKind = Literal["text only", "one image", "several images, first", "one image per turn", "packed samples"]

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class TileRun:
    """The image tokens of one tile. ``tile`` counts from 0 in the order of ``ProcessedImage.tiles``; ``name`` is
    “thumbnail” or “r1c2”; ``mark`` is the first position of its region mark, None where the format has none; ``marks``
    are all positions that the format writes around it."""

    tile: int
    name: str
    start: int
    stop: int
    mark: int | None
    marks: tuple[int, ...] = ()


@dataclass(frozen=True)
class ImageBlock:
    """One image in the row. ``start`` and ``stop`` are the whole block: ordinal text, region marks and image tokens.

    ``tokens`` are the positions of its image tokens, ``marks`` those of its region marks, ``ordinal`` the run of its
    ``<image: k>`` text (None where there is none). ``message`` and ``sample`` say what brings it, ``question`` the
    number of the question in that message. ``grid`` is (rows, columns).
    """

    number: int
    sample: int
    message: int
    question: int | None
    start: int
    stop: int
    tokens: tuple[int, ...]
    marks: tuple[int, ...]
    ordinal: Positions | None
    ordinal_text: str
    tiles: tuple[TileRun, ...]
    grid: tuple[int, int]


@dataclass(frozen=True)
class Visibility:
    """Whether a question can see an image. ``why`` is one of “before it”, “after it”, “another sample”.

    ``to_first`` and ``to_last``: positions from the image's last token to the question's first and last token, 1 for
    neighbours; None where the image can't be seen.
    """

    image: int
    reachable: bool
    why: Literal["before it", "after it", "another sample"]
    to_first: int | None
    to_last: int | None


@dataclass(frozen=True)
class Question:
    """A turn: what the user asks and, if it is in the row, the answer.

    ``start`` and ``stop`` are the question's text; ``answer`` is the answer's text (empty, at the place where it would
    begin, if there is none). ``chooser`` is the position whose output chooses the answer's first token, None for a
    question that nobody answers. ``end`` is the position of the token that ends the answer, None if the row stops
    before it. ``sights`` has one entry per image of the row, in order.
    """

    number: int
    sample: int
    message: int
    start: int
    stop: int
    text: str
    answer: Positions
    answer_text: str
    chooser: int | None
    end: int | None
    sights: tuple[Visibility, ...]

    @property
    def reachable(self) -> tuple[int, ...]:
        """Numbers of the images that it can see."""
        return tuple(sight.image for sight in self.sights if sight.reachable)


@dataclass(frozen=True)
class Mark:
    """Tokens that the chat template wrote. ``name`` is their text without blanks around it (``<|im_end|>``, ``user``)
    or “line break”; ``kind`` is "special" for one special token, "role" for plain text."""

    name: str
    kind: Literal["special", "role"]
    start: int
    stop: int
    sample: int
    message: int


@dataclass(frozen=True)
class RowVerdict:
    """What the row is, read off the row alone, and the sentences that say why."""

    kind: RowKind
    samples: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RowStructure:
    """``separators``: masked positions behind the row's first attended one, which part samples. ``padding``: runs of
    masked positions at the row's start. ``samples``: the run of each sample, its separator left out, by the row's
    segment numbers. ``row`` is what the row's tokens alone show it to be."""

    length: int
    document_mask: bool
    images: tuple[ImageBlock, ...]
    questions: tuple[Question, ...]
    separators: tuple[int, ...]
    separator_texts: tuple[str, ...]
    padding: tuple[Positions, ...]
    marks: tuple[Mark, ...]
    samples: tuple[Positions, ...]
    row: RowVerdict

    @property
    def mark_names(self) -> tuple[str, ...]:
        """Names of the template's marks, in the order of their first place."""
        return tuple(dict.fromkeys(mark.name for mark in self.marks))

    def mark_positions(self, name: str) -> tuple[int, ...]:
        """Every position of the template's marks of that name."""
        return tuple(p for mark in self.marks if mark.name == name for p in range(mark.start, mark.stop))


@dataclass(frozen=True)
class _Message:
    """The spans of one message, in order."""

    number: int
    sample: int
    spans: tuple[Span, ...]

    @property
    def is_question(self) -> bool:
        return self.spans[0].role == "user"

    @property
    def answers(self) -> bool:
        return self.spans[0].role == "assistant"

    def of_kind(self, *kinds: str) -> list[Span]:
        return [span for span in self.spans if span.kind in kinds]


def read_structure(sample: Sample, *, document_mask: bool, decode: Decode, numbers_images: bool = True) -> RowStructure:
    """The structure of a row, padded or not, that may stop before an answer. ``decode`` turns ids into text, special
    tokens written out; it is never given an image token. ``numbers_images``: the format writes ``<image: k>`` where a
    sample has several, as nanoVLM does, so that their lack says something."""
    ids = sample.input_ids.tolist()
    attended = sample.attention_mask.tolist()
    segments = sample.segment_ids.tolist()

    def text(start: int, stop: int) -> str:
        return decode(ids[start:stop]) if stop > start else ""

    messages = _messages(sample)
    # An image belongs to the message that brings it; its question is that message's.
    question_of = {m.number: n for n, m in enumerate((m for m in messages if m.is_question), start=1)}
    images = tuple(_images(sample, segments, question_of, text))
    first = attended.index(True) if True in attended else len(ids)
    separators = tuple(p for p in range(first, len(ids)) if not attended[p])
    questions = tuple(_questions(sample, messages, images, document_mask, text))
    marks = tuple(_marks(sample, segments, text))
    row = _judge_row(attended, images, questions, document_mask, text, numbers_images)
    return RowStructure(
        length=len(ids),
        document_mask=document_mask,
        images=images,
        questions=questions,
        separators=separators,
        separator_texts=tuple(text(p, p + 1) for p in separators),
        padding=((0, first),) if first else (),
        marks=marks,
        samples=tuple(_sample_runs(attended, segments)),
        row=row,
    )


def _messages(sample: Sample) -> list[_Message]:
    # The oldest checkpoints put every image before all text, whichever message brings it.
    spans = sorted((span for span in sample.spans if span.message is not None), key=lambda span: span.message or 0)
    found = []
    for index, group in groupby(spans, key=lambda span: span.message):
        own = tuple(group)
        found.append(_Message((index or 0) + 1, _sample_of(sample, own[0].start), own))
    return found


def _sample_of(sample: Sample, position: int) -> int:
    return int(sample.segment_ids[position]) + 1


def _images(
    sample: Sample, segments: Sequence[int], question_of: dict[int, int], text: Callable[[int, int], str]
) -> Iterator[ImageBlock]:
    spans = sorted((span for span in sample.spans if span.image is not None), key=lambda span: span.image or 0)
    for index, group in groupby(spans, key=lambda span: span.image or 0):
        own = sorted(group, key=lambda span: span.start)
        marks: dict[int | None, list[int]] = {}
        for span in own:
            if span.kind == "region" and span.tile is not None:
                marks.setdefault(span.tile, []).extend(range(span.start, span.stop))
        ordinal = [span for span in own if span.kind == "region" and span.tile is None]
        runs = tuple(
            TileRun(
                span.tile or 0,
                tile_name(sample, index, span.tile or 0),
                span.start,
                span.stop,
                next(iter(marks.get(span.tile, ())), None),
                tuple(marks.get(span.tile, ())),
            )
            for span in own
            if span.kind == "image"
        )
        place = (ordinal[0].start, ordinal[-1].stop) if ordinal else None
        message = (own[0].message or 0) + 1
        yield ImageBlock(
            number=index + 1,
            sample=segments[own[0].start] + 1,
            message=message,
            question=question_of.get(message),
            start=own[0].start,
            stop=own[-1].stop,
            tokens=tuple(p for run in runs for p in range(run.start, run.stop)),
            marks=tuple(sorted(position for held in marks.values() for position in held)),
            ordinal=place,
            ordinal_text=text(*place) if place else "",
            tiles=runs,
            grid=sample.images[index].grid,
        )


def _questions(
    sample: Sample,
    messages: Sequence[_Message],
    images: Sequence[ImageBlock],
    document_mask: bool,
    text: Callable[[int, int], str],
) -> Iterator[Question]:
    number = 0
    for place, message in enumerate(messages):
        if not message.is_question:
            continue
        number += 1
        written = message.of_kind("text")
        # A question without a word stands where its word would: behind the images, or behind the role's name.
        bare = next((span.stop for span in reversed(message.spans) if span.kind == "image"), message.spans[-1].stop)
        start, stop = (written[0].start, written[-1].stop) if written else (bare, bare)
        reply = messages[place + 1] if place + 1 < len(messages) else None
        if reply is not None and (not reply.answers or reply.sample != message.sample):
            reply = None
        answer, chooser, end = _reply(sample, reply) if reply else ((message.spans[-1].stop,) * 2, None, None)
        last = max(start, stop - 1)
        sights = tuple(_see(image, message.sample, start, last, document_mask) for image in images)
        yield Question(
            number,
            message.sample,
            message.number,
            start,
            stop,
            text(start, stop),
            answer,
            text(*answer),
            chooser,
            end,
            sights,
        )


def _reply(sample: Sample, reply: _Message) -> tuple[Positions, int, int | None]:
    """Where the answer's text is, the position that chooses its first token, and its end token's position."""
    written = reply.of_kind("answer")
    trained = [p for span in reply.spans for p in range(span.start, span.stop) if sample.loss_mask[p]]
    begin = written[0].start if written else trained[0] if trained else reply.spans[-1].stop
    stop = written[-1].stop if written else begin
    end = next((span.start for span in reply.spans if span.kind == "special" and span.start >= stop), None)
    return (begin, stop), begin - 1, end


def _see(image: ImageBlock, sample: int, first: int, last: int, document_mask: bool) -> Visibility:
    if image.start >= first:
        return Visibility(image.number, False, "after it", None, None)
    if document_mask and image.sample != sample:
        return Visibility(image.number, False, "another sample", None, None)
    return Visibility(image.number, True, "before it", first - image.stop + 1, last - image.stop + 1)


def _marks(sample: Sample, segments: Sequence[int], text: Callable[[int, int], str]) -> Iterator[Mark]:
    for span in sample.spans:
        if span.kind in ("special", "role"):
            name = text(span.start, span.stop).strip() or "line break"
            yield Mark(
                name,
                "special" if span.kind == "special" else "role",
                span.start,
                span.stop,
                segments[span.start] + 1,
                (span.message or 0) + 1,
            )


def _sample_runs(attended: Sequence[bool], segments: Sequence[int]) -> Iterator[Positions]:
    seen = [p for p, on in enumerate(attended) if on]
    for _, group in groupby(seen, key=lambda position: segments[position]):
        run = list(group)
        yield run[0], run[-1] + 1


# --- what the row is ---


def _judge_row(
    attended: Sequence[bool],
    images: Sequence[ImageBlock],
    questions: Sequence[Question],
    document_mask: bool,
    text: Callable[[int, int], str],
    numbers_images: bool,
) -> RowVerdict:
    """Reads the row as nanoVLM writes it: ``data/datasets.py`` puts all images of a sample before its first question
    and numbers them if there are several (``numbers_images``); ``data/advanced_datasets.py`` parts packed samples by
    one masked token."""
    runs = _masked_runs(attended)
    inner = [run for run in runs if run[0] > 0 and run[1] < len(attended)]
    reasons = [_masked_sentence(run, len(attended), text) for run in runs]
    between = _images_between(images, questions)
    numbered = [image for image in images if image.ordinal is not None]
    marked = any(image.marks for image in images)  # only checkpoints with region marks number their images
    unnumbered = numbers_images and len(images) > 1 and not numbered and marked
    if numbered:
        begin = numbered[0].ordinal or (0, 0)
        reasons.append(
            f"The text `{numbered[0].ordinal_text}` stands at position {begin[0]:,}: nanoVLM numbers images "
            "only when one sample has several."
        )
    elif unnumbered:
        reasons.append("There is no `<image: k>` text, which nanoVLM writes as soon as one sample has several images.")
    if between and not numbers_images:
        reasons.append("Images stand between questions.")
    elif between:
        reasons.append(
            "Images stand between questions, which one sample of nanoVLM never has: it puts all of its "
            "images before the first question."
        )
    elif len(images) > 1 and questions:
        as_in = ", as in one sample of nanoVLM" if numbers_images else ""
        reasons.append(f"All {len(images)} images stand before the first question{as_in}.")

    kind: RowKind
    # Without a separator, images that are unnumbered and apart still can't be of one sample.
    if inner or (unnumbered and between):
        kind = "packed samples"
    elif not images:
        kind = "text only"
        reasons.append("There is no image token in the row.")
    elif len(images) == 1:
        kind = "one image"
        reasons.append("One image is in the row.")
    else:
        kind = "one image per turn" if between else "several images, first"
    samples = len(inner) + 1
    if kind == "packed samples" and not inner:
        samples = len({image.question for image in images})
        reasons.append("No separator parts the samples, so where each of them begins is read off its images.")
    if kind == "packed samples":
        reasons.append(_barrier_sentence(questions, document_mask))
    return RowVerdict(kind, samples, tuple(reasons))


def _masked_runs(attended: Sequence[bool]) -> list[Positions]:
    runs = []
    for on, group in groupby(range(len(attended)), key=lambda p: attended[p]):
        if not on:
            run = list(group)
            runs.append((run[0], run[-1] + 1))
    return runs


def _masked_sentence(run: Positions, length: int, text: Callable[[int, int], str]) -> str:
    start, stop = run
    token = f"`{text(start, start + 1)}`"
    where = (
        f"Position {start:,} is {token}" if stop - start == 1 else f"Positions {start:,} to {stop - 1:,} are {token}"
    )
    if start == 0:
        return f"{where} with attention mask 0 at the start of the row: padding on the left, no packing."
    if stop == length:
        return f"{where} with attention mask 0 at the end of the row: a last separator, or padding on the right."
    return f"{where} with attention mask 0 in the middle of the row: a separator between packed samples."


def _images_between(images: Sequence[ImageBlock], questions: Sequence[Question]) -> bool:
    return bool(questions) and any(image.start > questions[0].start for image in images)


def _barrier_sentence(questions: Sequence[Question], document_mask: bool) -> str:
    later = next((question.number for question in questions if question.sample > 1), None)
    asked = f"question {later}" if later else "a later sample"
    if document_mask:
        return f"A document mask keeps {asked} from reading the samples before it."
    return f"Nothing keeps {asked} from reading the samples before it: there is no document mask, and positions run on."


# --- in words ---


def describe_structure(structure: RowStructure) -> dict[str, Any]:
    """Facts for JSON: ``sentences`` says them in words; images and questions are in order and count from 1, positions
    from 0. Runs of positions are [start, stop)."""
    return {
        "sentences": list(structure_sentences(structure)),
        "kind": structure.row.kind,
        "reasons": list(structure.row.reasons),
        "length": structure.length,
        "document_mask": structure.document_mask,
        "samples": [list(run) for run in structure.samples],
        "separators": list(structure.separators),
        "padding": [list(run) for run in structure.padding],
        "images": [_describe_image(image) for image in structure.images],
        "questions": [_describe_question(question) for question in structure.questions],
        "marks": {name: list(structure.mark_positions(name)) for name in structure.mark_names},
    }


def _describe_image(image: ImageBlock) -> dict[str, Any]:
    return {
        "number": image.number,
        "sample": image.sample,
        "message": image.message,
        "question": image.question,
        "block": [image.start, image.stop],
        "image_tokens": len(image.tokens),
        "region_marks": list(image.marks),
        "ordinal": list(image.ordinal) if image.ordinal else None,
        "ordinal_text": image.ordinal_text,
        "grid": list(image.grid),
        "tiles": [asdict(tile) for tile in image.tiles],
    }


def _describe_question(question: Question) -> dict[str, Any]:
    return {
        "number": question.number,
        "sample": question.sample,
        "message": question.message,
        "positions": [question.start, question.stop],
        "text": question.text,
        "answer": list(question.answer),
        "answer_text": question.answer_text,
        "chooser": question.chooser,
        "reachable": list(question.reachable),
        "images": [asdict(sight) for sight in question.sights],
    }


def structure_sentences(structure: RowStructure) -> tuple[str, ...]:
    """What the row is, why, and what every question can see, in plain words."""
    row, count = structure.row, len(structure.images)
    what = {
        "text only": "This row is text only.",
        "one image": "This row has one image.",
        "several images, first": f"This row has {count} images, all before the first question.",
        "one image per turn": f"This row has {count} images, between the questions of one conversation.",
        "packed samples": f"This row is {row.samples} packed samples.",
    }[row.kind]
    return (what, *row.reasons, *(_sight_sentence(question) for question in structure.questions if question.sights))


def _sight_sentence(question: Question) -> str:
    seen, parts = question.reachable, []
    if len(seen) == 1:
        parts.append(f"Question {question.number} can see image {seen[0]} alone: the mask decides")
    elif seen:
        parts.append(f"Question {question.number} can see {_name_images(seen)}")
    else:
        parts.append(f"Question {question.number} can see no image")
    hiding = {"after it": "after it in the row", "another sample": "in another sample, behind the document mask"}
    for why, words in hiding.items():
        hidden = [sight.image for sight in question.sights if sight.why == why]
        if hidden:
            parts.append(f"{_name_images(hidden)} {'is' if len(hidden) == 1 else 'are'} {words}")
    near = [sight for sight in question.sights if sight.reachable and sight.to_first is not None]
    far = ", ".join(f"{sight.to_first:,}" for sight in near)
    if len(near) > 1:
        parts.append(f"from their ends to its first token it is {far} positions, in this order")
    elif near:
        parts.append(f"from its end to the first token of the question it is {far} position{'s' * (far != '1')}")
    return "; ".join(parts) + "."


def _name_images(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"image {numbers[0]}"
    return "images " + ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
