"""Recipes: what a run trains, on what, how. Read from TOML, checked whole before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomlkit

from model.errors import InputError

Kind = Literal["contrastive", "alignment", "instruction"]
KINDS: tuple[Kind, ...] = ("contrastive", "alignment", "instruction")
MODULES = ("vision_encoder", "MP", "decoder")
"""The model's parts, by nanoVLM's names."""
PACKINGS = ("off", "leak", "document")
PRECISIONS = ("auto", "fp32", "bf16")
HEADS = ("linear", "mlp")
ALLOWED = {"contrastive": ("vision_encoder", "text"), "alignment": ("MP",), "instruction": MODULES}
"""What a stage of each kind may train. Alignment is the projector alone: that is what the word means."""

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Stage:
    """One stage. ``learning_rates`` names what trains (``vision_encoder``, ``MP``, ``decoder``; ``text`` is the
    contrastive stage's text tower and heads); everything else is frozen. ``batch_rows``: rows of a micro-batch (pairs
    in the contrastive stage); an optimizer step takes ``accumulate`` of them. The rate climbs for ``warmup_steps``
    (never more than a tenth of the stage), then falls on a cosine to ``final_rate`` of itself. ``clip``: gradients
    longer than that are shortened to it, 0 leaves them. ``lora_alpha`` 0 is twice the rank; ``eval_every`` 0 measures
    at the end only.

    ``packing``: "off" pads each sample to the longest of its batch; "document" fills rows of ``row_tokens`` with
    samples that can't see one another; "leak" with samples that see those before them, as nanoVLM trains.
    ``leak_share``: with "document", the chance that a sample is such a leaking pack of two to four.
    """

    name: str
    kind: Kind
    steps: int
    learning_rates: Mapping[str, float]
    data: tuple[Mapping[str, Any], ...]
    held_out: tuple[Mapping[str, Any], ...] = ()
    batch_rows: int = 16
    accumulate: int = 1
    warmup_steps: int = 20
    final_rate: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    lora_rank: int = 0
    lora_alpha: float = 0.0
    head: Literal["linear", "mlp"] = "linear"
    packing: Literal["off", "leak", "document"] = "off"
    row_tokens: int = 320
    leak_share: float = 0.0
    eval_every: int = 100
    eval_examples: int = 64
    save_every_s: float = 60.0

    @property
    def longest_sample(self) -> int | None:
        """Tokens of the longest sample that a packed row takes: a separator follows each. None without packing."""
        return self.row_tokens - 1 if self.packing != "off" else None

    def __post_init__(self) -> None:
        def need(ok: bool, sentence: str) -> None:
            if not ok:
                raise InputError(f"Stage “{self.name}”: {sentence}.")

        need(isinstance(self.name, str) and bool(self.name.strip()), "its name must be a text")
        need(self.kind in KINDS, f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        for name in ("steps", "batch_rows", "accumulate", "row_tokens"):
            value = getattr(self, name)
            need(_is_whole(value) and value >= 1, f"{name} is {value!r}; it must be a whole number from 1 up")
        for name in ("warmup_steps", "lora_rank", "eval_every", "eval_examples"):
            value = getattr(self, name)
            need(_is_whole(value) and value >= 0, f"{name} is {value!r}; it must be a whole number from 0 up")
        for name in ("clip", "weight_decay", "lora_alpha", "save_every_s"):
            value = getattr(self, name)
            need(_is_number(value) and value >= 0, f"{name} is {value!r}; it must be 0 or more")
        for name in ("final_rate", "leak_share"):
            value = getattr(self, name)
            need(_is_number(value) and 0 <= value <= 1, f"{name} is {value!r}; it must lie between 0 and 1")
        betas = self.betas
        need(isinstance(betas, tuple) and len(betas) == 2 and all(_is_number(b) and 0 <= b < 1 for b in betas),
             f"betas is {betas!r}; it must be two numbers from 0 to below 1")  # fmt: skip
        self._check_choices(need)
        self._check_data(need)

    def _check_choices(self, need: Callable[[bool, str], None]) -> None:
        allowed = ALLOWED[self.kind]
        need(isinstance(self.learning_rates, Mapping), "learning_rates must be a table such as { MP = 1e-3 }")
        need(bool(self.learning_rates), f"learning_rates is empty, so nothing trains; name {', '.join(allowed)}")
        for module, rate in self.learning_rates.items():
            need(module in allowed, f"learning_rates names “{module}”; {self.kind} trains {', '.join(allowed)}")
            need(_is_number(rate) and 0 < rate <= 1,
                 f"the learning rate of {module} is {rate!r}; it must lie above 0 and be 1 at most")  # fmt: skip
        need(self.packing in PACKINGS, f"packing is {self.packing!r}; it must be one of {', '.join(PACKINGS)}")
        need(self.head in HEADS, f"head is {self.head!r}; it must be one of {', '.join(HEADS)}")
        need(not self.lora_rank or "decoder" in self.learning_rates,
             "lora_rank is set but the decoder has no learning rate")  # fmt: skip

    def _check_data(self, need: Callable[[bool, str], None]) -> None:
        need(bool(self.data), "it has no data; add a [[stages.data]] table")
        for table in (*self.data, *self.held_out):
            need(isinstance(table, Mapping) and isinstance(table.get("source"), str), "a data table names no source")
            weight = table.get("weight", 1.0)
            need(_is_number(weight) and weight > 0, f"a data weight is {weight!r}; it must be above 0")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Recipe:
    """``base``: "new" (nothing), "embedded", a checkpoint folder or a hub id. ``precision``: "auto" is bfloat16
    autocast where the processor or GPU computes in it faster, else float32. ``threads`` 0: PyTorch's default.
    ``tracker``: "" or "tensorboard" (written through accelerate into the run's folder)."""

    stages: tuple[Stage, ...]
    title: str = "a run"
    base: str = "embedded"
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = 0
    tracker: str = ""
    folder: Path = field(default=Path(), compare=False)
    """Where the file lay; relative paths of its data start there."""

    def __post_init__(self) -> None:
        for name in ("title", "base"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be a text.")
        for name in ("seed", "threads"):
            value = getattr(self, name)
            if not _is_whole(value) or value < 0:
                raise InputError(f"{name} is {value!r}; it must be a whole number from 0 up.")
        if not self.stages:
            raise InputError("The recipe has no stage; add a [[stages]] table.")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}.")
        if self.tracker not in ("", "tensorboard"):
            raise InputError(f"tracker is {self.tracker!r}; it must be “tensorboard” or left out.")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise InputError(f"Two stages share a name ({', '.join(names)}); give each its own.")

    def to_toml(self) -> str:
        """The recipe with every default written out; :func:`read_recipe` gives it back."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("stages", "folder")}
        stages = []
        for stage in self.stages:
            table = {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}
            table["betas"] = list(stage.betas)
            table["learning_rates"] = dict(stage.learning_rates)
            for name in ("data", "held_out"):
                table[name] = [_absolute(entry, self.folder) for entry in table[name]]
            if not table["held_out"]:
                del table["held_out"]
            stages.append(table)
        return tomlkit.dumps({**values, "stages": stages})


def _absolute(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    found = dict(table)
    if isinstance(found.get("path"), str) and (folder / found["path"]).exists():
        found["path"] = str((folder / found["path"]).resolve())
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """From a TOML file, or the name of one in ``model/training/recipes``. ``overrides`` are ``key=value`` with dotted
    keys: ``stages.0.steps=20``, ``stages.instruction.learning_rates.MP=1e-3``, ``base=embedded``. InputError names
    the key that is wrong and what is allowed."""
    path = Path(path)
    if not path.is_file() and (RECIPES / f"{path}.toml").is_file():
        path = RECIPES / f"{path}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise InputError(f"The recipe “{path}” can't be read ({error.strerror}); name a file, or {known}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe {path} is no valid TOML ({error}).") from error
    for override in overrides:
        _override(values, override)
    return build_recipe(values, path.parent)


def build_recipe(values: Mapping[str, Any], folder: Path) -> Recipe:
    """From TOML's plain values; ``folder`` is where relative paths start. InputError as :func:`read_recipe`."""
    values = dict(values)
    tables = values.pop("stages", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError("“stages” must be a list of [[stages]] tables.")
    _check_keys(values, Recipe, "The recipe", {"stages", "folder"})
    stages = []
    for number, table in enumerate(tables, start=1):
        name = table.get("name", f"stage {number}")
        _check_keys(table, Stage, f"Stage “{name}”", set())
        for key in ("kind", "steps", "learning_rates"):
            if key not in table:
                raise InputError(f"Stage “{name}” lacks {key}.")
        entry = {"name": name, "data": (), **table}
        for key in ("data", "held_out"):
            tables_of_key = entry.get(key, ())
            if not isinstance(tables_of_key, list | tuple):
                raise InputError(f"Stage “{name}”: {key} must be a list of [[stages.{key}]] tables.")
            entry[key] = tuple(tables_of_key)
        if isinstance(entry.get("betas"), list):
            entry["betas"] = tuple(entry["betas"])
        stages.append(Stage(**entry))
    return Recipe(stages=tuple(stages), folder=folder, **values)


def _check_keys(table: Mapping[str, Any], of: type, where: str, hidden: set[str]) -> None:
    known = {f.name for f in dataclasses.fields(of)} - hidden
    if unknown := sorted(set(table) - known):
        raise InputError(f"{where} has the unknown key {', '.join(unknown)}; allowed are {', '.join(sorted(known))}.")


def _override(values: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found or not key.strip():
        raise InputError(f"--set {override!r} is no key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *path, last = key.strip().split(".")
    place: Any = values
    for part in path:
        if isinstance(place, list):
            matches = [n for n, entry in enumerate(place)
                       if str(n) == part or (isinstance(entry, dict) and entry.get("name") == part)]  # fmt: skip
            if not matches:
                raise InputError(f"--set {key}: there is no “{part}”.")
            place = place[matches[0]]
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
    if not isinstance(place, dict):
        raise InputError(f"--set {key} names no value; give a longer key.")
    place[last] = value
