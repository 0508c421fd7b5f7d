"""What a run would train, and what its data are."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from inspector.bounds import format_bound
from inspector.intake import quote
from inspector.intake.parsers import ParserPool
from inspector.runs.uploads import measure
from model import VLM, InputError, InspectableVLM
from model.checkpoint import empty_vlm, save_shape
from model.families.transformers_vlm import TransformersVLM
from model.training.data.data_report import DataReport
from model.training.events import ModuleSize
from model.training.recipe import Recipe, Stage
from model.training.stage_data import Report, report_stage
from model.training.stages import build_stage, module_sizes
from model.training.tuned import check_tuning, count_trained

CHECKED = 200
"""Examples that a data check renders."""
OWN = ("scenes", "word")
"""Sources that are drawn by this program: nothing foreign is read."""


def size_modules(vlm: InspectableVLM, stage: Stage) -> tuple[ModuleSize, ...]:
    """What ``stage`` would train of a model like ``vlm``, by building it without memory: ``vlm`` stays as it is."""
    if isinstance(vlm, TransformersVLM):
        return count_trained(vlm, stage)
    assert isinstance(vlm, VLM)
    empty = empty_vlm(vlm.config, vlm.tokenizer)
    with torch.device("meta"):
        return module_sizes(build_stage(stage, empty, 0, vlm.tokenizer))


def check_base(vlm: InspectableVLM, recipe: Recipe) -> None:
    """InputError for a recipe that a model of this family can't go through."""
    if isinstance(vlm, TransformersVLM):
        check_tuning(vlm, recipe)


def check_data(vlm: InspectableVLM, recipe: Recipe) -> list[Report]:
    """A report for each data table of the first stage; of pairs for the contrastive stage just name and count.
    InputError if they can't be read. ``vlm`` needs no weights."""
    return report_stage(vlm, recipe, 0, CHECKED)


class DataCheck:
    """:func:`check_data` beside this process: looked at until it has an answer, closed whatever comes. Data of this
    program's own are looked at in it, at the first look."""

    def __init__(self, pool: ParserPool, vlm: InspectableVLM, recipe: Recipe, page: tuple[str, ...] = ()) -> None:
        tables = recipe.stages[0].data
        self._pool = pool
        self._own = (vlm, recipe) if all(table["source"] in OWN for table in tables) else None
        if self._own is not None:
            if page:
                pool.stop(page)
            return
        self._folder = Path(tempfile.mkdtemp(prefix="vlm-inspector-check-"))
        foreign = next(table for table in tables if table["source"] not in OWN)
        path = str(foreign.get("path", ""))
        self._name = Path(path).name if Path(path).is_absolute() else path
        save_shape(vlm, self._folder)
        # A file lies at an absolute path; anything else is a name on the hub.
        task = {"model": str(self._folder), "recipe": recipe.to_toml(), "folder": str(recipe.folder)}
        self._reading = pool.open(
            "inspector.intake.data_check",
            task,
            self._name,
            page=page,
            home=self._folder,
            online=not Path(path).is_absolute(),
        )
        self._reading.watch = self._check_disk

    def look(self) -> list[Report] | None:
        """The reports, or None as long as there are none. InputError with one sentence if the data can't be read."""
        if self._own is not None:
            # One at a time: this is the server's own time.
            if not self._pool.own.acquire(blocking=False):
                return None
            try:
                return check_data(*self._own)
            finally:
                self._pool.own.release()
        found = self._reading.look()
        if found is None:
            return None
        return [DataReport.from_json(report) if "measured" in report else report for report in found]

    def close(self) -> None:
        """Ends what is going on and leaves no folder."""
        if self._own is None:
            self._reading.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _check_disk(self) -> None:
        """What a table unpacks to is written to disk while it is read, in as many files as it likes."""
        most = self._pool.bounds.unpacked_bytes
        if measure(self._folder) > 2 * most:
            raise InputError(f"{quote(self._name)} unpacks to more than {format_bound(most, 'bytes')}; use fewer rows.")
