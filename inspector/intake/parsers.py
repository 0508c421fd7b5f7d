"""Processes that read foreign data for this server: few at a time, each with little time and memory. No gradio here.

Whatever a parser does with what strangers wrote (a JSON list of 150 MB holds Python's lock for seconds, a picture may
want gigabytes) happens to a process of its own, and ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from inspector.bounds import Bounds, format_bound
from inspector.intake import quote
from model import InputError

NICE = 5
"""How far they stand back behind whoever chats: a third of the share, for a reading has little time on the clock."""
LOOK_S = 0.02
STALE_S = 10.0
"""Whoever waits for a turn and hasn't looked for so long is gone."""
ANSWER_BYTES = 8 << 20
"""Of an answer; more is no answer of ours."""
_PYTHON = sys.executable
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "VIRTUAL_ENV")
"""What of this server's environment a process with foreign data gets: nothing that is secret."""


class ReadingStopped(Exception):
    """Somebody stopped the reading who knows that."""


class ParserPool:
    """The processes of one server. ``bounds``: how many, how long, how much."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.own = threading.Lock()
        """Held by whoever reads data of this program's own, in this process."""
        self._lock = threading.Lock()
        self._waiting: list[Reading] = []
        self._processes: dict[Reading, subprocess.Popen[bytes]] = {}
        # Also at the interpreter's end: nobody would take the answers.
        self.close = weakref.finalize(self, _kill_all, self._processes)

    def open(
        self,
        module: str,
        task: Mapping[str, Any],
        name: str,
        *,
        page: tuple[str, ...] = (),
        home: Path | None = None,
        online: bool = False,
    ) -> Reading:
        """A reading of ``task`` by ``python -m module``, which begins when it is looked at and it is its turn.
        ``name``: what the person calls the data. ``page``: who reads what; an older reading of the same is stopped.
        ``home``: its home folder. ``online``: it may ask the hub, as whoever started this server."""
        if page:
            self.stop(page)
        reading = Reading(self, module, task, name, page, _make_environment(home, online))
        with self._lock:
            self._waiting.append(reading)
        return reading

    def stop(self, page: tuple[str, ...]) -> bool:
        """Ends the readings whose page begins so, at once; whether there was one."""
        found = self._find(page)
        for reading in found:
            reading.stopped = True
            reading.close()
        return bool(found)

    def is_reading(self, page: tuple[str, ...]) -> bool:
        """Whether a reading whose page begins so waits or goes on."""
        return bool(self._find(page))

    def _find(self, page: tuple[str, ...]) -> list[Reading]:
        with self._lock:
            every = [*self._waiting, *self._processes]
        return [reading for reading in every if reading.page[: len(page)] == page]

    def _take_turn(self, reading: Reading) -> bool:
        now = time.monotonic()
        with self._lock:
            for gone in [other for other, process in self._processes.items() if process.poll() is not None]:
                del self._processes[gone]
            self._waiting[:] = [other for other in self._waiting if other is reading or now - other.seen < STALE_S]
            if reading not in self._waiting:
                self._waiting.append(reading)
            free = self.bounds.parsers - len(self._processes)
            if reading not in self._waiting[: max(0, free)]:
                return False
            self._waiting.remove(reading)
            self._processes[reading] = reading.begin()
            return True

    def _drop(self, reading: Reading) -> None:
        with self._lock:
            if reading in self._waiting:
                self._waiting.remove(reading)
            process = self._processes.pop(reading, None)
        if process is not None:
            _kill(process)


