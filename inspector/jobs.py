"""Training jobs: each a process of its own, in one queue for everybody on this server. No gradio here.

A job is a folder ``ROOT/ID`` with ``job.json``, the recipe that was asked for, the process's output and ``run/``, the
run's own folder (see :mod:`model.training.runs`). The id can't be guessed, so whoever has it may watch and steer.
Everything worth knowing lies in the folder: a server that starts again finds its jobs, and those still running.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from inspector.bounds import Bounds, private_bounds
from inspector.processes import RUN_FOLDER, explain_end, is_training, kill_process, last_words, start_process
from inspector.progress import Progress, ProgressReader
from model import InputError
from model.training.recipe import Recipe, read_recipe
from model.training.runs import ADAPTER, CONTROL, METRICS, MODEL, RECIPE, RUN, STATE, RunFolder, write_text

FORMAT = 1
JOB = "job.json"
GRACE_S = 60.0
"""A process that was asked to stop at the end of its time may take so long to save before it is ended."""

Status = Literal["queued", "starting", "running", "pausing", "paused", "stopping", "stopped", "done", "failed",
                 "interrupted"]  # fmt: skip
LIVE: tuple[Status, ...] = ("queued", "starting", "running", "pausing", "paused", "stopping")
PAUSABLE: tuple[Status, ...] = ("starting", "running")
STOPPABLE: tuple[Status, ...] = ("starting", "running", "pausing", "paused")


@dataclass(frozen=True)
class Limits:
    """``running``: processes at once. ``per_person``: jobs that one person may have in the queue or running. None is
    no limit. ``keep_hours``: jobs that ended longer ago are removed when another starts."""

    running: int = 1
    per_person: int | None = None
    waiting: int = 20
    steps: int = 1_000_000
    minutes: float | None = None
    keep_uploads: bool = True
    keep_hours: float | None = None
    threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 2) // 2))
    nice: int = 15


def public_limits() -> Limits:
    """For a server that anybody can reach."""
    return Limits(per_person=1, waiting=8, steps=600, minutes=10, keep_uploads=False, keep_hours=24)


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
        """Whether :meth:`JobTable.resume` does something."""
        return self.status in ("paused", "pausing") or (self.can_resume and not self.live)


@dataclass(frozen=True)
class _Exit:
    """How the last process of a job ended that this server started."""

    pid: int
    status: int


class JobTable:
    """The jobs of this server. ``root``: where their folders lie (a temporary folder, removed at the end, if None)."""

    def __init__(
        self, root: str | Path | None = None, limits: Limits | None = None, bounds: Bounds | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.bounds = bounds or private_bounds()
        temporary = root is None
        self.root = Path(tempfile.mkdtemp(prefix="vlm-inspector-jobs-")) if root is None else Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Jobs can't be kept in {self.root} ({error.strerror}); name another folder.") from error
        self._lock = threading.RLock()
        self._queue: list[tuple[str, bool]] = []
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._exits: dict[str, _Exit] = {}
        self._progress = ProgressReader()
        # Also at the interpreter's end: processes in a temporary folder would train for nobody.
        self.close = weakref.finalize(self, _end, self._running, self._queue, self.root if temporary else None)

    # --- asking for something ---

    def start(self, owner: str, recipe: Recipe, uploads: Path | None = None) -> str:
        """Puts a job into the queue; its id. ``uploads``: a folder under :attr:`uploads` that belongs to it.
        InputError if the recipe asks for more than this server gives, or the person has a job already."""
        steps = sum(stage.steps for stage in recipe.stages)
        if steps > self.limits.steps:
            raise InputError(f"The run has {steps:,} steps; at most {self.limits.steps:,} are given here, take fewer.")
        with self._lock:
            self._sweep()
            mine = [job for job in self._live_ids() if self._record(job)["owner"] == owner]
            if self.limits.per_person is not None and len(mine) >= self.limits.per_person:
                raise InputError(
                    f"You have a run that isn't over ({self._record(mine[0])['title']}); stop it first, "
                    f"this server gives each person {self.limits.per_person} at a time."
                )
            if len(self._queue) >= self.limits.waiting:
                raise InputError(f"{len(self._queue)} runs are waiting already; try again in a few minutes.")
            job = secrets.token_urlsafe(12)
            folder = self.root / job
            try:
                folder.mkdir()
                write_text(folder / RECIPE, recipe.to_toml())
                write_text(folder / JOB, json.dumps({
                    "format": FORMAT, "id": job, "owner": owner, "title": recipe.title, "created": time.time(),
                    "uploads": uploads.name if uploads else None,
                }))  # fmt: skip
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise InputError(f"The run can't be written in {self.root} ({error.strerror}).") from error
            self._queue.append((job, False))
            self._dispatch()
        return job

    def pause(self, job: str) -> None:
        """After the step that is being taken, with its state saved. InputError if the job isn't running."""
        self._ask(job, "pause", PAUSABLE, "paused")

    def stop(self, job: str) -> None:
        """Ends the job and keeps its weights; a job that still waits is taken out of the queue."""
        with self._lock:
            for place, (waiting, resumed) in enumerate(self._queue):
                if waiting == job:
                    del self._queue[place]
                    if not resumed:
                        self._note(job, cancelled=True)
                    return
            self._ask(job, "stop", STOPPABLE, "stopped")

    def resume(self, job: str) -> None:
        """Goes on: at once if paused, else in a new process from the last saved state. InputError if it can't."""
        with self._lock:
            state = self.read(job)
            if state.status in ("paused", "pausing"):
                write_text(self.run_folder(job) / CONTROL, "run")
                return
            if not state.can_resume:
                raise InputError(f"This run can't go on (it is {state.status}); start it anew from its recipe.")
            if len(self._queue) >= self.limits.waiting:
                raise InputError(f"{len(self._queue)} runs are waiting already; try again in a few minutes.")
            if not (self.run_folder(job) / STATE / "latest").exists():
                # Nothing was saved yet: from the start, without the half that was said.
                shutil.rmtree(self.run_folder(job), ignore_errors=True)
            else:
                (self.run_folder(job) / CONTROL).unlink(missing_ok=True)
            self._note(job, cancelled=False)
            self._exits.pop(job, None)
            self._queue.append((job, (self.run_folder(job) / RUN).exists()))
            self._dispatch()

    def remove(self, job: str) -> None:
        """Ends the job without keeping anything."""
        with self._lock:
            record = self._record(job)
            self._queue[:] = [entry for entry in self._queue if entry[0] != job]
            if job in self._running:
                kill_process(self._running[job])
            if record["uploads"]:
                shutil.rmtree(self.uploads / record["uploads"], ignore_errors=True)
            self._forget(job)

    # --- looking ---

    @property
    def uploads(self) -> Path:
        folder = self.root / "uploads"
        folder.mkdir(exist_ok=True)
        return folder

    def run_folder(self, job: str) -> Path:
        """InputError for an id that names no job here."""
        self._record(job)
        return self.root / job / RUN_FOLDER

    def recipe(self, job: str) -> Recipe:
        return read_recipe(self.root / self._record(job)["id"] / RECIPE)

    def read(self, job: str) -> JobState:
        """InputError for an unknown id; a run of another version is a failed one that says so."""
        record = self._record(job)
        folder = self.root / job / RUN_FOLDER
        run_folder = RunFolder(folder)
        state = JobState(job, record["title"], record["created"], "queued",
                         has_model=(folder / MODEL / "model.safetensors").is_file(),
                         has_adapter=(folder / ADAPTER).is_dir())  # fmt: skip
        with self._lock:
            waiting = [name for name, _ in self._queue]
            if job in waiting:
                return replace(state, position=waiting.index(job) + len(self._running))
            process, exit_ = self._running.get(job), self._exits.get(job)
        there = (folder / RUN).exists()
        if there:
            try:
                state = replace(state, run=run_folder.read_run())
            except InputError as error:
                return replace(state, status="failed", error=str(error))
        pid = state.run.get("pid")
        if process is not None and process.pid != pid:
            # The folder still says what it said before this process took it over, if anything.
            return replace(state, status=_asked(run_folder, "starting"))
        if process is not None or (there and is_training(pid, folder)):
            return replace(state, status=_asked(run_folder, "paused" if state.run["status"] == "paused" else "running"))
        words = last_words(self.root / job)
        known = None if exit_ is None else exit_.status
        can_resume = self._data_there(record)
        if not there:
            if record.get("cancelled"):
                return replace(state, status="stopped", can_resume=can_resume)
            return replace(state, status="failed", error=explain_end(words, known), output=words)
        can_resume = can_resume and state.run["status"] != "done"
        if exit_ is not None and exit_.status and exit_.pid != pid:
            # A process that was to go on with the run and never took it over.
            return replace(state, status="failed", error=explain_end(words, known), output=words, can_resume=can_resume)
        if state.run["status"] in ("running", "paused"):
            sentence = explain_end(words, known) + " Resume goes on from the last saved state."
            return replace(state, status="interrupted", error=sentence, output=words, can_resume=can_resume)
        return replace(state, status=state.run["status"], error=state.run.get("error"),
                       output=words if state.run["status"] == "failed" else "", can_resume=can_resume)  # fmt: skip

    def progress(self, job: str) -> Progress:
        """Everything that the run said so far; only what is new is read."""
        return self._progress.read(self.run_folder(job) / METRICS)

    # --- inside ---

    def _record(self, job: str) -> dict[str, Any]:
        # An id is one plain name: nothing that a person sends may point elsewhere.
        plain = bool(job) and all(letter.isalnum() or letter in "-_" for letter in job)
        try:
            record = json.loads((self.root / job / JOB).read_text(encoding="utf-8")) if plain else None
        except (OSError, json.JSONDecodeError):
            record = None
        if not isinstance(record, dict) or record.get("id") != job:
            raise InputError(f"There is no run “{job[:40]}” here; it may have been removed, or the link is cut off.")
        if record.get("format") != FORMAT:
            raise InputError(f"The run “{job}” was written by another version of this app; start it anew.")
        return record

    def _note(self, job: str, **values: Any) -> None:
        write_text(self.root / job / JOB, json.dumps({**self._record(job), **values}))

    def _live_ids(self) -> list[str]:
        return [*self._running, *(job for job, _ in self._queue)]

    def _data_there(self, record: dict[str, Any]) -> bool:
        return not record["uploads"] or (self.uploads / record["uploads"]).is_dir()

    def _ask(self, job: str, request: str, allowed: tuple[Status, ...], word: str) -> None:
        status = self.read(job).status
        if status not in allowed:
            raise InputError(f"A run that is {status} can't be {word}.")
        write_text(self.run_folder(job) / CONTROL, request)

    def _dispatch(self) -> None:
        while self._queue and len(self._running) < self.limits.running:
            job, resumed = self._queue.pop(0)
            self._spawn(job, resumed)

    def _spawn(self, job: str, resumed: bool) -> None:
        process = start_process(self.root / job, resumed=resumed, threads=self.limits.threads, nice=self.limits.nice)
        self._running[job] = process
        threading.Thread(target=self._watch, args=(job, process), name=f"job {job}", daemon=True).start()

    def _watch(self, job: str, process: subprocess.Popen[bytes]) -> None:
        seconds = None if self.limits.minutes is None else 60 * self.limits.minutes
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(InputError, OSError):
                write_text(self.run_folder(job) / CONTROL, "stop")
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                kill_process(process)
                process.wait()
        with self._lock:
            self._running.pop(job, None)
            with contextlib.suppress(InputError):  # removed meanwhile
                uploads = self._record(job)["uploads"]
                self._exits[job] = _Exit(process.pid, process.returncode)
                if uploads and not self.limits.keep_uploads:
                    shutil.rmtree(self.uploads / uploads, ignore_errors=True)
            self._dispatch()

    def _forget(self, job: str) -> None:
        shutil.rmtree(self.root / job, ignore_errors=True)
        self._progress.forget(self.root / job / RUN_FOLDER / METRICS)
        self._exits.pop(job, None)

    def _sweep(self) -> None:
        """Removes what is older than this server keeps."""
        if self.limits.keep_hours is None:
            return
        oldest = time.time() - 3600 * self.limits.keep_hours
        live = set(self._live_ids())
        used = {self._record(job)["uploads"] for job in live}
        for folder in self.root.iterdir():
            if folder.name not in live and (folder / JOB).is_file() and folder.stat().st_mtime < oldest:
                self._forget(folder.name)
        for folder in self.uploads.iterdir():
            if folder.name not in used and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def _end(running: dict[str, subprocess.Popen[bytes]], queue: list[Any], temporary: Path | None) -> None:
    """With a folder that stays, processes go on and a later server finds them."""
    queue.clear()
    if temporary is None:
        return
    for process in list(running.values()):
        kill_process(process)
        process.wait()
    shutil.rmtree(temporary, ignore_errors=True)


def _asked(folder: RunFolder, status: Status) -> Status:
    """The status of a process that is alive, once what it was asked for is taken in."""
    asked = folder.request
    if asked == "stop":
        return "stopping"
    return "pausing" if asked == "pause" and status != "paused" else status
