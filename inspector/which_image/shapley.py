"""Sharing a value out among players: Shapley values (Shapley 1953) and interactions of pairs (Grabisch & Roubens 1999).

A game is a value for sets of players 0 … n − 1; here players are images, and the value is log p of an answer in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

Game = Mapping[frozenset[int], float]


def shapley_values(value: Game, n: int) -> tuple[float, ...]:
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


def shapley_interactions(value: Game, n: int) -> tuple[tuple[float, ...], ...]:
    """``[player player]``: Shapley interaction values of pairs, above 0 where both are needed together; the diagonal is
    0."""
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
    return tuple(tuple(row) for row in found)


def all_subsets(n: int) -> list[frozenset[int]]:
    """Of ``n`` players, the smallest first."""
    return [frozenset(chosen) for size in range(n + 1) for chosen in combinations(range(n), size)]


def draw_orders(rng: np.random.Generator, n: int, count: int) -> list[tuple[int, ...]]:
    """``count`` random orders (even), each with its reverse: the pairs' errors cancel in part (antithetic sampling)."""
    orders = []
    for _ in range(count // 2):
        order = tuple(int(k) for k in rng.permutation(n))
        orders += [order, order[::-1]]
    return orders


def subsets_of_orders(orders: Sequence[tuple[int, ...]]) -> list[frozenset[int]]:
    """The sets that :func:`sampled_shapley` needs, all players but one, and each alone; the smallest first."""
    n = len(orders[0])
    wanted = {frozenset(order[:size]) for order in orders for size in range(n + 1)}
    wanted |= {frozenset(range(n)) - {k} for k in range(n)} | {frozenset({k}) for k in range(n)}
    return sorted(wanted, key=lambda subset: (len(subset), sorted(subset)))


def sampled_shapley(value: Game, orders: Sequence[tuple[int, ...]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means over the drawn orders and their standard errors, a pair of opposite orders counting as one draw."""
    n = len(orders[0])
    gains = np.zeros((len(orders), n))
    for row, order in enumerate(orders):
        for size, player in enumerate(order):
            gains[row, player] = value[frozenset(order[: size + 1])] - value[frozenset(order[:size])]
    pairs = gains.reshape(-1, 2, n).mean(axis=1)
    errors = pairs.std(axis=0, ddof=1) / math.sqrt(len(pairs))
    return tuple(pairs.mean(axis=0).tolist()), tuple(errors.tolist())
