"""Answers come before tests, and nobody computes for a page that has gone."""

import threading
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext

from inspector.bounds import private_bounds
from inspector.server import turns as module
from inspector.server.turns import REPLACED, Abandoned, Rank, Turns, read_patience
from model import InputError


@pytest.fixture(autouse=True)
def afterwards_nobody():
    """This thread computes for no event once a test is over: others run in it."""
    yield
    LocalContext.blocks.set(None)
    LocalContext.event_id.set(None)


class Server:
    """Stands in for gradio's Blocks: events that a handler can run for."""

    def __init__(self) -> None:
        self.turns = Turns()
        self._queue = SimpleNamespace(event_ids_to_events={})
        self.clock = 0.0

    def add(self, name: str, page: str = "page") -> SimpleNamespace:
        self.clock += 1
        event = SimpleNamespace(session_hash=page, alive=True, enqueue_time=self.clock)
        self._queue.event_ids_to_events[name] = event
        return event

    def become(self, name: str) -> None:
        """Makes this thread one that computes for the event."""
        LocalContext.blocks.set(self)  # type: ignore[arg-type]
        LocalContext.event_id.set(name)

    def start(self, name: str, rank: Rank, blocks: int, done: list[str], seconds: float | None = None):
        """A thread in which a handler goes through so many blocks, and then waits to be let go."""
        entered, leave, errors = threading.Event(), threading.Event(), []

        def handler() -> None:
            entered.set()
            for _ in range(blocks):
                self.turns.before_block()
            done.append(name)
            leave.wait(30)

        def run() -> None:
            self.become(name)
            try:
                self.turns.run(rank, handler, seconds)()
            except (InputError, Abandoned) as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert entered.wait(30)
        return SimpleNamespace(thread=thread, leave=leave, errors=errors)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "GIVE_WAY_S", 1000.0)
    monkeypatch.setattr(module, "POLL_S", 0.01)
    return Server()


def test_a_test_waits_for_a_question_of_another_page(server):
    done: list[str] = []
    server.add("ask", "one")
    server.add("test", "two")
    ask = server.start("ask", Rank.ASK, 3, done)
    test = server.start("test", Rank.TEST, 3, done)
    test.thread.join(0.2)
    assert done == ["ask"]
    ask.leave.set()
    ask.thread.join(30)
    test.leave.set()
    test.thread.join(30)
    assert done == ["ask", "test"]
    assert not test.errors


def test_ranks_give_way_downwards_only(server):
    done: list[str] = []
    for name in ("battery", "experiment", "test"):
        server.add(name, name)
    test = server.start("test", Rank.TEST, 0, done)
    for name, rank in (("battery", Rank.BATTERY), ("experiment", Rank.EXPERIMENT)):
        lower = server.start(name, rank, 1, done)
        lower.thread.join(0.1)
        assert done == ["test"]
        server._queue.event_ids_to_events[name].alive = False
        lower.thread.join(30)
        assert [type(error) for error in lower.errors] == [Abandoned]
    test.leave.set()
    test.thread.join(30)


def test_a_pause_has_an_end(server, monkeypatch):
    monkeypatch.setattr(module, "GIVE_WAY_S", 0.05)
    done: list[str] = []
    server.add("ask", "one")
    server.add("test", "two")
    ask = server.start("ask", Rank.ASK, 0, done)
    test = server.start("test", Rank.TEST, 3, done)
    test.leave.set()
    test.thread.join(30)
    assert done == ["ask", "test"]
    ask.leave.set()
    ask.thread.join(30)


def test_a_question_ends_the_tests_of_its_own_page_alone(server):
    done: list[str] = []
    for name, page in (("mine", "one"), ("theirs", "two"), ("queued", "one"), ("ask", "one"), ("later", "one")):
        server.add(name, page)
    mine, theirs = (server.start(name, Rank.TEST, 0, done) for name in ("mine", "theirs"))
    ask = server.start("ask", Rank.ASK, 0, done)
    ask.leave.set()
    ask.thread.join(30)
    for name, sentence in (("mine", REPLACED), ("theirs", None)):
        server.become(name)
        if sentence is None:
            server.turns.before_block()
        else:
            with pytest.raises(InputError, match="something new"):
                server.turns.before_block()
    for test in (mine, theirs):
        test.leave.set()
        test.thread.join(30)
    server.become("queued")  # it was pressed before the question, and its turn comes after
    with pytest.raises(InputError, match="something new"):
        server.turns.run(Rank.EXPERIMENT, lambda: None)()
    server.become("later")
    assert server.turns.run(Rank.EXPERIMENT, lambda: "found")() == "found"


