"""Files that a client names: only what was uploaded here is opened.

Gradio checks a path only where the item that holds it says of itself that it is a file; a client that leaves that word
out would have any file of the disk opened. So every path in what an event brings goes through here first.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from model import InputError


def admit_file(path: object, folder: Path) -> Path:
    """The regular file in ``folder`` that ``path`` leads to, links followed. InputError for anything else, with one
    sentence whether it exists or not: what lies elsewhere on this server is nobody's business."""
    refusal = InputError(f"“{_name(path)}” is no file that was uploaded here, or it was too long ago; upload it again.")
    if not isinstance(path, str) or "\0" in path:
        raise refusal
    try:
        real = Path(path).resolve()
        inside = real.is_relative_to(folder.resolve())
        if inside and stat.S_ISREG(real.stat().st_mode):
            return real
    except (OSError, RuntimeError):  # a name that is too long, a loop of links, or nothing there
        raise refusal from None
    raise refusal


def admit_files(values: Any, folder: Path) -> tuple[Path, ...]:
    """Every file that ``values`` (JSON's types, nested) name: an object with ``path`` or ``url`` is one. InputError as
    for :func:`admit_file`, and for an address in a file's place: this server fetches nothing."""
    admitted, waiting = [], [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting.extend(value)
        elif isinstance(value, dict):
            if "path" in value or "url" in value:
                # What the page sends back of its own has an address beside the path; without one there is no file.
                admitted.append(admit_file(value.get("path"), folder))
            waiting.extend(value.values())
    return tuple(admitted)


def _name(path: object) -> str:
    # The last part alone: the rest would tell a client no more than it has said, and strangers' paths are long.
    return str(path).replace("\\", "/").rstrip("/").rpartition("/")[2][:80] if isinstance(path, str) else "That"
