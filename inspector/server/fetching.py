"""Opening models that a person names: which are allowed, fetched one at a time, with what is there so far."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from inspector.encoder.store import EncoderStore
from inspector.session import ModelStore
from model import InputError
from model.encoders.opening import is_encoder
from model.hub import FetchStoppedError, HubCheckpoint, check_room, fetch, look_up
from model.memory import format_bytes

ANY = "*"
POLL_S = 0.3


@dataclass(frozen=True)
class FetchProgress:
    """``done`` of ``total`` bytes of ``name``; ``model`` or ``encoder``: what its store calls it once it is open."""

    name: str
    done: int
    total: int
    model: str = ""
    encoder: str = ""

    def __str__(self) -> str:
        if self.encoder:
            return f"“{self.encoder}” is an encoder of images and texts: choose it in the tab CLIP."
        if self.model:
            return f"“{self.model}” is open."
        if self.done >= self.total:
            return f"Loading “{self.name}” …"
        return f"Fetching “{self.name}”: {format_bytes(self.done)} of {format_bytes(self.total)} …"


@dataclass
class Fetcher:
    """``allowed``: names of checkpoints that may be opened, None for all of the hub and every folder of this machine,
    none where it is empty. ``most``: bytes of one. One is fetched at a time."""

    allowed: frozenset[str] | None = frozenset()
    most: int = 0
    endpoint: str | None = None
    cache: Path | None = None
    _busy: threading.Lock = field(default_factory=threading.Lock)

    @property
    def offers(self) -> bool:
        return self.allowed is None or bool(self.allowed)

    def open(self, store: ModelStore, encoders: EncoderStore, source: str) -> Iterator[FetchProgress]:
        """Fetches a checkpoint, loads it and names it in the store of its kind. Whoever stops iterating stops the
        fetch. InputError for what isn't allowed, can't be fetched or can't be opened."""
        source = source.strip()
        if self.allowed is not None and source not in self.allowed:
            names = ", ".join(sorted(self.allowed)) or "none"
            raise InputError(f"“{source[:80]}” can't be opened on this server; allowed are: {names}.")
        if not source:
            raise InputError("No checkpoint is named; write a hub id, owner/name.")
        if self.allowed is None and Path(source).expanduser().is_dir():
            yield FetchProgress(source, 1, 1)
            yield self._load(store, encoders, FetchProgress(source, 1, 1), source)
            return
        if not self._busy.acquire(blocking=False):
            raise InputError("Another checkpoint is being fetched here; try again when that one is there.")
        fetching: _Fetching | None = None
        try:
            checkpoint = look_up(source, endpoint=self.endpoint, cache=self.cache)
            check_room(checkpoint, self.most, cache=self.cache)
            store.check_weights(checkpoint)
            fetching = _Fetching(checkpoint, self)
            fetching.start()
            while fetching.is_alive():
                fetching.join(POLL_S)
                yield FetchProgress(source, min(fetching.done, checkpoint.nbytes - 1), checkpoint.nbytes)
            if fetching.error is not None:
                raise fetching.error
            there = FetchProgress(source, checkpoint.nbytes, checkpoint.nbytes)
            yield there
            yield self._load(store, encoders, there, str(fetching.folder))
        finally:
            if fetching is not None:
                fetching.stopped.set()
                fetching.join()
            self._busy.release()

    def _load(self, store: ModelStore, encoders: EncoderStore, there: FetchProgress, folder: str) -> FetchProgress:
        if is_encoder(folder):
            return replace(there, encoder=encoders.add(there.name, folder))
        name = store.add(there.name, folder)
        try:
            store.get(name)
        except InputError:
            store.remove(name)
            raise
        return replace(there, model=name)


class _Fetching(threading.Thread):
    """One fetch; ``done`` bytes are there."""

    def __init__(self, checkpoint: HubCheckpoint, fetcher: Fetcher) -> None:
        super().__init__(daemon=True, name="fetch")
        self.checkpoint, self.fetcher = checkpoint, fetcher
        self.done, self.folder = 0, Path()
        self.error: Exception | None = None
        self.stopped = threading.Event()

    def run(self) -> None:
        try:
            self.folder = fetch(self.checkpoint, self._tell, endpoint=self.fetcher.endpoint, cache=self.fetcher.cache)
        except FetchStoppedError:
            return
        except Exception as error:  # told by whoever waits
            self.error = error

    def _tell(self, done: int) -> None:
        if self.stopped.is_set():
            raise FetchStoppedError
        self.done = done


def read_allowed(value: str | None, public: bool) -> frozenset[str] | None:
    """What ``--allow-hub`` says: nothing, :data:`ANY`, or names by commas. InputError for everything on a server that
    strangers reach."""
    names = frozenset(name for part in (value or "").split(",") if (name := part.strip()))
    if ANY not in names:
        return names
    if public:
        raise InputError(
            "--allow-hub without names would let strangers fetch any checkpoint; name those that are allowed, "
            "--allow-hub owner/name,owner/other."
        )
    return None


def read_environment() -> str | None:
    """The same from VLM_INSPECTOR_ALLOW_HUB: a Space takes no arguments."""
    return os.environ.get("VLM_INSPECTOR_ALLOW_HUB")
