"""Attention beside the causal result: shares add up, agree with the attention map's, and the badge is right."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from inspector.row.attention import read_attention, summarise_pattern
from inspector.row.prompt import Turn
from inspector.which_image.attention_agreement import MAX_ROWS, _spread, measure_attention_agreement, rank_correlation
from inspector.which_image.image_effects import measure_dependence
from tests.example_cases import example_case


def attention_of(case, position):
    return read_attention(case.vlm, case.prefix_cache.read_row, position)


def study(case, shapley=None):
    dependence = measure_dependence(case)
    if shapley is not None:
        dependence = replace(dependence, shapley=shapley)
    return measure_attention_agreement(case, attention_of(case, case.target.question.chooser), dependence)


@pytest.fixture(scope="module", params=["three", "two", "per-turn", "packed", "packed, document mask"])
def case(embedded, request):
    name, _, mask = request.param.partition(", ")
    return example_case(embedded, name, **({"document_mask": True} if mask else {}))


@pytest.fixture(scope="module")
def agreement(case):
    return study(case)


def test_shares_of_the_chooser_are_the_attention_maps(case, agreement):
    attention = attention_of(case, case.target.question.chooser)
    assert np.array(agreement.chooser.shares) == pytest.approx(attention.image_shares, abs=1e-5)
    without = summarise_pattern(attention.pattern, case.prefix_cache.row, attention.position, exclude_sinks=True)
    assert agreement.sinks == without.excluded
    assert np.array(agreement.chooser.without_sinks) == pytest.approx(without.image_shares, abs=1e-5)
    assert agreement.chooser.totals == pytest.approx(attention.image_share.mean(axis=1), abs=1e-5)


def test_shares_of_the_question_are_the_mean_over_its_rows(case, agreement):
    rows = list(case.target.question_rows)
    assert agreement.question.count == len(rows)
    shares = np.mean([attention_of(case, row).image_shares for row in rows], axis=0)
    assert np.array(agreement.question.shares) == pytest.approx(shares, abs=1e-5)


def test_lift_is_one_on_average_over_image_tokens(case, agreement):
    """Weighed by their tokens, lifts of all images in reach add up to 1; images out of reach have none."""
    reachable = case.target.question.reachable
    sizes = np.array([len(image.tokens) * (image.number in reachable) for image in case.structure.images])
    for look in (agreement.chooser, agreement.question):
        for lifts in (look.lifts, look.norm_lifts):
            assert np.array(lifts) @ (sizes / sizes.sum()) == pytest.approx(np.ones(4), abs=1e-9)
        assert np.array(look.norm_shares).sum(axis=1) == pytest.approx(np.ones(4), abs=1e-9)
        for values in (look.shares, look.without_sinks, look.norm_shares, look.lifts):
            assert not np.array(values)[:, sizes == 0].any()


def test_leaders_are_where_the_shares_are_largest(agreement):
    for look in (agreement.chooser, agreement.question):
        assert look.leaders == tuple(np.argmax(look.without_sinks, axis=1) + 1)
        assert look.norm_leaders == tuple(np.argmax(look.norm_shares, axis=1) + 1)


def test_rank_correlation_of_known_ranks():
    def of(one, other):
        return rank_correlation(np.array(one), np.array(other))

    assert of([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]) == pytest.approx(1.0)
    assert of([1.0, 2.0, 3.0], [0.3, 0.2, 0.1]) == pytest.approx(-1.0)
    # 1 − 6 Σd² / n(n² − 1) with d = (0, 1, −1, 0, 0).
    assert of([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 3.0, 2.0, 4.0, 5.0]) == pytest.approx(0.9)
    # Ties share the mean rank: ranks 1.5, 1.5, 3 against 1, 2, 3.
    assert of([0.0, 0.0, 5.0], [1.0, 2.0, 3.0]) == pytest.approx(1.5 / 3**0.5)
    assert of([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert of([1.0, 2.0], [1.0, 2.0]) is None


def test_the_badge_agrees_or_disagrees_with_the_largest_shapley_value(embedded):
    case = example_case(embedded, "three")
    found = study(case)
    assert found.causal == 3
    assert found.badge == ("agrees" if found.attended == 3 else "disagrees")
    assert all(f"{one:.3f}" in found.sentence for one in (found.share, found.total))
    attended = found.attended
    other = attended % 3 + 1
    for image, badge in ((attended, "agrees"), (other, "disagrees")):
        shapley = tuple(5.0 if number == image else 0.0 for number in (1, 2, 3))
        judged = study(case, shapley)
        assert (judged.attended, judged.causal, judged.badge) == (attended, image, badge)
        assert f"image {image} (Shapley 5.00 " in judged.sentence
    weak = study(case, (0.2, 0.1, 0.0))
    assert (weak.causal, weak.badge) == (None, "no effect to compare with")
    assert " 1.00 nats" in weak.sentence


def test_one_image_or_none_is_too_few(embedded):
    one = study(example_case(embedded, "single"))
    assert one.badge == "too few images to tell"
    assert one.chooser.correlations == (None,) * 4
    masked = study(example_case(embedded, "packed", document_mask=True))
    assert (masked.badge, masked.attended) == ("too few images to tell", 3)
    none = study(example_case(embedded, "three", images=()))
    assert (none.badge, none.attended, none.share) == ("too few images to tell", None, 0.0)


def test_a_long_question_is_read_in_part(embedded):
    case = example_case(embedded, "two", turns=(Turn("What colour is the shape? " * 22),))
    assert len(case.target.question_rows) > MAX_ROWS
    assert study(case).question.count == MAX_ROWS


def test_rows_that_are_read_are_spread_from_the_first_to_the_last():
    assert _spread(range(5, 8)) == [5, 6, 7]
    spread = _spread(range(10, 1010))
    assert (spread[0], spread[-1], len(spread)) == (10, 1009, MAX_ROWS)
    assert max(b - a for a, b in pairwise(spread)) == 8


def test_attention_of_another_position_is_refused(embedded):
    case = example_case(embedded, "single")
    with pytest.raises(ValueError, match="position 3"):
        measure_attention_agreement(case, attention_of(case, 3), measure_dependence(case))


def test_json_holds_both_rows(agreement):
    described = json.loads(json.dumps(agreement.to_json()))
    assert described["chooser"]["leaders"] == list(agreement.chooser.leaders)
    assert described["question"]["totals"] == pytest.approx(agreement.question.totals)
    assert described["badge"] == agreement.badge
