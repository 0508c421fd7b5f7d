"""Recipes: what a run trains, on what, how. Read from TOML, checked whole before anything is loaded."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomlkit

from model.clip import HEADS, HeadKind
from model.errors import InputError
from model.ranges import SEEDS, Range, is_finite
from model.training.parts import Parts
from model.values import name_value

NEW, ASSEMBLED = "new", "parts"
"""Bases that are no checkpoint: the model from nothing, and one put together from parts."""
StageKind = Literal["contrastive", "alignment", "instruction"]
KINDS: tuple[StageKind, ...] = ("contrastive", "alignment", "instruction")
MODULES = ("vision_encoder", "MP", "decoder")
"""The model's parts, by nanoVLM's names."""
PACKINGS = ("off", "leak", "document")
DECAYS = ("all", "matrices")
PRECISIONS = ("auto", "fp32", "bf16")
PARALLELS = ("ddp", "fsdp")
ALLOWED = {"contrastive": ("vision_encoder", "text"), "alignment": ("MP",), "instruction": MODULES}
"""What a stage of each kind may train. Alignment is the projector alone: that is what the word means."""

RANGES = {
    "steps": Range(1, 10_000_000),
    "batch_rows": Range(1, 65_536),
    "accumulate": Range(1, 65_536),
    "batch_tokens": Range(1, 4_194_304),
    "row_tokens": Range(1, 131_072),
    "warmup_steps": Range(0, 10_000_000),
    "lora_rank": Range(0, 1_024),
    "eval_every": Range(0, 10_000_000),
    "eval_examples": Range(0, 10_000),
    "clip": Range(0, 1e6, whole=False),
    "weight_decay": Range(0, 100, whole=False),
    "lora_alpha": Range(0, 65_536, whole=False),
    "save_every_s": Range(0, 1e9, whole=False),
    "final_rate": Range(0, 1, whole=False),
    "leak_share": Range(0, 1, whole=False),
}
"""Every number of a stage: beyond these it is a slip, and would end in want of memory or in a run without end."""
STEP_ROWS = Range(1, 65_536)
"""``batch_rows`` times ``accumulate``: the rows of a step are drawn before the first of them is computed."""
WEIGHTS = Range(1e-6, 1e6, whole=False)
MACHINE = {"seed": SEEDS, "threads": Range(0, 1_024), "cache_mib": Range(0, 1_048_576)}
WORKERS = Range(0, 256)
"""Every number of a recipe that is no stage's."""
NAME, TITLE = 100, 300
"""Characters of a stage's name and of a recipe's title, at most."""
NAME_RULE = f"a name is a text of 1 to {NAME} letters on one line, without / and \\"

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Stage:
    """One stage. ``learning_rates`` names what trains (``vision_encoder``, ``MP``, ``decoder``; ``text`` is the
    contrastive stage's text tower and heads); everything else is frozen. ``batch_rows``: rows of a micro-batch (pairs
    in the contrastive stage); an optimizer step takes ``accumulate`` of them. ``batch_tokens``: where the rows of a
    micro-batch, each as long as the longest, and the patches of their pictures, if the encoder trains, are more than
    that, it is computed in parts: the step is the same, and its memory bounded. The rate climbs for ``warmup_steps``
    (never more than a tenth of the stage), then falls on a cosine to ``final_rate`` of itself. ``clip``: gradients
    longer than that are shortened to it, 0 leaves them. ``weight_decay`` pulls on every weight but temperatures, as
    nanoVLM's optimizer does, or with ``decay`` "matrices" on these alone: not on norms, biases and embeddings.
    ``lora_alpha`` 0 is twice the rank; ``lora_targets``: the linear maps of the language model's blocks that have an
    adapter, by their last names, all if none is named; ``eval_every`` 0 measures at the end only, else also before the
    first step. ``checkpointing``: of each block only what enters it is kept for the way back, and the rest computed
    again there (Chen et al. 2016): the same step in less memory and more time.

    ``packing``: "off" pads each sample to the longest of its batch; "document" fills rows of ``row_tokens`` with
    samples that can't see one another; "leak" with samples that see those before them, as nanoVLM trains.
    ``leak_share``: with "document", the chance that a sample is such a leaking pack of two to four.
    """

    name: str
    kind: StageKind
    steps: int
    learning_rates: Mapping[str, float]
    data: tuple[Mapping[str, Any], ...]
    held_out: tuple[Mapping[str, Any], ...] = ()
    batch_rows: int = 16
    accumulate: int = 1
    batch_tokens: int = 65_536
    warmup_steps: int = 20
    final_rate: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.01
    decay: Literal["all", "matrices"] = "all"
    betas: tuple[float, float] = (0.9, 0.999)
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_targets: tuple[str, ...] = ()
    head: HeadKind = "linear"
    packing: Literal["off", "leak", "document"] = "off"
    row_tokens: int = 320
    leak_share: float = 0.0
    eval_every: int = 100
    eval_examples: int = 64
    save_every_s: float = 60.0
    checkpointing: bool = False

    @property
    def longest_sample(self) -> int | None:
        """Tokens of the longest sample that a packed row takes: a separator follows each. None without packing."""
        return self.row_tokens - 1 if self.packing != "off" else None

    def __post_init__(self) -> None:
        def need(ok: bool, sentence: str) -> None:
            if not ok:
                raise InputError(f"Stage “{self.name}”: {sentence}.")

        need(_is_plain(self.name), NAME_RULE)
        need(self.kind in KINDS, f"kind is {name_value(self.kind)}; it must be one of {', '.join(KINDS)}")
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            need(allowed.holds(value), f"{name} {allowed.refuse(value)}")
        need(
            STEP_ROWS.holds(self.batch_rows * self.accumulate),
            f"a step has batch_rows × accumulate = {self.batch_rows * self.accumulate:,} rows; at most "
            f"{STEP_ROWS.most:,} are taken, lower one of them",
        )
        betas = self.betas
        need(
            isinstance(betas, tuple) and len(betas) == 2 and all(is_finite(b) and 0 <= b < 1 for b in betas),
            f"betas is {name_value(betas)}; it must be two numbers from 0 to below 1",
        )
        self._check_choices(need)
        self._check_data(need)

    def _check_choices(self, need: Callable[[bool, str], None]) -> None:
        allowed = ALLOWED[self.kind]
        need(isinstance(self.learning_rates, Mapping), "learning_rates must be a table such as { MP = 1e-3 }")
        need(bool(self.learning_rates), f"learning_rates is empty, so nothing trains; name {', '.join(allowed)}")
        for module, rate in self.learning_rates.items():
            need(module in allowed, f"learning_rates names “{module[:60]}”; {self.kind} trains {', '.join(allowed)}")
            need(
                is_finite(rate) and 0 < rate <= 1,
                f"the learning rate of {module} is {name_value(rate)}; it must lie above 0 and be 1 at most",
            )
        need(
            self.packing in PACKINGS, f"packing is {name_value(self.packing)}; it must be one of {', '.join(PACKINGS)}"
        )
        need(self.decay in DECAYS, f"decay is {name_value(self.decay)}; it must be one of {', '.join(DECAYS)}")
        need(self.head in HEADS, f"head is {name_value(self.head)}; it must be one of {', '.join(HEADS)}")
        need(
            isinstance(self.checkpointing, bool),
            f"checkpointing is {name_value(self.checkpointing)}; it must be true or false",
        )
        need(
            not self.lora_rank or "decoder" in self.learning_rates,
            "lora_rank is set but the decoder has no learning rate",
        )
        need(
            isinstance(self.lora_targets, tuple) and all(isinstance(one, str) for one in self.lora_targets),
            f'lora_targets is {name_value(self.lora_targets)}; it must be a list of names such as ["q_proj", "v_proj"]',
        )

    def _check_data(self, need: Callable[[bool, str], None]) -> None:
        need(bool(self.data), "it has no data; add a [[stages.data]] table")
        for table in (*self.data, *self.held_out):
            need(isinstance(table, Mapping) and isinstance(table.get("source"), str), "a data table names no source")
            weight = table.get("weight", 1.0)
            need(WEIGHTS.holds(weight), f"a data weight {WEIGHTS.refuse(weight)}")


