"""One job's folder: who asked for what and when, how it stands, and what of it is damaged. No gradio here.

    job.json  recipe.toml  output.txt  .process  run/

``run/`` is the run's own folder (see :mod:`model.training.runs`). Everything worth knowing lies here, so that any
server finds it, after whatever became of the one before.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from inspector.bounds import Bounds
from inspector.runs.job_queue import PLAIN
from inspector.runs.processes import OUTPUT, RUN_FOLDER, explain_end, find_process, last_words
from model import InputError
from model.training.recipe import Recipe, read_recipe
from model.training.runs import (
    ADAPTER,
    CONTROL,
    METRICS,
    MODEL,
    RECIPE,
    RUN,
    STATE,
    WEIGHTS,
    RunFolder,
    read_small,
    read_values,
    write_text,
)

FORMAT = 1
JOB = "job.json"

Status = Literal[
    "queued", "starting", "running", "pausing", "paused", "stopping", "stopped", "done", "failed", "interrupted"
]
LIVE: tuple[Status, ...] = ("queued", "starting", "running", "pausing", "paused", "stopping")
PAUSABLE: tuple[Status, ...] = ("starting", "running")
STOPPABLE: tuple[Status, ...] = ("starting", "running", "pausing", "paused")


@dataclass(frozen=True)
class JobState:
    """One look at a job. ``position`` counts the jobs before it in the queue; ``error`` is one sentence; ``output``
    the process's last words where it failed."""

    id: str
    title: str
    created: float
    status: Status
    position: int = 0
    error: str | None = None
    output: str = ""
    run: dict[str, Any] = field(default_factory=dict)
    has_model: bool = False
    has_adapter: bool = False
    can_resume: bool = False

    @property
    def live(self) -> bool:
        return self.status in LIVE

    @property
    def can_pause(self) -> bool:
        return self.status in PAUSABLE

    @property
    def can_stop(self) -> bool:
        return self.status in ("queued", *STOPPABLE)

    @property
    def can_go_on(self) -> bool:
        """Whether :meth:`inspector.runs.jobs.JobTable.resume` does something."""
        return self.status in ("paused", "pausing") or (self.can_resume and not self.live)


@dataclass(frozen=True)
class Record:
    """What ``job.json`` says. ``person``: who asked, kept only while the job waits or trains. ``uploads``: the name of
    the folder that belongs to it. ``begun``: when the process began that trains it, None where none does; ``spent_s``:
    what the processes before took. ``pid`` and ``exit_status`` are the last process's that ended, ``why`` the sentence
    of the server that ended it."""

    id: str
    title: str
    created: float
    person: str | None = None
    uploads: str | None = None
    cancelled: bool = False
    begun: float | None = None
    spent_s: float = 0.0
    ended: float | None = None
    pid: int | None = None
    exit_status: int | None = None
    why: str | None = None


_NUMBER, _TEXT = (int, float, NoneType), (str, NoneType)
_KINDS: dict[str, Any] = {
    "id": str,
    "title": str,
    "created": (int, float),
    "person": _TEXT,
    "uploads": _TEXT,
    "cancelled": bool,
    "begun": _NUMBER,
    "spent_s": (int, float),
    "ended": _NUMBER,
    "pid": (int, NoneType),
    "exit_status": (int, NoneType),
    "why": _TEXT,
}
LAST_YEAR = 4_000_000_000.0
"""Seconds since 1970 beyond which no calendar is asked for a date."""


