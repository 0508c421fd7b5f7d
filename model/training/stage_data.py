"""What a stage trains on and what it holds out, opened from its recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.config import VLMConfig
from model.errors import InputError
from model.training.data.datasets import Mixture, hold_out, open_captioned, open_examples
from model.training.recipe import Recipe


@dataclass(frozen=True)
class StageData:
    """``counts``: how many examples are trained on, by data set. ``held_out``: those that the stage is measured on,
    ``eval_examples`` at most. Examples of a language stage, pictures with captions of a contrastive one."""

    counts: dict[str, int]
    mixture: Mixture[Any]
    held_out: tuple[Any, ...]


def name_table(table: Mapping[str, Any]) -> str:
    """What a data table is called: a set or a data set of the hub as it is, a file or folder by its own name."""
    path = str(table.get("path", ""))
    if Path(path).is_absolute() or path.startswith((".", "~")):
        path = Path(path).name
    return str(table.get("set") or path or table["source"])


def stage_seed(recipe: Recipe, index: int) -> int:
    """The seed of everything that stage ``index`` draws; an index below 0 counts from the last stage."""
    return recipe.seed + 1000 * (index % len(recipe.stages))


def open_stage_data(recipe: Recipe, index: int, config: VLMConfig) -> StageData:
    """The data of stage ``index``. InputError if they can't be read or hold no example to train on."""
    stage = recipe.stages[index]
    seed = stage_seed(recipe, index)
    sources, held = _open_sources(recipe, index, config)
    counts: dict[str, int] = {}
    for table, source in zip(stage.data, sources, strict=True):
        name = name_table(table)
        counts[name] = counts.get(name, 0) + len(source)
    weights = tuple(float(table.get("weight", 1.0)) for table in stage.data)
    return StageData(counts, Mixture(tuple(sources), weights, seed), draw_evenly(held, stage.eval_examples, seed))


def draw_held_out(recipe: Recipe, index: int, config: VLMConfig, most: int) -> tuple[Any, ...]:
    """Up to ``most`` items that stage ``index`` holds out, whatever its ``eval_examples`` is. InputError as above."""
    return draw_evenly(_open_sources(recipe, index, config)[1], most, stage_seed(recipe, index))


def _open_sources(recipe: Recipe, index: int, config: VLMConfig) -> tuple[list[Sequence[Any]], list[Sequence[Any]]]:
    """One source for each table to train on; those held out, of tables of their own if the recipe names any."""
    stage = recipe.stages[index]

    def open_table(table: Mapping[str, Any]) -> Sequence[Any]:
        if stage.kind == "contrastive":
            return open_captioned(table, recipe.folder, config)
        return open_examples(table, recipe.folder)

    whole = [open_table(table) for table in stage.data]
    if stage.held_out:
        return whole, [open_table(table) for table in stage.held_out]
    parts = [hold_out(source, stage_seed(recipe, index)) for source in whole]
    return [kept for kept, _ in parts], [held for _, held in parts]


def draw_evenly(sources: Sequence[Sequence[Any]], most: int, seed: int) -> tuple[Any, ...]:
    """Up to ``most`` items, as many from each source that has any; those that can't be read are left out, as training
    leaves them out."""
    filled = [source for source in sources if len(source)]
    if not filled or not most:
        return ()
    each = max(1, most // len(filled))
    found: list[Any] = []
    for number, source in enumerate(filled):
        for place in np.random.default_rng((seed, 13, number)).permutation(len(source))[:each]:
            with contextlib.suppress(InputError):
                found.append(source[int(place)])
    return tuple(found)
