"""Gradio's queue with bounds for each page and address, and with turns that are fair among them."""

from __future__ import annotations

import re
import time
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

from gradio.data_classes import PredictBodyInternal
from gradio.queueing import Event, Queue
from gradio.server_messages import ProcessCompletedMessage, ServerMessage
from gradio.utils import error_payload
from starlette.exceptions import HTTPException

from inspector.bounds import Bounds, format_bound
from inspector.persons import identify
from inspector.server.mailboxes import Mailboxes, measure_message
from inspector.server.rate import Rate, refuse_opening
from inspector.server.toasts import refuse
from inspector.server.turns import read_patience

PAGE = re.compile(r"[\w-]{1,64}", re.ASCII)
"""Names of pages. Gradio cuts its tasks' names at marks that a name could hold, and keeps names of any length."""
REMEMBERED = 4096
"""So many pages and addresses are remembered as served; those served longest ago are as good as never."""
UNFETCHED_FULL = 0.9
"""A page whose messages take this share of what they may is given no new event: there is room for what it has."""


class FairQueue(Queue):
    """Of each place it takes the event of the address that was served longest ago, and of that address's pages the one
    that was served longest ago: who sends two hundred events waits for them alone.

    ``bounds``: how many may wait, and how long; None until the page's Blocks set it."""

    bounds: Bounds | None = None

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._served: OrderedDict[tuple[str, ...], int] = OrderedDict()
        self._turn = 0
        self._pages: dict[str, set[str]] = {}
        self._opened = Rate()
        self.pending_messages_per_session = Mailboxes(2000)
        self.single: set[str] = set()
        """Pages that were made for one call of a program that named none; nobody comes back to them."""

    async def push(self, body: PredictBodyInternal, request: Any, username: str | None) -> Any:
        """As gradio's; an event that is one too many gets a sentence in the place of an id."""
        if body.fn_index not in self.blocks.fns:
            return False, "There is no event of this number; compare it with the API's description.", "error"
        if self.bounds is not None and (refusal := self._refuse(body.session_hash, request, username)):
            return False, refusal, "error"
        page = body.session_hash
        if (
            self.bounds is not None
            and not self._is_kept(page)
            and not self._opened.take(identify(request, username), self.bounds.openings_per_minute)
        ):
            raise HTTPException(429, refuse_opening(self.bounds.openings_per_minute))
        pushed = await super().push(body, request, username)
        if page is None and pushed[0]:
            self.single.add(str(pushed[1]))
        return pushed

    def _refuse(self, page: str | None, request: Any, username: str | None) -> str | None:
        assert self.bounds is not None
        if page is not None and not PAGE.fullmatch(page):
            return "A session is named by 1 to 64 letters, digits, - and _; reload the page for one."
        person = identify(request, username)
        events = list(self.event_ids_to_events.values())
        if len(self) >= self.bounds.queue:
            return f"{len(self)} requests are waiting on this server; try again in a minute."
        of_page = sum(event.session_hash == page for event in events)
        if page is not None and of_page >= self.bounds.queue_per_page:
            return f"{of_page} requests of this page are waiting; wait until some of them are answered."
        box = self.pending_messages_per_session.get(page)
        if box is not None and box.bytes >= UNFETCHED_FULL * self.bounds.unfetched_bytes:
            return _unfetched(self.bounds)
        of_person = sum(_person(event) == person for event in events)
        if of_person >= self.bounds.queue_per_address:
            return f"{of_person} requests from your address are waiting; try again in a minute."
        return None if page is None else self._refuse_page(person, page, self.bounds.pages_per_address)

    def _refuse_page(self, person: str, page: str, most: int) -> str | None:
        """Every page has a state, whoever made it up: so many of one address, or they would push out all others."""
        kept = self._kept
        if len(self._pages) > REMEMBERED:
            self._pages = {who: left for who, pages in self._pages.items() if (left := pages & kept.keys())}
        mine = self._pages.setdefault(person, set())
        if page in mine:
            return None
        if len(mine) >= most:
            mine &= kept.keys()
        if len(mine) >= most:
            return f"{len(mine)} pages of your address are kept here; close some of them and wait two minutes."
        mine.add(page)
        return None

    @property
    def _kept(self) -> Mapping[str, Any]:
        """The pages that have a state."""
        return self.blocks.state_holder.session_data if hasattr(self.blocks, "state_holder") else {}

    def _is_kept(self, page: str | None) -> bool:
        return page is not None and page in self._kept

    def get_events(self) -> tuple[list[Event], bool, str] | None:
        """The next event of a place that is free; fair, as the class says."""
        free = []
        for place, waiting in list(self.event_queue_per_concurrency_id.items()):
            self._drop_late(place)
            if waiting.queue and (
                waiting.concurrency_limit is None or waiting.current_concurrency < waiting.concurrency_limit
            ):
                free.append(place)
        if not free:
            return None
        # Places take turns as well, by who has waited longest.
        place = min(free, key=lambda name: self.event_queue_per_concurrency_id[name].queue[0].enqueue_time)
        queue = self.event_queue_per_concurrency_id[place].queue
        event = min(queue, key=lambda event: tuple(self._served.get(key, 0) for key in _keys(place, event)))
        queue.remove(event)
        self._turn += 1
        for key in _keys(place, event):
            self._served[key] = self._turn
            self._served.move_to_end(key)
        while len(self._served) > REMEMBERED:
            self._served.popitem(last=False)
        return [event], False, place

    def _drop_late(self, place: str) -> None:
        if self.bounds is None or (patience := read_patience(self.bounds).get(place)) is None:
            return
        queue = self.event_queue_per_concurrency_id[place].queue
        for event in [event for event in queue if time.monotonic() - event.enqueue_time > patience]:
            queue.remove(event)
            sentence = f"Nobody's turn came within {patience:g} s, so many are asking; try again in a minute."
            content = error_payload(refuse(sentence), True)
            self.send_message(event, ProcessCompletedMessage(output=content, title="Error", success=False))
            self.event_ids_to_events.pop(event._id, None)

    def send_message(self, event: Event, event_message: Any) -> None:
        """As gradio's; a page that is not there any more is told nothing. An error here would end the queue for
        everybody. A page that fetches nothing is told no more than that."""
        box = self.pending_messages_per_session.get(event.session_hash)
        if box is None:
            return
        most = None if self.bounds is None or not box.bytes else self.bounds.unfetched_bytes - box.bytes
        if self.bounds is not None and most is not None and measure_message(event_message) > most:
            if event_message.msg not in (ServerMessage.process_completed, ServerMessage.process_generating):
                return
            content = error_payload(refuse(_unfetched(self.bounds)), True)
            event_message = ProcessCompletedMessage(output=content, title="Error", success=False)
            super().send_message(event, event_message)
            self.abandon(event._id)
            return
        super().send_message(event, event_message)

    def abandon(self, event_id: str) -> None:
        """Nobody waits for the event any more: what runs for it ends at the next block of its model."""
        if (event := self.event_ids_to_events.get(event_id)) is not None:
            event.alive = False

    def count_by_page(self) -> dict[str, int]:
        """How many events each page has that wait or run."""
        counts: defaultdict[str, int] = defaultdict(int)
        for event in list(self.event_ids_to_events.values()):
            counts[event.session_hash] += 1
        return dict(counts)


def _unfetched(bounds: Bounds) -> str:
    most = format_bound(bounds.unfetched_bytes, "bytes")
    return f"More than {most} of answers to this page wait to be fetched; fetch them and ask again."


def _person(event: Event) -> str:
    return identify(event.request, event.username)


def _keys(place: str, event: Event) -> tuple[tuple[str, ...], ...]:
    # A program that names no page gets a page of its own for every call; all of an address's are one.
    person = _person(event)
    page = "" if event.session_hash == event._id else event.session_hash
    return (place, person), (place, person, page)
