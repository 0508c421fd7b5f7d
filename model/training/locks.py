"""Locks of files: held by having the file open, by one process and those it hands the open file on to, until the last
of them ends, however it ends."""

from __future__ import annotations

import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks; there nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]

RETRY_S = 0.01
PROBED_S = 0.5
"""Whoever only looks whether a lock is held has it for a moment; one that is still held after so long is."""


def hold(path: Path, patience_s: float = PROBED_S) -> int | None:
    """A handle that holds the lock of ``path``, which is made where it isn't there, until it is closed; None where
    somebody else holds it for longer than ``patience_s``. OSError where the file can't be opened or locked."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    end = time.monotonic() + patience_s
    while fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= end:
                os.close(handle)
                return None
            time.sleep(RETRY_S)
        except BaseException:
            os.close(handle)
            raise
    return handle


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock of ``path``. Another user's file, which can't be looked at, counts as held."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except PermissionError:
        return True
    except OSError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
