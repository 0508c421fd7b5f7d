"""A Space lends its GPU to what computes; elsewhere the package isn't even looked at."""

import importlib.machinery
import sys
import types

import pytest

from inspector.server.turns import Rank, Turns
from inspector.server.zero_gpu import find_spaces, on_gpu


@pytest.fixture
def space(monkeypatch):
    """A stand-in of the package; what it was asked for."""
    asked = []

    def lend(duration):
        def decorate(handler):
            def lent(*args, **named):
                asked.append(duration)
                return handler(*args, **named)

            return lent

        return decorate

    module = types.ModuleType("spaces")
    module.__spec__ = importlib.machinery.ModuleSpec("spaces", None)
    module.GPU = lend
    monkeypatch.setitem(sys.modules, "spaces", module)
    monkeypatch.setenv("SPACE_ID", "owner/name")
    return asked


def test_nothing_is_decorated_elsewhere(space, monkeypatch):
    monkeypatch.delenv("SPACE_ID")
    assert find_spaces() is None
    assert on_gpu(len) is len


def test_a_space_without_the_package_is_served_too(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "owner/name")
    monkeypatch.setitem(sys.modules, "spaces", None)
    assert on_gpu(len) is len


def test_a_handler_and_a_stream_run_on_the_gpu_that_is_lent(space):
    def count(n):
        yield from range(n)

    turns = Turns()
    assert list(turns.run(Rank.TEST, count, 300)(3)) == [0, 1, 2]
    assert turns.run(Rank.ASK, len)("four") == 4
    assert space == [120, 30]


def test_a_refusal_comes_through(space):
    with pytest.raises(ZeroDivisionError):
        on_gpu(lambda: 1 / 0)()
