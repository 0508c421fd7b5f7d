"""Edges cut by hand. A line of text names them, and the answer without them stands beside the old one.

    image 2 -> question                          image 2 is hidden from the question and its answer
    image 2 tile r1c2, tokens 30-41 -> later     both are hidden from everything that comes after them
    image 1 -> image 3 @layers 0-1 @heads 0,2    image 3 doesn't read image 1 in these layers and heads

What stands left of the arrow is hidden (keys), what stands right of it can't look there any more (rows, attention
knockout, Geva et al. 2023, arXiv 2304.14767). A position always keeps itself. Layers, heads and positions count from
0, images and turns from 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inspector.interventions.continuations import Continuation
from inspector.interventions.target import Case, image_keys
from inspector.row.layout import ImageBlock, Question, RowStructure
from model import Cut, InputError, InspectableVLM

EXPLANATION = (
    "The edges that you named are taken out of the attention before its softmax, in the question, the answer and "
    "whatever else loses them, and the model answers anew. An answer that stays can still have used them, because "
    "what is left may carry the same content."
)
ROWS = ("question", "answer", "later")
"""*question*: the question under study and its answer; *answer*: the position that chooses the answer's first token
and the answer; *later*: everything after what is hidden, and what sees it from before (the rest of an image whose
tokens see one another)."""
EXAMPLE = "image 2 -> question @layers 0-3 @heads 1,2"
MAX_CUTS = 20
MAX_CHARACTERS = 500

_THING = re.compile(
    r"(?:image (?P<image>\d+)(?: (?:tile (?P<tile>[a-z]\w*)|(?P<part>marks|ordinal)))?"
    r"|(?P<turn>question|answer) (?P<number>\d+)|(?P<marks>separators|template|images)"
    r"|tokens? (?P<first>\d+)(?:-(?P<last>\d+))?)"
)
_LIMIT = re.compile(r"@(?P<what>layers|heads) (?P<numbers>[\d, -]*\d)")


@dataclass(frozen=True)
class HandCut:
    """One cut: its ``text`` in the one way of writing it, and the edges. ``keys`` and ``rows`` are positions."""

    text: str
    keys: tuple[int, ...]
    rows: tuple[int, ...]
    layers: frozenset[int] | None
    heads: frozenset[int] | None

    @property
    def cut(self) -> Cut:
        return Cut(self.rows, self.keys, self.layers, self.heads)


@dataclass(frozen=True)
class Trial:
    """What the model says with the first ``cuts`` cuts in place (without any: the row's answer). ``logprob`` is of the
    row's answer, nats; ``probability`` of ``answer``, per token."""

    cuts: int
    answer: str
    probability: float
    logprob: float

    def to_json(self) -> dict[str, Any]:
        return {"cuts": self.cuts, "answer": self.answer, "probability": self.probability, "logprob": self.logprob}


@dataclass(frozen=True)
class Lab:
    """``trials[n]``: with the first n cuts; ``trials[0]`` is the answer as it was. ``greedy_answer``: what the model
    itself says without any cut, decoded as the answers with cuts are; ``flipped`` is told against it."""

    turn: int
    cuts: tuple[HandCut, ...]
    trials: tuple[Trial, ...]
    answer: str
    greedy_answer: str
    flipped: bool

    @property
    def change(self) -> float:
        """Of log p of the old answer, all cuts in place, nats: below 0 it has become less likely."""
        return self.trials[-1].logprob - self.trials[0].logprob

    def to_json(self) -> dict[str, Any]:
        return {
            "turn": self.turn,
            "answer": self.answer,
            "greedy_answer": self.greedy_answer,
            "new_answer": self.trials[-1].answer,
            "flipped": self.flipped,
            "change": self.change,
            "trials": [trial.to_json() for trial in self.trials],
            "cuts": [
                {
                    "cut": cut.text,
                    "keys": len(cut.keys),
                    "rows": len(cut.rows),
                    "layers": None if cut.layers is None else sorted(cut.layers),
                    "heads": None if cut.heads is None else sorted(cut.heads),
                }
                for cut in self.cuts
            ],
        }


def run_lab(case: Case, texts: Sequence[str]) -> Lab:
    """The answer with one cut, with two, … up to all. InputError if a line is no cut, or there are too many."""
    if len(texts) > MAX_CUTS:
        raise InputError(f"There are {len(texts)} cuts; at most {MAX_CUTS} are taken, undo some.")
    cuts = tuple(read_cut(case, text) for text in texts)
    first, stop = case.target.scored
    # Where an image's tokens see one another, those before a changed one are changed with it.
    see_first = case.prefix_cache.row.first_to_see
    start = min([case.target.start, *(see_first(cut.rows[0]) for cut in cuts)])
    given = case.prefix_cache.continuation(start, case.target.scored, stop=stop)
    open_ended = case.prefix_cache.continuation(start, (first, first), stop=first)
    own = [tuple(cut.cut for cut in cuts[:n]) for n in range(len(cuts) + 1)]
    olds = case.prefix_cache.run([given.cutting(*some) for some in own])
    greedy, *changed = case.answer([open_ended.cutting(*some) for some in own])
    answers = [case.answer_ids, *changed]
    news = case.prefix_cache.run(
        [
            Continuation(start, (*open_ended.ids, *ids), (first, first + len(ids))).cutting(*some)
            for some, ids in zip(own, answers, strict=True)
        ]
    )
    trials = tuple(
        Trial(n, case.text(ids), math.exp(new.logprob / len(ids)), old.logprob)
        for n, (ids, old, new) in enumerate(zip(answers, olds, news, strict=True))
    )
    flipped = bool(cuts) and answers[-1] != greedy
    return Lab(case.turn, cuts, trials, trials[0].answer, case.text(greedy), flipped)


# --- the language of cuts ---


def read_cut(case: Case, text: str) -> HandCut:
    """InputError, in a sentence that says what is wrong and what would be right."""
    shown = f"“{text[:80]}{'…' if len(text) > 80 else ''}”"
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"The cut {shown} has {len(text):,} characters; at most {MAX_CHARACTERS} are read.")
    plain = " ".join(text.lower().replace("→", "->").split())
    edges, *limits = (part.strip() for part in re.split(r"(?=@)", plain))
    if edges.count("->") != 1:
        raise InputError(f"{shown} is no cut: write what is hidden, an arrow and from whom, as in “{EXAMPLE}”.")
    left, right = (side.strip() for side in edges.split("->"))
    things = [thing.strip() for thing in left.split(",")]
    keys = sorted({position for thing in things for position in _positions(case, thing, shown)})
    layers, heads = _read_limits(limits, case.vlm, shown)
    rows = _rows(case, right, keys, shown)
    if not rows:
        raise InputError(f"{shown} cuts nothing: no position of “{right}” comes after what is hidden.")
    return HandCut(_write(things, right, layers, heads), tuple(keys), tuple(rows), layers, heads)


