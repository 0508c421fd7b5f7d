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
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from model import InputError
from model.training.recipe import Recipe, read_recipe
from model.training.runs import ADAPTER, CONTROL, METRICS, MODEL, RECIPE, RUN, STATE, RunFolder, write_text

FORMAT = 1
JOB, OUTPUT = "job.json", "output.txt"
GRACE_S = 60.0
"""A process that was asked to stop at the end of its time may take so long to save before it is ended."""
TAIL = 1500
"""Characters of the process's last words that are kept for people."""
CACHED = 32

Status = Literal["queued", "starting", "running", "pausing", "paused", "stopping", "stopped", "done", "failed",
                 "interrupted"]  # fmt: skip
LIVE: tuple[Status, ...] = ("queued", "starting", "running", "pausing", "paused", "stopping")


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
class StagePart:
    """A stage as far as it has begun: its steps are counted on from ``offset``."""

    name: str
    kind: str
    steps: int
    offset: int


@dataclass(frozen=True)
class Progress:
    """What ``metrics.jsonl`` told so far. ``train``: (step, loss, highest learning rate, gradient norm), ``held_out``:
    (step, loss), steps counted through all stages. ``generation`` changes whenever something was taken back, as when
    a run goes on from an earlier state."""

    generation: int = 0
    stages: tuple[StagePart, ...] = ()
    train: tuple[tuple[float, float, float, float], ...] = ()
    held_out: tuple[tuple[float, float], ...] = ()
    trainable: tuple[dict[str, Any], ...] = ()
    data: dict[str, int] = field(default_factory=dict)
    last_step: dict[str, Any] | None = None
    evaluations: tuple[dict[str, Any], ...] = ()


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


@dataclass
class _Cursor:
    inode: int
    offset: int
    progress: Progress


