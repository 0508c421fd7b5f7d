"""From what a person chose in the Train tab to a recipe. No gradio here."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspector.bounds import Bounds, private_bounds
from inspector.runs.discretion import name_base
from inspector.runs.part_shelf import EMBEDDED, PartShelf
from model import InputError
from model.config import PROJECTORS
from model.ranges import SEEDS, Range, is_finite
from model.training.recipe import ASSEMBLED, RANGES, Recipe, Stage, build_recipe
from model.training.stage_data import name_table
from model.values import name_value

NEW = "new"
"""The base that knows nothing: random weights, the embedded model's shape."""
NANOVLM = "nanoVLM"
"""The kind of base that every preset is made for."""
TEXT = 1000
"""Characters of a field that holds words."""

BUILT_IN: dict[str, dict[str, Any]] = {
    "scenes: one picture": {"source": "scenes", "set": "single", "turns": 5, "pictures": 1500},
    "scenes: several pictures": {"source": "scenes", "set": "several", "turns": 6, "pictures": 900},
    "scenes: captions": {"source": "scenes", "set": "captions", "pictures": 1500},
    "scenes: captioned tiles": {"source": "scenes", "set": "tiles"},
    "easy-VQA": {"source": "easy-vqa", "split": "train", "turns": 6},
}
UPLOAD, HUB = "my file", "a hub data set"
HUB_ROWS = 2000
"""So many examples of a data set of the hub are fetched."""
CONVERTED = ".converted"
"""Where a copy of an upload lies that ``datasets`` can read in any order: beside it, so that it goes with it."""
SOURCES = ("auto", "rows", "llava", "chat", "captions")

PARTS = {"vision": EMBEDDED, "language": EMBEDDED, "projector": PROJECTORS[0]}
"""What a VLM is built from where nobody chose anything else."""
_PART_OF_RATE = {
    "vision_rate": "vision_encoder",
    "projector_rate": "MP",
    "decoder_rate": "decoder",
    "text_rate": "text",
}
"""Which part of the model each of the form's rates is of."""


@dataclass(frozen=True)
class Form:
    """The fields. Rates: 0 is frozen; ``text_rate`` is the contrastive stage's text tower. ``path``: the upload or hub
    id; ``source``: its reader; ``images``: the upload's folder, in which its images are looked for. ``vision``,
    ``language`` and ``projector`` count where ``base`` is “parts”."""

    kind: str
    base: str
    data: str
    path: str
    source: str
    steps: int
    vision_rate: float
    projector_rate: float
    decoder_rate: float
    text_rate: float
    lora_rank: int
    packing: str
    batch_rows: int
    eval_every: int
    seed: int
    vision: str = PARTS["vision"]
    language: str = PARTS["language"]
    projector: str = PARTS["projector"]
    images: str = ""


@dataclass(frozen=True)
class Preset:
    """A way to begin: ``why`` says what it does to the model; ``seconds`` its steps took where they were measured, with
    one thread of a processor with AMX that others worked on, too (0: not measured); the rest fills the form."""

    title: str
    why: str
    values: Mapping[str, Any]
    seconds: int = 0


