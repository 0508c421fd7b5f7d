"""What a stage trains on and what it holds out, opened from its recipe."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.config import VLMConfig
from model.errors import InputError
from model.families.nanovlm import VLM
from model.families.protocol import InspectableVLM
from model.training.data.data_report import DataReport, look_at, report_data
from model.training.data.datasets import Mixture, as_pairs, open_examples, open_pairs
from model.training.data.example import Example
from model.training.data.ledger import LOOKED_AT, Entry, Ledger, open_ledger, stop_at
from model.training.data.splits import Drawn, Split, count_held, split_sources
from model.training.recipe import Recipe, Stage

Report = DataReport | dict[str, Any]
UNDIVIDED = "nothing is held out, for too few images or questions differ; name a table of its own to measure on"


@dataclass(frozen=True)
class StageData:
    """``counts``: how many examples are trained on, by data set. ``held_out``: those that the stage is measured on,
    ``eval_examples`` at most. Examples of a language stage, pictures with captions of a contrastive one. ``ledgers``:
    the account of each table. ``digest``: the same for the same data alone."""

    counts: dict[str, int]
    mixture: Mixture[Any]
    held_out: tuple[Any, ...]
    ledgers: tuple[Ledger, ...]
    digest: str


@dataclass(frozen=True)
class _Table:
    """One data table of a stage: its ``source``, and what of it is trained on and held out."""

    spec: Mapping[str, Any]
    source: Sequence[Any]
    split: Split


def name_table(table: Mapping[str, Any]) -> str:
    """What a data table is called: a set or a data set of the hub as it is, a file or folder by its own name."""
    path = str(table.get("path", ""))
    if Path(path).is_absolute() or path.startswith((".", "~")):
        path = Path(path).name
    return str(table.get("set") or path or table["source"])


def stage_seed(recipe: Recipe, index: int) -> int:
    """The seed of everything that stage ``index`` draws; an index below 0 counts from the last stage."""
    return recipe.seed + 1000 * (index % len(recipe.stages))


def open_stage_data(recipe: Recipe, index: int, config: VLMConfig | None) -> StageData:
    """The data of stage ``index``. InputError if they can't be read or hold no example to train on."""
    stage = recipe.stages[index]
    seed = stage_seed(recipe, index)
    tables, measured = _open_tables(recipe, index, config)
    counts: dict[str, int] = {}
    for table in tables:
        name = name_table(table.spec)
        counts[name] = counts.get(name, 0) + len(table.split.train)
    trained = tuple(_as_items(stage, table.split.train) for table in tables)
    weights = tuple(float(table.spec.get("weight", 1.0)) for table in tables)
    mixture = Mixture(trained, weights, seed)
    drawn = _draw_each(measured, stage.eval_examples, seed)
    held_out = tuple(item for items in drawn for item in items)
    return StageData(counts, mixture, held_out, _account(tables, drawn, bool(stage.held_out)), _digest(tables))


def draw_held_out(recipe: Recipe, index: int, config: VLMConfig | None, most: int) -> tuple[Any, ...]:
    """Up to ``most`` items that stage ``index`` holds out, whatever its ``eval_examples`` is. InputError as above."""
    return draw_evenly(_open_tables(recipe, index, config)[1], most, stage_seed(recipe, index))


def look_at_stage(vlm: InspectableVLM, recipe: Recipe, index: int, data: StageData) -> tuple[Ledger, ...]:
    """The ledgers of ``data`` once up to LOOKED_AT examples of each table were rendered, as a report of the data has
    them; sets that are drawn here are whole and are not looked at. InputError for the first example that can't be
    opened where its table may not pass over it, and for data without images where only the projector trains."""
    stage = recipe.stages[index]
    found = []
    imageless = set(stage.learning_rates) == {"MP"}
    for ledger, part in zip(data.ledgers, data.mixture.sources, strict=True):
        whole = _whole(part)
        if isinstance(whole, Drawn):
            found.append(ledger)
            imageless = False
            continue
        look = look_at(vlm, whole, longest(stage), sample=LOOKED_AT, seed=recipe.seed, pairs=_is_contrastive(stage))
        if look.unopened is not None and getattr(whole, "stops", False):
            raise stop_at(look.unopened)
        found.append(replace(ledger, looked_at=look.measured, dropped=look.entries))
        imageless = imageless and not look.images
    if imageless:
        looked = sum(ledger.looked_at for ledger in found)
        raise InputError(
            f"Stage “{stage.name}” trains the projector (MP) alone, and of the {looked:,} examples that were looked at "
            "none that can be used has an image, so it has nothing to learn from; choose data with images, or train "
            "decoder, too."
        )
    return tuple(found)


def report_stage(vlm: InspectableVLM, recipe: Recipe, index: int, sample: int) -> list[Report]:
    """A report for each data table of stage ``index``; ``vlm`` needs no weights. For pairs just name and count.
    InputError if they can't be read."""
    stage = recipe.stages[index]
    tables, measured = _open_tables(recipe, index, vlm.config if isinstance(vlm, VLM) else None)
    drawn = _draw_each(measured, stage.eval_examples, stage_seed(recipe, index))
    reports: list[Report] = []
    for table, ledger in zip(tables, _account(tables, drawn, bool(stage.held_out)), strict=True):
        if _is_contrastive(stage):
            look = look_at(vlm, table.source, longest(stage), sample=sample, seed=recipe.seed, pairs=True)
            ledger = replace(ledger, looked_at=look.measured, dropped=look.entries)
            name = str(getattr(table.source, "name", table.spec["source"]))
            reports.append({"name": name, "examples": len(table.source), "ledger": ledger.to_json()})
        else:
            report = report_data(vlm, table.source, longest(stage), sample=sample, seed=recipe.seed)
            reports.append(report.with_ledger(ledger))
    return reports


