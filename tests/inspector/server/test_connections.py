"""Connections that ask for nothing are closed, and no others."""

from types import SimpleNamespace
from weakref import WeakKeyDictionary

from inspector.server import connections as module
from inspector.server.connections import close_silent


class Connection:
    """Stands in for one of uvicorn's."""

    def __init__(self, cycle: object = None) -> None:
        self.cycle = cycle
        self.closed = 0
        self.transport = SimpleNamespace(abort=self._close)

    def _close(self) -> None:
        self.closed += 1


def test_who_says_nothing_for_long(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    asks, asked = SimpleNamespace(response_complete=False), SimpleNamespace(response_complete=True)
    new, served, answered = Connection(), Connection(asks), Connection(asked)
    silent: WeakKeyDictionary = WeakKeyDictionary()
    everybody = {new, served, answered}
    close_silent(everybody, silent)
    clock[0] = 29.0
    close_silent(everybody, silent)
    assert [one.closed for one in (new, served, answered)] == [0, 0, 0]
    clock[0] = 31.0
    close_silent(everybody, silent)
    assert [one.closed for one in (new, served, answered)] == [1, 0, 1]
    served.cycle = asked  # from now on it is silent
    close_silent({served}, silent)
    assert served.closed == 0
    clock[0] = 62.0
    close_silent({served}, silent)
    assert served.closed == 1
