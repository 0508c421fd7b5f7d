"""``python -m inspector.intake.data_check``: :func:`inspector.runs.metrics.check_data` in a process of its own
(see :mod:`inspector.intake.confinement`).

The task: ``model``, a folder with a model's config and tokenizer; ``recipe``, its text; ``folder``, where its relative
paths begin. The value: “reports”, one for each data table, and the “plan” of the first stage, None where no row of it
can be drawn: the reports say why.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

from inspector.intake.confinement import serve
from inspector.runs.metrics import check_data, plan_stage
from model import InputError
from model.checkpoint import load_shape
from model.training.data.data_report import DataReport
from model.training.recipe import build_recipe


def check(task: dict[str, Any]) -> dict[str, Any]:
    """The value for one task."""
    recipe = build_recipe(tomllib.loads(task["recipe"]), Path(task["folder"]))
    vlm = load_shape(Path(task["model"]))
    reports = check_data(vlm, recipe)
    plan: dict[str, Any] | None
    try:
        plan = plan_stage(vlm, recipe).to_json()
    except InputError:
        plan = None
    shown = [report.shorten().to_json() if isinstance(report, DataReport) else report for report in reports]
    return {"reports": shown, "plan": plan}


def prepare(task: dict[str, Any]) -> None:
    """Imports what reads tables, before memory is counted."""
    if '"rows"' in task["recipe"]:
        import datasets  # noqa: F401


if __name__ == "__main__":
    sys.exit(serve(check, InputError, prepare))
