"""How large the numbers may be that people give; each is refused in one sentence that says what is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.values import is_whole, name_value

MAX_SEED = 2**53 - 1
"""The largest seed, everywhere: the largest whole number up to which a browser and JSON hold every one exactly. Torch's
generators would take seeds below 2⁶⁴, NumPy's and Python's any from 0 up; what is derived from a seed by adding to it
stays within all of them."""


def is_finite(value: object) -> bool:
    """Whether the value is a number of any size that is neither infinite nor NaN; true and false are none."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


@dataclass(frozen=True)
class Range:
    """From ``least`` to ``most``, both included. ``whole``: only whole numbers."""

    least: float
    most: float
    whole: bool = True

    def holds(self, value: object) -> bool:
        """Whether the value is a number of this range, whatever its type."""
        known = is_whole(value) if self.whole else is_finite(value)
        return known and self.least <= value <= self.most  # type: ignore[operator]

    def refuse(self, value: object) -> str:
        """Half a sentence that follows the value's name: what came and what is allowed."""
        what = "a whole number" if self.whole else "a number"
        return f"is {name_value(value)}; it must be {what} from {_say(self.least)} to {_say(self.most)}"


SEEDS = Range(0, MAX_SEED)


def _say(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
