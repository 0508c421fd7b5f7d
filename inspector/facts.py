"""Facts as JSON that every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any


def write_json(facts: Any, indent: int | None = None) -> str:
    """A number that is none (NaN, infinite) becomes null, which means that it couldn't be worked out: JSON has no word
    for it, and most readers refuse a file that holds one."""
    return json.dumps(_without_nan(facts), ensure_ascii=False, allow_nan=False, indent=indent)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value
