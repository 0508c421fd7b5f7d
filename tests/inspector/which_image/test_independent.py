"""Shapley values, interactions and ranks against libraries that others wrote: shapiq and scipy."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import spearmanr
from shapiq import ExactComputer

from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.image_exchange import ImageExchanges
from inspector.which_image.attention_agreement import rank_correlation
from inspector.which_image.exchange_effects import measure_exchange, plan_games
from inspector.which_image.image_effects import measure_dependence
from inspector.which_image.shapley import (
    all_subsets,
    draw_orders,
    sampled_shapley,
    shapley_interactions,
    shapley_values,
    subsets_of_orders,
)
from tests.example_cases import example_case


def library(value, n):
    """(values, interactions ``[player player]``) from shapiq, which knows the game through its sets alone."""

    def game(sets: np.ndarray) -> np.ndarray:
        return np.array([value[frozenset(np.flatnonzero(row).tolist())] for row in np.atleast_2d(sets)])

    computer = ExactComputer(game, n)
    values = computer("SV", 1)
    pairs = computer("SII", 2)
    table = [[0.0 if a == b else pairs[tuple(sorted((a, b)))] for b in range(n)] for a in range(n)]
    return [values[(k,)] for k in range(n)], table


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_values_and_interactions_of_random_games(n):
    rng = np.random.default_rng(n)
    value = {subset: float(rng.normal()) for subset in all_subsets(n)}
    values, pairs = library(value, n)
    assert shapley_values(value, n) == pytest.approx(values, abs=1e-9)
    assert np.allclose(shapley_interactions(value, n), pairs, atol=1e-9)


def test_drawn_orders_come_near_the_library():
    n = 6
    rng = np.random.default_rng(0)
    value = {subset: float(rng.normal()) + 2 * len(subset) for subset in all_subsets(n)}
    values, _ = library(value, n)
    orders = draw_orders(rng, n, 4000)
    assert all(one == other[::-1] for one, other in list(pairwise(orders))[::2])
    found, errors = sampled_shapley({subset: value[subset] for subset in subsets_of_orders(orders)}, orders)
    assert np.abs(np.subtract(found, values)).max() < 4 * max(errors) < 0.5


@pytest.mark.parametrize("name", ["two", "three", "packed"])
def test_images_taken_away_and_replaced(embedded, name):
    """The sets of images are run here, one by one, and the library shares them out."""
    case = example_case(embedded, name)
    seen, target = case.reachable, case.target
    n = len(seen)
    ablations, exchanges = ImageAblations(case), ImageExchanges(case)
    found = measure_dependence(case, ablations, exchanges)
    assert found.exchange is not None
    games, exact = plan_games(case)
    assert (games, exact) == (2, True)
    ids = case.prefix_cache.ids[target.start : target.scored[1]]

    def hidden(subset):
        gone = frozenset(image.number for k, image in enumerate(seen) if k not in subset)
        return case.prefix_cache.run([ablations.of_answer(gone)])[0].logprob

    values, pairs = library({subset: hidden(subset) for subset in all_subsets(n)}, n)
    assert found.shapley == pytest.approx(values, abs=1e-4)
    assert np.allclose(found.interactions, pairs, atol=1e-4)

    partners = [exchanges.partners(image, games) for image in seen]
    played = []
    for game in range(games):

        def replaced(subset, game=game):
            one = {seen[k].number: partners[k][game].features for k in range(n) if k not in subset}
            return case.prefix_cache.run([exchanges.of_ending(one, target, ids, target.scored)])[0].logprob

        played.append(library({subset: replaced(subset) for subset in all_subsets(n)}, n))
    assert found.exchange.shapley == pytest.approx(np.mean([values for values, _ in played], axis=0), abs=1e-4)
    assert np.allclose(found.exchange.interactions, np.mean([pairs for _, pairs in played], axis=0), atol=1e-4)
    assert sum(found.exchange.shapley) == pytest.approx(found.logprob - found.exchange.replaced, abs=1e-4)


def test_ranks():
    rng = np.random.default_rng(7)
    for count in (3, 5, 9):
        one, other = rng.normal(size=count), rng.integers(0, 4, size=count).astype(float)  # with ties
        if np.ptp(other):
            assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert rank_correlation(np.array([1.0, 2.0]), np.array([2.0, 1.0])) is None


def test_no_image_no_exchange(embedded):
    case = example_case(embedded, "single", images=())
    assert measure_exchange(case, ImageExchanges(case)) is None
