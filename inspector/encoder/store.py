"""The encoders that a server offers: the one of the model that answered, and checkpoints of CLIP and SigLIP."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from inspector.files import name_source
from model import InputError, InspectableVLM
from model.encoders.opening import encoder_of, is_encoder, load_encoder
from model.encoders.protocol import ImageTextEncoder
from model.values import name_value

OWN = "the model's own"
KEPT = 2
"""So many stay in memory; one that was put away is read again when it is asked."""


class EncoderStore:
    """``sources``: folders or hub ids of CLIP and SigLIP, loaded when they are used. InputError for one that is
    something else."""

    def __init__(
        self, sources: Sequence[str] = (), *, device: torch.device | str = "auto", dtype: torch.dtype | str = "auto"
    ) -> None:
        for source in sources:
            if not is_encoder(source):
                raise InputError(
                    f"“{source}” is no encoder of images and texts; give a folder or hub id of CLIP or SigLIP."
                )
        self._sources: dict[str, str] = {}
        self._device, self._dtype = device, dtype
        self._loaded: OrderedDict[str, ImageTextEncoder] = OrderedDict()
        self._watchers: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        for source in sources:
            self._sources[name_source(source, source, self._sources)] = source

    @property
    def names(self) -> tuple[str, ...]:
        return (OWN, *self._sources)

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the checkpoints beside the model's own lie."""
        return tuple(self._sources.values())

    def add(self, title: str, source: str) -> str:
        """Loads the checkpoint at ``source`` and offers it to everybody, under the name that is given back. InputError
        for one that can't be used."""
        with self._lock:
            name = name_source(title, source, self._sources)
            known = name in self._sources
            self._sources[name] = source
        try:
            self._open(name)
        except InputError:
            if not known:
                del self._sources[name]
            raise
        return name

    def get(self, name: str, vlm: InspectableVLM) -> ImageTextEncoder:
        """``vlm``: the model that answered. InputError for an unknown name or a broken checkpoint."""
        if name == OWN:
            return encoder_of(vlm)
        if name not in self._sources:
            raise InputError(f"There is no encoder {name_value(name)}; choose one of {', '.join(self.names)}.")
        return self._open(name)

    def _open(self, name: str) -> ImageTextEncoder:
        with self._lock:
            if name not in self._loaded:
                found = load_encoder(self._sources[name], device=self._device, dtype=self._dtype)
                for before_block in self._watchers:
                    found.watch(before_block)
                self._loaded[name] = found
            self._loaded.move_to_end(name)
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
            return self._loaded[name]

    def watch(self, before_block: Callable[[], None]) -> None:
        """See :meth:`inspector.session.ModelStore.watch`; called before anything is loaded."""
        self._watchers.append(before_block)
