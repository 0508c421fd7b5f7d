"""Values that came from outside: of which kind they are, and how a sentence names them."""

from __future__ import annotations

import math


def is_whole(value: object) -> bool:
    """Whether it is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a finite number, and no whole one that torch couldn't take; true and false are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def name_value(value: object) -> str:
    """A value of any kind and size, as short as a sentence can hold."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, str | bytes | list | tuple | dict | set) and len(value) > 40:
        return f"a {type(value).__name__} of {len(value):,}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"
