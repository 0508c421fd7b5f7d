"""Training jobs: each a process of its own, in one queue for everybody on this server. No gradio here.

A job is a folder ``ROOT/ID`` (see :mod:`inspector.runs.job_folder`). The id can't be guessed, so whoever has it
may watch and steer. Several servers may share a root: see :mod:`inspector.runs.job_keeper`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from inspector.bounds import Bounds, format_bound
from inspector.runs.job_folder import PAUSABLE, STOPPABLE, JobFolder, JobState, Record, Status
from inspector.runs.job_keeper import UPLOADS, Keeper
from inspector.runs.job_queue import PLAIN
from inspector.runs.processes import KILLED_S, RUN_FOLDER, kill_group
from inspector.runs.progress import Progress, ProgressReader
from model import InputError
from model.training.recipe import Recipe
from model.training.runs import CONTROL, METRICS, write_text

NICE = 15


class JobTable:
    """The jobs of this server. ``root``: where their folders lie (a temporary folder, removed at the end, if None).
    ``threads``: what a training process computes with; by default half the machine's."""

    def __init__(
        self,
        root: str | Path | None = None,
        bounds: Bounds | None = None,
        *,
        threads: int | None = None,
        nice: int = NICE,
    ) -> None:
        self.bounds = bounds or Bounds()
        temporary = root is None
        made = Path(tempfile.mkdtemp(prefix="vlm-inspector-jobs-")) if root is None else Path(root)
        try:
            made.mkdir(parents=True, exist_ok=True)
            # Once for all: processes have another working folder, and a link could be moved while they train.
            self.root = made.resolve(strict=True)
            threads = threads or max(1, (os.cpu_count() or 2) // 2)
            self._keeper = Keeper(self.root, self.bounds, threads, nice, temporary)
        except OSError as error:
            raise InputError(f"Jobs can't be kept in {made} ({error.strerror}); name another folder.") from error
        self._progress = ProgressReader()
        # Also at the interpreter's end: processes in a temporary folder would train for nobody.
        self.close = weakref.finalize(self, self._keeper.close)

    # --- asking for something ---

    def start(self, person: str, recipe: Recipe, uploads: Path | None = None) -> str:
        """Puts a job into the queue; its id. ``person``: who asks, see :func:`inspector.persons.identify`; ``uploads``:
        a folder under :attr:`uploads` that belongs to it. InputError if the recipe asks for more than this server
        gives, or the person has a job already."""
        job = secrets.token_urlsafe(12)
        with self._keeper.queue.turn():
            self._admit(person, recipe)
            folder = JobFolder(self.root / job)
            record = Record(job, recipe.title, time.time(), person, uploads.name if uploads else None)
            folder.create(record, recipe)
            try:
                self._keeper.queue.add(job)
            except OSError as error:
                self._keeper.forget(job)
                raise InputError(f"The run can't be written ({error.strerror}); nothing was started.") from error
            self._keeper.dispatch()
        return job

    def pause(self, job: str) -> None:
        """After the step that is being taken, with its state saved. InputError if the job isn't running."""
        self._ask(job, "pause", PAUSABLE, "paused")

    def stop(self, job: str) -> None:
        """Ends the job and keeps its weights; a job that still waits is taken out of the queue."""
        with self._keeper.queue.turn(), _writing():
            if self.read(job).status != "queued":
                self._ask(job, "stop", STOPPABLE, "stopped")
                return
            folder = JobFolder(self.root / job)
            record = folder.note(cancelled=True, ended=time.time(), person=None)
            self._keeper.queue.remove(job)
            self._keeper.drop_uploads(record.uploads)

    def resume(self, job: str, person: str) -> None:
        """Goes on: at once if paused, else in a new process from the last saved state, for which ``person`` must have a
        place as for a new job. InputError if it can't."""
        with self._keeper.queue.turn(), _writing():
            state = self.read(job)
            folder = JobFolder(self.root / job)
            if state.status in ("paused", "pausing"):
                self._check_time(folder)
                write_text(folder.run.path / CONTROL, "run")
                return
            if not state.can_resume or state.live:
                raise InputError(folder.explain_refusal(state, self.bounds, self.uploads))
            self._admit(person, folder.recipe())
            record = folder.read()
            spent = folder.spent(record, folder.last_sign())
            folder.prepare()
            folder.note(
                cancelled=False,
                person=person,
                begun=None,
                spent_s=spent,
                ended=None,
                pid=None,
                exit_status=None,
                why=None,
            )
            self._keeper.queue.add(job)
            self._keeper.dispatch()

    def remove(self, job: str) -> None:
        """Ends the job without keeping anything. InputError where it can't be ended."""
        folder = self._folder(job)
        with self._keeper.queue.turn(), _writing():
            self._keeper.queue.remove(job)
            with contextlib.suppress(InputError):  # a damaged one has none that anybody knows of
                self._keeper.drop_uploads(folder.read().uploads)
            worker = self._keeper.workers.pop(job, None)
            if worker is not None:
                worker.kill()
            elif pid := folder.find_process():
                kill_group(pid)
            end = time.monotonic() + KILLED_S
            while not self._keeper.forget(job) and folder.path.exists():
                if time.monotonic() > end:
                    raise InputError("The run's process can't be ended from here; ask whoever runs the server.")
                time.sleep(0.02)
            self._progress.forget(folder.run.path / METRICS)
            self._keeper.dispatch()

    # --- looking ---

    @property
    def uploads(self) -> Path:
        folder = self.root / UPLOADS
        with _writing():
            folder.mkdir(exist_ok=True)
        return folder

    def used_uploads(self) -> set[str]:
        """Names of the folders in :attr:`uploads` that runs were started with, also of those that are over."""
        return {record.uploads for _, record in self._keeper.list_records() if record.uploads}

    def run_folder(self, job: str) -> Path:
        """InputError for an id that names no job here."""
        return self._folder(job).path / RUN_FOLDER

    def recipe(self, job: str) -> Recipe:
        """InputError as :meth:`run_folder`, and for one that is damaged."""
        return self._folder(job).recipe()

    def read(self, job: str) -> JobState:
        """InputError for an unknown id; a run that is damaged or of another version is a failed one that says so."""
        folder = self._folder(job)
        ids = self._keeper.queue.ids()
        place = ids.index(job) if job in ids else None
        return folder.look(self.bounds, self.root / UPLOADS, place, self._keeper.find_process(job))

    def progress(self, job: str) -> Progress:
        """Everything that the run said so far; only what is new is read."""
        return self._progress.read(self.run_folder(job) / METRICS)

    # --- inside ---

    def _folder(self, job: str) -> JobFolder:
        plain = isinstance(job, str) and PLAIN.fullmatch(job) is not None and job != UPLOADS
        folder = JobFolder(self.root / (job if plain else "none"))
        if not plain or not folder.path.is_dir():
            raise InputError(f"There is no run “{str(job)[:40]}” here; it was removed, or the link is cut off.")
        return folder

    def _admit(self, person: str, recipe: Recipe) -> None:
        """InputError if the recipe asks for more than this server gives, or the person or the server has no place."""
        steps = sum(stage.steps for stage in recipe.stages)
        if steps > self.bounds.run_steps:
            raise InputError(
                f"The run has {steps:,} steps; at most {self.bounds.run_steps:,} are given here, take fewer."
            )
        waiting = 0
        mine: list[str] = []
        for job in self._keeper.queue.ids():
            with contextlib.suppress(InputError):  # a damaged one takes nobody's place
                record = JobFolder(self.root / job).read()
                mine += [record.title] if record.person == person else []
                waiting += self._keeper.find_process(job) is None
        if self.bounds.runs_per_person is not None and len(mine) >= self.bounds.runs_per_person:
            raise InputError(
                f"You have a run that isn't over ({mine[0]}); stop it first, "
                f"this server gives each person {self.bounds.runs_per_person} at a time."
            )
        if waiting >= self.bounds.runs_waiting:
            raise InputError(f"{waiting} runs are waiting already; try again in a few minutes.")
        if not self._keeper.make_room():
            room = format_bound(self.bounds.runs_bytes, "bytes")
            raise InputError(
                f"The runs of this server fill the {room} that they are given; try again when some are "
                "over and swept, or ask whoever runs the server to remove old ones."
            )

    def _check_time(self, folder: JobFolder) -> None:
        minutes = self.bounds.run_minutes
        if minutes is not None and folder.spent(folder.read(), time.time()) > 60 * minutes:
            raise InputError(f"The {minutes:g} minutes of this run are over, pauses included; it ends now.")

    def _ask(self, job: str, request: str, allowed: tuple[Status, ...], word: str) -> None:
        status = self.read(job).status
        if status not in allowed:
            raise InputError(f"A run that is {status} can't be {word}.")
        with _writing():
            write_text(self.run_folder(job) / CONTROL, request)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """A disk that takes nothing is told in one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(f"The runs' folder can't be written ({error.strerror}); what is there is kept.") from error
