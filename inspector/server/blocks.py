"""The page's Blocks: gradio's, with this package's guards where events come in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from inspector.bounds import Bounds
from inspector.images.link_shelf import open_shelf
from inspector.server.connections import close_silent_connections
from inspector.server.inputs import StrictBlocks
from inspector.server.pages import Pages
from inspector.server.queue import FairQueue
from inspector.server.states import LeanStates
from inspector.server.sweeper import sweep_for_ever
from inspector.server.toasts import PlainToasts
from inspector.server.turns import Turns

MAX_THREADS = 36


class GuardedBlocks(PlainToasts, StrictBlocks):
    """``bounds``: what this server gives. ``open_to_all``: whether it may be asked under any name, as a public server
    is; one for this machine alone answers to this machine's names."""

    def __init__(self, bounds: Bounds, open_to_all: bool, **options: Any) -> None:
        self.open_to_all = open_to_all
        self.open_pages = Pages()
        self.links = open_shelf(bounds, open_to_all)
        self.turns = Turns()
        super().__init__(bounds, **options)

    def queue(self, *args: Any, **named: Any) -> GuardedBlocks:
        """As gradio's, with our queue in the place of its own."""
        super().queue(*args, **named)
        theirs = self._queue
        self._queue = FairQueue(
            live_updates=theirs.live_updates,
            concurrency_count=theirs.max_thread_count,
            update_intervals=theirs.update_intervals,
            max_size=None,
            blocks=self,
            default_concurrency_limit=theirs.default_concurrency_limit,
        )
        self._queue.bounds = self.bounds
        return self

    def launch(self, *args: Any, **named: Any) -> Any:
        """As gradio's, with so many pages as the bounds say, and with threads of the events' own: by default they share
        those that answer every other request, which would wait with them."""
        own = {"state_session_capacity": self.bounds.sessions, "max_threads": MAX_THREADS}
        return super().launch(*args, **{**own, **named})


@asynccontextmanager
async def keep_swept(app: Any) -> AsyncIterator[None]:
    """For ``launch``: before the first request pages get states that cost little; as long as the server runs, what is
    kept of those who have gone is looked through, and connections that ask for nothing are closed."""
    app.state_holder = LeanStates()
    app.state_holder.set_blocks(app.get_blocks())
    async with sweep_for_ever(app.get_blocks()), close_silent_connections(app.get_blocks()):
        yield
