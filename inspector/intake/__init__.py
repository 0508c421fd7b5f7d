"""Taking in a file of a stranger, in a process of its own that holds nothing else.

Only the standard library is imported here: the process starts in a moment, and its memory is the file's.
"""

from __future__ import annotations

SHOWN = 60


class Refusal(ValueError):
    """The file is no data set, or none that is taken in; its message is one sentence for the person."""


def quote(text: str) -> str:
    """A foreign name as it may stand in a sentence: short, without letters that can't be shown or written."""
    shown = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return "“" + "".join(letter if letter.isprintable() else "�" for letter in shown) + "”"
