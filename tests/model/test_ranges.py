"""Numbers that people give, and the one range of seeds."""

import random

import numpy as np
import pytest
import torch

from model.ranges import MAX_SEED, SEEDS, Range


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        (1, True),
        (5, True),
        (0, False),
        (6, False),
        (1.0, False),
        (True, False),
        ("1", False),
        (None, False),
        ([1], False),
        (10**400, False),
        (float("nan"), False),
    ],
)
def test_a_range_of_whole_numbers(value, holds):
    assert Range(1, 5).holds(value) is holds


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        (0, True),
        (0.5, True),
        (1, True),
        (-1e-300, False),
        (1.1, False),
        (False, False),
        (float("nan"), False),
        (float("inf"), False),
        (10**400, False),
        ({}, False),
    ],
)
def test_a_range_of_numbers(value, holds):
    assert Range(0, 1, whole=False).holds(value) is holds


def test_every_generator_takes_the_largest_seed_and_what_is_derived_from_it():
    assert MAX_SEED == 9_007_199_254_740_991
    assert SEEDS.holds(MAX_SEED)
    assert not SEEDS.holds(MAX_SEED + 1)
    for seed in (MAX_SEED, MAX_SEED + 1_000_000):
        torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
        assert 0 <= np.random.default_rng((seed, 1)).random() < 1
        assert 0 <= random.Random(seed).random() < 1
