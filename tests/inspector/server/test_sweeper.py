"""What is kept of pages that have gone, been left alone, or hold too much."""

import datetime
from collections import OrderedDict
from types import SimpleNamespace

import pytest

from inspector.bounds import private_bounds
from inspector.server.pages import Pages
from inspector.server.sweeper import let_go, measure_pages, sweep_files, sweep_pages


class Server:
    """Stands in for the running Blocks."""

    def __init__(self, **bounds) -> None:
        self.bounds = private_bounds(**bounds)
        self.open_pages = Pages()
        self.at_work: dict[str, int] = {}
        self.state_holder = SimpleNamespace(session_data=OrderedDict(), time_last_used={})
        self._queue = SimpleNamespace(
            count_by_page=lambda: self.at_work,
            pending_messages_per_session={},
            pending_event_ids_session={},
            single=set(),
        )

    def add(self, page: str, idle: float = 0.0, size: int = 0, is_open: bool = False) -> None:
        self.state_holder.session_data[page] = SimpleNamespace(state_data={1: bytes(size), 2: "text"})
        self.state_holder.time_last_used[page] = datetime.datetime.now() - datetime.timedelta(seconds=idle)
        self._queue.pending_messages_per_session[page] = SimpleNamespace(bytes=0)
        self._queue.pending_event_ids_session[page] = set()
        if is_open:
            self.open_pages.open(page)

    @property
    def left(self) -> list[str]:
        assert set(self.state_holder.time_last_used) == set(self.state_holder.session_data)
        assert set(self._queue.pending_messages_per_session) == set(self._queue.pending_event_ids_session)
        return list(self.state_holder.session_data)


def sweep(server: Server) -> int:
    """How many pages went."""
    return len(sweep_pages(server, measure_pages(server)))


def test_pages_of_different_age():
    server = Server(closed_session_s=100, session_idle_s=1000)
    server.add("open", idle=900, is_open=True)
    server.add("left alone", idle=1001, is_open=True)
    server.add("program", idle=99)
    server.add("old program", idle=101)
    server.add("at work", idle=5000)
    server.at_work = {"at work": 1}
    assert sweep(server) == 2
    assert server.left == ["open", "program", "at work"]


def test_what_one_call_left_goes_at_once():
    server = Server()
    for page in ("call", "running", "page"):
        server.add(page)
    server._queue.single = {"call", "running"}
    server.at_work = {"running": 1}
    assert sweep(server) == 1
    assert server.left == ["running", "page"]
    assert server._queue.single == {"running"}


def test_a_closed_page_is_kept_for_a_reload(monkeypatch):
    server, clock = Server(closed_session_s=100), [0.0]
    monkeypatch.setattr("inspector.server.pages.time.monotonic", lambda: clock[0])
    server.add("page", idle=5000, is_open=True)
    server.open_pages.close("page")
    clock[0] = 99.0
    assert sweep(server) == 0
    clock[0] = 101.0
    assert sweep(server) == 1
    assert server.left == []


def test_too_many_pages():
    server = Server(sessions=2)
    for page in ("one", "two", "three", "four"):
        server.add(page, is_open=page == "one")
    assert sweep(server) == 2
    assert server.left == ["one", "four"]  # who looks at a page comes last, then whoever used theirs longest ago


def test_pages_that_hold_too_much():
    server = Server(session_bytes=50_000, sessions_bytes=101_000)
    for page, size in (("a", 40_000), ("greedy", 51_000), ("b", 40_000), ("c", 40_000), ("d", 20_000)):
        server.add(page, size=size)
    assert sweep(server) == 2
    assert server.left == ["b", "c", "d"]


def test_messages_count_as_the_pages_own():
    server = Server(session_bytes=50_000)
    server.add("reads")
    server.add("reads nothing")
    server._queue.pending_messages_per_session["reads nothing"].bytes = 60_000
    assert sweep(server) == 1
    assert server.left == ["reads"]


def test_messages_that_nobody_fetches():
    server = Server()
    server.add("page")
    server._queue.pending_messages_per_session |= {"gone": None, "working": None}
    server._queue.pending_event_ids_session |= {"gone": {"e"}, "working": {"f"}, "page": set()}
    server.at_work = {"working": 1}
    assert sweep(server) == 0
    assert set(server._queue.pending_messages_per_session) == {"page", "working"}


@pytest.mark.parametrize("opened", [1, 2])
def test_a_page_with_two_connections_is_open_until_both_end(opened):
    pages = Pages()
    for _ in range(opened):
        pages.open("page")
    for _ in range(opened - 1):
        pages.close("page")
    assert pages.is_open("page")
    assert pages.closed_for("page") is None
    pages.close("page")
    assert not pages.is_open("page")
    assert pages.closed_for("page") >= 0


def test_files_that_nobody_used_for_long(tmp_path, monkeypatch):
    for name in ("hash/old.png", "other/new.png", "broken-off"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    assert sweep_files(tmp_path, 1000) == 0
    assert (tmp_path / "empty").exists()  # a file may be on its way
    monkeypatch.setattr("inspector.server.sweeper.EMPTY_S", -1.0)
    assert sweep_files(tmp_path, 1000) == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["broken-off", "hash", "new.png", "old.png", "other"]
    assert sweep_files(tmp_path, -1) == 3
    assert list(tmp_path.iterdir()) == []
    assert sweep_files(tmp_path / "gone", -1) == 0


def test_what_a_page_kept_is_told_of_its_end():
    told: list[str] = []
    component = SimpleNamespace(delete_callback=told.append)
    states = [SimpleNamespace(state_components=[(component, "upload", False), (component, None, True)])]
    let_go(states)
    assert told == ["upload", None]
    assert states == []  # nothing holds on to what was given up
