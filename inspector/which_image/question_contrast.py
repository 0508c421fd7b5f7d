"""Does the question select the image? The same images, the question changed to ask about another one.

An answer that stands in image k alone falls without image k, asked about or not: dependence is no proof that the
question picked it. The contrast is: the effect of image k when k is asked about, less its effect when another image is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from inspector.interventions.continuations import Continuation
from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.target import Case
from inspector.row.layout import read_structure
from inspector.row.prompt import Prompt, prepare_row
from inspector.row.references import find_pointer, find_pointers, point_at
from inspector.which_image.exchange_effects import measure_falls

Measure = Literal["ablation", "exchange"]
"""*ablation*: an image is taken away; *exchange*: other pictures come in its place."""
Source = Literal["as asked", "ordinal edited", "image named", "another turn", "typed"]


@dataclass(frozen=True)
class AskedQuestion:
    """One question put in the place of the prompt's, and what it makes of the images.

    ``image``: the number of the image that it asks about, None if it doesn't say. ``answer``: what the model then
    says (greedy), for the prompt's own question the row's answer, ``probability`` per token; ``greedy_answer``: what
    the model says in either case. ``effects`` (image order): fall of log p of *this* answer without each image;
    ``same_answer_effects``: of the answer under study; ``exchange_effects`` and ``same_answer_exchange_effects``: with
    each image replaced instead (empty if that was not measured). ``prompt_ids``: from the target's start to where the
    answer begins. ``answer_ids`` and ``greedy_ids``: of the two answers.
    """

    question: str
    image: int | None
    source: Source
    answer: str
    probability: float
    effects: tuple[float, ...]
    same_answer_effects: tuple[float, ...]
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    greedy_answer: str
    greedy_ids: tuple[int, ...]
    exchange_effects: tuple[float, ...] = ()
    same_answer_exchange_effects: tuple[float, ...] = ()

    def effects_by(self, measure: Measure, *, same_answer: bool = False) -> tuple[float, ...]:
        """Effects of the images (image order, nats) on this question's answer, or on the answer under study."""
        if measure == "ablation":
            return self.same_answer_effects if same_answer else self.effects
        return self.same_answer_exchange_effects if same_answer else self.exchange_effects

    @property
    def is_contrast(self) -> bool:
        """Whether it may stand for a question about another image: it says which one it asks about."""
        return self.source != "as asked" and self.image is not None

    def to_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "image": self.image,
            "source": self.source,
            "answer": self.answer,
            "greedy_answer": self.greedy_answer,
            "is_contrast": self.is_contrast,
            "probability": self.probability,
            "effects": list(self.effects),
            "same_answer_effects": list(self.same_answer_effects),
            "exchange_effects": list(self.exchange_effects),
            "same_answer_exchange_effects": list(self.same_answer_exchange_effects),
        }


