"""What an answer depends on: images taken away, and how far log p of the answer falls.

Taking an image away cuts every edge from its tokens and region marks into everything behind it: attention knockout
(Geva et al. 2023, arXiv 2304.14767), complete, so that the row goes on as if the image's positions were empty. A model
may find another way to the same answer then, so a fall is a lower bound of what the image was worth. Shapley values
(Shapley 1953) share log p(all images) − log p(no image) out among the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from inspector.interventions.continuations import Continuation
from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.target import Case, Target, is_answered
from model import Cut

EXACT_IMAGES = 5
"""Up to so many images all 2ⁿ subsets are run; beyond, orders are drawn."""
SAMPLED_ORDERS = 32
NOISE_DRAWS = 24
NOISE_QUANTILE = 0.95
STRONG = 1.0
"""Nats that count as an effect, whatever the noise: 1 nat is a factor of e in the answer's probability."""


@dataclass(frozen=True)
class Dependence:
    """Effects in nats of log p of the answer's tokens; lists are in image order, 0 for images out of reach.

    ``logprob``: with everything in place; ``text_only``: without any image. ``leave_one_out``: fall without that
    image; ``alone``: rise over ``text_only`` with that image only. ``interactions [image image]`` are Shapley
    interaction values, positive where two images are needed together and negative where either will do; None if
    sampled. ``standard_errors`` of the Shapley values, None if exact. ``noise_floor``: the 95th percentile of the
    change that cutting ``noise_size`` random unrelated positions makes (``noise_draws`` draws).
    """

    answer: str
    tokens: int
    logprob: float
    text_only: float
    shapley: tuple[float, ...]
    standard_errors: tuple[float, ...] | None
    leave_one_out: tuple[float, ...]
    alone: tuple[float, ...]
    interactions: tuple[tuple[float, ...], ...] | None
    noise_floor: float
    noise_draws: int
    noise_size: int
    runs: int

    @property
    def exact(self) -> bool:
        return self.standard_errors is None

    @property
    def probability(self) -> float:
        """Of one answer token, the geometric mean over the answer."""
        return math.exp(self.logprob / self.tokens)

    @property
    def total(self) -> float:
        """What all images together are worth, nats."""
        return self.logprob - self.text_only

    def to_json(self) -> dict[str, Any]:
        return {
            "answer": self.answer,
            "logprob": self.logprob,
            "probability": self.probability,
            "text_only": self.text_only,
            "shapley": list(self.shapley),
            "standard_errors": None if self.standard_errors is None else list(self.standard_errors),
            "exact": self.exact,
            "leave_one_out": list(self.leave_one_out),
            "alone": list(self.alone),
            "interactions": None if self.interactions is None else [list(row) for row in self.interactions],
            "noise_floor": self.noise_floor,
            "noise_draws": self.noise_draws,
            "noise_size": self.noise_size,
            "runs": self.runs,
        }


@dataclass(frozen=True)
class TurnMatrix:
    """``effects [turn][image]``: fall of log p of each turn's answer without each image, nats; None for a turn without
    an answer. ``reachable`` says which images the turn can see: elsewhere the effect is exactly 0.
    ``own``: per turn the images that the turn itself brings (where all stand before the first question: all of them,
    for every turn)."""

    effects: tuple[tuple[float, ...] | None, ...]
    reachable: tuple[tuple[bool, ...], ...]
    own: tuple[tuple[bool, ...], ...]

    @property
    def beyond_reach(self) -> float:
        """The largest effect of an image that the turn can't see."""
        return max(
            (
                abs(value)
                for row, seen in zip(self.effects, self.reachable, strict=True)
                if row is not None
                for value, reachable in zip(row, seen, strict=True)
                if not reachable
            ),
            default=0.0,
        )

    @property
    def leakage(self) -> float | None:
        """Share of all effects, by size, that is of images another turn brought; None where nothing has an effect."""
        total = foreign = 0.0
        for row, own in zip(self.effects, self.own, strict=True):
            if row is not None:
                total += sum(abs(value) for value in row)
                foreign += sum(abs(value) for value, mine in zip(row, own, strict=True) if not mine)
        return foreign / total if total else None

    def to_json(self) -> dict[str, Any]:
        return {
            "effects": [None if row is None else list(row) for row in self.effects],
            "reachable": [list(row) for row in self.reachable],
            "own": [list(row) for row in self.own],
            "beyond_reach": self.beyond_reach,
            "leakage": self.leakage,
        }