class Reading:
    """One reading of foreign data: looked at until it has an answer, closed whatever comes. ``watch`` is asked at each
    look while it goes on and may raise InputError."""

    def __init__(
        self,
        pool: ParserPool,
        module: str,
        task: Mapping[str, Any],
        name: str,
        page: tuple[str, ...],
        environment: Mapping[str, str],
    ) -> None:
        self.page, self.stopped = page, False
        self.seen = self._asked = time.monotonic()
        self.watch: Callable[[], None] | None = None
        self._pool, self._module, self._name, self._environment = pool, module, quote(name), dict(environment)
        bounds = pool.bounds
        self._request = json.dumps(
            {
                "task": dict(task),
                "seconds": bounds.parse_s,
                "memory": bounds.parse_bytes,
                "file_bytes": bounds.unpacked_bytes,
                "nice": NICE,
            }
        ).encode()
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._begun, self._ready = 0.0, False

    def look(self) -> Any:
        """The answer, or None as long as there is none. InputError with one sentence if the data can't be read within
        the bounds; ReadingStopped."""
        self.seen = time.monotonic()
        if self.stopped:
            raise ReadingStopped
        bounds = self._pool.bounds
        if self._process is None:
            if self._pool._take_turn(self):
                return None
            if self.seen - self._asked > bounds.parse_s:
                self.close()
                raise InputError(f"{self._name} waited {bounds.parse_s:g} s while data of others were read; try again.")
            return None
        status = self._process.poll()
        if status is None:
            # On a busy machine a process takes long to start; that isn't the data's fault.
            if not self._ready and self._output is not None and os.fstat(self._output.fileno()).st_size:
                self._ready, self._begun = True, self.seen
            if self.seen - self._begun > bounds.parse_s:
                self.close()
                raise InputError(self._too_slow())
            if self.watch is not None:
                self.watch()
            return None
        if self.stopped:
            raise ReadingStopped
        try:
            return self._understand(status)
        except ValueError:
            if self.stopped:  # closed meanwhile by whoever stopped it
                raise ReadingStopped from None
            raise
        finally:
            self.close()

    def wait(self) -> Any:
        """:meth:`look` until there is an answer, for programs."""
        try:
            while (answer := self.look()) is None:
                time.sleep(LOOK_S)
            return answer
        finally:
            self.close()

    def close(self) -> None:
        """Ends the process with all that it started, if it still runs."""
        self._pool._drop(self)
        if self._output is not None:
            self._output.close()

    def begin(self) -> subprocess.Popen[bytes]:
        """Starts the process; the pool's business."""
        self._begun = time.monotonic()
        command = [_PYTHON, "-P", "-m", self._module]  # -P: not what lies in the working folder
        try:
            self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the reading)
            process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.PIPE, stdout=self._output, start_new_session=True
            )
        except OSError as error:
            raise InputError(f"{self._name} can't be read now ({error.strerror}); try again later.") from error
        self._process = process
        # Linux weighs sessions alike before it looks at niceness within them, so the new session is told as well.
        with contextlib.suppress(OSError):  # other systems have no such file
            Path(f"/proc/{process.pid}/autogroup").write_text(str(NICE), encoding="ascii")
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it ended already; its status says why
            process.stdin.write(self._request)
            process.stdin.close()
        return process

    def _understand(self, status: int) -> Any:
        assert self._output is not None
        self._output.seek(0)
        text = self._output.read(ANSWER_BYTES + 1)
        answer: Any = None
        if len(text) <= ANSWER_BYTES:
            with contextlib.suppress(ValueError):  # ended in the middle of it; its status says why
                answer = json.loads(text)
        if isinstance(answer, dict):
            if answer.get("value") is not None:
                return answer["value"]
            if "refusal" in answer:
                raise InputError(str(answer["refusal"]))
            if "fault" in answer:
                raise InputError(f"{self._name} can't be read ({answer['fault']}); check that it is whole.")
            if "memory" in answer:
                raise InputError(self._too_large())
        if status == -signal.SIGALRM:
            raise InputError(self._too_slow())
        if status in (-signal.SIGKILL, -signal.SIGABRT):
            raise InputError(self._too_large())
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        raise InputError(f"{self._name} can't be read (its reader ended with {how}); check that it is whole.")

    def _too_slow(self) -> str:
        return f"{self._name} takes longer than {self._pool.bounds.parse_s:g} s to read; use fewer or smaller rows."

    def _too_large(self) -> str:
        most = format_bound(self._pool.bounds.parse_bytes, "bytes")
        return f"{self._name} takes more than {most} of memory to read; use fewer or smaller rows."


def _make_environment(home: Path | None, online: bool) -> dict[str, str]:
    """A bare one without the hub, in which a process finds the modules of this program; ``online`` all of this
    server's."""
    modules = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    quiet = {
        "PYTHONPATH": modules,
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    if online:
        return {**os.environ, **quiet}
    place = {"HOME": str(home), "HF_HOME": str(home / "hub")} if home is not None else {}
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, **place, **quiet, "HF_HUB_OFFLINE": "1"}


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _kill_all(processes: dict[Reading, subprocess.Popen[bytes]]) -> None:
    for process in list(processes.values()):
        _kill(process)
