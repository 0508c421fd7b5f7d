"""So many times at once, and as many in every minute on."""

import pytest

from inspector.server import rate as module
from inspector.server.rate import Rate


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_at_once_and_as_time_goes_by(clock):
    rate = Rate()
    assert [rate.take("one", 3) for _ in range(5)] == [True, True, True, False, False]
    assert rate.take("other", 3)
    clock[0] = 19.0
    assert not rate.take("one", 3)
    clock[0] = 20.1
    assert [rate.take("one", 3), rate.take("one", 3)] == [True, False]
    clock[0] = 1000.0
    assert [rate.take("one", 3) for _ in range(4)] == [True, True, True, False]


def test_not_everybody_is_remembered(clock, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 2)
    rate = Rate()
    assert [rate.take(person, 1) for person in ("one", "two", "one", "three", "two")] == [True, True, False, True, True]
    assert len(rate._left) == 2
