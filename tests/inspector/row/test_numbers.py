"""Numbers as sentences say them."""

import math

import pytest

from inspector.row.numbers import say, say_factor


@pytest.mark.parametrize(
    ("nats", "text"),
    [
        (0.0, "as likely as before"),
        (-0.04, "as likely as before"),
        (-math.log(2), "2.0 times less likely"),
        (math.log(12.34), "12 times more likely"),
        (-math.log(150_400), "150,000 times less likely"),
        (-5000.0, "over a million times less likely"),
        (-math.inf, "over a million times less likely"),
    ],
)
def test_a_factor_has_as_few_digits_as_it_is_good_for(nats, text):
    assert say_factor(nats) == text


def test_what_rounds_to_nothing_has_no_sign():
    assert [say(value, sign=True) for value in (-0.004, 0.004, -1.5, 1.5)] == ["0.00", "0.00", "−1.50", "+1.50"]
