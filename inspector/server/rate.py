"""How often somebody may do a thing: so many times at once, and again as time goes by. No gradio here."""

from __future__ import annotations

import time
from collections import OrderedDict

REMEMBERED = 4096
"""So many people are remembered; who came longest ago may begin anew."""


class Rate:
    """Counts by person. Used in the server's event loop alone."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, person: str, per_minute: int) -> bool:
        """Whether ``person`` may do it once more: ``per_minute`` times at once, and as many in every minute on."""
        now = time.monotonic()
        left, since = self._left.get(person, (float(per_minute), now))
        left = min(per_minute, left + (now - since) * per_minute / 60)
        allowed = left >= 1
        self._left[person] = left - allowed, now
        self._left.move_to_end(person)
        while len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
        return allowed


def refuse_opening(per_minute: int) -> str:
    """The sentence for whoever opens more pages than that."""
    return (
        f"Your address opens more than {per_minute} pages (or calls that name no session) a minute; "
        "wait a minute, and let a program keep one session."
    )
