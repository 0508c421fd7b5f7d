"""What a process that reads foreign data is given, and how it answers: a request comes as JSON on its input, one JSON
value goes to its output. Whatever happens to it in between happens to nobody else.

Only the standard library is imported here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def serve(
    work: Callable[[dict[str, Any]], Any],
    expected: type[Exception],
    prepare: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Reads the request, does ``work`` on its task under its limits and writes ``{"value": …}``; or ``{"refusal":
    sentence}`` for the ``expected`` exception, ``{"memory": true}``, ``{"fault": what}`` for anything else. ``prepare``
    imports what is large: modules count as memory, but not as the data's."""
    request = json.loads(sys.stdin.buffer.read())
    # What libraries print must not stand between the lines of the answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    if prepare is not None:
        prepare(request["task"])
    confine(request["seconds"], request["memory"], request["file_bytes"], request["nice"])
    os.write(answers, b"\n")  # from here on the time counts
    answer: dict[str, Any]
    try:
        answer = {"value": work(request["task"])}
    except expected as error:
        answer = {"refusal": str(error)}
    except MemoryError:
        answer = {"memory": True}
    except Exception as error:
        # Parsers of foreign formats fail in ways of their own. The sentence is for the person, the rest for the owner.
        traceback.print_exc()
        answer = {"fault": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"}
    text = json.dumps(answer, ensure_ascii=False, allow_nan=False, default=str)
    with os.fdopen(answers, "wb") as out:
        # Half a surrogate pair is no text, and nobody after this could write it.
        out.write(text.encode("utf-8", errors="replace"))
    return 0


def confine(seconds: float, memory: int, file_bytes: int, nice: int) -> None:
    """Bounds this process: after ``seconds`` it ends by itself, beyond ``memory`` bytes (with what it holds already) it
    gets a MemoryError, no file that it writes grows beyond ``file_bytes``, and it stands back behind whoever chats."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with contextlib.suppress(OSError):
        os.nice(nice)
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    if STATUS.exists():  # other systems count address space, of which libraries reserve more than they use
        held = _read_status()
        limit = held["VmData"] + max(memory - held["VmRSS"], 0)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _read_status() -> dict[str, int]:
    lines = (line.split() for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words and words[-1] == "kB"}
