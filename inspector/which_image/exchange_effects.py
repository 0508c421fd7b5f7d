"""What an answer depends on, measured by exchange: images replaced by other pictures instead of taken away.

An answer that the model would give without any picture doesn't fall when pictures are taken away; it falls when
another picture contradicts it. Each game keeps some images and replaces the others by one partner each, and Shapley
values share log p(all kept) − log p(all replaced) out among the images; effects are means over several partners. A
partner may happen to call for the same answer, and then its game shows nothing: the spread over partners is told beside
the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.target import Case
from inspector.which_image.shapley import (
    all_subsets,
    draw_orders,
    sampled_shapley,
    shapley_interactions,
    shapley_values,
    subsets_of_orders,
)

T = TypeVar("T")

PARTNERS = 2
"""Pictures that each image is replaced by, one after another; fewer in long rows."""
EXCHANGE_ROWS = 4
EXCHANGE_POSITIONS = 4096
"""What the games may cost before there are fewer of them: so many rows' lengths, or so many positions if that is
more. One game is played in any case, and its sets of images are drawn where they would cost more than twice that."""
SAMPLED_PAIRS = 2
"""Pairs of opposite orders in each game whose sets are drawn."""


@dataclass(frozen=True)
class ExchangeEffects:
    """Effects in nats of log p of the answer's tokens, means over ``games``; lists are in image order, 0 for images out
    of reach.

    ``replaced``: log p with every image replaced. ``leave_one_out``: fall with that image replaced alone. ``spread``
    (image order): standard error of the Shapley values over partners (and over orders, if drawn), None for one game.
    ``interactions [image image]``: as for image ablation, None if drawn. ``partners`` (image order): what each image
    was replaced by, game by game.
    """

    shapley: tuple[float, ...]
    leave_one_out: tuple[float, ...]
    replaced: float
    spread: tuple[float, ...] | None
    interactions: tuple[tuple[float, ...], ...] | None
    partners: tuple[tuple[str, ...], ...]
    games: int
    exact: bool
    runs: int

    def to_json(self) -> dict[str, Any]:
        return {
            "shapley": list(self.shapley),
            "leave_one_out": list(self.leave_one_out),
            "replaced": self.replaced,
            "spread": None if self.spread is None else list(self.spread),
            "interactions": None if self.interactions is None else [list(row) for row in self.interactions],
            "partners": [list(names) for names in self.partners],
            "games": self.games,
            "exact": self.exact,
            "runs": self.runs,
        }


def measure_exchange(case: Case, exchanges: ImageExchanges) -> ExchangeEffects | None:
    """See :class:`ExchangeEffects`; None where the question can see no image."""
    seen = case.reachable
    if not seen:
        return None
    n, target = len(seen), case.target
    games, exact = plan_games(case)
    partners = [exchanges.partners(image, games) for image in seen]
    ids = case.prefix_cache.ids[target.start : target.scored[1]]
    full = frozenset(range(n))
    values: list[dict[frozenset[int], float]] = []
    shares: list[tuple[float, ...]] = []
    errors: list[tuple[float, ...]] = []
    rng = np.random.default_rng([case.seed, n])
    runs = 0
    for game in range(games):
        orders = None if exact else draw_orders(rng, n, 2 * SAMPLED_PAIRS)
        subsets = all_subsets(n) if orders is None else subsets_of_orders(orders)
        replaced = [
            {seen[k].number: partners[k][game].features for k in range(n) if k not in subset} for subset in subsets
        ]
        outcomes = case.prefix_cache.run([exchanges.of_ending(one, target, ids, target.scored) for one in replaced])
        value = {subset: outcome.logprob for subset, outcome in zip(subsets, outcomes, strict=True)}
        values.append(value)
        runs += len(subsets)
        if orders is None:
            shares.append(shapley_values(value, n))
        else:
            drawn, error = sampled_shapley(value, orders)
            shares.append(drawn)
            errors.append(error)
    table = np.array(shares)
    spread: np.ndarray | None = None
    if games > 1:
        spread = table.std(axis=0, ddof=1) / math.sqrt(games)
    elif errors:
        spread = np.array(errors[0])
    interactions = None
    if exact:
        pairs = np.mean([shapley_interactions(value, n) for value in values], axis=0)
        interactions = tuple(_in_order(case, row) for row in _in_order(case, pairs.tolist(), [0.0] * n))
    return ExchangeEffects(
        shapley=_in_order(case, table.mean(axis=0).tolist()),
        leave_one_out=_in_order(
            case, [float(np.mean([value[full] - value[full - {k}] for value in values])) for k in range(n)]
        ),
        replaced=float(np.mean([value[frozenset()] for value in values])),
        spread=None if spread is None else _in_order(case, spread.tolist()),
        interactions=interactions,
        partners=_in_order(case, [tuple(one.name for one in some) for some in partners], ()),
        games=games,
        exact=exact,
        runs=runs,
    )


def replace_all(case: Case, exchanges: ImageExchanges) -> tuple[float, ...]:
    """Log p of each token of the answer with every image replaced, mean over the partners; these sum up to
    :attr:`ExchangeEffects.replaced`."""
    games, _ = plan_games(case)
    target = case.target
    ids = case.prefix_cache.ids[target.start : target.scored[1]]
    partners = [exchanges.partners(image, games) for image in case.reachable]
    numbers = [image.number for image in case.reachable]
    replaced = (
        {number: some[game].features for number, some in zip(numbers, partners, strict=True)} for game in range(games)
    )
    outcomes = case.prefix_cache.run([exchanges.of_ending(one, target, ids, target.scored) for one in replaced])
    return tuple(np.mean([outcome.logprobs for outcome in outcomes], axis=0).tolist())


def plan_games(case: Case) -> tuple[int, bool]:
    """(how many partners each image gets, whether every set of images is run)."""
    n = len(case.reachable)
    size = max((image.stop - image.start for image in case.reachable), default=0)
    ending = case.target.scored[1] - case.target.start
    budget = max(EXCHANGE_POSITIONS, EXCHANGE_ROWS * len(case.prefix_cache.row))
    # Stretch i of the row has 2^i versions but the row's own; every set has a question and an answer of its own.
    exact = (2 ** (n + 1) - n - 2) * size + 2**n * ending
    if exact <= 2 * budget:
        return max(1, min(PARTNERS, budget // exact)), True
    drawn = 2 * SAMPLED_PAIRS * n * ((n + 1) // 2 * size + ending)
    return max(1, min(PARTNERS, budget // drawn)), False


def measure_falls(
    case: Case, exchanges: ImageExchanges, endings: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> list[tuple[float, ...]]:
    """For each of ``endings`` (ids of a question from the target's start on, ids of an answer to it): by how much log p
    of the answer falls with each image replaced (image order, nats, mean over partners; 0 for images out of reach)."""
    seen, target = case.reachable, case.target
    games, _ = plan_games(case)
    partners = [exchanges.partners(image, games) for image in seen]
    replaced = [{}, *({image.number: one.features} for image, some in zip(seen, partners, strict=True) for one in some)]
    # Set by set, so that what the questions stand behind is read once.
    continuations = [
        exchanges.of_ending(
            gone,
            target,
            (*asked, *answer),
            (target.start + len(asked), target.start + len(asked) + len(answer)),
        )
        for gone in replaced
        for asked, answer in endings
    ]
    logprobs = [outcome.logprob for outcome in case.prefix_cache.run(continuations)]
    table = np.array(logprobs).reshape(len(replaced), len(endings))
    falls = (table[:1] - table[1:]).reshape(len(seen), games, len(endings)).mean(axis=1)
    return [_in_order(case, falls[:, n].tolist()) for n in range(len(endings))]


def _in_order(case: Case, values: Sequence[T], missing: T | float = 0.0) -> tuple[Any, ...]:
    """Values of the images in reach as a list of all images."""
    by_number = {image.number: value for image, value in zip(case.reachable, values, strict=True)}
    return tuple(by_number.get(image.number, missing) for image in case.structure.images)