def cut_from_later(case: Case, keys: Sequence[int]) -> Cut:
    """What hides the positions ``keys``, in order, from everything that comes after them, as “… -> later” does."""
    return Cut(_rows(case, "later", keys, ""), keys)


def compose_cut(
    things: Sequence[str], rows: str, layers: Sequence[int], heads: Sequence[int], vlm: InspectableVLM
) -> str:
    """The line that :func:`read_cut` reads; none or all of the layers or heads: no limit is written. InputError if
    nothing is to be hidden."""
    if not things:
        raise InputError("Nothing is chosen to be hidden; choose images, tiles or other runs of tokens first.")

    def some(chosen: Sequence[int], count: int) -> frozenset[int] | None:
        return frozenset(chosen) if 0 < len(set(chosen)) < count else None

    return _write(things, rows, some(layers, vlm.n_layers), some(heads, vlm.n_heads))


def name_position(structure: RowStructure, position: int) -> str:
    """The thing that a position is in, by the smallest name that it has. InputError if the row has no such position."""
    if not 0 <= position < structure.length:
        raise InputError(f"The row has no position {position}; it has 0 to {structure.length - 1}.")
    for image in structure.images:
        for tile in image.tiles:
            if tile.start <= position < tile.stop:
                return f"image {image.number}" + (f" tile {tile.name}" if len(image.tiles) > 1 else "")
        if image.ordinal is not None and image.ordinal[0] <= position < image.ordinal[1]:
            return f"image {image.number} ordinal"
    return f"tokens {position}"


def _write(things: Sequence[str], rows: str, layers: frozenset[int] | None, heads: frozenset[int] | None) -> str:
    text = f"{', '.join(things)} -> {rows}"
    for what, numbers in (("layers", layers), ("heads", heads)):
        if numbers is not None:
            text += f" @{what} {_write_numbers(sorted(numbers))}"
    return text