class JobFolder:
    """The folder ``path``; its name is the job's id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = RunFolder(path / RUN_FOLDER)

    # --- the record ---

    def create(self, record: Record, recipe: Recipe) -> None:
        """InputError where it can't be written; nothing is left then."""
        try:
            self.path.mkdir()
            write_text(self.path / RECIPE, recipe.to_toml())
            self.write(record)
        except OSError as error:
            shutil.rmtree(self.path, ignore_errors=True)
            raise InputError(f"The run can't be written ({error.strerror}); nothing was started.") from error

    def read(self) -> Record:
        """InputError if ``job.json`` is damaged or another version's."""
        try:
            values = read_values(self.path / JOB)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"This run is damaged: its {JOB} can't be read ({why}). Start it anew.") from error
        if values.get("format") != FORMAT:
            raise InputError("This run was written by another version of this app; start it anew.")
        known = {key: value for key, value in values.items() if key in _KINDS}
        wrong = [key for key, value in known.items() if not isinstance(value, _KINDS[key])]
        wrong += [key for key in ("id", "title", "created") if key not in known]
        wrong += [key for key in ("created", "begun", "spent_s", "ended") if not wrong and not _is_time(known.get(key))]
        if not wrong and known["id"] != self.path.name:
            wrong = ["id"]
        if not wrong and known.get("uploads") and not PLAIN.fullmatch(known["uploads"]):
            wrong = ["uploads"]
        if wrong:
            raise InputError(f"This run is damaged: its {JOB} has no sound “{wrong[0]}”. Start it anew.")
        return Record(**known)

    def write(self, record: Record) -> None:
        write_text(self.path / JOB, json.dumps({"format": FORMAT, **asdict(record)}, ensure_ascii=False))

    def note(self, **changes: Any) -> Record:
        """Writes the record with these changes. InputError where there is none, OSError where it can't be written."""
        record = replace(self.read(), **changes)
        self.write(record)
        return record

    def recipe(self) -> Recipe:
        """InputError if it can't be used."""
        path = self.path / RECIPE
        try:
            if not path.is_file():
                raise InputError(f"This run's {RECIPE} is missing; choose its settings again and start it anew.")
            read_small(path)  # one that is too large to be one would take minutes to understand
            return read_recipe(path)
        except InputError as error:
            raise InputError(str(error).replace(str(self.path), "RUN")) from error
        # A foreign file may hold anything where the recipe expects a table or a number.
        except (OSError, TypeError, ValueError, AttributeError, KeyError, ArithmeticError, RecursionError) as error:
            raise InputError(f"This run's {RECIPE} is damaged ({error}); start it anew.") from error

    # --- its time ---

    def spent(self, record: Record, now: float) -> float:
        """Seconds that its processes took until ``now``, pauses included."""
        return record.spent_s + (max(0.0, now - record.begun) if record.begun is not None else 0.0)

    def last_sign(self) -> float:
        """When something of it was written last; how long a process lived whose end nobody saw."""
        found = 0.0
        for path in (self.path, self.run.path, self.run.path / METRICS, self.run.path / RUN, self.path / OUTPUT):
            with contextlib.suppress(OSError):  # what isn't there was not written
                found = max(found, path.stat().st_mtime)
        return found

    # --- looking ---

    def find_process(self) -> int | None:
        """The number of the process that trains here, whoever started it; 0 where only that there is one is known, None
        if there is none."""
        pid = find_process(self.path)
        return 0 if pid is None and self.run.is_locked else pid

    def look(self, bounds: Bounds, uploads: Path, place: int | None, pid: int | None) -> JobState:
        """How it stands. ``uploads``: where uploads' folders lie; ``place`` in the queue; ``pid`` as
        :meth:`find_process`."""
        state = JobState(
            self.path.name,
            "a damaged run",
            min(self.last_sign(), LAST_YEAR),
            "failed",
            has_model=any(_is_file(self.run.path / MODEL / name) for name in WEIGHTS),
            has_adapter=any(_is_file(self.run.path / name / WEIGHTS[1]) for name in (ADAPTER, MODEL)),
        )
        try:
            record = self.read()
        except InputError as error:
            return replace(state, status="failed" if pid is None else "running", error=str(error))
        state = replace(state, title=record.title, created=record.created)
        if pid is None and place is not None and record.begun is None and record.ended is None:
            return replace(state, status="queued", position=place)
        there = os.path.lexists(self.run.path / RUN)
        problem: str | None = None
        if there:
            try:
                state = replace(state, run=self.run.read_run())
            except InputError as error:
                problem = str(error).replace(str(self.run.path), "the run's folder")
        if pid is not None:
            return replace(state, status=self._live_status(state.run, pid), error=problem)
        return self._look_at_end(record, state, there, problem, self._why_not(record, bounds, uploads))

    def _live_status(self, run: dict[str, Any], pid: int) -> Status:
        """Of a process that is alive, once what it was asked for is taken in."""
        # Until it has taken the folder over, that says what it said before, if anything.
        status: Status = "paused" if run.get("status") == "paused" else "running"
        if run.get("pid") != pid and (pid or not run):
            status = "starting"
        asked = self.run.request
        if asked == "stop":
            return "stopping"
        return "pausing" if asked == "pause" and status != "paused" else status

    def _look_at_end(
        self,
        record: Record,
        state: JobState,
        there: bool,
        problem: str | None,
        why_not: str | None,
    ) -> JobState:
        words = last_words(self.path)
        reason = record.why or explain_end(words, record.exit_status)
        if problem is not None:
            return replace(state, status="failed", error=problem, output=words)
        state = replace(state, can_resume=why_not is None and state.run.get("status") != "done")
        if not there:
            if record.cancelled:
                return replace(state, status="stopped")
            return replace(state, status="failed", error=reason, output=words)
        if record.exit_status and record.pid != state.run["pid"]:
            # A process that was to go on with the run and never took it over.
            return replace(state, status="failed", error=reason, output=words)
        if state.run["status"] in ("running", "paused"):
            more = " Resume goes on from the last saved state." if state.can_resume else ""
            return replace(state, status="interrupted", error=reason + more, output=words)
        failed = state.run["status"] == "failed"
        error = state.run["error"] or self._find_damage()
        return replace(state, status=state.run["status"], error=error, output=words if failed else "")

    def _find_damage(self) -> str | None:
        """What else of a run that has ended can't be read."""
        try:
            self.recipe()
        except InputError as error:
            return str(error)
        metrics = self.run.path / METRICS
        if os.path.lexists(metrics) and not _is_file(metrics):
            return f"This run's {METRICS} can't be read, so its curves are missing."
        if self.run.saved_state is None:
            return "This run's saved state is damaged, so it can't go on; start it anew."
        return None

    def _why_not(self, record: Record, bounds: Bounds, uploads: Path) -> str | None:
        """Why a run that has ended can't go on; None if it can."""
        if record.uploads and not (uploads / record.uploads).is_dir():
            return "its uploaded file was deleted when it ended"
        if bounds.run_minutes is not None and self.spent(record, self.last_sign()) >= 60 * bounds.run_minutes:
            return f"it has used the {bounds.run_minutes:g} minutes that a run is given here"
        if self.run.saved_state is None:
            return "its saved state is damaged"
        try:
            self.recipe()
        except InputError:
            return f"its {RECIPE} is damaged"
        return None

    def explain_refusal(self, state: JobState, bounds: Bounds, uploads: Path) -> str:
        """Why a run can't go on that can't."""
        try:
            why = self._why_not(self.read(), bounds, uploads) or f"it is {state.status}"
        except InputError:
            why = "it is damaged"
        return f"This run can't go on ({why}); start it anew from its recipe."

    # --- going on, going away ---

    def prepare(self) -> None:
        """Before its process starts or goes on: what an earlier one was asked is forgotten, and where nothing was saved
        to go on from, so is the half that was said. Weights stay. OSError where that can't be written."""
        folder = self.run.path
        (folder / CONTROL).unlink(missing_ok=True)
        if not self.run.saved_state:
            for name in (RUN, METRICS):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / STATE, ignore_errors=True)

    @property
    def resumable(self) -> bool:
        """Whether a process goes on here; else it begins."""
        return os.path.lexists(self.run.path / RUN) and bool(self.run.saved_state)

    def measure(self) -> int:
        """Bytes of everything in it."""
        total = 0
        for folder, _, files in os.walk(self.path):
            for name in files:
                with contextlib.suppress(OSError):  # gone between two looks
                    total += (Path(folder) / name).lstat().st_size
        return total


def _is_time(value: float | None) -> bool:
    return value is None or 0 <= value <= LAST_YEAR


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be looked into
        return False
