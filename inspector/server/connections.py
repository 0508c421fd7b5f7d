"""Connections that ask for nothing: the web server gives a client any time to say what it wants.

Each holds a file of the process, of which there are so many, and who holds them all keeps everybody out.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

REQUEST_S = 30.0
"""A connection without a request is closed after so many seconds; one that had an answer earlier, by the web server."""
PERIOD_S = 5.0
FILES = 65_536
"""So many files a server may open where the system lets it."""


@asynccontextmanager
async def close_silent_connections(blocks: Any) -> AsyncIterator[None]:
    """Until the block is left. ``blocks``: the launched page, which has its web server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    silent: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    async def repeat() -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            if (server := getattr(blocks, "server", None)) is not None:
                close_silent(server.server_state.connections, silent)

    closing = asyncio.create_task(repeat())
    try:
        yield
    finally:
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing


def close_silent(connections: Any, silent: WeakKeyDictionary[Any, float]) -> None:
    """Closes those of uvicorn's ``connections`` that have had no request for too long. ``silent``: since when."""
    for connection in list(connections):
        cycle = getattr(connection, "cycle", None)
        if cycle is not None and not cycle.response_complete:
            silent.pop(connection, None)
        elif time.monotonic() - silent.setdefault(connection, time.monotonic()) > REQUEST_S:
            connection.transport.abort()