def measure_dependence(
    case: Case, ablations: ImageAblations | None = None, *, answer_ids: Sequence[int] | None = None
) -> Dependence:
    """See :class:`Dependence`. ``answer_ids``: another answer in the place of the row's own (a reference answer)."""
    prefix_cache, structure, target = case.prefix_cache, case.structure, case.target
    ablations = ablations or ImageAblations(case)
    first = target.scored[0]
    prompt = prefix_cache.ids[target.start : first]
    ids = case.answer_ids if answer_ids is None else tuple(answer_ids)
    scored = (first, first + len(ids))
    target = Target(target.question, target.start, scored)
    base = Continuation(target.start, (*prompt, *ids), scored)
    seen = case.reachable
    n = len(seen)
    rng = np.random.default_rng(case.seed)
    orders = None if n <= EXACT_IMAGES else _draw_orders(rng, n)
    subsets = _all_subsets(n) if orders is None else _prefixes(orders)
    hidden = [frozenset(seen[k].number for k in range(n) if k not in subset) for subset in subsets]
    outcomes = prefix_cache.run([ablations.of_ending(gone, target, base.ids, scored) for gone in hidden])
    value = {subset: outcome.logprob for subset, outcome in zip(subsets, outcomes, strict=True)}
    full = frozenset(range(n))
    if orders is None:
        shapley, errors = shapley_values(value, n), None
        interactions = _interactions(value, n)
    else:
        shapley, errors = _sampled_shapley(value, orders)
        interactions = None
    leave_one_out = [value[full] - value[full - {k}] for k in range(n)]
    alone = [value[frozenset({k})] - value[frozenset()] for k in range(n)]
    strong = {seen[k].number for k in range(n) if max(shapley[k], leave_one_out[k]) >= STRONG}
    floor, size, draws = _noise_floor(case, target, base, value[full], strong, rng)

    def spread(values: Sequence[float]) -> tuple[float, ...]:
        by_number = {image.number: value for image, value in zip(seen, values, strict=True)}
        return tuple(by_number.get(image.number, 0.0) for image in structure.images)

    whole_interactions = None
    if interactions is not None:
        places = {image.number: k for k, image in enumerate(seen)}
        whole_interactions = tuple(
            tuple(
                interactions[places[one.number]][places[other.number]]
                if one.number in places and other.number in places
                else 0.0
                for other in structure.images
            )
            for one in structure.images
        )
    return Dependence(
        answer=target.question.answer_text if answer_ids is None else case.text(ids),
        tokens=len(ids),
        logprob=value[full],
        text_only=value[frozenset()],
        shapley=spread(shapley),
        standard_errors=None if errors is None else spread(errors),
        leave_one_out=spread(leave_one_out),
        alone=spread(alone),
        interactions=whole_interactions,
        noise_floor=floor,
        noise_draws=draws,
        noise_size=size,
        runs=len(subsets) + draws,
    )


def measure_matrix(case: Case, ablations: ImageAblations | None = None) -> TurnMatrix:
    """Every turn's answer without every image; see :class:`TurnMatrix`. An image that a question can't see is no key of
    what it reads, so there is nothing to take away and the effect is 0; that this is so is tried live in
    :mod:`inspector.which_image.self_checks`, where such an image is changed and the answer must not move by a bit."""
    ablations = ablations or ImageAblations(case)
    structure = case.structure
    questions = [question for question in structure.questions if is_answered(question)]
    # By image: its removal for all turns at once, which share what stands before them.
    wanted = [(question.number, 0) for question in questions]
    wanted += [(q.number, image.number) for image in structure.images for q in questions if image.number in q.reachable]
    by_number = {question.number: question for question in questions}
    outcomes = case.prefix_cache.run(
        [ablations.of_answer(frozenset({image} if image else ()), by_number[turn]) for turn, image in wanted]
    )
    logprobs = {cell: outcome.logprob for cell, outcome in zip(wanted, outcomes, strict=True)}
    effects = tuple(
        tuple(
            logprobs[q.number, 0] - logprobs.get((q.number, image.number), logprobs[q.number, 0])
            for image in structure.images
        )
        if q.number in by_number
        else None
        for q in structure.questions
    )
    first = structure.row.kind in ("one image", "several images, first")
    return TurnMatrix(
        effects,
        tuple(tuple(sight.reachable for sight in question.sights) for question in structure.questions),
        tuple(
            tuple(first or image.question == question.number for image in structure.images)
            for question in structure.questions
        ),
    )