@dataclass(frozen=True)
class Selection:
    """``asked[0]`` is the prompt's own question. ``contrasts`` (image order): the effect of each image when it is
    asked about, less its mean effect when another is, nats, each on the answer that the question then gets; None
    where no question, or no other one, asks about it. ``contrast``: the same for the image that the answer under study
    is taken to rest on, and the smaller of two measures: on each question's own answer, and on the answer under
    study. None if nothing could be asked instead. ``exchange_contrast``: the same with images replaced instead of taken
    away, None also if that was not measured."""

    asked: tuple[AskedQuestion, ...]
    image: int | None
    contrasts: tuple[float | None, ...]
    contrast: float | None
    exchange_contrast: float | None = None

    def effects_otherwise_by(self, measure: Measure) -> tuple[float, float] | None:
        """Mean effects of the image when another one is asked about: on the answers then given, and on the answer under
        study. None as for :attr:`contrast`."""
        return _effects_otherwise(self.asked, self.image, measure)

    def contrast_by(self, measure: Measure) -> float | None:
        return self.contrast if measure == "ablation" else self.exchange_contrast

    @property
    def others(self) -> tuple[AskedQuestion, ...]:
        """Questions about another image than :attr:`image`."""
        return _others(self.asked, self.image)

    @property
    def without_image(self) -> tuple[AskedQuestion, ...]:
        """Questions that were asked and don't say which image they are about: no contrast, and not counted as one."""
        return tuple(one for one in self.asked[1:] if not one.is_contrast)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What else has to be said about the questions."""
        return tuple(
            f"“{one.question}” names no single image that can be seen, so it is no contrast and is not counted."
            for one in self.without_image
        )

    def about(self, image: int) -> AskedQuestion | None:
        """The question about image ``image``, as asked or altered."""
        return next((asked for asked in self.asked if asked.image == image), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "asked": [asked.to_json() for asked in self.asked],
            "image": self.image,
            "contrasts": list(self.contrasts),
            "contrast": self.contrast,
            "exchange_contrast": self.exchange_contrast,
            "sentences": list(self.sentences),
        }


def alternative_questions(
    prompt: Prompt, turn: int, image: int | None, n_images: int, typed: Sequence[str] = ()
) -> list[tuple[str, int | None, Source]]:
    """(question, image asked about, source) for the other images. ``turn`` counts from 1; ``image`` is the one that
    the question is taken to be about, if it doesn't say."""
    question = prompt.turns[turn - 1].user
    found: list[tuple[str, int | None, Source]] = [(text, pointed_image(text, n_images), "typed") for text in typed]
    pointer = find_pointer(question)
    if pointer is not None:
        found += [
            (point_at(question, pointer, number, n_images), number, "ordinal edited")
            for number in range(1, n_images + 1)
            if number != pointer.image(n_images)
        ]
    elif not find_pointers(question):
        found += [
            (f"In image {number}, {question[:1].lower()}{question[1:]}", number, "image named")
            for number in range(1, n_images + 1)
            if number != image
        ]
    known = {text for text, _, _ in found} | {question}
    for number, other in enumerate(prompt.turns, start=1):
        about = pointed_image(other.user, n_images)
        # Only a question that names its image says which one is asked about from this turn.
        if number != turn and about is not None and about != image and other.user not in known:
            found.append((other.user, about, "another turn"))
            known.add(other.user)
    return found


def pointed_image(question: str, n_images: int) -> int | None:
    """The one image that a question names by number (or as the last); None if it names none or several."""
    pointer = find_pointer(question)
    return None if pointer is None else pointer.image(n_images)


