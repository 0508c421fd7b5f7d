"""What the server keeps of its pages, and for how long.

Gradio keeps a page's state for an hour after it was closed, and of a client that never says goodbye for ever; messages
that nobody fetched stay as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import datetime
import gc
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from inspector.files import MADE, open_cache, sweep
from inspector.server.state_size import count_bytes

EMPTY_S = 60.0
"""A folder that was emptied, or made for an upload that is still coming, stays so long."""


@asynccontextmanager
async def sweep_for_ever(blocks: Any) -> AsyncIterator[None]:
    """Sweeps every ``bounds.sweep_s`` seconds until the block is left. ``blocks``: a
    :class:`inspector.server.blocks.GuardedBlocks`."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(blocks.bounds.sweep_s)
            sizes = await asyncio.to_thread(measure_pages, blocks)
            if dropped := sweep_pages(blocks, sizes):
                await asyncio.to_thread(let_go, dropped)
            await asyncio.to_thread(sweep, open_cache() / MADE, blocks.bounds.made_s, blocks.bounds.made_bytes)
            await asyncio.to_thread(blocks.links.sweep)
            await asyncio.to_thread(sweep_files, open_cache(), 3600 * blocks.bounds.cache_hours)

    sweeping = asyncio.create_task(repeat())
    try:
        yield
    finally:
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping


def measure_pages(blocks: Any) -> dict[str, int]:
    """Bytes that each page's state holds, and of messages that it has not fetched. Takes a while, so not in the event
    loop."""
    pages = list(blocks.state_holder.session_data.items())
    boxes = dict(blocks._queue.pending_messages_per_session)
    return {
        page: sum(count_bytes(value) for value in list(state.state_data.values()))
        + (boxes[page].bytes if page in boxes else 0)
        for page, state in pages
    }


def sweep_pages(blocks: Any, measured: Mapping[str, int]) -> list[Any]:
    """Forgets pages that were closed or left alone for too long, and those used longest ago where there are too many or
    they hold too much (``measured`` bytes each); their states. In the server's event loop, where gradio changes the
    same tables."""
    bounds, holder = blocks.bounds, blocks.state_holder
    at_work = blocks._queue.count_by_page()
    sizes = {page: measured.get(page, 0) for page in holder.session_data}
    single = blocks._queue.single
    stale = [page for page in sizes if page not in at_work and (page in single or _is_stale(blocks, page))]
    # Oldest first: gradio moves a page to the end whenever it is used. An open page goes last.
    others = [page for page in sizes if page not in at_work and page not in stale]
    others.sort(key=blocks.open_pages.is_open)
    left, held = len(sizes) - len(stale), sum(sizes.values()) - sum(sizes[page] for page in stale)
    for page in others:
        if left <= bounds.sessions and held <= bounds.sessions_bytes and sizes[page] <= bounds.session_bytes:
            continue
        stale.append(page)
        left, held = left - 1, held - sizes[page]
    dropped = []
    for page in stale:
        dropped.append(holder.session_data.pop(page))
        holder.time_last_used.pop(page, None)
        blocks.open_pages.forget(page)
    single &= set(holder.session_data) | set(at_work)
    queue = blocks._queue
    for page in list(queue.pending_messages_per_session):
        if page in stale or (page not in holder.session_data and page not in at_work):
            queue.pending_messages_per_session.pop(page, None)
    for page in list(queue.pending_event_ids_session):
        if page not in queue.pending_messages_per_session:
            queue.pending_event_ids_session.pop(page, None)
    return dropped


def _is_stale(blocks: Any, page: str) -> bool:
    last = blocks.state_holder.time_last_used.get(page)
    idle = 0.0 if last is None else (datetime.datetime.now() - last).total_seconds()
    if blocks.open_pages.is_open(page):
        return idle > blocks.bounds.session_idle_s
    closed = blocks.open_pages.closed_for(page)
    # A program that holds no connection open counts as closed since it asked last.
    return min(idle, closed if closed is not None else idle) > blocks.bounds.closed_session_s


def let_go(states: list[Any]) -> None:
    """Says goodbye to what pages kept (an upload of theirs is deleted then) and gives their memory back."""
    for state in states:
        for component, value, _ in state.state_components:
            component.delete_callback(value)
    states.clear()
    return_memory()


def sweep_files(folder: Path, seconds: float) -> int:
    """Deletes what has not changed for so long, and folders that are empty by then; how many files. Gradio deletes what
    it knows of, and forgets uploads that broke off."""
    deleted = 0
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):  # gradio was quicker
                if time.time() - path.lstat().st_ctime > seconds:
                    path.unlink()
                    deleted += 1
        for name in folders:
            with contextlib.suppress(OSError):  # it isn't empty
                if time.time() - Path(parent, name).lstat().st_mtime > EMPTY_S:
                    Path(parent, name).rmdir()
    return deleted


def return_memory() -> None:
    """Gives freed memory back to the system: glibc keeps it, spread over the arenas of many threads."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library, which does so by itself or can't