def shapley_values(value: dict[frozenset[int], float], n: int) -> tuple[float, ...]:
    """Exact Shapley values of ``n`` players from the value of every subset."""
    found = []
    for player in range(n):
        others = [other for other in range(n) if other != player]
        total = 0.0
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for chosen in combinations(others, size):
                subset = frozenset(chosen)
                total += weight * (value[subset | {player}] - value[subset])
        found.append(total)
    return tuple(found)


def _interactions(value: dict[frozenset[int], float], n: int) -> list[list[float]]:
    """Shapley interaction values of pairs (Grabisch & Roubens 1999)."""
    found = [[0.0] * n for _ in range(n)]
    for one, other in combinations(range(n), 2):
        rest = [k for k in range(n) if k not in (one, other)]
        total = 0.0
        for size in range(n - 1):
            weight = math.factorial(size) * math.factorial(n - size - 2) / math.factorial(n - 1)
            for chosen in combinations(rest, size):
                subset = frozenset(chosen)
                both = value[subset | {one, other}] - value[subset | {one}] - value[subset | {other}] + value[subset]
                total += weight * both
        found[one][other] = found[other][one] = total
    return found


def _all_subsets(n: int) -> list[frozenset[int]]:
    return [frozenset(chosen) for size in range(n + 1) for chosen in combinations(range(n), size)]


def _draw_orders(rng: np.random.Generator, n: int) -> list[tuple[int, ...]]:
    """Random orders, each with its reverse: the pairs' errors cancel in part (antithetic sampling)."""
    orders = []
    for _ in range(SAMPLED_ORDERS // 2):
        order = tuple(int(k) for k in rng.permutation(n))
        orders += [order, order[::-1]]
    return orders


def _prefixes(orders: Sequence[tuple[int, ...]]) -> list[frozenset[int]]:
    n = len(orders[0])
    wanted = {frozenset(order[:size]) for order in orders for size in range(n + 1)}
    wanted |= {frozenset(range(n)) - {k} for k in range(n)} | {frozenset({k}) for k in range(n)}
    return sorted(wanted, key=lambda subset: (len(subset), sorted(subset)))


def _sampled_shapley(
    value: dict[frozenset[int], float], orders: Sequence[tuple[int, ...]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means over the drawn orders and their standard errors, a pair of opposite orders counting as one draw."""
    n = len(orders[0])
    gains = np.zeros((len(orders), n))
    for row, order in enumerate(orders):
        for size, player in enumerate(order):
            gains[row, player] = value[frozenset(order[: size + 1])] - value[frozenset(order[:size])]
    pairs = gains.reshape(-1, 2, n).mean(axis=1)
    errors = pairs.std(axis=0, ddof=1) / math.sqrt(len(pairs))
    return tuple(pairs.mean(axis=0).tolist()), tuple(errors.tolist())


def _noise_floor(
    case: Case, target: Target, base: Continuation, logprob: float, strong: set[int], rng: np.random.Generator
) -> tuple[float, int, int]:
    """(floor in nats, positions per draw, draws). ``logprob``: of ``base``, uncut. Unrelated: positions before the
    question that belong to no image with an effect of :data:`STRONG` or more. The row's first position is left alone:
    in most models it soaks up attention that has nowhere to go, and cutting it breaks the model rather than measures
    noise."""
    prefix_cache, structure = case.prefix_cache, case.structure
    related = {p for image in structure.images if image.number in strong for p in range(image.start, image.stop)}
    attended = prefix_cache.row.attention_mask.tolist()
    segments = prefix_cache.row.segment_ids.tolist()
    first = next((p for p in range(target.start) if attended[p]), 0)
    pool = [
        p
        for p in range(first + 1, target.start)
        if p not in related and attended[p] and (not structure.document_mask or segments[p] == segments[target.start])
    ]
    sizes = [len(image.tokens) + len(image.marks) for image in structure.images]
    if not pool or not sizes:
        return 0.0, 0, 0
    size = min(int(np.median(sizes)), max(1, len(pool) // 2))
    draws = [
        base.cutting(Cut(target.queries, sorted(rng.choice(pool, size, replace=False).tolist())))
        for _ in range(NOISE_DRAWS)
    ]
    changes = [abs(logprob - outcome.logprob) for outcome in prefix_cache.run(draws)]
    return float(np.quantile(changes, NOISE_QUANTILE)), size, len(draws)