def test_looking_at_a_token_ends_nothing(server):
    for name in ("test", "look"):
        server.add(name, "one")
    done: list[str] = []
    test = server.start("test", Rank.TEST, 0, done)
    server.become("look")
    server.turns.run(Rank.LOOK, server.turns.before_block)()
    server.become("test")
    server.turns.before_block()
    test.leave.set()
    test.thread.join(30)
    assert not test.errors


def test_time_is_up(server):
    server.add("test")
    server.become("test")
    with pytest.raises(InputError, match="after 0 s"):
        server.turns.run(Rank.TEST, server.turns.before_block, seconds=0.0)()


def test_pauses_are_not_the_tests_own_time(server, monkeypatch):
    monkeypatch.setattr(module, "GIVE_WAY_S", 0.3)
    server.add("ask", "one")
    server.add("test", "two")
    ask = server.start("ask", Rank.ASK, 0, [])
    test = server.start("test", Rank.TEST, 3, [], seconds=0.25)  # three pauses of .3 s, and hardly a moment beside them
    test.leave.set()
    test.thread.join(30)
    ask.leave.set()
    ask.thread.join(30)
    assert not test.errors


def test_nobody_waits_any_more(server):
    event = server.add("ask")
    server.become("ask")

    def handler():
        yield 1
        event.alive = False
        server.turns.before_block()
        yield 2

    stream = server.turns.run(Rank.ASK, handler)()
    assert next(stream) == 1
    with pytest.raises(Abandoned):
        next(stream)
    assert server.turns._works == {}


def test_a_stream_that_is_closed_counts_no_longer(server):
    server.add("ask")
    server.become("ask")
    stream = server.turns.run(Rank.ASK, lambda: (yield 1))()
    next(stream)
    assert list(server.turns._works) == ["ask"]
    stream.close()
    assert server.turns._works == {}


def test_calls_within_the_process_are_left_alone(server):
    def handler():
        server.turns.before_block()
        return "done"

    LocalContext.event_id.set(None)
    assert server.turns.run(Rank.BATTERY, handler, seconds=0.0)() == "done"


def test_places_and_patience():
    assert [rank.place for rank in Rank] == ["model", "model", "test", "experiment", "battery"]
    bounds = private_bounds(ask_wait_s=7.0, test_wait_s=70.0)
    assert read_patience(bounds) == {"model": 7.0, "test": 70.0, "experiment": 70.0, "battery": 70.0, "images": 7.0}


def test_models_of_single_persons_stay_within_their_bytes(tmp_path, embedded):
    from inspector.session import ModelStore
    from model.checkpoint import save_vlm

    store = ModelStore({"embedded": "embedded"})
    weight = sum(one.numel() * one.element_size() for one in embedded.parameters())
    store.private_bytes = 2 * weight
    names = []
    for name in ("one", "two", "three"):
        save_vlm(embedded, tmp_path / name)
        names.append(store.admit(name, tmp_path / name, name))
    one, two = store.get(names[0]), store.get(names[1])
    assert (store.get(names[0]), store.get(names[1])) == (one, two)
    store.get(names[2])
    assert store.get(names[1]) is two
    assert store.get(names[0]) is not one  # the least used went
    store.private_bytes = 0
    assert store.get(names[2]) is store.get(names[2])  # one always has its place


def test_every_model_of_the_store_asks_before_each_block(embedded):
    from inspector.session import ModelStore
    from model import Conversation, Message

    store, calls = ModelStore({"embedded": "embedded"}), []
    vlm = store.get("embedded")
    store.watch(lambda: calls.append(threading.get_ident()))
    vlm(vlm.collate([vlm.prepare(Conversation((Message("user", "What?"),)))]))
    assert calls == [threading.get_ident()] * vlm.config.lm_n_blocks
    other = ModelStore({"embedded": "embedded"})
    other.watch(lambda: calls.append(0))  # before the first load
    loaded = other.get("embedded")
    loaded(loaded.collate([loaded.prepare(Conversation((Message("user", "What?"),)))]))
    assert calls.count(0) == vlm.config.lm_n_blocks
    assert loaded.fingerprint == embedded.fingerprint


def test_for_whom_a_thread_works(server):
    assert server.turns.find_person() == ""
    event = server.add("ask")
    event.username, event.request = "ada", SimpleNamespace()
    server.become("ask")
    assert server.turns.find_person() == "login ada"
    event.alive = False
    with pytest.raises(Abandoned):
        server.turns.find_person()
    del server._queue.event_ids_to_events["ask"]
    with pytest.raises(Abandoned):
        server.turns.find_person()
