"""The models that everybody on this server shares, and those that single persons trained. No gradio here.

Nothing of a person's is kept: what a person asked lives in that person's own state. Models are never written to after
loading.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from inspector.bounds import Bounds
from inspector.row.ask import AnswerToken, GenerationSettings, Inspection
from inspector.row.attention import AttentionMap
from inspector.row.prompt import Prompt
from inspector.runs.discretion import hide_paths
from model import VLM, InputError, load_vlm
from model.training.fresh import new_vlm

SECRET = "run:"
"""Names of single persons' models begin so; none of them is ever written into a sentence."""
UNNAMED = "a run's model"


@dataclass(frozen=True)
class Shown:
    """What one person's page shows; kept in that person's own state and replaced, never changed. ``names`` are the
    images' file names, in order; ``settings`` those that it was asked with."""

    model: str
    inspection: Inspection
    selected: int
    attention: AttentionMap
    names: tuple[str, ...] = ()
    settings: GenerationSettings = field(default_factory=GenerationSettings)


@dataclass(frozen=True)
class Answering:
    """An answer on its way, so that it can be stopped and looked at as far as it came: ``tokens`` per turn."""

    model: str
    prompt: Prompt
    names: tuple[str, ...]
    settings: GenerationSettings
    tokens: tuple[tuple[AnswerToken, ...], ...]


RUN_MODEL = "RUN/model"
"""Stands for the model of a run: the folder ``model`` in RUN, where the run's export was unpacked. Where it lies on the
server is nobody's business, and its name there is a secret."""


class ModelStore:
    """Models by name, each loaded once, at first use. :attr:`names` are everybody's; a name that :meth:`admit` was
    given works too, for those who know it."""

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = dict(sources)
        self._loaded: dict[str, VLM] = {}
        self._admitted: dict[str, str] = {}
        self._titles: dict[str, str] = {}
        self._private: OrderedDict[str, VLM] = OrderedDict()
        self._watchers: list[Callable[[], None]] = []
        self._lock, self._private_lock = threading.Lock(), threading.Lock()
        self.private_bytes = Bounds().private_model_bytes
        """Weights outside the common list that stay in memory; the least used go first."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sources)

    def get(self, name: str) -> VLM:
        """InputError for an unknown name or a broken checkpoint."""
        if name in self._admitted:
            return self._get_private(self._admitted[name])
        if name not in self._sources:
            raise self._unknown(name)
        if (known := self._loaded.get(name)) is not None:  # nobody waits for a model while another one is loaded
            return known
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load(self._sources[name])
            return self._loaded[name]

    def watch(self, before_block: Callable[[], None]) -> None:
        """Has ``before_block`` called before every block of every model here, in the thread that computes; what it
        raises ends that pass."""
        with self._lock, self._private_lock:
            self._watchers.append(before_block)
            for vlm in (*self._loaded.values(), *self._private.values()):
                vlm.watch(before_block)

    def _load(self, source: str) -> VLM:
        vlm = load_vlm(source)
        for before_block in self._watchers:
            vlm.watch(before_block)
        return vlm

    def admit(self, name: str, folder: Path, title: str) -> None:
        """Lets ``get(name)`` load the checkpoint in ``folder``. The name is told to one person only, so it must be one
        that can't be guessed; ``title`` is what others may read."""
        self._admitted[name] = str(folder)
        self._titles[name] = title

    def title_of(self, name: str) -> str:
        """What a model is called on the page and in files that are shown around: never a name that opens it."""
        return self._titles.get(name, name if name in self._sources else UNNAMED)

    def argument_of(self, name: str) -> str:
        """What a command line gives as ``--model``: for a run's model the folder in what Export gives."""
        return name if name in self._sources else RUN_MODEL

    def _unknown(self, name: str) -> InputError:
        common = f"choose one of {', '.join(self._sources)}."
        if name.startswith(SECRET):
            return InputError(f"There is no model of that run here now; press “Use this model” at the run, or {common}")
        return InputError(f"There is no model “{name[:60]}”; {common}")

    def source_of(self, name: str) -> str:
        """Where a model lies, as a recipe's ``base`` names it. InputError for an unknown name."""
        if (source := self._admitted.get(name) or self._sources.get(name)) is None:
            raise self._unknown(name)
        return source

    def get_base(self, source: str, seed: int) -> VLM:
        """The model that a recipe began from: ``"new"`` is made again from ``seed``."""
        if source == "new":
            return new_vlm(seed)
        name = next((name for name, own in self._sources.items() if own == source), None)
        return self.get(name) if name is not None else self._get_private(source)

    def _get_private(self, source: str) -> VLM:
        weights = Path(source) / "model.safetensors"
        # A run that went on has other weights in the same place.
        key = f"{source}@{weights.stat().st_mtime_ns}" if weights.is_file() else source
        with self._private_lock:
            if key not in self._private:
                try:
                    self._private[key] = self._load(source)
                except InputError as error:
                    raise InputError(hide_paths(str(error))) from error  # where it lies is the server's business
            self._private.move_to_end(key)
            while len(self._private) > 1 and sum(map(_weigh, self._private.values())) > self.private_bytes:
                self._private.popitem(last=False)
            return self._private[key]


def _weigh(vlm: VLM) -> int:
    return sum(weight.nbytes for weight in vlm.parameters())
