"""The jobs of a folder that wait or train, in order, for every server that works on it. No gradio here.

``ROOT/.queue`` has an empty file for each, named by the moment it was put there and the job's id, so there is nothing
in it that could be half written. Which of them train is told by the jobs' own folders.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from model import InputError
from model.training.locks import hold

FOLDER, TURN = ".queue", ".turn"
PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""A name of one folder: nothing that a person sends, or that a damaged file holds, may point elsewhere."""
TURN_S = 20.0
"""A turn is over within moments, unless another server has just died of something."""


class JobQueue:
    """The queue of the jobs in ``root``. OSError where it can't be made."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / FOLDER
        self._folder.mkdir(exist_ok=True)
        self._mine = threading.RLock()
        self._depth = 0

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """While it lasts no other thread and no other server changes what waits, or whose turn it is. InputError where
        the folder can't be locked."""
        with self._mine:
            handle = self._lock() if not self._depth else None
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if handle is not None:
                    os.close(handle)

    def _lock(self) -> int:
        try:
            handle = hold(self._root / TURN, TURN_S)
        except OSError as error:
            raise InputError(f"The runs' folder can't be written ({error.strerror}); what is there is kept.") from error
        if handle is None:
            raise InputError("Another server is busy with the runs' folder; try again in a minute.")
        return handle

    def ids(self) -> list[str]:
        """The first one first."""
        try:
            names = sorted(os.listdir(self._folder))
        except OSError:  # removed while the server runs: then nothing waits
            return []
        jobs = [name.partition("-")[2] for name in names]
        return list(dict.fromkeys(job for job in jobs if PLAIN.fullmatch(job)))

    def add(self, job: str) -> None:
        """OSError where that can't be written."""
        (self._folder / f"{time.time_ns():020d}-{job}").touch()

    def remove(self, job: str) -> None:
        """Nothing where it isn't there. OSError where that can't be written."""
        for entry in self._folder.glob(f"*-{job}"):
            if entry.name.partition("-")[2] == job:
                entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)