class JobTable:
    """The jobs of this server. ``root``: where their folders lie (a temporary folder, removed at the end, if None)."""

    def __init__(self, root: str | Path | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        temporary = root is None
        self.root = Path(tempfile.mkdtemp(prefix="vlm-inspector-jobs-")) if root is None else Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Jobs can't be kept in {self.root} ({error.strerror}); name another folder.") from error
        self._lock = threading.RLock()
        self._queue: list[tuple[str, bool]] = []
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._exits: dict[str, int] = {}
        self._cursors: OrderedDict[str, _Cursor] = OrderedDict()
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
        self._ask(job, "pause", ("starting", "running"), "paused")

    def stop(self, job: str) -> None:
        """Ends the job and keeps its weights; a job that still waits is taken out of the queue."""
        with self._lock:
            for place, (waiting, resumed) in enumerate(self._queue):
                if waiting == job:
                    del self._queue[place]
                    if not resumed:
                        self._note(job, cancelled=True)
                    return
            self._ask(job, "stop", ("starting", "running", "pausing", "paused"), "stopped")

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
            self._queue = [entry for entry in self._queue if entry[0] != job]
            if job in self._running:
                _kill(self._running[job])
            if record["uploads"]:
                shutil.rmtree(self.uploads / record["uploads"], ignore_errors=True)
            shutil.rmtree(self.root / job, ignore_errors=True)
            self._cursors.pop(job, None)

    # --- looking ---

    @property
    def uploads(self) -> Path:
        folder = self.root / "uploads"
        folder.mkdir(exist_ok=True)
        return folder

    def run_folder(self, job: str) -> Path:
        """InputError for an id that names no job here."""
        self._record(job)
        return self.root / job / "run"

    def recipe(self, job: str) -> Recipe:
        return read_recipe(self.root / self._record(job)["id"] / RECIPE)

    def read(self, job: str) -> JobState:
        """InputError for an unknown id; a run of another version is a failed one that says so."""
        record = self._record(job)
        folder = self.root / job / "run"
        state = JobState(job, record["title"], record["created"], "queued",
                         has_model=(folder / MODEL / "model.safetensors").is_file(),
                         has_adapter=(folder / ADAPTER).is_dir())  # fmt: skip
        with self._lock:
            waiting = [name for name, _ in self._queue]
            if job in waiting:
                return replace(state, position=waiting.index(job) + len(self._running))
            alive = job in self._running
            exit_status = self._exits.get(job)
        if not (folder / RUN).exists():
            if alive:
                return replace(state, status="starting")
            if record.get("cancelled"):
                return replace(state, status="stopped", can_resume=self._data_there(record))
            words = self._tail(job)
            return replace(state, status="failed", error=_last_sentence(words, exit_status), output=words)
        try:
            run = RunFolder(folder).read_run()
        except InputError as error:
            return replace(state, status="failed", error=str(error))
        state = replace(state, run=run)
        alive = alive or _is_alive(run.get("pid"), folder)
        if alive:
            asked = RunFolder(folder).request
            status: Status = "paused" if run["status"] == "paused" else "running"
            if asked == "stop":
                status = "stopping"
            elif asked == "pause" and status == "running":
                status = "pausing"
            return replace(state, status=status)
        can_resume = self._data_there(record) and run["status"] != "done"
        if run["status"] in ("running", "paused"):
            words = self._tail(job)
            sentence = _last_sentence(words, exit_status) + " Resume goes on from the last saved state."
            return replace(state, status="interrupted", error=sentence, output=words, can_resume=can_resume)
        words = self._tail(job) if run["status"] == "failed" else ""
        return replace(state, status=run["status"], error=run.get("error"), output=words, can_resume=can_resume)

    def progress(self, job: str) -> Progress:
        """Everything that the run said so far; only what is new is read."""
        path = self.run_folder(job) / METRICS
        with self._lock:
            cursor = self._cursors.setdefault(job, _Cursor(0, 0, Progress()))
            self._cursors.move_to_end(job)
            while len(self._cursors) > CACHED:
                self._cursors.popitem(last=False)
            try:
                found = path.stat()
            except FileNotFoundError:
                if cursor.offset:
                    cursor.inode, cursor.offset = 0, 0
                    cursor.progress = Progress(cursor.progress.generation + 1)
                return cursor.progress
            if found.st_ino != cursor.inode or found.st_size < cursor.offset:
                generation = cursor.progress.generation + (cursor.inode != 0)
                cursor.inode, cursor.offset, cursor.progress = found.st_ino, 0, Progress(generation)
            with path.open("rb") as file:
                file.seek(cursor.offset)
                text = file.read()
            # The last line may still be being written.
            whole = text[: text.rfind(b"\n") + 1]
            cursor.offset += len(whole)
            cursor.progress = _advance(cursor.progress, list(_events(whole)))
            return cursor.progress

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

    def _tail(self, job: str) -> str:
        try:
            return (self.root / job / OUTPUT).read_text(encoding="utf-8", errors="replace")[-TAIL:].strip()
        except OSError:
            return ""

    def _ask(self, job: str, request: str, allowed: tuple[Status, ...], word: str) -> None:
        status = self.read(job).status
        if status not in allowed:
            raise InputError(f"A run that is {status} can't be {word}.")
        if status == "starting":
            raise InputError(f"The run is just starting and can't be {word} yet; try again in a moment.")
        write_text(self.run_folder(job) / CONTROL, request)

    def _dispatch(self) -> None:
        while self._queue and len(self._running) < self.limits.running:
            job, resumed = self._queue.pop(0)
            self._spawn(job, resumed)

    def _spawn(self, job: str, resumed: bool) -> None:
        folder = self.root / job
        command = [sys.executable, "-m", "model.training", "run", str(folder / RECIPE), "--out", str(folder / "run"),
                   "--quiet", *(["--resume"] if resumed else [])]  # fmt: skip
        if nice := shutil.which("nice"):
            # Whoever chats with a model goes first.
            command = [nice, "-n", str(self.limits.nice), *command]
        threads = str(self.limits.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
                       "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}  # fmt: skip
        home = str(Path(__file__).parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (home, environment.get("PYTHONPATH"))))
        with (folder / OUTPUT).open("ab") as output:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                                       stdout=output, stderr=output, start_new_session=True)  # fmt: skip
        # Linux weighs sessions alike before it looks at niceness within them, so the new session is told as well.
        with contextlib.suppress(OSError):  # other systems have no such file
            Path(f"/proc/{process.pid}/autogroup").write_text(str(self.limits.nice), encoding="ascii")
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
                _kill(process)
                process.wait()
        with self._lock:
            self._running.pop(job, None)
            self._exits[job] = process.returncode
            try:
                record = self._record(job)
            except InputError:  # removed meanwhile
                record = {"uploads": None}
            if record["uploads"] and not self.limits.keep_uploads:
                shutil.rmtree(self.uploads / record["uploads"], ignore_errors=True)
            self._dispatch()

    def _sweep(self) -> None:
        """Removes what is older than this server keeps."""
        if self.limits.keep_hours is None:
            return
        oldest = time.time() - 3600 * self.limits.keep_hours
        live = set(self._live_ids())
        used = {self._record(job)["uploads"] for job in live}
        for folder in self.root.iterdir():
            if folder.name not in live and (folder / JOB).is_file() and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self.uploads.iterdir():
            if folder.name not in used and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def _end(running: dict[str, subprocess.Popen[bytes]], queue: list[Any], temporary: Path | None) -> None:
    """With a folder that stays, processes go on and a later server finds them."""
    queue.clear()
    if temporary is None:
        return
    for process in list(running.values()):
        _kill(process)
        process.wait()
    shutil.rmtree(temporary, ignore_errors=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _is_alive(pid: Any, folder: Path) -> bool:
    """Whether ``pid`` is the process that trains in ``folder``: numbers are given anew to other processes."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    command = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            return str(folder).encode() in command.read_bytes().split(b"\0")
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _last_sentence(words: str, exit_status: int | None) -> str:
    """Why a process ended that didn't say so itself."""
    if exit_status is not None and exit_status < 0:
        name = signal.Signals(-exit_status).name
        why = " (perhaps for want of memory)" if -exit_status == signal.SIGKILL else ""
        return f"The training process was ended from outside by {name}{why}."
    if words:
        last = words.splitlines()[-1]
        return last if exit_status == 2 else f"The training process broke off: {last}"
    return "The training process ended without a word."


def _events(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.decode("utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut by the end of an earlier process
        if isinstance(event, dict):
            yield event


def _advance(progress: Progress, events: list[dict[str, Any]]) -> Progress:
    if not events:
        return progress
    stages, train, held_out = list(progress.stages), list(progress.train), list(progress.held_out)
    evaluations = list(progress.evaluations)
    trainable, data, last = progress.trainable, progress.data, progress.last_step
    for event in events:
        kind = event.get("event")
        if kind == "start":
            if not stages or stages[-1].name != event["stage"]:
                offset = stages[-1].offset + stages[-1].steps if stages else 0
                stages.append(StagePart(event["stage"], event.get("kind", ""), int(event["steps"]), offset))
            trainable, data = tuple(event.get("trainable", ())), dict(event.get("data", {}))
        offset = next((part.offset for part in reversed(stages) if part.name == event.get("stage")), 0)
        if kind == "step":
            rate = max(event.get("learning_rates", {}).values(), default=0.0)
            train.append((offset + event["step"], event["loss"], rate, event.get("gradient_norm", 0.0)))
            last = event
        elif kind == "eval":
            if event.get("loss") is not None and event["loss"] == event["loss"]:
                held_out.append((offset + event["step"], event["loss"]))
            evaluations.append({**event, "at": offset + event["step"]})
    return Progress(progress.generation, tuple(stages), tuple(train), tuple(held_out), trainable, data, last,
                    tuple(evaluations))  # fmt: skip