_COMMON: dict[str, Any] = {
    "vision_rate": 0.0,
    "projector_rate": 0.0,
    "decoder_rate": 0.0,
    "text_rate": 0.0,
    "lora_rank": 0,
    "packing": "off",
    "batch_rows": 16,
    "eval_every": 25,
    **PARTS,
}
BUILD = "build a VLM"
FIRST_STAGE, SECOND_STAGE = "projector alignment", "instruction tuning"
PRESETS: dict[str, Preset] = {
    "projector alignment": Preset(
        "projector alignment",
        "The first stage: a new projector between the embedded model's encoder and language model learns alone, on "
        "questions whose answer is the caption, until image features find their place among the words. Both others "
        "stay as they are. “Go on with stage 2” follows.",
        {
            **_COMMON,
            "kind": "alignment",
            "base": ASSEMBLED,
            "data": "scenes: captions",
            "steps": 100,
            "projector_rate": 1e-2,
        },
        seconds=30,
    ),
    "instruction tuning": Preset(
        "instruction tuning",
        "Projector and language model learn from questions and answers; the encoder stays frozen, so its output is "
        "computed once for each picture.",
        {
            **_COMMON,
            "kind": "instruction",
            "data": "scenes: one picture",
            "steps": 100,
            "projector_rate": 5e-4,
            "decoder_rate": 5e-4,
        },
        seconds=103,
    ),
    "LoRA": Preset(
        "LoRA",
        "The language model's weights stay; beside each matrix a product of two thin ones learns. Few numbers, a small "
        "file, and what was known before is forgotten less.",
        {
            **_COMMON,
            "kind": "instruction",
            "data": "scenes: one picture",
            "steps": 100,
            "projector_rate": 0.0,
            "decoder_rate": 2e-3,
            "lora_rank": 8,
        },
        seconds=98,
    ),
    "contrastive demo": Preset(
        "contrastive demo",
        "CLIP's stage: the image encoder and a small text tower learn which caption belongs to which picture of the "
        "batch. The language model is not in play and won't know the changed encoder, so it starts from nothing.",
        {
            **_COMMON,
            "kind": "contrastive",
            "base": NEW,
            "data": "scenes: captioned tiles",
            "steps": 100,
            "vision_rate": 1.5e-3,
            "text_rate": 1.5e-3,
            "batch_rows": 48,
        },
        seconds=194,
    ),
    BUILD: Preset(
        BUILD,
        "Choose an image encoder and a language model that were trained apart; a fresh projector joins them and learns "
        "first, on captions. Below: how large each part is, and the memory that it takes; larger parts than the "
        "embedded ones take longer.",
        {
            **_COMMON,
            "kind": "alignment",
            "base": ASSEMBLED,
            "data": "scenes: captions",
            "steps": 200,
            "projector_rate": 1e-3,
        },
        seconds=33,
    ),
    "custom": Preset("custom", "Every field is yours; a learning rate of 0 freezes its part.", {}),
}


WHOLE = {
    "steps": "Steps",
    "lora_rank": "LoRA rank",
    "batch_rows": "Rows per batch",
    "eval_every": "Evaluate every",
    "seed": "Seed",
}
RATES = {
    "vision_rate": "The encoder's learning rate",
    "projector_rate": "The projector's learning rate",
    "decoder_rate": "The language model's learning rate",
    "text_rate": "The text tower's learning rate",
}
WORDS = {
    "kind": "Stage",
    "base": "Base model",
    "data": "Data",
    "path": "Data set on the hub",
    "source": "Format",
    "packing": "Packing",
    "vision": "Image encoder",
    "language": "Language model",
    "projector": "Projector",
}
RATE = Range(0, 1, whole=False)


def fit_preset(name: str, kind: str) -> dict[str, Any]:
    """What the preset fills the form with for a base of this ``kind`` ("nanoVLM", a model_type, "" if it isn't known):
    of other families than nanoVLM's the language model is trained by LoRA alone. InputError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"There is no such way to begin; choose one of {', '.join(PRESETS)}.")
    values = dict(PRESETS[name].values)
    if kind in ("", NANOVLM):
        return values
    if name == FIRST_STAGE:  # their projector is their own, and goes on from where it is
        del values["base"]
        values["projector_rate"] = PRESETS[BUILD].values["projector_rate"]
    if "base" not in values and values.get("decoder_rate"):
        values |= {key: PRESETS["LoRA"].values[key] for key in ("decoder_rate", "lora_rank")}
    return values


def list_data(bounds: Bounds) -> tuple[str, ...]:
    """The data that a server of these bounds offers."""
    return (*BUILT_IN, UPLOAD, *((HUB,) if bounds.hub_data else ()))


def _number(value: Any, name: str, whole: bool) -> Any:
    if value is None or value == "":
        raise InputError(f"{name} is empty; give a number.")
    if not is_finite(value) or (whole and value != int(value)):
        raise InputError(f"{name} is {name_value(value)}; it must be a {'whole number' if whole else 'number'}.")
    return int(value) if whole else value


def _words(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > TEXT:
        raise InputError(f"{name} is {name_value(value)}; it must be a text of at most {TEXT} letters.")
    return value


def read_form(**values: Any) -> Form:
    """Checks that every number is one and every text a text, whatever a program sends; ranges are the business of
    :func:`write_recipe`. InputError names the field."""
    values = {**PARTS, **values, "path": "" if values["path"] is None else values["path"]}
    return Form(
        **{
            **{key: _words(values[key], name) for key, name in WORDS.items()},
            **{key: _number(values[key], name, True) for key, name in WHOLE.items()},
            **{key: _number(values[key], name, False) for key, name in RATES.items()},
        }
    )


def _check_ranges(form: Form, bounds: Bounds) -> None:
    """InputError for the first number that is more than ``bounds`` give, or than makes sense anywhere."""
    allowed = {
        "steps": Range(1, bounds.run_steps),
        "batch_rows": Range(1, bounds.run_rows),
        "lora_rank": Range(0, bounds.run_lora_rank),
        "eval_every": RANGES["eval_every"],
        "seed": SEEDS,
        **dict.fromkeys(RATES, RATE),
    }
    for key, name in {**WHOLE, **RATES}.items():
        value = getattr(form, key)
        if not allowed[key].holds(value):
            raise InputError(f"{name} {allowed[key].refuse(value)}.")


def write_base(form: Form, shelf: PartShelf) -> dict[str, str]:
    """The [base] table of a form whose base is put together from parts. InputError for a part that isn't offered."""
    if form.projector not in PROJECTORS:
        raise InputError(f"There is no projector “{form.projector[:40]}”; choose one of {', '.join(PROJECTORS)}.")
    return {
        "vision": shelf.find_vision(form.vision),
        "language": shelf.find_language(form.language),
        "projector": form.projector,
    }


