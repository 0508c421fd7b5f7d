"""What a page was sent and has not fetched yet, with how much that is."""

from __future__ import annotations

import asyncio
from typing import Any

from gradio.utils import LRUCache

from inspector.server.state_size import count_bytes

MESSAGE_BYTES = 2000
"""Of a message that brings no output: that an event waits, or how far it is."""


class Mailbox(asyncio.Queue[Any]):
    """``bytes``: of all messages in it. For every reader and writer of gradio's it is the queue that it expects."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self.bytes = 0

    def _put(self, item: Any) -> None:
        size = measure_message(item)
        super()._put((item, size))
        self.bytes += size

    def _get(self) -> Any:
        item, size = super()._get()
        self.bytes -= size
        return item


class Mailboxes(LRUCache):
    """By page. Gradio puts a plain queue here for a page that has none; it becomes a :class:`Mailbox`."""

    def __setitem__(self, page: str, messages: Any) -> None:
        super().__setitem__(page, messages if isinstance(messages, Mailbox) else Mailbox())


def measure_message(message: Any) -> int:
    """Bytes of a message with what it brings."""
    return MESSAGE_BYTES + count_bytes(getattr(message, "output", None))
