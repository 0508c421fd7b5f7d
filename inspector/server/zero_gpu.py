"""ZeroGPU of Hugging Face Spaces lends a GPU for as long as one decorated function runs. Anywhere else this does
nothing and imports nothing."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

SHORTEST_S, LONGEST_S = 30, 120
"""What a GPU is asked for: whoever asks for longer waits for longer."""


def find_spaces() -> Any:
    """The package ``spaces`` on a Space that has it, else None."""
    if not os.environ.get("SPACE_ID") or importlib.util.find_spec("spaces") is None:
        return None
    return importlib.import_module("spaces")


def on_gpu(handler: Callable[..., Any], seconds: float | None = None) -> Callable[..., Any]:
    """``handler``, a function or a generator, with a GPU while it runs, for ``seconds`` at most where it is known."""
    spaces = find_spaces()
    if spaces is None:
        return handler
    duration = int(min(max(seconds or SHORTEST_S, SHORTEST_S), LONGEST_S))
    decorated: Callable[..., Any] = spaces.GPU(duration=duration)(handler)
    return decorated


find_spaces()  # before a model is put on a GPU, which the package makes believe in until one is lent