def write_recipe(form: Form, base: str | Mapping[str, str], title: str, bounds: Bounds | None = None) -> Recipe:
    """The recipe of a form; ``base`` is where its base model lies, or a [base] table. ``bounds``: those of the server
    that will train; a private one's if None. InputError for what can't be trained, or is more than they give."""
    bounds = bounds or private_bounds()
    _check_ranges(form, bounds)
    contrastive = form.kind == "contrastive"
    chosen = {part: rate for name, part in _PART_OF_RATE.items() if (rate := getattr(form, name)) > 0}
    if not contrastive:
        chosen.pop("text", None)
    data = _data_table(form, bounds)
    if data.get("set") == "tiles" and not contrastive:
        raise InputError("“scenes: captioned tiles” has no questions; it is for the contrastive stage only.")
    stage = {
        "name": form.kind,
        "kind": form.kind,
        "steps": form.steps,
        "batch_rows": form.batch_rows,
        "learning_rates": chosen,
        "betas": [0.9, 0.95],
        "decay": "matrices",
        "lora_rank": form.lora_rank,
        "packing": "off" if contrastive else form.packing,
        "eval_every": form.eval_every,
        "eval_examples": 48,
        "save_every_s": 20.0,
        "data": [data],
        "batch_tokens": min(Stage.batch_tokens, bounds.run_tokens),
    }
    values = {
        "title": title,
        "base": base,
        "seed": form.seed,
        "cache_mib": bounds.run_cache_bytes >> 20,
        "stages": [stage],
    }
    return build_recipe(values, Path())


def _data_table(form: Form, bounds: Bounds) -> dict[str, Any]:
    if form.data in BUILT_IN:
        return {**BUILT_IN[form.data], "seed": (form.seed + 21) % (int(SEEDS.most) + 1)}
    if form.data == HUB and not bounds.hub_data:
        raise InputError("This server fetches no data from the hub; upload a file, or choose drawn scenes.")
    if form.data not in (UPLOAD, HUB):
        raise InputError(f"There are no data “{form.data[:60]}”; choose one of {', '.join(list_data(bounds))}.")
    if form.source not in SOURCES:
        raise InputError(f"There is no format “{form.source[:60]}”; choose one of {', '.join(SOURCES)}.")
    if not form.path.strip():
        raise InputError(
            "Upload a file first."
            if form.data == UPLOAD
            else "Name the data set as on the hub, owner/name, or owner/name:subset."
        )
    if form.data == UPLOAD:
        converted = {"cache": str(Path(form.path).parent / CONVERTED)} if form.source == "rows" else {}
        images = {"images": form.images} if form.images else {}
        return {"source": form.source, "path": form.path, "on_error": "skip", **images, **converted}
    name, _, subset = form.path.strip().partition(":")
    # Nothing but a name on the hub: a path would open the server's own disk to everybody.
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) or Path(name).exists():
        raise InputError(f"“{name[:60]}” is no data set of the hub; give owner/name, or owner/name:subset.")
    # The other readers know files alone, and would look for one of this name.
    if form.source not in ("auto", "rows"):
        raise InputError(f"Data of the hub are read as rows; choose the format auto or rows, not {form.source}.")
    return {
        "source": "rows",
        "path": name,
        "limit": HUB_ROWS,
        "on_error": "skip",
        "streaming": True,
        **({"subset": subset} if subset else {}),
    }


