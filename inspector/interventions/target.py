"""The answer under study: a prompt, its row read once, and which turn's answer is to be explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from inspector.interventions.continuations import Continuation
from inspector.interventions.prefix_cache import PrefixCache
from inspector.row.ask import Inspection, check_same_model
from inspector.row.layout import ImageBlock, Question, RowStructure, read_structure
from inspector.row.prompt import Prompt, count_together
from inspector.row.row_store import ROWS
from model import Cut, InputError, InspectableVLM


@dataclass(frozen=True)
class Target:
    """The answer that is explained. ``start``: the first position behind everything that the question can look back
    at (images of its own turn, or the turn before); ``scored`` (start, stop): the answer's tokens, its end token alone
    if it is empty."""

    question: Question
    start: int
    scored: tuple[int, int]

    @property
    def queries(self) -> range:
        """Positions that an image is taken away from."""
        return range(self.start, self.scored[1])

    @property
    def question_rows(self) -> range:
        """The question's text and the template's words around it, up to the position that chooses the answer."""
        return range(self.start, self.scored[0] - 1)

    @property
    def last_rows(self) -> range:
        """The position that chooses the answer's first token, and the answer's own positions."""
        return range(self.scored[0] - 1, self.scored[1])


@dataclass(frozen=True)
class Case:
    """What every experiment on one answer works on. ``prefix_cache`` is not for two threads at once: one case, one
    person. ``max_new_tokens`` bounds the answers to changed prompts; ``seed`` is behind everything that is drawn."""

    vlm: InspectableVLM
    prompt: Prompt
    prefix_cache: PrefixCache
    structure: RowStructure
    target: Target
    max_new_tokens: int = 32
    seed: int = 0

    @property
    def turn(self) -> int:
        """From 1."""
        return self.target.question.number

    @property
    def answer_ids(self) -> tuple[int, ...]:
        return self.prefix_cache.ids[self.target.scored[0] : self.target.scored[1]]

    @cached_property
    def greedy_ids(self) -> tuple[int, ...]:
        """What the model itself says to the unchanged row: greedy, ``max_new_tokens`` at most, by the road on which
        changed rows are answered. The row's own answer may be sampled, given, edited or cut short, so whether a change
        flips the answer is told against this one."""
        first = self.target.scored[0]
        return self.answer([self.prefix_cache.continuation(self.target.start, (first, first), stop=first)])[0]

    @property
    def gives_own_answer(self) -> bool:
        """Whether the row's answer is what the model says itself."""
        return self.greedy_ids == self.answer_ids

    @property
    def reachable(self) -> tuple[ImageBlock, ...]:
        """The images that the question can see."""
        return tuple(image for image in self.structure.images if image.number in self.target.question.reachable)

    def find_reachable(self, number: int) -> ImageBlock:
        """The image ``number``. InputError if the question can't see it."""
        for image in self.reachable:
            if image.number == number:
                return image
        seen = ", ".join(str(image.number) for image in self.reachable) or "none"
        raise InputError(f"Question {self.turn} can't see image {number}; images that it can see: {seen}.")

    @property
    def base(self) -> Continuation:
        """The question and its answer, unchanged."""
        return self.prefix_cache.continuation(self.target.start, self.target.scored, stop=self.target.scored[1])

    def answer(self, continuations: Sequence[Continuation]) -> list[tuple[int, ...]]:
        """Greedy answers behind ``continuations``; the end token alone where nothing is said."""
        found = self.prefix_cache.answer(continuations, self.max_new_tokens)
        return [ids or self.vlm.eos_ids[:1] for ids in found]

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of an answer that a person typed: plain text, never a special token. InputError if it is none at all."""
        ids = self.vlm.encode_answer(text)
        if not ids:
            raise InputError("The text has no token; write something.")
        return tuple(ids)

    def text(self, ids: Sequence[int]) -> str:
        """What an answer's ids say; the end token is silent."""
        return self.vlm.decode_text([i for i in ids if i not in self.vlm.eos_ids])

    def without(self, *images: ImageBlock, continuation: Continuation | None = None) -> Continuation:
        """The base (or ``continuation`` of it, of the same positions), its own positions not seeing ``images``. What
        stands in between has read them and may hand them on: see :mod:`inspector.interventions.image_ablation`."""
        return take_away(continuation or self.base, self.target, images)


def open_case(
    vlm: InspectableVLM, inspection: Inspection, turn: int | None = None, *, max_new_tokens: int = 32, seed: int = 0
) -> Case:
    """Reads the inspected row once more and keeps its keys and values. ``turn`` (from 1): whose answer, the last one
    if None. InputError if that turn has no answer, and if ``vlm`` is no longer the model that was inspected."""
    check_same_model(vlm, inspection)
    vlm = vlm.for_images(count_together(inspection.prompt))
    document_mask = inspection.prompt.keeps_samples_apart
    structure = read_row(vlm, inspection, document_mask)
    target = choose_target(structure, turn)
    prefix_cache = PrefixCache(vlm, ROWS.read(vlm, inspection.row, document_mask))
    return Case(vlm, inspection.prompt, prefix_cache, structure, target, max_new_tokens, seed)


def read_row(vlm: InspectableVLM, inspection: Inspection, document_mask: bool) -> RowStructure:
    """The structure of the inspected row."""
    return read_structure(
        inspection.row, document_mask=document_mask, decode=vlm.decode_text, numbers_images=vlm.numbers_images
    )


def choose_target(structure: RowStructure, turn: int | None = None) -> Target:
    """The answer of turn ``turn`` (from 1; the last that has one if None). InputError if there is no such answer."""
    answered = [question for question in structure.questions if is_answered(question)]
    silent = [question for question in structure.questions if question.chooser is not None and question not in answered]
    if any(question.number == turn or (turn is None and not answered) for question in silent):
        raise InputError(
            "The answer is empty, and the chat template writes no end token behind it that could be explained instead; "
            "ask something else, or write an answer."
        )
    if not answered:
        raise InputError("No turn has an answer yet; press Ask first.")
    if turn is None:
        return target_of(structure, answered[-1])
    for question in answered:
        if question.number == turn:
            return target_of(structure, question)
    raise InputError(f"Turn {turn} has no answer; choose one of {', '.join(str(q.number) for q in answered)}.")


def is_answered(question: Question) -> bool:
    """Whether the row holds what the model, or a person, answered: text, or an end token where text would be."""
    return question.chooser is not None and (question.answer[0] < question.answer[1] or question.end is not None)


def target_of(structure: RowStructure, question: Question) -> Target:
    """Where the turn of ``question`` begins behind its images, and which tokens are its answer."""
    opening = [
        mark.start for mark in structure.marks if mark.message == question.message and mark.stop <= question.start
    ]
    # Its own images, or every image where a format puts them all before the text.
    images = [image.stop for image in structure.images if image.stop <= question.start]
    start = max([min(opening, default=question.start), *images])
    scored = question.answer
    if scored[0] == scored[1]:
        scored = (scored[0], scored[0] + 1)
    return Target(question, start, scored)


def image_keys(image: ImageBlock) -> tuple[int, ...]:
    """What taking an image away hides: its tokens and region marks. Its ``<image: k>`` stays, as a cue of its own."""
    return tuple(sorted((*image.tokens, *image.marks)))


def take_away(continuation: Continuation, target: Target, images: Sequence[ImageBlock]) -> Continuation:
    """The continuation whose question and answer don't see ``images`` themselves."""
    return continuation.cutting(*(Cut(target.queries, image_keys(image)) for image in images))
