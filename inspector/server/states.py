"""The states of pages, as gradio keeps them, without what it keeps for links that store a page: they are closed here.

For those gradio writes down every component of the page for every new session, in the server's event loop: four fifths
of what opening a page or a call without a session takes there, and most of what a page holds in memory.
"""

from __future__ import annotations

import datetime
from copy import copy
from typing import Any

from gradio.state_holder import SessionState, StateHolder


class LeanState(SessionState):
    """One page's; a component is written down when an event changes it."""

    def __init__(self, blocks: Any) -> None:
        self.blocks_config = copy(blocks.default_config)
        self.config_values: dict[int, Any] = {}
        self.state_data: dict[int, Any] = {}
        self._state_ttl: dict[int, tuple[float, datetime.datetime]] = {}
        self.is_closed = False
        self.STATE_TTL_WHEN_CLOSED = 3600


class LeanStates(StateHolder):
    """All pages'."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = LeanState(self.blocks)
        return super().__getitem__(session_id)
