"""The models that everybody on this server shares, and those that single persons trained. No gradio here.

Nothing of a person's is kept: what a person asked lives in that person's own state. Models are never written to after
loading.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch

from inspector.bounds import Bounds
from inspector.files import name_source
from inspector.row.ask import AnswerToken, GenerationSettings, Inspection
from inspector.row.attention import AttentionMap, ReaderMap
from inspector.row.prompt import Prompt
from inspector.runs.discretion import hide_paths
from inspector.which_image.seen import SeenAnswer
from model import InputError, InspectableVLM, MemoryNeed, load_vlm, plan_memory, read_kind
from model.hub import HubCheckpoint, check_weights
from model.memory import format_bytes, release_memory
from model.training.assembly import make_base
from model.training.recipe import ASSEMBLED, NEW, Recipe
from model.training.runs import WEIGHTS

_log = logging.getLogger(__name__)
SECRET = "run:"
"""Names of single persons' models begin so; none of them is ever written into a sentence."""
UNNAMED = "a run's model"


@dataclass(frozen=True)
class Shown:
    """What one person's page shows; kept in that person's own state and replaced, never changed. ``names`` are the
    images' file names, in order; ``settings`` those that it was asked with; ``seen`` what the
    images add to each token of its answers. ``start``: the first token of a stretch that ends at ``selected``;
    ``readers``: which later tokens look at these, once that was asked for."""

    model: str
    inspection: Inspection
    selected: int
    attention: AttentionMap
    names: tuple[str, ...] = ()
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    seen: tuple[SeenAnswer, ...] = ()
    start: int | None = None
    readers: ReaderMap | None = None

    @property
    def map(self) -> AttentionMap | ReaderMap:
        """The side that is shown."""
        return self.attention if self.readers is None else self.readers


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model of the common list: ``family`` (the kind that its files name, until it is loaded; a
    sentence where they can't be read), ``weights`` counted (0 for one that isn't here yet), ``placement``: numbers and
    where, once it was loaded, ``need``: the memory that was planned for it."""

    name: str
    family: str
    weights: int
    placement: str
    need: MemoryNeed | None


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

    def __init__(
        self,
        sources: dict[str, str],
        *,
        device: torch.device | str = "auto",
        dtype: torch.dtype | str = "auto",
        quantize: str | None = None,
    ) -> None:
        self._sources = dict(sources)
        self._device, self._dtype, self._quantize = device, dtype, quantize
        self._loaded: OrderedDict[str, InspectableVLM] = OrderedDict()
        """Everybody's that are in memory, the least used first."""
        self._needs: dict[str, MemoryNeed] = {}
        self._facts: dict[str, tuple[str, int, str]] = {}
        """Family, weights and placement, of those that were loaded once."""
        self._admitted: dict[str, tuple[str, str]] = {}
        """By name: where the checkpoint lies, and the fingerprint of the model that the name stands for."""
        self._titles: dict[str, str] = {}
        self._private: OrderedDict[str, InspectableVLM] = OrderedDict()
        self._watchers: list[Callable[[], None]] = []
        self._lock, self._private_lock = threading.Lock(), threading.Lock()
        self.private_bytes = Bounds().private_model_bytes
        """Weights outside the common list that stay in memory; the least used go first."""
        self.model_bytes: int | None = None
        """Weights of the common list that stay in memory together, None for as much as is free."""
        self.tell: Callable[[str], None] = lambda sentence: None
        """Told of every model that made way, in the thread that asked for another one."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sources)

    def get(self, name: str) -> InspectableVLM:
        """InputError for an unknown name or a broken checkpoint."""
        if name in self._admitted:
            return self._get_named(*self._admitted[name])
        if name not in self._sources:
            raise self._unknown(name)
        if (known := self._loaded.get(name)) is not None:  # nobody waits for a model while another one is loaded
            with suppress(KeyError):  # it made way just now; whoever asked for it keeps it
                self._loaded.move_to_end(name)
            return known
        with self._lock:
            if name not in self._loaded:
                need = self._make_room(name)
                self._loaded[name] = self._load(self._sources[name])
                self._needs[name] = need
            return self._loaded[name]

    def add(self, title: str, source: str) -> str:
        """A name in the common list for the checkpoint at ``source``; see :func:`inspector.files.name_source`."""
        with self._lock:
            name = name_source(title, source, self._sources)
            self._sources[name] = source
        return name

    def check_weights(self, checkpoint: HubCheckpoint) -> None:
        """InputError if it won't fit where this server's models are put; see :func:`model.hub.check_weights`."""
        check_weights(checkpoint, device=self._device, dtype=self._dtype, quantize=self._quantize)

    def remove(self, name: str) -> None:
        """Takes a model that can't be opened from the common list."""
        with self._lock:
            self._sources.pop(name, None)
            self._loaded.pop(name, None)

    def list_models(self) -> tuple[ModelFacts, ...]:
        """The common list, without loading any."""
        found = []
        for name in self.names:
            vlm, known = self._loaded.get(name), self._facts.get(name)
            if vlm is not None and known is None:
                known = (vlm.family, vlm.n_parameters, vlm.placement)
                self._facts[name] = known
            need, kind = self._plan(name)
            family, weights, placement = known or (kind, 0 if need is None else need.count, "")
            found.append(ModelFacts(name, family, weights, placement, need))
        return tuple(found)

    def _plan(self, name: str) -> tuple[MemoryNeed | None, str]:
        """What a model was to take when it was loaded, or would take now, and its kind; nothing is fetched for it."""
        if (need := self.memory_of(name)) is not None:
            return need, ""
        source = self._sources[name]
        if source != "embedded" and not Path(source).is_dir():
            return None, "fetched when it is asked first"
        try:
            kind = read_kind(source)
            return plan_memory(source, device=self._device, dtype=self._dtype, quantize=self._quantize), kind
        except InputError as error:
            return None, f"can't be opened: {hide_paths(str(error))}"

    def memory_of(self, name: str) -> MemoryNeed | None:
        """What a model of the common list was to take when it was loaded; None for others."""
        return self._needs.get(name)

    def _make_room(self, name: str) -> MemoryNeed:
        """Unloads the least used models until the weights of ``name`` fit, or none is left; loading says if they still
        don't. Whoever works with one of them goes on: it leaves the memory with the last of them."""

        def plan() -> MemoryNeed:
            source, quantize = self._sources[name], self._quantize
            return plan_memory(source, device=self._device, dtype=self._dtype, quantize=quantize)

        need = plan()
        if need.free is not None and need.weights > need.free + sum(map(_weigh, self._loaded.values())):
            return need  # nothing that goes would help
        while self._loaded:
            together = need.weights + sum(map(_weigh, self._loaded.values()))
            if need.fits and (self.model_bytes is None or together <= self.model_bytes):
                break
            gone, vlm = self._loaded.popitem(last=False)
            size = format_bytes(_weigh(vlm))
            del vlm
            release_memory()
            sentence = f"“{gone}” ({size}) was unloaded to make room for “{name}”; it is loaded again when it is asked."
            _log.warning(sentence)
            self.tell(sentence)
            need = plan()
        return need

    def watch(self, before_block: Callable[[], None]) -> None:
        """Has ``before_block`` called before every block of every model here, in the thread that computes; what it
        raises ends that pass."""
        with self._lock, self._private_lock:
            self._watchers.append(before_block)
            for vlm in (*self._loaded.values(), *self._private.values()):
                vlm.watch(before_block)

    def _load(self, source: str) -> InspectableVLM:
        opened = tuple(self._loaded.values())
        vlm = load_vlm(source, device=self._device, dtype=self._dtype, quantize=self._quantize, opened=opened)
        for before_block in self._watchers:
            vlm.watch(before_block)
        return vlm

    def admit(self, secret: str, folder: Path, title: str) -> str:
        """The name under which ``get`` gives the checkpoint in ``folder`` as it is now. It is made of ``secret``, which
        can't be guessed and can't be told from it, and of the model's fingerprint: a run that goes on gets another
        name. It is told to one person only; ``title`` is what others may read. InputError for a broken checkpoint."""
        fingerprint = self._get_private(str(folder)).fingerprint
        name = f"{SECRET}{sha256(f'{secret} {fingerprint}'.encode()).hexdigest()[:24]}"
        self._admitted[name] = (str(folder), fingerprint)
        self._titles[name] = title
        return name

    def _get_named(self, source: str, fingerprint: str) -> InspectableVLM:
        """The model of a name: from memory, else read again. InputError if there is another one in its place now."""
        with self._private_lock:
            for key, vlm in self._private.items():
                if key.startswith(f"{source}@") and vlm.fingerprint == fingerprint:
                    self._private.move_to_end(key)
                    return vlm
        vlm = self._get_private(source)
        if vlm.fingerprint != fingerprint:
            raise InputError(
                f"This run went on and its model is #{vlm.fingerprint[:8]} now, no longer #{fingerprint[:8]}; press "
                "“Use this model” at the run, and ask again."
            )
        return vlm

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
        source = self._admitted[name][0] if name in self._admitted else self._sources.get(name)
        if source is None:
            raise self._unknown(name)
        return source

    def kind_of(self, name: str) -> str:
        """“nanoVLM” or the model_type of a model, by its files; "" where they would have to be fetched for it.
        InputError for an unknown name."""
        source = self.source_of(name)
        return read_kind(source) if source == "embedded" or Path(source).is_dir() else ""

    def get_base(self, recipe: Recipe) -> InspectableVLM:
        """The model that a recipe began from; one that is no checkpoint is made again."""
        if recipe.base in (NEW, ASSEMBLED):
            return make_base(recipe)
        name = next((name for name, own in self._sources.items() if own == recipe.base), None)
        return self.get(name) if name is not None else self._get_private(recipe.base)

    def _get_private(self, source: str) -> InspectableVLM:
        weights = next((path for name in WEIGHTS if (path := Path(source) / name).is_file()), None)
        # A run that went on has other weights in the same place.
        key = source if weights is None else f"{source}@{weights.stat().st_mtime_ns}"
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


def _weigh(vlm: InspectableVLM) -> int:
    """Bytes of a model's weights, those that an adapter shares with its base too."""
    return vlm.n_parameters * vlm.dtype.itemsize
