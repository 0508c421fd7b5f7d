"""Numbers as they stand in sentences and tables."""

from __future__ import annotations


def say(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """With a proper minus; what rounds to nothing has no sign."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")
