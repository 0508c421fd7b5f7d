"""The process that trains one job: started, told apart from others, ended, and why it ended. No gradio here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from inspector.environment import clean_environment
from model.training.runs import RECIPE

OUTPUT = "output.txt"
RUN_FOLDER = "run"
TAIL = 1500
"""Characters of the process's last words that are kept for people."""


def start_process(folder: Path, *, resumed: bool, threads: int, nice: int) -> subprocess.Popen[bytes]:
    """Trains by the recipe in ``folder`` in its run folder; what it prints is appended to its output file. ``nice``:
    how far it stands back behind whoever chats with a model, 0 to 19."""
    # Made now, so that a process that is still starting can be asked for something.
    (folder / RUN_FOLDER).mkdir(exist_ok=True)
    command = [sys.executable, "-m", "model.training", "run", str(folder / RECIPE), "--out", str(folder / RUN_FOLDER),
               "--quiet", *(["--resume", "--keep-request"] if resumed else [])]  # fmt: skip
    if program := shutil.which("nice"):
        command = [program, "-n", str(nice), *command]
    environment = clean_environment(threads)
    with (folder / OUTPUT).open("ab") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                                   stdout=output, stderr=output, start_new_session=True)  # fmt: skip
    # Linux weighs sessions alike before it looks at niceness within them, so the new session is told as well.
    with contextlib.suppress(OSError):  # other systems have no such file
        Path(f"/proc/{process.pid}/autogroup").write_text(str(nice), encoding="ascii")
    return process


def kill_process(process: subprocess.Popen[bytes]) -> None:
    """At once, with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def is_training(pid: object, folder: Path) -> bool:
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


def last_words(folder: Path) -> str:
    """The end of what the processes of a job printed."""
    try:
        return (folder / OUTPUT).read_text(encoding="utf-8", errors="replace")[-TAIL:].strip()
    except OSError:
        return ""


def explain_end(words: str, exit_status: int | None) -> str:
    """One sentence on why a process ended that didn't say so itself; ``exit_status`` None where nobody knows it."""
    if exit_status is not None and exit_status < 0:
        name = signal.Signals(-exit_status).name
        why = " (perhaps for want of memory)" if -exit_status == signal.SIGKILL else ""
        return f"The training process was ended from outside by {name}{why}."
    if words:
        last = words.splitlines()[-1]
        return last if exit_status == 2 else f"The training process broke off: {last}"
    return "The training process ended without a word."
