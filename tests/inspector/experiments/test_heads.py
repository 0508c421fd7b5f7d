"""Heads that follow the question: their scores on whole rows, the random draws, and what is said when nothing holds."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from inspector.experiments.heads import DRAWS, Heads, _count_others, _draw, _steer, _top, measure_heads, score_heads
from inspector.row.attention import read_attention
from inspector.row.prompt import Turn, prepare_row
from inspector.row.row_store import ROWS
from inspector.which_image.image_effects import measure_dependence
from inspector.which_image.question_contrast import measure_selection
from model import Cut, Tap
from model.generate import generate_batch
from tests.example_cases import example_case, example_prompt, whole_row


@pytest.fixture(scope="module")
def three(embedded):
    case = example_case(embedded, "three")
    return case, measure_selection(case, 3)


@pytest.fixture(scope="module")
def steps(three):
    case, selection = three
    return list(measure_heads(case, selection, measure_dependence(case).noise_floor))


def keys_of(image):
    return (*image.tokens, *image.marks)


def test_scores_are_contrasts_of_shares_in_whole_rows(embedded, three):
    """Share of image k in the row that chooses the answer, asked about k less the mean over the other questions."""
    case, selection = three
    shares = {}
    for number in (1, 2, 3):
        prompt = example_prompt("three", turns=(Turn(f"In image {number}, what colour is the shape?"),))
        row = prepare_row(embedded, prompt, answering=0)
        attention = read_attention(embedded, ROWS.read(embedded, row, False), len(row) - 1)
        shares[number] = [attention.pattern[..., list(image.tokens)].sum(axis=-1) for image in case.structure.images]
    expected = np.mean(
        [shares[k][k - 1] - (shares[a][k - 1] + shares[b][k - 1]) / 2 for k, a, b in ((1, 2, 3), (2, 1, 3), (3, 1, 2))],
        axis=0,
    )
    scores, asked = score_heads(case, selection)
    assert asked == (1, 2, 3)
    assert scores == pytest.approx(expected, abs=1e-4)


def test_scores_first_then_the_test_then_steering(steps):
    first, tested, steered = steps
    assert (first.effect, first.random, first.sentence) == (None, (), "")
    assert not first.shown
    assert tested.effect is not None
    assert tested.steered == ()
    assert [one.image for one in steered.steered] == [1, 2]
    assert {step.top for step in steps} == {_top(np.array(first.scores))}
    # Two heads of four layers of four have 15 or 5 others like them; one more is as few as there can be.
    assert len(first.top) >= 3
    assert _count_others(first.top[:-1], 4) < 20 <= _count_others(first.top, 4)
    layer, head = first.top[0]
    assert first.scores[layer][head] == np.max(first.scores)


def test_effects_are_whole_rows_with_the_heads_cut(three, steps):
    case, _ = three
    found, keys, before = steps[-1], keys_of(case.structure.images[2]), whole_row(case)
    cuts = [Cut(case.target.queries, keys, frozenset({layer}), frozenset({head})) for layer, head in found.top]
    assert found.effect == pytest.approx(before - whole_row(case, cuts), abs=1e-4)
    assert found.all_heads == pytest.approx(before - whole_row(case, [Cut(case.target.queries, keys)]), abs=1e-4)
    assert found.possible == _count_others(found.top, 4)
    assert len(found.random) == min(found.possible, DRAWS)
    assert found.shown == (found.effect > max(np.quantile(found.random, 0.95), found.noise_floor, 1.0))


def test_random_draws_have_as_many_heads_in_the_same_layers():
    top = ((2, 0), (2, 5), (7, 1), (9, 3))
    drawn, possible = _draw(top, 15, np.random.default_rng(0))
    assert possible == 105 * 15 * 15 - 1
    assert len({frozenset(heads) for heads in drawn}) == len(drawn) == DRAWS >= 20
    assert frozenset(top) not in {frozenset(heads) for heads in drawn}
    for heads in drawn:
        assert Counter(layer for layer, _ in heads) == {2: 2, 7: 1, 9: 1}
        assert len(set(heads)) == 4
    assert drawn == _draw(top, 15, np.random.default_rng(0))[0]


def test_where_there_are_few_sets_all_are_tried():
    drawn, possible = _draw(((0, 1), (0, 2)), 4, np.random.default_rng(0))
    assert possible == 5
    assert {frozenset(heads) for heads in drawn} == {
        frozenset({(0, a), (0, b)}) for a, b in ((0, 1), (0, 2), (0, 3), (1, 3), (2, 3))
    }
    assert _draw(((0, 0), (0, 1)), 2, np.random.default_rng(0)) == ([], 0)


def test_a_tenth_of_the_heads_at_least_two_and_only_those_that_turn():
    scores = np.zeros((10, 10))
    scores[3, 4], scores[8, 0], scores[0, 9] = 0.5, 0.9, 0.1
    assert _top(scores) == ((8, 0), (3, 4), (0, 9))
    # All ten of the last layer leave nothing to compare with, nor does one of the layer before (10 − 1 sets); two do.
    assert len(_top(np.arange(1.0, 101.0).reshape(10, 10))) == 12
    assert _top(-np.ones((2, 2))) == ()


def test_steering_is_the_answer_generated_with_these_edges_cut(embedded, three):
    """All heads of all layers instead of a few: the question then sees one image alone."""
    case, selection = three
    every = tuple((layer, head) for layer in range(4) for head in range(4))
    found = replace(Heads(None, (), 3, 0.0), top=every)
    steered = _steer(case, selection, found, case.structure.images[2])
    row = prepare_row(embedded, case.prompt, answering=0)
    for one in steered:
        keys = [p for image in case.structure.images if image.number != one.image for p in keys_of(image)]
        cut = Cut(range(case.target.start, len(row) + case.max_new_tokens), keys)
        batch, tap = embedded.collate([row]), Tap(cuts=(cut,))
        steps = generate_batch(embedded, batch, max_new_tokens=case.max_new_tokens, tap=tap)
        assert one.answer == case.text([int(ids[0]) for ids, _ in steps])
    assert [one.predicted for one in steered] == [selection.about(1).answer, selection.about(2).answer]


def heads(**fields):
    base = Heads(((0.0, 0.4), (0.2, 0.0)), (1, 2), 1, 0.5, ((0, 1), (1, 0)), 2.0, 8.0, (1.0,) * 20, 24)
    return replace(base, **fields)


def test_heads_are_shown_only_above_the_draws_and_the_noise():
    assert heads().shown
    assert heads().percentile == 1.0
    assert not heads(noise_floor=2.5).shown
    assert not heads(effect=0.9, random=(0.1,) * 20).shown
    assert heads(random=(1.0,) * 19 + (3.0,)).shown  # the 95th percentile of these is 1.1
    assert not heads(random=(1.0,) * 18 + (3.0,) * 2).shown
    assert heads(random=(1.0,) * 18 + (3.0,) * 2).percentile == 0.9
    assert not heads(random=()).shown
    assert not heads(random=(1.0,) * 19).shown


def test_without_a_question_about_another_image_nothing_is_claimed(embedded):
    case = example_case(embedded, "single")
    (found,) = measure_heads(case, measure_selection(case, 1), 0.0)
    assert (found.scores, found.top, found.shown) == (None, (), False)
    masked = example_case(embedded, "packed", document_mask=True)
    (found,) = measure_heads(masked, measure_selection(masked, 3), 0.0)
    assert found.asked == (3,)
    none = example_case(embedded, "three", images=())
    (found,) = measure_heads(none, measure_selection(none, None), 0.0)
    assert (found.scores, found.shown) == (None, False)


def test_an_answer_that_rests_on_no_image_has_no_image_to_cut(embedded):
    case = example_case(embedded, "per-turn")
    found = list(measure_heads(case, measure_selection(case, None), 0.0))
    assert len(found) == 1
    assert not found[0].shown
    assert found[0].scores is not None


def test_json_says_whether_they_are_shown(steps):
    described = json.loads(json.dumps(steps[-1].to_json()))
    assert described["shown"] == steps[-1].shown
    assert described["steered"][0]["followed"] == steps[-1].steered[0].followed
    assert described["top"] == [list(head) for head in steps[-1].top]