@dataclass(frozen=True)
class Opened:
    """What the form can show of a recipe: ``values`` by the form's fields, and sentences on what it can't show."""

    values: Mapping[str, Any]
    left_out: tuple[str, ...]


_SHOWN = ("steps", "kind", "lora_rank", "packing", "batch_rows", "eval_every")
_SET_BY_FORM = ("name", "learning_rates", "data", "betas", "decay", "eval_examples", "save_every_s", "batch_tokens")


def open_recipe(recipe: Recipe, bases: Collection[str], shelf: PartShelf) -> Opened:
    """The form's fields for a recipe; ``bases`` are the models that it offers. What the form has no field for is told
    and left at the form's own. InputError for a base that isn't here."""
    stage = recipe.stages[0]
    left_out = [f"stage “{other.name}”: run it after this one, from its result" for other in recipe.stages[1:]]
    values: dict[str, Any] = {**_COMMON, "seed": recipe.seed, "path": "", "source": "auto"}
    values |= {name: getattr(stage, name) for name in _SHOWN}
    values |= {name: float(stage.learning_rates.get(part, 0.0)) for name, part in _PART_OF_RATE.items()}
    if recipe.parts is not None:
        values |= {"base": ASSEMBLED, "projector": recipe.parts.projector}
        values |= {of: shelf.name_of(getattr(recipe.parts, of), of) for of in ("vision", "language")}
    elif recipe.base in (NEW, *bases):
        values["base"] = recipe.base
    else:
        raise InputError(
            f"The recipe begins from “{name_base(recipe.base, None)[:80]}”, which isn't offered here; choose one of "
            f"{', '.join(bases)} in it, or run it with the command line."
        )
    values |= _open_data(stage.data[0], left_out)
    left_out += [f"the data “{name_table(table)}”: one table is shown" for table in stage.data[1:]]
    left_out += [f"the held-out data “{name_table(table)}”" for table in stage.held_out]
    plain = Stage(stage.name, stage.kind, stage.steps, stage.learning_rates, stage.data)
    others = (name for name in vars(plain) if name not in (*_SHOWN, *_SET_BY_FORM, "held_out"))
    left_out += [
        f"{name} = {name_value(getattr(stage, name))}"
        for name in others
        if getattr(stage, name) != getattr(plain, name)
    ]
    return Opened(values, tuple(left_out))


def _open_data(table: Mapping[str, Any], left_out: list[str]) -> dict[str, Any]:
    """The form's fields about the data of one table."""
    for name, known in BUILT_IN.items():
        if all(table.get(key) == known.get(key) for key in ("source", "set", "split")):
            more = {
                key: value for key, value in table.items() if key not in ("seed", "weight") and value != known.get(key)
            }
            left_out += [f"{key} = {name_value(value)} of the data" for key, value in more.items()]
            return {"data": name}
    path, source = str(table.get("path", "")), str(table["source"])
    if source not in SOURCES:
        raise InputError(
            f"The recipe's data are of the kind “{source[:40]}”, which this form doesn't offer; run it from a shell."
        )
    if source in ("auto", "rows") and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        return {"data": HUB, "path": path + (f":{table['subset']}" if "subset" in table else ""), "source": source}
    left_out.append(f"the file “{name_table(table)}”: upload it again")
    return {"data": UPLOAD, "source": source}


def describe_recipe(recipe: Recipe) -> list[str]:
    """A run's settings, shortly."""
    parts = []
    for stage in recipe.stages:
        rates = ", ".join(f"{part} {rate:g}" for part, rate in stage.learning_rates.items())
        parts.append(f"{stage.kind}, {stage.steps} steps of {stage.batch_rows * stage.accumulate} rows, {rates}")
        if stage.lora_rank:
            parts.append(f"LoRA rank {stage.lora_rank}")
        if stage.packing != "off":
            parts.append(f"packing {stage.packing}")
        names = (str(table.get("word") or name_table(table)) for table in stage.data)
        parts.append(f"data {', '.join(names)}")
    base = recipe.parts or name_base(recipe.base, None)
    return [*parts, f"from {base}, seed {recipe.seed}"]
