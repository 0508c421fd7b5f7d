"""Numbers as they stand in sentences and tables."""

from __future__ import annotations

import math


def say(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """With a proper minus; what rounds to nothing has no sign."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def say_factor(nats: float) -> str:
    """What a change of log p makes of the probability."""
    factor = math.exp(min(abs(nats), math.log(2e6)))
    if factor < 1.05:
        return "as likely as before"
    times = "over a million" if factor > 1e6 else f"{factor:.1f}" if factor < 10 else f"{float(f'{factor:.3g}'):,.0f}"
    return f"{times} times {'more' if nats > 0 else 'less'} likely"
