"""The encoders that a server offers: the one of the model that answered, and checkpoints named when it started."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from model import InputError, InspectableVLM
from model.encoders.opening import encoder_of, is_encoder, load_encoder
from model.encoders.protocol import ImageTextEncoder
from model.values import name_value

OWN = "the model's own"


class EncoderStore:
    """``sources``: folders or hub ids of CLIP and SigLIP; each is loaded once, at first use. InputError for one that is
    something else."""

    def __init__(
        self, sources: Sequence[str] = (), *, device: torch.device | str = "auto", dtype: torch.dtype | str = "auto"
    ) -> None:
        for source in sources:
            if not is_encoder(source):
                raise InputError(
                    f"“{source}” is no encoder of images and texts; give a folder or hub id of CLIP or SigLIP."
                )
        self._sources = {Path(source).name if Path(source).is_dir() else source: source for source in sources}
        self._device, self._dtype = device, dtype
        self._loaded: dict[str, ImageTextEncoder] = {}
        self._watchers: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return (OWN, *self._sources)

    def get(self, name: str, vlm: InspectableVLM) -> ImageTextEncoder:
        """``vlm``: the model that answered. InputError for an unknown name or a broken checkpoint."""
        if name == OWN:
            return encoder_of(vlm)
        if name not in self._sources:
            raise InputError(f"There is no encoder {name_value(name)}; choose one of {', '.join(self.names)}.")
        with self._lock:
            if name not in self._loaded:
                found = load_encoder(self._sources[name], device=self._device, dtype=self._dtype)
                for before_block in self._watchers:
                    found.watch(before_block)
                self._loaded[name] = found
            return self._loaded[name]

    def watch(self, before_block: Callable[[], None]) -> None:
        """See :meth:`inspector.session.ModelStore.watch`; called before anything is loaded."""
        self._watchers.append(before_block)
