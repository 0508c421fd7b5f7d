"""The page's Blocks: gradio's, with this package's guards where events come in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from inspector.bounds import Bounds
from inspector.server.admission import admit_files
from inspector.server.pages import Pages
from inspector.server.queue import FairQueue
from inspector.server.sweeper import sweep_for_ever
from inspector.server.turns import Turns
from model import InputError


class GuardedBlocks(gr.Blocks):
    """``bounds``: what this server gives. ``open_to_all``: whether it may be asked under any name, as a public server
    is; one for this machine alone answers to this machine's names."""

    def __init__(self, *args: Any, bounds: Bounds, open_to_all: bool, **named: Any) -> None:
        self.bounds = bounds
        self.open_to_all = open_to_all
        self.open_pages = Pages()
        self.turns = Turns()
        super().__init__(*args, **named)

    @classmethod
    def get_block_name(cls) -> str:
        """Gradio's name: the browser knows no other."""
        return "blocks"

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
        """As gradio's, with so many pages as the bounds say."""
        return super().launch(*args, **{"state_session_capacity": self.bounds.sessions, **named})

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """As gradio's, after a look at every file that the event names."""
        if not explicit_call:
            try:
                admitted = admit_files(inputs, Path(get_upload_folder()))
            except InputError as error:
                raise gr.Error(str(error), print_exception=False) from error
            for path in admitted:
                with contextlib.suppress(OSError):  # it has just gone, and whoever opens it says so
                    os.utime(path)  # gradio deletes files by how long ago they changed; this one is in use
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


@asynccontextmanager
async def keep_swept(app: Any) -> AsyncIterator[None]:
    """For ``launch``: what is kept of those who have gone is looked through for as long as the server runs."""
    async with sweep_for_ever(app.get_blocks()):
        yield
