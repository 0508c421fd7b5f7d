"""From what a person chose in the Train tab to a recipe. No gradio here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import InputError
from model.training.recipe import Recipe, build_recipe

NEW = "new"
"""The base that knows nothing: random weights, the embedded model's shape."""

BUILT_IN: dict[str, dict[str, Any]] = {
    "scenes: one picture": {"source": "scenes", "set": "single", "turns": 5, "pictures": 1500},
    "scenes: several pictures": {"source": "scenes", "set": "several", "turns": 6, "pictures": 900},
    "scenes: captions": {"source": "scenes", "set": "captions", "pictures": 1500},
    "scenes: captioned tiles": {"source": "scenes", "set": "tiles"},
    "easy-VQA": {"source": "easy-vqa", "split": "train", "turns": 6},
}
UPLOAD, HUB = "my file", "a hub data set"
DATA = (*BUILT_IN, UPLOAD, HUB)
SOURCES = ("auto", "rows", "llava", "chat", "captions")


@dataclass(frozen=True)
class Form:
    """The fields. Rates: 0 is frozen; ``text_rate`` is the contrastive stage's text tower. ``path``: the upload or hub
    id; ``source``: its reader."""

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


@dataclass(frozen=True)
class Preset:
    """A way to begin: ``why`` says what it does to the model; the rest fills the form."""

    title: str
    why: str
    values: Mapping[str, Any]


_COMMON: dict[str, Any] = {"vision_rate": 0.0, "projector_rate": 0.0, "decoder_rate": 0.0, "text_rate": 0.0,
                           "lora_rank": 0, "packing": "off", "batch_rows": 16, "eval_every": 25}  # fmt: skip
PRESETS: dict[str, Preset] = {
    "projector alignment": Preset(
        "projector alignment",
        "The projector alone learns, on questions whose answer is the caption: image features find their place among "
        "the words. Encoder and language model stay as they are.",
        {**_COMMON, "kind": "alignment", "data": "scenes: captions", "steps": 100, "projector_rate": 2e-3},
    ),
    "instruction tuning": Preset(
        "instruction tuning",
        "Projector and language model learn from questions and answers; the encoder stays frozen, so its output is "
        "computed once for each picture.",
        {**_COMMON, "kind": "instruction", "data": "scenes: one picture", "steps": 100, "projector_rate": 5e-4,
         "decoder_rate": 5e-4},
    ),
    "LoRA": Preset(
        "LoRA",
        "The language model's weights stay; beside each matrix a product of two thin ones learns. Few numbers, a small "
        "file, and what was known before is forgotten less.",
        {**_COMMON, "kind": "instruction", "data": "scenes: one picture", "steps": 100, "projector_rate": 0.0,
         "decoder_rate": 2e-3, "lora_rank": 8},
    ),
    "contrastive demo": Preset(
        "contrastive demo",
        "CLIP's stage: the image encoder and a small text tower learn which caption belongs to which picture of the "
        "batch. The language model is not in play and won't know the changed encoder, so it starts from nothing.",
        {**_COMMON, "kind": "contrastive", "base": NEW, "data": "scenes: captioned tiles", "steps": 100,
         "vision_rate": 1.5e-3, "text_rate": 1.5e-3, "batch_rows": 48},
    ),
    "custom": Preset("custom", "Every field is yours; a learning rate of 0 freezes its part.", {}),
}  # fmt: skip


def _number(value: Any, name: str, whole: bool) -> Any:
    if value is None:
        raise InputError(f"{name} is empty; give a number.")
    if whole and float(value) != int(value):
        raise InputError(f"{name} is {value}; it must be a whole number.")
    return int(value) if whole else float(value)


def read_form(**values: Any) -> Form:
    """Checks that every number is one; ranges are the recipe's own business. InputError names the field."""
    whole = {"steps": "Steps", "lora_rank": "LoRA rank", "batch_rows": "Rows per batch", "eval_every": "Evaluate every",
             "seed": "Seed"}  # fmt: skip
    rates = {
        "vision_rate": "The encoder's learning rate",
        "projector_rate": "The projector's learning rate",
        "decoder_rate": "The language model's learning rate",
        "text_rate": "The text tower's learning rate",
    }
    checked = {**{key: _number(values[key], name, True) for key, name in whole.items()},
               **{key: _number(values[key], name, False) for key, name in rates.items()}}  # fmt: skip
    return Form(**{**values, **checked})


def write_recipe(form: Form, base: str, title: str) -> Recipe:
    """The recipe of a form; ``base`` is where its base model lies. InputError for what can't be trained."""
    contrastive = form.kind == "contrastive"
    rates = {"vision_encoder": form.vision_rate, "MP": form.projector_rate, "decoder": form.decoder_rate,
             "text": form.text_rate}  # fmt: skip
    for part, rate in rates.items():
        if rate < 0 or rate > 1:
            raise InputError(f"The learning rate of {part} is {rate:g}; it must lie between 0 (frozen) and 1.")
    chosen = {part: rate for part, rate in rates.items() if rate > 0}
    if not contrastive:
        chosen.pop("text", None)
    if not 0 <= form.lora_rank <= 256:
        raise InputError(f"The LoRA rank is {form.lora_rank}; it must lie between 0 (off) and 256.")
    if not 1 <= form.batch_rows <= 512:
        raise InputError(f"There are {form.batch_rows} rows per batch; allowed are 1 to 512.")
    data = _data_table(form)
    if data.get("set") == "tiles" and not contrastive:
        raise InputError("“scenes: captioned tiles” has no questions; it is for the contrastive stage only.")
    stage = {
        "name": form.kind, "kind": form.kind, "steps": form.steps, "batch_rows": form.batch_rows,
        "learning_rates": chosen, "betas": [0.9, 0.95], "lora_rank": form.lora_rank,
        "packing": "off" if contrastive else form.packing, "eval_every": form.eval_every, "eval_examples": 48,
        "save_every_s": 20.0, "data": [data],
    }  # fmt: skip
    return build_recipe({"title": title, "base": base, "seed": form.seed, "stages": [stage]}, Path())


def _data_table(form: Form) -> dict[str, Any]:
    if form.data in BUILT_IN:
        return {**BUILT_IN[form.data], "seed": form.seed + 21}
    if form.data not in (UPLOAD, HUB):
        raise InputError(f"There are no data “{form.data}”; choose one of {', '.join(DATA)}.")
    if not form.path.strip():
        raise InputError("Upload a file first." if form.data == UPLOAD else
                         "Name the data set as on the hub, owner/name, or owner/name:subset.")  # fmt: skip
    if form.data == UPLOAD:
        return {"source": form.source, "path": form.path, "on_error": "skip"}
    name, _, subset = form.path.strip().partition(":")
    # Nothing but a name on the hub: a path would open the server's own disk to everybody.
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) or Path(name).exists():
        raise InputError(f"“{name[:60]}” is no data set of the hub; give owner/name, or owner/name:subset.")
    table = {"source": "rows" if form.source == "auto" else form.source, "path": name, "limit": 2000,
             "on_error": "skip"}  # fmt: skip
    if table["source"] == "rows":
        table |= {"streaming": True, **({"subset": subset} if subset else {})}
    return table


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
        names = (str(table.get("word") or table.get("set") or Path(str(table.get("path", table["source"]))).name)
                 for table in stage.data)  # fmt: skip
        parts.append(f"data {', '.join(names)}")
    base = recipe.base if recipe.base in (NEW, "embedded") else Path(recipe.base).name
    return [*parts, f"from {base}, seed {recipe.seed}"]
