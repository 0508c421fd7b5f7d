"""The process that decodes images: started by :mod:`inspector.images.decoder`, which sends it one task after another.

A file may be made so that a decoder works on it for hours or takes all memory, and no decoder can be stopped from
within. Here the system ends it, and the memory goes back with the process.
"""

from __future__ import annotations

import contextlib
import math
import resource
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

from inspector.images.decoded import send_answer
from model.errors import InputError

START = """
import sys, types
home, connection, memory, seconds = sys.argv[1:]
package = types.ModuleType("model")
package.__path__ = [home + "/model"]
sys.modules["model"] = package
sys.path.insert(0, home)
from inspector.images.decoding import serve
serve(int(connection), int(memory), float(seconds))
"""
"""The program. It leaves the package ``model`` empty: whole, it would load torch, which decodes nothing."""

SPENT_BYTES = 256 << 20
"""A process that once held more is not used again: the system's allocator gives little of it back."""


def serve(connection: int, memory: int, seconds: float) -> None:
    """Takes (function, arguments) and answers (what became of it, the result, whether another process is to be used
    from now on) until the other side is closed. ``memory`` in bytes for all of the process, ``seconds`` of the
    processor for one task."""
    # Not every system has these bounds; the time that the other side waits is bounded in any case.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    warnings.simplefilter("ignore")  # what decoders say of odd files; nobody reads it here
    with Connection(connection) as other:
        while True:
            try:
                function, arguments = other.recv()
            except EOFError:
                return
            _bound_time(seconds)
            became, result = "done", None
            try:
                result = function(*arguments)
            except InputError as error:
                became, result = "refused", str(error)
            except MemoryError:
                became = "memory"
            except Exception as error:
                became, result = "failed", f"{type(error).__name__}: {error}"
            send_answer(other, (became, result, _is_spent()))


def _bound_time(seconds: float) -> None:
    """From now on, beside what was used before."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _is_spent() -> bool:
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    # On Linux that count begins with the memory of the process that started this one; here is another.
    for line in status.read_text(encoding="utf-8", errors="replace").splitlines() if status.exists() else ():
        if line.startswith("VmHWM"):
            held = int(line.split()[1])
    return held * 1024 > SPENT_BYTES
