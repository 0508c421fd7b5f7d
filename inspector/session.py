"""The models that everybody on this server shares. No gradio here.

Nothing of a person's is kept: what a person asked lives in that person's own state. Models are never written to after
loading.
"""

from __future__ import annotations

import threading

from model import VLM, InputError, load_vlm


class ModelStore:
    """Models by name, each loaded once, at first use."""

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = dict(sources)
        self._loaded: dict[str, VLM] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sources)

    def get(self, name: str) -> VLM:
        """InputError for an unknown name or a broken checkpoint."""
        if name not in self._sources:
            raise InputError(f"There is no model “{name}”; choose one of {', '.join(self._sources)}.")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_vlm(self._sources[name])
            return self._loaded[name]
