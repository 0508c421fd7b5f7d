"""The process that trains one job: started, told apart from others, ended, and why it ended. No gradio here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from inspector.bounds import format_bound
from inspector.runs.environment import clean_environment
from model import InputError
from model.training.locks import hold, is_held
from model.training.runs import RECIPE

OUTPUT = "output.txt"
RUN_FOLDER = "run"
LOCK = ".process"
"""Whoever trains a job holds this file of its folder, which has the number of the process. It is inherited, so it is
held until the last process of the job is gone, whatever becomes of the server."""
TAIL = 1500
"""Characters of the process's last words that are kept for people."""
KILLED_S = 10.0
"""The system takes a killed process's memory and files back within moments."""
MEMORY_WORDS = ("MemoryError", "bad_alloc", "Cannot allocate memory", "can't allocate memory")


@dataclass
class Worker:
    """The process that trains in the job's ``folder``. ``process`` is None for one that an earlier server started.
    ``asked``: when it was told that its time is over; ``why``: the sentence of whoever ended it."""

    folder: Path
    pid: int
    process: subprocess.Popen[bytes] | None = None
    asked: float | None = None
    why: str | None = None

    def has_ended(self) -> bool:
        if self.process is not None:
            return self.process.poll() is not None
        return not is_held(self.folder / LOCK)

    @property
    def exit_status(self) -> int | None:
        """None while it lives, and where only an earlier server would have been told."""
        return None if self.process is None else self.process.returncode

    def terminate(self) -> None:
        """Asks it to save and end."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self, why: str | None = None) -> None:
        """Ends it at once, with all that it started, and waits until it is gone."""
        self.why = why or self.why
        kill_group(self.pid)
        end = time.monotonic() + KILLED_S
        while not self.has_ended() and time.monotonic() < end:
            time.sleep(0.01)


def start_process(folder: Path, *, resumed: bool, threads: int, nice: int) -> Worker:
    """Trains by the recipe in ``folder`` in its run folder; what it prints is appended to its output file. ``nice``:
    how far it stands back behind whoever chats with a model, 0 to 19. InputError if another process trains there;
    OSError where none can be started."""
    # Made now, so that a process that is still starting can be asked for something.
    (folder / RUN_FOLDER).mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "model.training",
        "run",
        str(folder / RECIPE),
        "--out",
        str(folder / RUN_FOLDER),
        "--quiet",
        *(["--resume", "--keep-request"] if resumed else []),
    ]
    if program := shutil.which("nice"):
        command = [program, "-n", str(nice), *command]
    environment = clean_environment(threads)
    lock = hold(folder / LOCK)
    if lock is None:
        raise InputError("Another process trains this run already; wait until it has ended.")
    try:
        with (folder / OUTPUT).open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(lock,),
            )
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(process.pid).encode(), 0)
        except OSError:
            kill_group(process.pid)
            process.wait()
            raise
    finally:
        os.close(lock)
    # Linux weighs sessions alike before it looks at niceness within them, so the new session is told as well; and where
    # the machine's memory is full after all, this process is the one to end and not the server.
    for name, value in (("autogroup", nice), ("oom_score_adj", 1000)):
        with contextlib.suppress(OSError):  # other systems have no such file
            Path(f"/proc/{process.pid}/{name}").write_text(str(value), encoding="ascii")
    return Worker(folder, process.pid, process)


def find_process(folder: Path) -> int | None:
    """The number of the process that trains the job in ``folder``, whoever started it; 0 where only that there is one
    is known, None if there is none."""
    if not is_held(folder / LOCK):
        return None
    try:
        text = (folder / LOCK).read_bytes()[:20]
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def kill_group(pid: int) -> None:
    """A process and all that it started, at once."""
    if pid > 1:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def measure_memory(session: int) -> int:
    """Bytes of memory of their own that a process and all that it started take together; 0 where the system doesn't
    tell. Files that are only mapped, such as weights, don't count: the system can drop them. Not what is reserved
    either, of which a process that imports pyarrow has 1 GiB more than it uses."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        # A process may end between two looks.
        with contextlib.suppress(OSError, ValueError):
            # After the name, which may hold anything: state, parent, group, session.
            if int((entry / "stat").read_bytes().rpartition(b")")[2].split()[3]) != session:
                continue
            for line in (entry / "smaps_rollup").read_bytes().splitlines():
                # What workers share with the process that they were forked from counts once.
                if line.startswith((b"Pss_Anon:", b"Pss_Shmem:")):
                    total += 1024 * int(line.split()[1])
    return total


def last_words(folder: Path) -> str:
    """The end of what the processes of a job printed, without the places of this machine."""
    try:
        if not (folder / OUTPUT).is_file():
            return ""
        with (folder / OUTPUT).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4 * TAIL))
            words = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    for place, name in ((folder, "RUN"), (Path(__file__).parents[2], "APP"), (Path(sys.prefix), "PYTHON")):
        words = words.replace(str(place), name)
    return words[-TAIL:].strip()


def explain_memory(run_bytes: int | None) -> str:
    """What a run is told that takes more memory than it is given."""
    more = (
        "memory than there is"
        if run_bytes is None
        else (f"than {format_bound(run_bytes, 'bytes')} of memory, which is all that a run is given here")
    )
    return f"The run needs more {more}; take fewer rows or shorter ones."


def explain_end(words: str, exit_status: int | None, run_bytes: int | None = None) -> str:
    """One sentence on why a process ended that didn't say so itself; ``exit_status`` None where nobody knows it."""
    last = words.splitlines()[-1] if words else ""
    if any(word in last for word in MEMORY_WORDS):
        return explain_memory(run_bytes)
    if exit_status is not None and exit_status < 0:
        names = {known.value: known.name for known in signal.Signals}
        name = names.get(-exit_status, f"signal {-exit_status}")
        why = " (perhaps for want of memory)" if -exit_status == signal.SIGKILL else ""
        return f"The training process was ended from outside by {name}{why}."
    if words:
        return last if exit_status == 2 else f"The training process broke off: {last}"
    return "The training process ended without a word."
