"""Whose turn it is at the models: answers come before tests, and nobody computes for a page that has gone.

A handler that uses a model runs with a rank. Before every block of a model that it goes through
(:meth:`Turns.before_block`) it gives way to lower ranks, and ends if its event was cancelled, its page has gone, its
time is up or its page has asked something new.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from inspector.bounds import Bounds
from inspector.persons import identify
from inspector.server.zero_gpu import on_gpu
from model import InputError
from model.memory import refuse_shortage

GIVE_WAY_S = 1.0
"""Longest pause at one block, so that a test gets on even where somebody asks all the time."""
REPLACED = "Stopped, for something new was asked on this page."
REMEMBERED = 4096
"""Of so many pages it is known when they asked last."""
POLL_S = 0.1
"""How often somebody who gives way looks whether the page is still there."""


IMAGES = "images"
"""The place of events that open images."""


class Rank(IntEnum):
    """Who gives way to whom: the lower number goes first. A question also ends the tests of its own page."""

    ASK = 0
    LOOK = 1
    TEST = 2
    EXPERIMENT = 3
    BATTERY = 4

    @property
    def place(self) -> str:
        """Gradio's concurrency_id: of each place one event runs at a time."""
        return "model" if self <= Rank.LOOK else self.name.lower()


def read_patience(bounds: Bounds) -> dict[str, float]:
    """By place: how long an event may wait for its turn, in seconds."""
    places = {rank.place: bounds.ask_wait_s if rank <= Rank.LOOK else bounds.test_wait_s for rank in reversed(Rank)}
    return {**places, IMAGES: bounds.ask_wait_s}


class Abandoned(gr.Error):
    """Nobody waits for the result any more. Ours catches no gr.Error, so it ends the handler wherever that is."""

    def __init__(self) -> None:
        super().__init__("Cancelled.", visible=False, print_exception=False)


@dataclass(eq=False)
class _Work:
    """A handler at work. ``paused``: the seconds that it has given way; they are not its own."""

    rank: Rank
    page: str
    seconds: float | None
    began: float = field(default_factory=time.monotonic)
    paused: float = 0.0
    replaced: bool = False


class Turns:
    """The handlers at work on one server. Safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._works: dict[str, _Work] = {}
        self._asked: OrderedDict[str, float] = OrderedDict()
        """By page, when its latest question was put into the queue."""

    def run(self, rank: Rank, handler: Callable[..., Any], seconds: float | None = None) -> Callable[..., Any]:
        """``handler`` with a rank. ``seconds``: how long it may work, pauses not counted."""
        streams, handler = inspect.isgeneratorfunction(handler), on_gpu(handler, seconds)
        if streams:

            @functools.wraps(handler)
            def stream(*args: Any, **named: Any) -> Iterator[Any]:
                with refuse_shortage(), self._at_work(rank, seconds):
                    yield from handler(*args, **named)

            return stream

        @functools.wraps(handler)
        def call(*args: Any, **named: Any) -> Any:
            with refuse_shortage(), self._at_work(rank, seconds):
                return handler(*args, **named)

        return call

    @contextmanager
    def _at_work(self, rank: Rank, seconds: float | None) -> Iterator[None]:
        event_id = LocalContext.event_id.get(None)
        if event_id is None:  # a call within the process: nobody to wait for, nobody to give way to
            yield
            return
        event = _event(event_id)
        if event is None:
            raise Abandoned
        work = _Work(rank, event.session_hash, seconds)
        with self._changed:
            if rank is Rank.ASK:
                self._asked[work.page] = event.enqueue_time
                self._asked.move_to_end(work.page)
                while len(self._asked) > REMEMBERED:
                    self._asked.popitem(last=False)
                for other in self._works.values():
                    other.replaced = other.replaced or (other.rank > Rank.LOOK and other.page == work.page)
            elif rank > Rank.LOOK and self._asked.get(work.page, 0.0) > event.enqueue_time:
                raise InputError(REPLACED)
            self._works[event_id] = work
        try:
            yield
        finally:
            with self._changed:
                self._works.pop(event_id, None)
                self._changed.notify_all()

    def before_block(self) -> None:
        """Called by the models of this server before each of their blocks, in the thread that computes. Returns at once
        for whoever has no rank. InputError if the time is up or the page has asked anew; :class:`Abandoned` if nobody
        waits any more."""
        event_id = LocalContext.event_id.get(None)
        work = self._works.get(event_id) if event_id is not None else None
        if work is None or event_id is None:
            return
        self._check(event_id, work)
        if work.rank is Rank.ASK:
            return
        began = last = time.monotonic()
        while last - began < GIVE_WAY_S:
            with self._changed:
                if not any(other.rank < work.rank for other in self._works.values()):
                    return
                self._changed.wait(POLL_S)
            now = time.monotonic()
            work.paused, last = work.paused + now - last, now
            self._check(event_id, work)

    def find_person(self) -> str:
        """For whom the calling thread works, "" for nobody in particular. :class:`Abandoned` if nobody waits for that
        any more."""
        event_id = LocalContext.event_id.get(None)
        if event_id is None:
            return ""
        event = _event(event_id)
        if event is None or not event.alive:
            raise Abandoned
        return identify(event.request, event.username)

    def _check(self, event_id: str, work: _Work) -> None:
        event = _event(event_id)
        if event is None or not event.alive:
            raise Abandoned
        if work.replaced:
            raise InputError(REPLACED)
        if work.seconds is not None and time.monotonic() - work.began - work.paused > work.seconds:
            raise InputError(
                f"Stopped after {work.seconds:g} s, which is what this server gives to one such test; "
                "ask with fewer or smaller images, or run it from the command line."
            )


def _event(event_id: str) -> Any:
    blocks = LocalContext.blocks.get(None)
    return None if blocks is None else blocks._queue.event_ids_to_events.get(event_id)
