"""What a run would train, and what its data are."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from inspector.bounds import format_bound
from inspector.intake import quote
from inspector.intake.parsers import ParserPool
from inspector.runs.uploads import measure
from model import VLM, InputError, InspectableVLM
from model.checkpoint import save_shape
from model.memory import format_bytes, measure_free_ram
from model.training.data.data_report import DataReport
from model.training.first_batch import BatchRow, show_rows
from model.training.memory_estimate import MemoryEstimate, StepShape, combine, draw_step, estimate_stage
from model.training.model_shape import shape_of, size_modules
from model.training.recipe import Recipe
from model.training.stage_data import Report, open_stage_data, report_stage
from model.training.tuned import check_tuning

if TYPE_CHECKING:
    from model.families.transformers_vlm import TransformersVLM

CHECKED = 200
"""Examples that a data check renders."""
OWN = ("scenes", "word")
"""Sources that are drawn by this program: nothing foreign is read."""


def check_base(vlm: InspectableVLM, recipe: Recipe) -> None:
    """InputError for a recipe that a model of this family can't go through."""
    if not isinstance(vlm, VLM):
        check_tuning(cast("TransformersVLM", vlm), recipe)


def check_data(vlm: InspectableVLM, recipe: Recipe) -> list[Report]:
    """A report for each data table of the first stage; of pairs for the contrastive stage just name and count.
    InputError if they can't be read. ``vlm`` needs no weights."""
    return report_stage(vlm, recipe, 0, CHECKED)


@dataclass(frozen=True)
class StagePlan:
    """What the first stage of a run will take, and the beginning of its first batch, as the run will draw it."""

    memory: MemoryEstimate
    rows: tuple[BatchRow, ...]

    def to_json(self) -> dict[str, Any]:
        return {"memory": self.memory.to_json(), "rows": [row.to_json() for row in self.rows]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StagePlan:
        rows = tuple(map(BatchRow.from_json, values["rows"]))
        return cls(MemoryEstimate(**values["memory"]), rows)


def plan_stage(vlm: InspectableVLM, recipe: Recipe) -> StagePlan:
    """Of the first stage. InputError where no row can be drawn. ``vlm`` needs no weights."""
    data = open_stage_data(recipe, 0, vlm.config if isinstance(vlm, VLM) else None)
    step = draw_step(vlm, recipe, 0, data)
    return StagePlan(estimate_stage(vlm, recipe, 0, data, step), show_rows(vlm, step))


def least_memory(vlm: InspectableVLM, recipe: Recipe) -> MemoryEstimate:
    """What the first stage takes whatever its data are: everything but activations and features."""
    stage = recipe.stages[0]
    return combine(shape_of(vlm), stage, size_modules(vlm, stage), StepShape(), 0, "fp32")


def say_room(memory: MemoryEstimate, most: int | None) -> str | None:
    """Why it won't fit what a run is given, ``most``, or what is free now; None if it does."""
    free = measure_free_ram()
    for room, whose in ((most, "a run is given here"), (free, "are free on this machine now")):
        if room is not None and memory.total > room:
            return f"it takes {memory}, and {format_bytes(room)} {whose}"
    return None


class DataCheck:
    """:func:`check_data` beside this process: looked at until it has an answer, closed whatever comes. Data of this
    program's own are looked at in it, at the first look."""

    def __init__(self, pool: ParserPool, vlm: InspectableVLM, recipe: Recipe, page: tuple[str, ...] = ()) -> None:
        tables = recipe.stages[0].data
        self.plan: StagePlan | None = None
        """What the run will take; known with the reports."""
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
                found_here = check_data(*self._own)
                self.plan = plan_stage(*self._own)
                return found_here
            finally:
                self._pool.own.release()
        found = self._reading.look()
        if found is None:
            return None
        self.plan = None if found["plan"] is None else StagePlan.from_json(found["plan"])
        return [DataReport.from_json(report) if "measured" in report else report for report in found["reports"]]

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
