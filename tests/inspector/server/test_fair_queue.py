"""Turns that are fair among pages and addresses, and bounds for each of them."""

import asyncio
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.data_classes import PredictBodyInternal
from gradio.server_messages import EstimationMessage, ProcessCompletedMessage
from starlette.exceptions import HTTPException

from inspector.bounds import Bounds, private_bounds
from inspector.server.queue import FairQueue
from inspector.server.states import LeanStates


def _request(address: str) -> SimpleNamespace:
    return SimpleNamespace(client=SimpleNamespace(host=address))


@pytest.fixture
def make(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.delenv("VLM_INSPECTOR_PROXIES", raising=False)
    with gr.Blocks(analytics_enabled=False) as demo:
        button = gr.Button()
        button.click(lambda: None, api_name="ask", concurrency_id="model", concurrency_limit=1)
        button.click(lambda: None, api_name="light", concurrency_limit=None)

    def make(bounds: Bounds | None = None) -> FairQueue:
        queue = FairQueue(True, 40, 1, None, demo)
        queue.bounds = bounds
        return queue

    return make


def push(queue: FairQueue, page: str | None, address: str = "1.1.1.1", fn: int = 0, username: str | None = None):
    """The event's id, or the sentence that refuses it."""
    # What gradio asks of a request's class, a stand-in can't say: it only travels.
    said = {"data": [], "fn_index": fn, "session_hash": page, "event_id": None, "event_data": None, "trigger_id": None}
    body = PredictBodyInternal.model_construct(**said, request=None)
    ok, answer, _ = asyncio.run(queue.push(body, _request(address), username))
    return ok, answer


def take(queue: FairQueue) -> str | None:
    """The page of the next event; its place is free again at once."""
    found = queue.get_events()
    return None if found is None else found[0][0].session_hash


def test_who_sends_many_waits_for_them_alone(make):
    queue = make()
    for _ in range(5):
        push(queue, "many")
    push(queue, "one")
    push(queue, "other", "2.2.2.2")
    assert [take(queue) for _ in range(8)] == ["many", "other", "one", "many", "many", "many", "many", None]


def test_addresses_come_before_pages(make):
    queue = make()
    for page in ("a", "b", "c", "d"):
        push(queue, page, "1.1.1.1")
    for page in ("x", "x"):
        push(queue, page, "2.2.2.2")
    assert [take(queue) for _ in range(6)] == ["a", "x", "b", "x", "c", "d"]


def test_a_login_is_a_person_wherever_it_comes_from(make):
    queue = make()
    for address in ("1.1.1.1", "2.2.2.2", "3.3.3.3"):
        push(queue, address, address, username="ada")
    push(queue, "page", "4.4.4.4")
    assert [take(queue) for _ in range(4)] == ["1.1.1.1", "page", "2.2.2.2", "3.3.3.3"]


def test_calls_without_a_page_share_one(make):
    queue = make()
    for _ in range(4):
        push(queue, None)
    push(queue, "page")
    order = [take(queue) for _ in range(5)]
    assert order.index("page") == 1


def test_a_place_that_is_taken_keeps_its_events(make):
    queue = make()
    push(queue, "one")
    push(queue, "two", fn=1)
    queue.event_queue_per_concurrency_id["model"].current_concurrency = 1
    assert [take(queue), take(queue)] == ["two", None]


def refused(answer):
    """The number that a refusal begins with."""
    taken, said = answer
    return not taken and said.split()[0]


def test_bounds(make):
    queue = make(private_bounds(queue=5, queue_per_page=2, queue_per_address=3))
    assert [push(queue, "one")[0] for _ in range(2)] == [True, True]
    assert refused(push(queue, "one")) == "2"
    assert push(queue, "two")[0]
    assert refused(push(queue, "three")) == "3"
    assert push(queue, "four", "2.2.2.2")[0]
    assert push(queue, "five", "3.3.3.3")[0]
    assert refused(push(queue, "six", "4.4.4.4")) == "5"


def test_what_waits_too_long_is_told_so(make):
    queue = make(private_bounds(ask_wait_s=0.0))
    _, event_id = push(queue, "one")
    assert take(queue) is None
    messages = queue.pending_messages_per_session["one"]
    told = [messages.get_nowait() for _ in range(messages.qsize())][-1]
    assert not told.success
    assert " 0 s" in told.output["error"]
    assert event_id not in queue.event_ids_to_events


def test_an_event_given_up_is_no_longer_alive(make):
    queue = make()
    _, event_id = push(queue, "one")
    event = queue.event_ids_to_events[event_id]
    queue.abandon("another")
    assert event.alive
    queue.abandon(event_id)
    assert not event.alive


def test_one_address_has_so_many_pages(make):
    queue = make(private_bounds(pages_per_address=2))
    holder = LeanStates()
    holder.set_blocks(queue.blocks)
    assert [push(queue, page)[0] for page in ("one", "two", "one")] == [True, True, True]
    assert refused(push(queue, "three")) == "2"
    assert push(queue, "three", "2.2.2.2")[0]
    del holder.session_data["one"]
    assert push(queue, "three")[0]


def test_one_address_opens_so_many_pages_a_minute(make):
    queue = make(private_bounds(openings_per_minute=3))
    holder = LeanStates()
    holder.set_blocks(queue.blocks)
    assert [push(queue, page)[0] for page in ("one", None, "two", "one", "two")] == [True] * 5
    for page in ("three", None):
        with pytest.raises(HTTPException) as caught:
            push(queue, page)
        assert caught.value.status_code == 429
        assert " 3 pages " in caught.value.detail
    assert "three" not in holder.session_data  # before gradio makes it
    assert push(queue, "one")[0]
    assert push(queue, "three", "2.2.2.2")[0]


@pytest.mark.parametrize("number", [-1, 2, 10**30, None, "0", 0.5])
def test_events_that_there_are_none_of(make, number):
    sentence = "There is no event of this number; compare it with the API's description."
    assert push(make(private_bounds()), "page", fn=number) == (False, sentence)


def answer(letters: int) -> ProcessCompletedMessage:
    return ProcessCompletedMessage(output={"data": ["x" * letters]}, success=True)


def test_what_a_page_does_not_fetch_is_bounded(make):
    queue = make(private_bounds(unfetched_bytes=1_000_000, queue_per_page=100))
    events = [queue.event_ids_to_events[push(queue, "page")[1]] for _ in range(4)]
    box = queue.pending_messages_per_session["page"]
    told = box.qsize()
    queue.send_message(events[0], answer(800_000))
    queue.send_message(events[1], answer(800_000))  # it would be too much: the event ends with a sentence
    assert [event.alive for event in events] == [True, False, True, True]
    queue.send_message(events[2], answer(120_000))

    assert not push(queue, "page")[0]
    for _ in range(1000):
        queue.send_message(events[3], EstimationMessage(queue_size=1))
    assert box.bytes <= 1_000_000
    messages = [box.get_nowait() for _ in range(box.qsize())][told:]
    assert [getattr(message, "success", None) for message in messages[:3]] == [True, False, True]
    assert "fetch" in messages[1].output["error"]
    assert box.bytes == 0
    assert push(queue, "page")[0]
    queue.send_message(events[3], answer(3_000_000))  # who fetches gets an answer of any size
    assert box.get_nowait() is not None


def test_calls_that_name_no_page_are_remembered_as_such(make):
    queue = make(private_bounds())
    _, event_id = push(queue, None)
    push(queue, "page")
    assert queue.single == {event_id}


@pytest.mark.parametrize("page", ["", "a b", "x<gradio-sep>y", "x" * 65, "é", "a/b", "\n"])
def test_a_page_has_a_plain_name(make, page):
    queue = make(private_bounds())
    taken, said = push(queue, page)
    assert not taken
    assert " 64 " in said
    assert queue.event_ids_to_events == {}


def test_a_page_that_is_gone_is_told_nothing(make):
    queue = make(private_bounds(ask_wait_s=0.0))
    push(queue, "one")
    del queue.pending_messages_per_session["one"]
    queue.broadcast_estimations("model")
    assert take(queue) is None  # dropped, and nobody there to be told
    assert queue.event_ids_to_events == {}