def longest(stage: Stage) -> int:
    """Tokens of the longest sample that the stage trains on, if the model reads as many."""
    most = stage.longest_sample
    return stage.batch_tokens if most is None else min(most, stage.batch_tokens)


def draw_evenly(sources: Sequence[Sequence[Any]], most: int, seed: int) -> tuple[Any, ...]:
    """Up to ``most`` items, as many from each source that has any; those that can't be read are left out, as training
    leaves them out."""
    return tuple(item for items in _draw_each(sources, most, seed) for item in items)


def _draw_each(sources: Sequence[Sequence[Any]], most: int, seed: int) -> list[list[Any]]:
    filled = [number for number, source in enumerate(sources) if len(source)]
    found: list[list[Any]] = [[] for _ in sources]
    for rank, number in enumerate(filled if most else ()):
        source, each = sources[number], max(1, most // len(filled))
        for place in np.random.default_rng((seed, 13, rank)).permutation(len(source))[:each]:
            with contextlib.suppress(InputError):
                found[number].append(source[int(place)])
    return found


def _is_contrastive(stage: Stage) -> bool:
    return stage.kind == "contrastive"


def _as_items(stage: Stage, source: Sequence[Any]) -> Sequence[Any]:
    return as_pairs(source) if _is_contrastive(stage) else source


def _open_tables(recipe: Recipe, index: int, config: VLMConfig | None) -> tuple[list[_Table], list[Sequence[Any]]]:
    """The tables that stage ``index`` trains on, and the sources that it is measured on: those held out, or tables of
    their own if the recipe names any.

    What is held out is chosen over all stages, so that an image which one is measured on is trained on in none."""
    index %= len(recipe.stages)
    trained: list[tuple[int, Mapping[str, Any], Sequence[Any]]] = []
    measured: list[tuple[int, Sequence[Any]]] = []

    def open_table(stage: Stage, table: Mapping[str, Any]) -> Sequence[Any]:
        if _is_contrastive(stage):
            assert config is not None  # other families have no such stage
            return open_pairs(table, recipe.folder, config)
        return open_examples(table, recipe.folder)

    for number, stage in enumerate(recipe.stages):
        tables_of_stage = [
            (table, kept)
            for tables, kept in ((stage.data, trained), (stage.held_out, None))
            for table in tables
            if number == index or not _is_drawn(stage, table)
        ]
        for table, kept in tables_of_stage:
            if kept is None:
                measured.append((number, open_table(stage, table)))
            else:
                kept.append((number, table, open_table(stage, table)))
    own = [source for _, source in measured]
    seeds = [None if recipe.stages[number].held_out else stage_seed(recipe, number) for number, _, _ in trained]
    splits = split_sources([source for _, _, source in trained], seeds, own)
    tables = [
        _Table(spec, source, split)
        for (number, spec, source), split in zip(trained, splits, strict=True)
        if number == index
    ]
    stage = recipe.stages[index]
    held = [source for number, source in measured if number == index] or [table.split.held for table in tables]
    return tables, [_as_items(stage, source) for source in held]


def _is_drawn(stage: Stage, table: Mapping[str, Any]) -> bool:
    """Whether every image of a table is drawn for it alone. Captioned tiles have some from files."""
    tiles = _is_contrastive(stage) and table.get("set", "tiles") == "tiles"
    return table["source"] == "word" or (table["source"] == "scenes" and not tiles)


def _account(tables: Sequence[_Table], drawn: Sequence[Sequence[Any]], apart: bool) -> tuple[Ledger, ...]:
    """``drawn``: of each table, the held-out items that are measured on; or of tables ``apart``, that are held out
    whole."""
    ledgers = []
    for table, items in zip(tables, [()] * len(tables) if apart else drawn, strict=True):
        split = table.split
        images, questions = split.images, split.questions
        if images is None or questions is None:
            # Of a drawn set no more is there than what was drawn to be measured on.
            images, questions = _count_drawn(items) if len(split.held) else (0, 0)
        ledger = open_ledger(name_table(table.spec), table.source)
        if count_held(len(table.source)) and not len(split.held) and not apart:
            ledger = replace(ledger, notes=(*ledger.notes, Entry(UNDIVIDED, 1, name_table(table.spec))))
        ledgers.append(
            replace(
                ledger,
                trained=len(split.train),
                held_out=len(split.held),
                held_out_images=images,
                held_out_questions=questions,
                beside=split.beside,
            )
        )
    return tuple(ledgers)


def _count_drawn(items: Sequence[Any]) -> tuple[int, int]:
    """Different images, and questions, of examples or pairs."""
    images: set[bytes] = set()
    questions = 0
    for item in items:
        if isinstance(item, Example):
            messages = item.conversation.messages
            images |= {image.tobytes() for message in messages for image in message.images if hasattr(image, "tobytes")}
            questions += sum(message.role == "assistant" for message in messages)
        else:
            images.add(item.image.tobytes())
            questions += 1
    return len(images), questions


def _whole(source: Any) -> Any:
    """What a part of a source, or its pairs, are of."""
    while (inner := getattr(source, "examples", getattr(source, "whole", None))) is not None:
        source = inner
    return source


def _digest(tables: Sequence[_Table]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for table in tables:
        # Where the data lie is nobody's business: what they hold counts.
        spec = {key: value for key, value in table.spec.items() if key not in ("path", "images", "cache", "on_error")}
        found.update(json.dumps(spec, sort_keys=True, default=str).encode())
        found.update(bytes(getattr(table.source, "digest", b"")))
        found.update(f"{len(table.source)} {len(table.split.train)}".encode())
    return found.hexdigest()