def measure_selection(
    case: Case,
    image: int | None,
    ablations: ImageAblations | None = None,
    exchanges: ImageExchanges | None = None,
    *,
    typed: Sequence[str] = (),
) -> Selection:
    """``image``: the image that the answer under study depends on, from 1; with None contrasts are still listed.
    ``exchanges``: images are replaced as well as taken away.
    InputError if a typed question makes the prompt too long."""
    prompt, prefix_cache, structure, target = case.prompt, case.prefix_cache, case.structure, case.target
    ablations = ablations or ImageAblations(case)
    own = prompt.turns[case.turn - 1].user
    about = pointed_image(own, len(structure.images))
    asked: list[tuple[str, int | None, Source]] = [(own, about if about is not None else image, "as asked")]
    visible = {block.number for block in case.reachable}
    if len(visible) > 1 or typed:
        options = alternative_questions(prompt, case.turn, image, len(structure.images), typed)
        # One that a person typed is asked in any case; about an image that can't be seen it is no contrast.
        asked += [
            (text, number if number in visible else None, source)
            for text, number, source in options
            if number in visible or source == "typed"
        ]
    prompts = [changed_question(case, question) for question, _, _ in asked]
    given = case.answer_ids
    open_ended = [Continuation(target.start, ids, (target.start + len(ids),) * 2) for ids in prompts]
    answers = [given, *case.answer(open_ended[1:])]
    removed = [frozenset[int](), *(frozenset({block.number}) for block in structure.images)]
    continuations: list[Continuation] = []
    for ids, answer in zip(prompts, answers, strict=True):
        for scored in (answer, given):
            span = (target.start + len(ids), target.start + len(ids) + len(scored))
            continuations += [ablations.of_ending(gone, target, (*ids, *scored), span) for gone in removed]
    outcomes = prefix_cache.run(continuations)
    endings = [(ids, scored) for ids, answer in zip(prompts, answers, strict=True) for scored in (answer, given)]
    falls = [()] * len(endings) if exchanges is None else measure_falls(case, exchanges, endings)
    width = len(structure.images) + 1
    found: list[AskedQuestion] = []
    for n, ((question, number, source), ids, answer) in enumerate(zip(asked, prompts, answers, strict=True)):
        mine, same = (outcomes[(2 * n + k) * width : (2 * n + k + 1) * width] for k in range(2))
        found.append(
            AskedQuestion(
                question,
                number,
                source,
                case.text(answer),
                math.exp(mine[0].logprob / len(answer)),
                tuple(mine[0].logprob - outcome.logprob for outcome in mine[1:]),
                tuple(same[0].logprob - outcome.logprob for outcome in same[1:]),
                ids,
                answer,
                case.text(answer if n else case.greedy_ids),
                answer if n else case.greedy_ids,
                falls[2 * n],
                falls[2 * n + 1],
            )
        )
    contrasts = tuple(_contrast(found, block.number) for block in structure.images)
    return Selection(
        tuple(found),
        image,
        contrasts,
        _verdict_contrast(found, image, "ablation"),
        None if exchanges is None else _verdict_contrast(found, image, "exchange"),
    )


def changed_question(case: Case, question: str) -> tuple[int, ...]:
    """Ids from the target's start to where the model is to answer, with ``question`` in the turn's place."""
    turns = list(case.prompt.turns)
    turns[case.turn - 1] = replace(turns[case.turn - 1], user=question)
    # The whole row: later images decide whether the ones before them are numbered.
    row = prepare_row(case.vlm, replace(case.prompt, turns=tuple(turns)))
    structure = read_structure(
        row,
        document_mask=case.structure.document_mask,
        decode=case.text,
        numbers_images=case.vlm.numbers_images,
    )
    ids = tuple(row.input_ids.tolist())[: structure.questions[case.turn - 1].answer[0]]
    if ids[: case.target.start] != case.prefix_cache.ids[: case.target.start]:
        raise ValueError("The changed question changes what stands before it.")
    return ids[case.target.start :]


def _contrast(asked: Sequence[AskedQuestion], image: int) -> float | None:
    own = [one.effects[image - 1] for one in asked if one.image == image]
    other = [one.effects[image - 1] for one in asked if one.image is not None and one.image != image]
    return None if not own or not other else own[0] - sum(other) / len(other)


def _others(asked: Sequence[AskedQuestion], image: int | None) -> tuple[AskedQuestion, ...]:
    return tuple(one for one in asked[1:] if one.is_contrast and one.image != image)


def _effects_otherwise(
    asked: Sequence[AskedQuestion], image: int | None, measure: Measure
) -> tuple[float, float] | None:
    others = _others(asked, image)
    if image is None or not others or not others[0].effects_by(measure):
        return None
    given, same = (
        sum(one.effects_by(measure, same_answer=same)[image - 1] for one in others) / len(others)
        for same in (False, True)
    )
    return given, same


def _verdict_contrast(asked: Sequence[AskedQuestion], image: int | None, measure: Measure) -> float | None:
    otherwise = _effects_otherwise(asked, image, measure)
    if image is None or otherwise is None:
        return None
    own = (asked[0].effects_by(measure, same_answer=same)[image - 1] for same in (False, True))
    return min(mine - other for mine, other in zip(own, otherwise, strict=True))
