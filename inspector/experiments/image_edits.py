"""Edits of a picture, and the answer to it: the same place taken away in the pixels, and in the row of tokens.

    image 1: blur 10,20,80,90                    left, top, right, bottom in pixels of the image as uploaded
    image 2: keep 0,0,64,64                      all around it is painted in the image's mean colour
    image 1: paste 10,20,80,90 from image 2      what lies at the same place of image 2, stretched where sizes differ

In the pixels the image at full size is edited, goes through the model's own image processor and encoder, and everything
behind it is read again. In the tokens the image stays as it was encoded, and the image tokens whose cells the rectangle
covers are hidden from everything behind them (attention knockout, Geva et al. 2023, arXiv 2304.14767). Where patches
leak into one another within the encoder, the two differ. Edits add up, in order; a paste takes the other image as it
was uploaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from inspector.images.full_size import EDITS, Facts, PixelEdit, Rectangle, cut_out
from inspector.images.image_file import run_at_full_size
from inspector.interventions.continuations import Continuation
from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.knockout import cut_from_later
from inspector.interventions.target import Case, image_keys
from inspector.row.layout import ImageBlock
from inspector.which_image.image_effects import STRONG
from model import Box, InputError, Row

EXAMPLE = "image 1: blur 10,20,80,90"
MAX_EDITS = 12
MAX_CHARACTERS = 120

_EDIT = re.compile(
    r"image (?P<image>\d{1,9}): (?P<how>[a-z]+) (?P<rectangle>-?\d{1,9}(?: ?, ?-?\d{1,9}){3})"
    r"(?: from image (?P<source>\d{1,9}))?"
)


@dataclass(frozen=True)
class ImageEdit:
    """``how`` (of :data:`inspector.images.full_size.EDITS`) image ``image`` (from 1) is changed in ``rectangle``, in
    pixels as uploaded; ``source``: the image that a paste takes from, None for other edits."""

    image: int
    how: str
    rectangle: Rectangle
    source: int | None = None

    @property
    def text(self) -> str:
        """The one way of writing it."""
        end = "" if self.source is None else f" from image {self.source}"
        return f"image {self.image}: {self.how} {','.join(map(str, self.rectangle))}{end}"


@dataclass(frozen=True)
class ChangedAnswer:
    """``answer``: what the model says now, greedy; ``flipped``: whether that is another answer than it gives itself to
    the unchanged row. ``logprob``: of the old answer, nats; ``change``: of that, below 0 where it fell."""

    answer: str
    flipped: bool
    logprob: float
    change: float

    def to_json(self) -> dict[str, Any]:
        return {
            "answer": self.answer,
            "flipped": self.flipped,
            "logprob": self.logprob,
            "change": self.change,
        }


@dataclass(frozen=True)
class EditStep:
    """One edit on top of those before it: the answer to the edited ``pixels``, and with ``tokens`` tokens, those of all
    edits so far, ``cut`` instead. ``facts``: what is kept of the edited image."""

    edit: ImageEdit
    pixels: ChangedAnswer
    cut: ChangedAnswer
    tokens: int
    facts: Facts = field(repr=False)

    @property
    def sentence(self) -> str:
        """What the two numbers say together."""
        if not self.tokens:
            return "There is no token to cut: what this edit takes away has none of its own in the row."
        pixels, cut = self.pixels.change <= -STRONG, self.cut.change <= -STRONG
        bar = f"{STRONG:g} nat"
        if pixels and cut:
            return (
                f"Each costs the old answer at least {bar}: it needs what this edit took away, and it needs those "
                "tokens."
            )
        if pixels:
            return (
                f"Only the pixels cost the old answer at least {bar}: it stands without those tokens, so others hold "
                "the same, or what was put in speaks for another answer."
            )
        if cut:
            return (
                f"Only the tokens cost the old answer at least {bar}: they hold something that this edit leaves, or "
                "that stands elsewhere in the picture."
            )
        return (
            f"Neither costs the old answer {bar}: it stands without what this edit took away, and without those tokens."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "edit": self.edit.text,
            "image": self.edit.image,
            "pixels": self.pixels.to_json(),
            "tokens_cut": self.tokens,
            "cut": self.cut.to_json(),
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class EditStudy:
    """``steps[n]``: with the first n + 1 edits. ``answer`` of ``turn`` (from 1) and its ``logprob`` (nats) are of the
    unchanged row; ``greedy_answer``: what the model itself says to that, which flips are told against."""

    turn: int
    answer: str
    greedy_answer: str
    logprob: float
    steps: tuple[EditStep, ...] = ()

    @property
    def edits(self) -> tuple[ImageEdit, ...]:
        return tuple(step.edit for step in self.steps)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(edit.text for edit in self.edits)

    @property
    def without_last(self) -> EditStudy:
        return replace(self, steps=self.steps[:-1])

    def to_json(self) -> dict[str, Any]:
        return {
            "turn": self.turn,
            "answer": self.answer,
            "greedy_answer": self.greedy_answer,
            "logprob": self.logprob,
            "edits": [step.to_json() for step in self.steps],
        }


def run_edits(case: Case, texts: Sequence[str], known: EditStudy | None = None) -> EditStudy:
    """The answer with one edit, with two, … up to all; ``known``: a study of the same answer whose steps are not made
    again as far as ``texts`` begin like it. InputError for what is no edit of this prompt, and for too many."""
    if len(texts) > MAX_EDITS:
        raise InputError(f"There are {len(texts)} edits; at most {MAX_EDITS} are taken, undo some.")
    edits = [read_edit(case, text) for text in texts]
    if known is None or known.turn != case.turn:
        (before,) = case.prefix_cache.run([case.base])
        known = EditStudy(case.turn, case.text(case.answer_ids), case.text(case.greedy_ids), before.logprob)
    alike = next((n for n, (a, b) in enumerate(zip(edits, known.edits, strict=False)) if a != b), len(edits))
    found = replace(known, steps=known.steps[:alike])
    exchanges = ImageExchanges(case)
    for count in range(len(found.steps) + 1, len(edits) + 1):
        found = replace(found, steps=(*found.steps, _take_step(exchanges, edits[:count], found.logprob)))
    return found


def _take_step(exchanges: ImageExchanges, edits: Sequence[ImageEdit], before: float) -> EditStep:
    """The last of ``edits``, on top of the others. ``before``: log p of the answer without any."""
    case, target = exchanges.case, exchanges.case.target
    edited = {
        number: exchanges.edit(
            case.find_reachable(number), [_load_edit(case, edit) for edit in edits if edit.image == number]
        )
        for number in dict.fromkeys(edit.image for edit in edits)
    }
    features = {number: own for number, (own, _) in edited.items()}
    asked, answer = case.prefix_cache.ids[target.start : target.scored[0]], case.answer_ids
    pixels = _answer(
        case,
        exchanges.of_question(features, target, asked),
        exchanges.of_ending(features, target, (*asked, *answer), target.scored),
        before,
    )
    keys = find_hidden(case, edits)
    cut = _answer(case, *_hide(case, keys), before)
    return EditStep(edits[-1], pixels, cut, len(keys), edited[edits[-1].image][1])


def _answer(case: Case, asked: Continuation, given: Continuation, before: float) -> ChangedAnswer:
    """``asked``: where the model is to answer; ``given``: the old answer in its place."""
    (old,) = case.prefix_cache.run([given])
    (ids,) = case.answer([asked])
    return ChangedAnswer(case.text(ids), ids != case.greedy_ids, old.logprob, old.logprob - before)


def _hide(case: Case, keys: Sequence[int]) -> tuple[Continuation, Continuation]:
    """The question alone, and with its answer, behind a row whose positions ``keys`` nothing behind them sees."""
    target = case.target
    start, (first, stop) = target.start, target.scored
    if not keys:
        return case.prefix_cache.continuation(start, (first, first), stop=first), case.base
    cut = cut_from_later(case, keys)
    begin = min(start, case.prefix_cache.row.first_to_see(keys[0]))
    between = None
    if begin < start:
        between = case.prefix_cache.continuation(begin, (start, start), stop=start).cutting(cut)
    ids = case.prefix_cache.ids
    turn = Continuation(start, ids[start:first], (first, first), (cut,), parent=between)
    return turn, Continuation(first, ids[first:stop], (first, stop), (cut,), parent=turn)


def _load_edit(case: Case, edit: ImageEdit) -> PixelEdit:
    """With the pixels that it pastes."""
    if edit.source is None:
        return PixelEdit(edit.how, edit.rectangle)
    left, top, right, bottom = edit.rectangle
    (width, height), other = case.prompt.images[edit.image - 1].size, case.prompt.images[edit.source - 1]
    wide, high = other.size
    box = (left * wide / width, top * high / height, right * wide / width, bottom * high / height)
    return PixelEdit(edit.how, edit.rectangle, run_at_full_size(other, cut_out, box, (right - left, bottom - top)))


# --- which tokens ---


@dataclass(frozen=True)
class PlacedToken:
    """An image token at ``position`` and what its cell shows of the image, ``box`` in pixels as uploaded."""

    position: int
    box: Box
    in_thumbnail: bool


def place_tokens(row: Row, number: int) -> list[PlacedToken]:
    """Those of image ``number`` (from 1) that show any of it: a cell may lie in what a family puts around an image."""
    width, height = row.images[number - 1].original_size
    found = []
    for grid in row.grids:
        if grid.image != number - 1:
            continue
        for at, col in ((at, col) for at in range(grid.rows) for col in range(grid.cols)):
            whole = grid.cell_box(at, col)
            box = Box(max(whole.left, 0), max(whole.top, 0), min(whole.right, width), min(whole.bottom, height))
            if box.left < box.right and box.top < box.bottom:
                found.append(PlacedToken(grid.position(at, col), box, grid.is_thumbnail))
    return found


def find_hidden(case: Case, edits: Sequence[ImageEdit]) -> tuple[int, ...]:
    """The positions that ``edits`` are compared with: the image tokens that any of them takes away. Where these are
    all of an image, its marks and the tokens without a place go too, as where the image is taken away."""
    found = set()
    for number in {edit.image for edit in edits}:
        hidden, left = list_hidden(case.prefix_cache.row, edits, number)
        found |= {one.position for one in hidden} if left else set(image_keys(case.find_reachable(number)))
    return tuple(sorted(found))


def list_hidden(row: Row, edits: Sequence[ImageEdit], number: int) -> tuple[list[PlacedToken], list[PlacedToken]]:
    """(tokens of image ``number`` that any of ``edits`` takes away, those that are left)."""
    placed = place_tokens(row, number)
    hidden: set[int] = set()
    for edit in edits:
        if edit.image == number:
            covered = find_covered(placed, edit.rectangle)
            hidden |= {one.position for one in placed} - covered if edit.how == "keep" else covered
    return (
        [one for one in placed if one.position in hidden],
        [one for one in placed if one.position not in hidden],
    )


def find_covered(placed: Sequence[PlacedToken], rectangle: Rectangle) -> set[int]:
    """The positions of those whose cells have their centre in the rectangle; where that is none, of those that it
    touches. The thumbnail and the tiles are looked at each for itself, as both show the same place."""
    left, top, right, bottom = rectangle
    found: set[int] = set()
    for thumbnail in (False, True):
        boxes = {one.position: one.box for one in placed if one.in_thumbnail == thumbnail}
        centred = {
            position
            for position, box in boxes.items()
            if left <= (box.left + box.right) / 2 < right and top <= (box.top + box.bottom) / 2 < bottom
        }
        found |= centred or {
            position
            for position, box in boxes.items()
            if left < box.right and box.left < right and top < box.bottom and box.top < bottom
        }
    return found


# --- the language of edits ---


def read_edit(case: Case, text: str) -> ImageEdit:
    """InputError, in a sentence that says what is wrong and what would be right."""
    shown = f"“{text[:80]}{'…' if len(text) > 80 else ''}”"
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"The edit {shown} has {len(text):,} characters; at most {MAX_CHARACTERS} are read.")
    match = _EDIT.fullmatch(" ".join(text.lower().split()))
    if match is None:
        raise InputError(
            f"{shown} is no edit: write the image, what is done and the rectangle (left,top,right,bottom in whole "
            f"pixels), as in “{EXAMPLE}” or “image 1: paste 10,20,80,90 from image 2”."
        )
    how, number = match["how"], int(match["image"])
    if how not in EDITS:
        raise InputError(f"“{how[:20]}” is no way to edit an image; choose one of {', '.join(EDITS)}.")
    block = case.find_reachable(number)
    left, top, right, bottom = (int(side) for side in match["rectangle"].split(","))
    rectangle = (left, top, right, bottom)
    _check_rectangle(rectangle, block, case.prompt.images[number - 1].size)
    source = int(match["source"]) if match["source"] else None
    if (how == "paste") != (source is not None):
        raise InputError(
            f"{shown} is no edit: “paste” ends with “from image 2” or another number, and nothing else does."
        )
    if source is not None:
        others = [n for n in range(1, len(case.prompt.images) + 1) if n != number]
        if not others:
            raise InputError("The prompt has no other image to paste from; add one, or choose another edit.")
        if source not in others:
            raise InputError(
                f"Image {source} can't be pasted into image {number}; choose one of {', '.join(map(str, others))}."
            )
    return ImageEdit(number, how, rectangle, source)


def _check_rectangle(rectangle: Rectangle, block: ImageBlock, size: tuple[int, int]) -> None:
    left, top, right, bottom = rectangle
    written = ",".join(map(str, rectangle))
    if left >= right or top >= bottom:
        raise InputError(
            f"The rectangle {written} has no size; left must be below right and top below bottom, in whole pixels."
        )
    width, height = size
    if left < 0 or top < 0 or right > width or bottom > height:
        raise InputError(
            f"The rectangle {written} reaches outside image {block.number}, which has {width} × {height} px; give one "
            f"within 0,0,{width},{height}."
        )
