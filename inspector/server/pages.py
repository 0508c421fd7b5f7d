"""Which pages are open: each holds a connection (gradio's heartbeat) for as long as it stands in a browser."""

from __future__ import annotations

import time

REMEMBERED = 4096
"""So many closed pages are known as such."""


class Pages:
    """By session. Used in the server's event loop alone."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._closed: dict[str, float] = {}

    def open(self, page: str) -> None:
        self._open[page] = self._open.get(page, 0) + 1
        self._closed.pop(page, None)

    def close(self, page: str) -> None:
        self._open[page] -= 1
        if not self._open[page]:
            del self._open[page]
            self._closed[page] = time.monotonic()
            while len(self._closed) > REMEMBERED:
                del self._closed[next(iter(self._closed))]

    def is_open(self, page: str) -> bool:
        return page in self._open

    def forget(self, page: str) -> None:
        """Of a closed page, that it was there."""
        self._closed.pop(page, None)

    def closed_for(self, page: str) -> float | None:
        """Seconds since the page was closed; None if it is open or never was."""
        return None if page not in self._closed else time.monotonic() - self._closed[page]
