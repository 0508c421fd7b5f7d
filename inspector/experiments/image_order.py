"""The same images in another order: does the answer stay with the content or with the place?

Order permutation as in SoFA (Tian et al. 2025, arXiv 2503.13792), with the answer predicted before the model is asked:
a question that names an image by number must follow the number to whatever stands there now, a question about content
must not care, and a turn that brings an image of its own must follow that image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np

from inspector.interventions.target import Case
from inspector.row.embedded_row import answer_row
from inspector.row.prompt import Prompt, Turn, prepare_row
from inspector.row.references import find_pointer, find_pointers
from inspector.row.row_store import ROWS
from inspector.which_image.question_contrast import Selection

EXPLANATION = (
    "The images were put in other orders and the question was asked again; what the answer should be, if it follows "
    "the place, the content or the turn's own image, was written down before each run. "
    "A right prediction fits that rule on these orders alone: it can't show by which way in the model the rule is kept."
)

EXACT_IMAGES = 3
"""Up to so many images every order is tried."""
MAX_ORDERS = 6
"""Beyond, so many rotations and reversals at most, the prompt's own order among them."""

_ASKS_WHICH = re.compile(r"\b(?:which|what) (?:image|picture|photo)\b(?! (?:is|are) )", re.IGNORECASE)


@dataclass(frozen=True)
class Permuted:
    """``order``: the number of the image that now stands in each place, in the prompt's own order (1, 2, …) for the
    first one tried. ``predicted``: the answer that should come, None where no rule gives one; ``why``: the rule.
    ``answer``: what the model said (greedy), with its ``probability`` per token. ``right`` is None where nothing was
    predicted."""

    order: tuple[int, ...]
    predicted: str | None
    why: str
    answer: str
    probability: float
    right: bool | None

    @property
    def is_own_order(self) -> bool:
        return self.order == tuple(sorted(self.order))

    def to_json(self) -> dict[str, Any]:
        return {
            "order": list(self.order),
            "predicted": self.predicted,
            "why": self.why,
            "answer": self.answer,
            "probability": self.probability,
            "right": self.right,
        }


@dataclass(frozen=True)
class PermutationSummary:
    """Over the orders other than the prompt's own: ``orders`` tried, ``predicted`` of them, ``right`` of these;
    ``changed``: answers that differ from the one in the prompt's own order, ``changes_predicted``: predictions that
    do."""

    orders: int
    predicted: int
    right: int
    changed: int
    changes_predicted: int

    @property
    def inconsistency(self) -> float | None:
        """Share of the other orders whose answer differs; a question that names a place ought to have some."""
        return self.changed / self.orders if self.orders else None

    @property
    def sentence(self) -> str:
        if not self.orders:
            return "There is no other order to try."
        told = f"{self.right} of {self.predicted}" if self.predicted else "none was made"
        expected = f", and was predicted to in {self.changes_predicted}" if self.predicted else ""
        # A question that names a place asks about another image in another order: to change is right there.
        return (
            f"Other orders tried: {self.orders}. Predictions that were right: {told}. The answer changed in "
            f"{self.changed} of them ({self.inconsistency:.0%}){expected}; a change that was predicted is no fault."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "orders": self.orders,
            "predicted": self.predicted,
            "right": self.right,
            "changed": self.changed,
            "changes_predicted": self.changes_predicted,
            "inconsistency": self.inconsistency,
            "sentence": self.sentence,
        }


def permuted_orders(count: int, seed: int) -> list[tuple[int, ...]]:
    """Orders of ``count`` images, the prompt's own first: all of them up to :data:`EXACT_IMAGES`; beyond, the reversed
    one and others drawn from the rotations and their reversals."""
    own = tuple(range(1, count + 1))
    if count <= EXACT_IMAGES:
        return list(permutations(own)) if count else []
    rotations = [own[k:] + own[:k] for k in range(count)]
    reversals = [order[::-1] for order in rotations]
    rest = [*rotations[1:], *reversals[1:]]
    drawn = np.random.default_rng(seed).permutation(len(rest))[: MAX_ORDERS - 2]
    return [own, reversals[0], *(rest[n] for n in drawn)]


def permute_images(case: Case, selection: Selection) -> Iterator[Permuted]:
    """Yields after each order; each is one reading of the changed row. Earlier turns keep the answers that they have,
    so that nothing but the order changes."""
    rules = _Rules(case, selection)
    for order in permuted_orders(len(case.prompt.images), case.seed):
        predicted, why = rules.predict(order)
        answer, probability = _ask(case, _reordered(case, order))
        if rules.own_answer is None:
            rules.own_answer = answer
        yield Permuted(order, predicted, why, answer, probability, None if predicted is None else answer == predicted)