def _write_numbers(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _read_limits(
    limits: Sequence[str], vlm: InspectableVLM, shown: str
) -> tuple[frozenset[int] | None, frozenset[int] | None]:
    found: dict[str, frozenset[int]] = {}
    for limit in limits:
        match = _LIMIT.fullmatch(limit)
        if match is None:
            raise InputError(f"“{limit[:40]}” in {shown} is not understood; write “@layers 0-3” or “@heads 1,2”.")
        what = match["what"]
        if what in found:
            raise InputError(f"{shown} names its {what} twice; name them once, as in “@{what} 0-1,3”.")
        count = vlm.n_layers if what == "layers" else vlm.n_heads
        found[what] = _read_numbers(match["numbers"], what, count)
    return found.get("layers"), found.get("heads")


def _read_numbers(text: str, what: str, count: int) -> frozenset[int]:
    numbers: set[int] = set()
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise InputError(f"“{text[:40]}” names no {what}; write numbers and ranges, as in “0-1,3”.")
        low, high = int(match[1]), int(match[2] or match[1])
        if not low <= high < count:
            raise InputError(f"There are no {what} “{part[:20]}”; this model has the {what} 0 to {count - 1}.")
        numbers |= set(range(low, high + 1))
    return frozenset(numbers)


def _rows(case: Case, text: str, keys: Sequence[int], shown: str) -> list[int]:
    """The positions that lose their edges, those of an answer that is yet to come included; never a hidden one
    itself, so that each keeps at least its own."""
    first, begin = case.target.scored[0], case.prefix_cache.row.first_to_see(keys[0])
    # An answer without these edges may be longer than the one that the row holds.
    end = max(case.target.scored[1], first + case.max_new_tokens)
    if text == "question":
        rows = range(case.target.start, end)
    elif text == "answer":
        rows = range(first - 1, end)
    elif text == "later":
        rows = range(begin, end)
    else:
        rows = sorted(_positions(case, text, shown))  # type: ignore[assignment]
    hidden = set(keys)
    return [position for position in rows if position >= begin and position not in hidden]


def _positions(case: Case, thing: str, shown: str) -> Sequence[int]:
    structure = case.structure
    match = _THING.fullmatch(thing)
    if match is None:
        raise InputError(
            f"“{thing[:40]}” in {shown} names nothing in the row; write “image 2”, “image 2 tile r1c1”, "
            "“image 2 marks”, “image 2 ordinal”, “question 1”, “answer 1”, “tokens 12-30”, “separators” or “template”."
        )
    found: Sequence[int]
    if match["image"]:
        found = _part_of(_image(structure, int(match["image"])), match["tile"], match["part"])
    elif match["turn"]:
        question = _question(structure, int(match["number"]))
        found = range(question.start, question.stop) if match["turn"] == "question" else range(*question.answer)
    elif match["marks"] == "separators":
        found = structure.separators
    elif match["marks"] == "images":
        found = [position for image in structure.images for position in image_keys(image)]
    elif match["marks"] == "template":
        found = [position for mark in structure.marks for position in range(mark.start, mark.stop)]
    else:
        low, high = int(match["first"]), int(match["last"] or match["first"])
        if not low <= high < structure.length:
            raise InputError(f"The row has no “{thing[:40]}”; its positions are 0 to {structure.length - 1}.")
        found = range(low, high + 1)
    if not found:
        raise InputError(f"This row has no “{thing[:40]}”; nothing was cut.")
    return found


def _part_of(image: ImageBlock, tile: str | None, part: str | None) -> Sequence[int]:
    if part == "marks":
        return image.marks
    if part == "ordinal":
        return range(*image.ordinal) if image.ordinal else ()
    if tile is None:
        return image_keys(image)
    for run in image.tiles:
        if run.name.lower() == tile:
            return (*run.marks, *range(run.start, run.stop))
    names = ", ".join(run.name for run in image.tiles)
    raise InputError(f"Image {image.number} has no tile “{tile[:20]}”; it has {names}.")


def _image(structure: RowStructure, number: int) -> ImageBlock:
    for image in structure.images:
        if image.number == number:
            return image
    count = len(structure.images)
    raise InputError(f"There is no image {number}; the row has {f'the images 1 to {count}' if count else 'none'}.")


def _question(structure: RowStructure, number: int) -> Question:
    for question in structure.questions:
        if question.number == number:
            return question
    raise InputError(f"There is no turn {number}; the row has the turns 1 to {len(structure.questions)}.")
