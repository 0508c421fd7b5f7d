"""Whoever gives the jobs of a folder their turn and watches over those that train. No gradio here.

Of several servers on one folder one does: the one that holds ``ROOT/.server``. The others look, ask and steer through
the same files, and one of them takes over when it ends, with the processes that train then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from pathlib import Path

from inspector.bounds import Bounds
from inspector.runs.job_folder import JOB, JobFolder, Record
from inspector.runs.job_queue import PLAIN, JobQueue
from inspector.runs.processes import LOCK, Worker, explain_memory, kill_group, measure_memory, start_process
from inspector.runs.uploads import sweep_uploads
from model import InputError
from model.training.locks import hold
from model.training.runs import CONTROL, forget_answers, write_text

SERVER = ".server"
UPLOADS = "uploads"
WATCH_S, IDLE_S = 0.1, 0.5
"""Between two looks at processes that train (what they take grows by about 1 GB a second at most), and at the queue,
where another server may have put something."""

logger = logging.getLogger(__name__)


class Keeper:
    """Serves the jobs in ``root`` with a thread of its own until :meth:`close`. ``temporary``: the folder goes then,
    too. OSError where the folder can't be used."""

    def __init__(self, root: Path, bounds: Bounds, threads: int, nice: int, temporary: bool) -> None:
        self.root, self.bounds = root, bounds
        self.queue = JobQueue(root)
        self.uploads = root / UPLOADS
        self.workers: dict[str, Worker] = {}
        self._threads, self._nice, self._temporary = threads, nice, temporary
        self._server: int | None = None
        self._ended, self._wake = threading.Event(), threading.Event()
        self._next_sweep = time.monotonic()
        self._trouble = ""
        self._closing = threading.Lock()
        with self.queue.turn():
            self._take_over()
        # Daemon: a process that ends by an error isn't kept alive; its end closes the table.
        self._thread = threading.Thread(target=self._serve, name="jobs", daemon=True)
        self._thread.start()

    @property
    def serves(self) -> bool:
        """Whether this server is the one that gives turns."""
        return self._server is not None

    def folder(self, job: str) -> JobFolder:
        return JobFolder(self.root / job)

    def find_process(self, job: str) -> int | None:
        """As :meth:`JobFolder.find_process`; a process that has ended counts until its end is written down."""
        worker = self.workers.get(job)
        return worker.pid if worker is not None else self.folder(job).find_process()

    # --- the thread ---

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                self._step()
                self._trouble = ""
            # The thread must go on whatever happens to one job, or the queue stands still for everybody.
            except Exception as error:
                if str(error) != self._trouble:
                    logger.warning("The queue of runs has trouble: %s", error, exc_info=not isinstance(error, OSError))
                self._trouble = str(error)
            self._wake.wait(WATCH_S if self.workers else IDLE_S)
            self._wake.clear()

    def _step(self) -> None:
        if not self.serves:
            with self.queue.turn():
                if not self._take_over():
                    return
        for job in list(self.workers):
            self._watch(job)
        self.dispatch()
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + self.bounds.sweep_s
            self.sweep()

    def _take_over(self) -> bool:
        """Adopts what an earlier server left, if no other one serves."""
        self._server = hold(self.root / SERVER, 0)
        if self._server is None:
            return False
        for job in self.queue.ids():
            folder = self.folder(job)
            pid = folder.find_process()
            if pid is None:
                continue
            self.workers[job] = Worker(folder.path, pid)
            with contextlib.suppress(InputError, OSError):  # then it has no past; its process is watched all the same
                if folder.read().begun is None:  # the earlier server ended right after starting it
                    folder.note(begun=time.time())
        return True

    # --- turns ---

    def dispatch(self) -> None:
        """Starts what waits, as far as there are places."""
        if not self.serves or self._ended.is_set() or not set(self.queue.ids()) - self.workers.keys():
            return
        with self.queue.turn():
            for job in self.queue.ids():
                if job in self.workers or self.folder(job).find_process() is not None:
                    continue
                try:
                    record = self.folder(job).read()
                except InputError:  # damaged while it waited: it says so itself
                    self.queue.remove(job)
                    continue
                if record.ended is not None:  # an earlier server ended between writing that down and taking it out
                    self.queue.remove(job)
                elif record.begun is not None:  # an earlier server's, over meanwhile
                    self._settle(job, Worker(self.root / job, 0))
                elif len(self.workers) < self.bounds.runs_at_once:
                    self._start(job)

    def _start(self, job: str) -> None:
        folder = self.folder(job)
        try:
            worker = start_process(folder.path, resumed=folder.resumable, threads=self._threads, nice=self._nice)
        except (InputError, OSError) as error:
            why = str(error) if isinstance(error, InputError) else error.strerror
            self._settle(job, Worker(folder.path, 0, why=f"The training process can't be started ({why})."))
            return
        self.workers[job] = worker
        try:
            folder.note(begun=time.time(), ended=None, pid=None, exit_status=None, why=None)
        except (InputError, OSError) as error:
            # A run of which nobody could tell later how long it took would have no end.
            worker.kill(f"The run can't be written down ({error}).")
            self._settle(job, worker)

    def _watch(self, job: str) -> None:
        """Ends what takes more than it is given, and writes down what has ended."""
        worker = self.workers[job]
        if worker.has_ended():
            with self.queue.turn():
                self._settle(job, worker)
            return
        if self.bounds.run_bytes is not None and worker.pid and measure_memory(worker.pid) > self.bounds.run_bytes:
            worker.kill(explain_memory(self.bounds.run_bytes))
        elif worker.asked is not None:
            if time.monotonic() - worker.asked > self.bounds.run_grace_s:
                worker.kill(f"The run's time was over and it didn't end within {self.bounds.run_grace_s:g} s.")
        elif self._is_over_time(job):
            worker.asked = time.monotonic()
            try:
                write_text(self.folder(job).run.path / CONTROL, "stop")
            except OSError:  # a full disk takes no request
                worker.terminate()

    def _is_over_time(self, job: str) -> bool:
        if self.bounds.run_minutes is None:
            return False
        try:
            return self.folder(job).spent(self.folder(job).read(), time.time()) > 60 * self.bounds.run_minutes
        except InputError:  # its past is lost; what can't be told to be within bounds isn't
            return True

    def _settle(self, job: str, worker: Worker) -> None:
        """After a process has ended: it is written down, and the job leaves the queue."""
        kill_group(worker.pid)  # what it started may have outlived it
        folder, uploads = self.folder(job), None
        try:
            with contextlib.suppress(InputError):  # removed or damaged meanwhile
                record = folder.read()
                uploads, now = record.uploads, time.time()
                # When one ended that an earlier server started is told by what it wrote last.
                spent = folder.spent(record, now if worker.process is not None else min(now, folder.last_sign()))
                folder.note(
                    begun=None,
                    spent_s=spent,
                    ended=now,
                    pid=worker.pid,
                    exit_status=worker.exit_status,
                    why=worker.why,
                    person=None,
                )
        finally:
            self.workers.pop(job, None)
            self.queue.remove(job)
            self.drop_uploads(uploads)

    # --- what goes away ---

    def drop_uploads(self, name: str | None) -> None:
        """An upload whose job is over, unless this server keeps them or another job that isn't over has the same."""
        if name is None or self.bounds.keep_uploads or name in self._used_uploads():
            return
        shutil.rmtree(self.uploads / name, ignore_errors=True)
        # What runs have written down of it is the person's as well.
        for folder, record in self.list_records():
            if record.uploads == name:
                try:
                    forget_answers(folder.run.path)
                except OSError as error:
                    logger.warning("Answers to uploaded data can't be taken out of a run: %s", error.strerror)

    def list_records(self) -> list[tuple[JobFolder, Record]]:
        """Every job here that can be read."""
        found = []
        for path in self._folders(self.root):
            if path.name != UPLOADS:
                with contextlib.suppress(InputError):  # damaged; it says so where it is shown
                    found.append((JobFolder(path), JobFolder(path).read()))
        return found

    def _used_uploads(self) -> set[str]:
        found = set()
        for job in self.queue.ids():
            with contextlib.suppress(InputError):  # removed or damaged; it can't train then
                found.add(self.folder(job).read().uploads or "")
        return found

    def forget(self, job: str) -> bool:
        """Removes a job's folder; False if a process trains there, whoever started it."""
        folder = self.folder(job)
        if folder.path.is_symlink() or folder.run.is_locked:
            return False
        try:
            handle = hold(folder.path / LOCK, 0)
        except OSError:
            return False
        if handle is None:
            return False
        try:
            shutil.rmtree(folder.path, ignore_errors=True)
        finally:
            os.close(handle)
        return not folder.path.exists()

    def sweep(self) -> None:
        """Removes what is older than this server keeps, and the oldest where everything together is too large."""
        if self.bounds.run_hours is None:
            return
        with self.queue.turn():
            oldest = time.time() - 3600 * self.bounds.run_hours
            for ended, job in self._ended_jobs():
                if ended < oldest:
                    self.forget(job)
            sweep_uploads(self.uploads, self._used_uploads(), 3600 * self.bounds.cache_hours)
            self.make_room()

    def make_room(self) -> bool:
        """Where all runs together are larger than they may be, a server that sweeps removes the oldest that have ended.
        False if that doesn't suffice."""
        if self.bounds.runs_bytes is None:
            return True
        sizes = {
            folder.name: JobFolder(folder).measure() for folder in self._folders(self.root) if folder.name != UPLOADS
        }
        total = sum(sizes.values())
        for _, job in self._ended_jobs() if self.bounds.run_hours is not None else ():
            if total <= self.bounds.runs_bytes:
                break
            if self.forget(job):
                total -= sizes.get(job, 0)
        return total <= self.bounds.runs_bytes

    def _ended_jobs(self) -> list[tuple[float, str]]:
        """When each ended that is over, the oldest first."""
        live = set(self.queue.ids())
        found = []
        for folder in self._folders(self.root):
            job = JobFolder(folder)
            if folder.name == UPLOADS or folder.name in live or job.find_process() is not None:
                continue
            ended = None
            with contextlib.suppress(InputError):  # a damaged one is as old as its files
                ended = job.read().ended
            found.append((max(job.last_sign(), _modified(folder / JOB)) if ended is None else ended, folder.name))
        return sorted(found)

    def _folders(self, root: Path) -> list[Path]:
        try:
            return [path for path in root.iterdir() if PLAIN.fullmatch(path.name) and path.is_dir()]
        except OSError:  # no uploads yet
            return []

    # --- the end ---

    def close(self, patience_s: float | None = None) -> None:
        """Asks the processes that train to save and end, gives them the time that a server has for that, and ends those
        that are left. What waits stays in the queue for the next server, and what was ended can go on there."""
        with self._closing:
            self._ended.set()
            self._wake.set()
            if threading.current_thread() is not self._thread:
                self._thread.join()
            if self._server is None:
                if self._temporary:
                    shutil.rmtree(self.root, ignore_errors=True)
                return
            end = time.monotonic() + (self.bounds.close_s if patience_s is None else patience_s)
            workers = list(self.workers.items())
            try:
                for _, worker in workers:
                    worker.terminate()
                while time.monotonic() < end and not all(worker.has_ended() for _, worker in workers):
                    time.sleep(0.02)
            finally:
                self._end_all(workers)

    def _end_all(self, workers: list[tuple[str, Worker]]) -> None:
        for _, worker in workers:
            worker.why = "The server was ended while this run trained."
            worker.kill()
        if self._temporary:
            shutil.rmtree(self.root, ignore_errors=True)
        else:
            with contextlib.suppress(InputError, OSError), self.queue.turn():  # the next server finds what isn't noted
                for job, worker in workers:
                    self._settle(job, worker)
        if self._server is not None:
            os.close(self._server)
            self._server = None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