def _is_plain(name: object) -> bool:
    """Whether a stage may be called so: its name is part of files' names."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= NAME
        and name.strip() != ""
        and name.isprintable()
        and not (set(name) & {"/", "\\"})
    )


@dataclass(frozen=True)
class Recipe:
    """``base``: "new" (nothing), "embedded", a checkpoint folder or a hub id; in TOML it may be a table of ``parts``
    instead, and is called "parts" then. ``precision``: "auto" is bfloat16
    autocast where the processor or GPU computes in it faster, else float32. ``threads`` 0: PyTorch's default.
    ``cache_mib``: memory for what a frozen encoder made of pictures. ``workers``: processes that render rows while
    others are computed, for each process that trains; 0 renders in that one, "auto" starts as many as pay.
    ``parallel``: what several processes have of the model: "ddp" the whole of it each, "fsdp" a part of its weights,
    gradients and moments; the steps are the same. ``tracker``: "" or "tensorboard" (written through accelerate into the
    run's folder)."""

    stages: tuple[Stage, ...]
    title: str = "a run"
    base: str = "embedded"
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = 0
    cache_mib: int = 4_096
    workers: int | Literal["auto"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    tracker: str = ""
    parts: Parts | None = None
    folder: Path = field(default=Path(), compare=False)
    """Where the file lay; relative paths of its data start there."""

    def __post_init__(self) -> None:
        for name in ("title", "base"):
            value = getattr(self, name)
            if not isinstance(value, str) or "\0" in value:
                raise InputError(f"{name} is {name_value(value)}; it must be a text.")
        if (self.parts is None) == (self.base == ASSEMBLED):
            raise InputError(f"base is {name_value(self.base)}; what is put together from parts is a [base] table.")
        if len(self.title) > TITLE:
            raise InputError(f"title has {len(self.title):,} letters; at most {TITLE} are allowed.")
        for name, allowed in MACHINE.items():
            if not allowed.holds(value := getattr(self, name)):
                raise InputError(f"{name} {allowed.refuse(value)}.")
        if self.workers != "auto" and not WORKERS.holds(self.workers):
            raise InputError(f"The number of workers {WORKERS.refuse(self.workers)}; “auto” starts as many as pay.")
        if not self.stages:
            raise InputError("The recipe has no stage; add a [[stages]] table.")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {name_value(self.precision)}; it must be one of {', '.join(PRECISIONS)}.")
        if self.parallel not in PARALLELS:
            raise InputError(f"parallel is {name_value(self.parallel)}; it must be one of {', '.join(PARALLELS)}.")
        if self.tracker not in ("", "tensorboard"):
            raise InputError(f"tracker is {name_value(self.tracker)}; it must be “tensorboard” or left out.")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise InputError(f"Two stages share a name ({', '.join(names)}); give each its own.")

    def to_toml(self) -> str:
        """The recipe with every default written out; :func:`read_recipe` gives it back."""
        apart = ("stages", "folder", "parts")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in apart}
        if self.parts is not None:
            values["base"] = {
                key: _absolute_part(value, self.folder) if key in ("vision", "language") else value
                for key, value in self.parts.to_dict().items()
            }
        stages = []
        for stage in self.stages:
            table = {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}
            table |= {"betas": list(stage.betas), "lora_targets": list(stage.lora_targets)}
            table["learning_rates"] = dict(stage.learning_rates)
            for name in ("data", "held_out"):
                table[name] = [_absolute(entry, self.folder) for entry in table[name]]
            if not table["held_out"]:
                del table["held_out"]
            stages.append(table)
        return tomlkit.dumps({**values, "stages": stages})


def _absolute_part(source: str, folder: Path) -> str:
    return str((folder / source).resolve()) if (folder / Path(source).expanduser()).is_dir() else source


def _absolute(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    found = dict(table)
    for key in ("path", "images"):
        if isinstance(found.get(key), str) and found[key] and (folder / found[key]).exists():
            found[key] = str((folder / found[key]).resolve())
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """From a TOML file, or the name of one in ``model/training/recipes``. ``overrides`` are ``key=value`` with dotted
    keys: ``stages.0.steps=20``, ``stages.instruction.learning_rates.MP=1e-3``, ``base=embedded``,
    ``base.language=FOLDER``. InputError names the key that is wrong and what is allowed."""
    path = Path(path)
    if not path.is_file() and (RECIPES / f"{path}.toml").is_file():
        path = RECIPES / f"{path}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise InputError(f"The recipe “{path}” can't be read ({error.strerror}); name a file, or {known}.") from error
    except (ValueError, RecursionError) as error:  # bad TOML or UTF-8, a number of thousands of digits, deep nesting
        raise InputError(f"The recipe {path} is no valid TOML ({error}); correct it.") from error
    for override in overrides:
        _override(values, override)
    return build_recipe(values, path.parent)


def build_recipe(values: Mapping[str, Any], folder: Path) -> Recipe:
    """From TOML's plain values; ``folder`` is where relative paths start. InputError as :func:`read_recipe`."""
    values = dict(values)
    tables = values.pop("stages", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError("“stages” must be a list of [[stages]] tables.")
    _check_keys(values, Recipe, "The recipe", {"stages", "folder", "parts"})
    if isinstance(table := values.get("base"), dict):
        _check_keys(table, Parts, "The recipe's [base]", set())
        if lacking := [key for key in ("vision", "language") if key not in table]:
            raise InputError(f"The recipe's [base] lacks {' and '.join(lacking)}; name both parts.")
        values |= {"base": ASSEMBLED, "parts": Parts(**table)}
    stages = []
    for number, table in enumerate(tables, start=1):
        name = table.get("name", f"stage {number}")
        if not _is_plain(name):
            raise InputError(f"The name of stage {number} is {name_value(name)}; {NAME_RULE}.")
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
        for key in ("betas", "lora_targets"):
            if isinstance(entry.get(key), list):
                entry[key] = tuple(entry[key])
        stages.append(Stage(**entry))
    return Recipe(stages=tuple(stages), folder=folder, **values)


def _check_keys(table: Mapping[str, Any], of: type, where: str, hidden: set[str]) -> None:
    known = {f.name for f in dataclasses.fields(of)} - hidden
    if unknown := sorted(set(table) - known):
        names = ", ".join(name[:40] for name in unknown[:6])
        raise InputError(f"{where} has the unknown key {names}; allowed are {', '.join(sorted(known))}.")


def _override(values: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found or not key.strip():
        raise InputError(f"--set {override!r} is no key=value; name a key and what it is set to.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    except (ValueError, RecursionError) as error:
        raise InputError(f"--set {key.strip()[:60]} has a value that can't be read ({error}).") from error
    *path, last = key.strip().split(".")
    place: Any = values
    for part in path:
        if isinstance(place, list):
            matches = [
                n
                for n, entry in enumerate(place)
                if str(n) == part or (isinstance(entry, dict) and entry.get("name") == part)
            ]
            if not matches:
                raise InputError(f"--set {key}: there is no “{part}”.")
            place = place[matches[0]]
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
    if not isinstance(place, dict):
        raise InputError(f"--set {key} names no value; give a longer key.")
    place[last] = value