def summarise_orders(tried: Sequence[Permuted]) -> PermutationSummary:
    """See :class:`PermutationSummary`. The prompt's own order must be among those ``tried``, if any is."""
    others = [one for one in tried if not one.is_own_order]
    own = next((one.answer for one in tried if one.is_own_order), None)
    predicted = [one for one in others if one.predicted is not None]
    return PermutationSummary(
        len(others),
        len(predicted),
        sum(bool(one.right) for one in predicted),
        sum(one.answer != own for one in others),
        sum(one.predicted != own for one in predicted),
    )


class _Rules:
    """What the answer to the case's question should be in another order, by the question's wording and the layout.
    ``own_answer``: what the model says in the prompt's own order, which is asked first."""

    def __init__(self, case: Case, selection: Selection) -> None:
        self.own_answer: str | None = None
        self._case, self._selection = case, selection
        self._question = case.prompt.turns[case.turn - 1].user
        self._count = len(case.prompt.images)
        self._alone: dict[int, str] = {}

    def predict(self, order: tuple[int, ...]) -> tuple[str | None, str]:
        """(answer or None, why)."""
        if self.own_answer is None:
            return None, "The prompt's own order: there is nothing to predict."
        pointers = find_pointers(self._question)
        if len(pointers) > 1:
            return None, "The question names several images, and no rule says what they make together."
        pointer = find_pointer(self._question)
        if pointer is not None:
            return self._follow_place(order, pointer.image(self._count))
        if self._case.prompt.layout != "images-first":
            return self._follow_turn(order)
        named = int(self.own_answer) if self.own_answer.strip().isdecimal() else 0
        if _ASKS_WHICH.search(self._question) and 1 <= named <= self._count:
            place = order.index(named) + 1
            return str(place), (
                f"The question asks which image, and the answer names image {named}, which stands in place {place} now."
            )
        return self.own_answer, "The question names no image: the answer should stay with the content."

    def _follow_place(self, order: tuple[int, ...], place: int) -> tuple[str | None, str]:
        if place > self._count:
            return None, f"The question names image {place}, and there are {self._count}."
        image = order[place - 1]
        where = f"The question names image {place}, and image {image} of the prompt stands there now"
        if image == place:
            return self.own_answer, f"{where} as before: the answer should stay."
        edited = (one for one in self._selection.asked if one.source == "ordinal edited")
        asked = next((one for one in edited if one.image == image), None)
        if asked is None:
            return None, f"{where}; what the model says of it in the prompt's own order is not known."
        return asked.answer, f"{where}: asked “{asked.question}” in the prompt's own order, the model says this."

    def _follow_turn(self, order: tuple[int, ...]) -> tuple[str | None, str]:
        brought = [image.number for image in self._case.structure.images if image.question == self._case.turn]
        if len(brought) != 1:
            return None, f"Turn {self._case.turn} brings {len(brought)} images: which it is about is not known."
        image = order[brought[0] - 1]
        where = f"Turn {self._case.turn} brings image {image} of the prompt now"
        if image == brought[0]:
            return self.own_answer, f"{where} as before: the answer should stay."
        if image not in self._alone:
            picture = self._case.prompt.images[image - 1]
            self._alone[image], _ = _ask(self._case, Prompt((picture,), (Turn(self._question),)))
        return self._alone[image], f"{where}: asked the same about that image alone, the model says this."


def _reordered(case: Case, order: tuple[int, ...]) -> Prompt:
    """The prompt with its images in another order."""
    return replace(case.prompt, images=tuple(case.prompt.images[number - 1] for number in order))


def _ask(case: Case, prompt: Prompt) -> tuple[str, float]:
    """The greedy answer to the case's turn of ``prompt`` (its last one, if it has fewer), and the probability per
    token of what was said."""
    turn = min(case.turn, len(prompt.turns)) - 1
    row = prepare_row(case.vlm, prompt, answering=turn)
    read = ROWS.read(case.vlm, row, prompt.keeps_samples_apart, case.prefix_cache.read_row, keep=False)
    steps = [step for step, _ in answer_row(case.vlm, read, max_new_tokens=case.max_new_tokens)]
    said = [step for step in steps if step.token_id not in case.vlm.eos_ids] or steps
    return "".join(step.text for step in steps), math.exp(sum(step.logprob for step in said) / len(said))
