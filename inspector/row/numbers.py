"""Numbers as they stand in sentences and tables."""

from __future__ import annotations

import math


def say(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """With a proper minus; what rounds to nothing has no sign."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def name_factor(nats: float) -> str:
    """“2.5 times”, “12 times”, “150,000 times”, “over a million times”: as few digits as the number is good for."""
    factor = math.exp(min(abs(nats), math.log(2e6)))
    if factor > 1e6:
        return "over a million times"
    return f"{factor:.1f} times" if factor < 10 else f"{float(f'{factor:.2g}'):,.0f} times"


def say_factor(nats: float) -> str:
    """What a change of log p makes of the probability."""
    if abs(nats) < math.log(1.05):
        return "as likely as before"
    return f"{name_factor(nats)} {'more' if nats > 0 else 'less'} likely"
