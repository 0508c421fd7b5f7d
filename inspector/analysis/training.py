"""What a run would train, and what its data are."""

from __future__ import annotations

from typing import Any

import torch

from model import VLM
from model.checkpoint import empty_vlm
from model.training.data_report import DataReport, report_data
from model.training.datasets import open_captioned, open_examples
from model.training.events import ModuleSize
from model.training.recipe import Recipe, Stage
from model.training.stages import build_stage, module_sizes

CHECKED = 200
"""Examples that a data check renders."""


def size_modules(vlm: VLM, stage: Stage) -> tuple[ModuleSize, ...]:
    """What ``stage`` would train of a model like ``vlm``, by building it without memory: ``vlm`` stays as it is."""
    empty = empty_vlm(vlm.config, vlm.tokenizer)
    with torch.device("meta"):
        return module_sizes(build_stage(stage, empty, 0, vlm.tokenizer))


def check_data(vlm: VLM, recipe: Recipe) -> list[DataReport | dict[str, Any]]:
    """A report for each data table of the first stage; of pairs for the contrastive stage just name and count.
    InputError if they can't be read."""
    stage = recipe.stages[0]
    found: list[DataReport | dict[str, Any]] = []
    for table in stage.data:
        if stage.kind == "contrastive":
            pairs = open_captioned(table, recipe.folder, vlm.config)
            found.append({"name": str(getattr(pairs, "name", table["source"])), "examples": len(pairs)})
        else:
            examples = open_examples(table, recipe.folder)
            found.append(report_data(vlm, examples, stage.longest_sample, sample=CHECKED))
    return found
