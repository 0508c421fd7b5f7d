"""Images are decoded outside the server's process, in bounded time and memory. No gradio here.

A large picture takes its place alone and small ones go side by side, for what is bounded is the pixels that are decoded
at the same time. Of all who wait it is the turn of the person who was served longest ago; whoever waits too long is
told that the server is busy.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from inspector.bounds import Bounds
from inspector.images.decoded import receive_answer
from inspector.images.decoding import START
from inspector.images.full_size import open_and_apply
from model import InputError
from model.picture import name_source, read_header

T = TypeVar("T")

REMEMBERED = 4096
"""So many people are remembered as served; who was served longest ago is as good as never."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Ticket:
    """Somebody who waits for a place."""

    person: str


class Decoder:
    """The processes, each started when it is needed first. For any number of threads."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        """May be replaced at any time; holds for what begins then."""
        self.find_person: Callable[[], str] = str
        """Says for whom the calling thread works. What it raises where nobody waits for that any more ends the work
        before its next image."""
        self._changed = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._served: OrderedDict[str, int] = OrderedDict()
        self._turn = 0
        self._running = 0
        self._pixels = 0
        self._idle: list[_Process] = []
        atexit.register(self.close)

    def count_pixels(self, path: Path) -> int:
        """By the file's header. InputError as in :func:`model.picture.read_header`."""
        width, height = self._run(path, 0, time.monotonic() + self.bounds.decode_wait_s, read_header, path).size
        return width * height

    def run(self, path: Path, function: Callable[..., T], *arguments: Any) -> T:
        """``function`` of the image in the file at ``path`` and of ``arguments``:
        one of :mod:`inspector.images.full_size`.
        InputError as in :func:`model.open_image`, and for an image that takes too long or too much memory or is not
        reached in time."""
        deadline = time.monotonic() + self.bounds.decode_wait_s
        header = self._run(path, 0, deadline, read_header, path)
        weight = header.size[0] * header.size[1] * header.copies
        found: T = self._run(path, weight, deadline, open_and_apply, path, function, *arguments)
        return found

    def close(self) -> None:
        """Ends the processes that wait for work."""
        with self._changed:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def _run(self, path: Path, weight: int, deadline: float, function: Callable[..., Any], *arguments: Any) -> Any:
        name = name_source(path)
        with self._take_place(weight, deadline, name):
            process = self._take_process()
            try:
                became, result, spent = process.run(function, arguments, deadline - time.monotonic())
            except BaseException as error:
                status = process.end(at_once=True)
                if isinstance(error, TimeoutError) or (isinstance(error, EOFError) and status == -signal.SIGXCPU):
                    raise InputError(f"{name} takes too long to open; save it again as PNG or JPEG.") from error
                if isinstance(error, EOFError):
                    raise InputError(
                        f"{name} can't be opened, its decoder broke off; save it again as PNG or JPEG."
                    ) from error
                raise
            if spent:
                process.end()
            else:
                with self._changed:
                    self._idle.append(process)
        if became == "refused":
            raise InputError(result)
        if became == "memory":
            raise InputError(
                f"{name} needs more memory to open than an image may take; scale it down or save it again "
                "as PNG or JPEG."
            )
        if became == "failed":
            _log.error("%s failed in a decoding process: %s", function.__name__, result)
            raise InputError(f"{name} can't be opened; save it again as PNG or JPEG.")
        return result

    @contextmanager
    def _take_place(self, weight: int, deadline: float, name: str) -> Iterator[None]:
        ticket = _Ticket(self.find_person())
        with self._changed:
            # The largest picture would else never find room below a smaller bound.
            weight = min(weight, self.bounds.decoding_pixels)
            self._waiting.append(ticket)
            try:
                if not self._changed.wait_for(lambda: self._is_next(ticket, weight), deadline - time.monotonic()):
                    raise InputError(f"{name} was not opened in time, the server is busy with other images; try again.")
                self._turn += 1
                self._served[ticket.person] = self._turn
                self._served.move_to_end(ticket.person)
                while len(self._served) > REMEMBERED:
                    self._served.popitem(last=False)
                self._running += 1
                self._pixels += weight
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._pixels -= weight
                self._changed.notify_all()

    def _is_next(self, ticket: _Ticket, weight: int) -> bool:
        return (
            # The first of those whose turn is equally long ago.
            min(self._waiting, key=lambda one: self._served.get(one.person, 0)) is ticket
            and self._running < self.bounds.decoders
            and self._pixels + weight <= self.bounds.decoding_pixels
        )

    def _take_process(self) -> _Process:
        with self._changed:
            while self._idle:
                if (process := self._idle.pop()).lives:
                    return process
        return _Process(self.bounds)


class _Process:
    """One decoding process, at one task at a time."""

    def __init__(self, bounds: Bounds) -> None:
        home = str(Path(__file__).parents[2])
        self._connection: Connection
        self._connection, other = Pipe()
        command = [
            sys.executable,
            "-P",
            "-c",
            START,
            home,
            str(other.fileno()),
            str(bounds.decode_bytes),
            str(bounds.decode_s),
        ]
        # A session of its own: Ctrl+C is the server's business, which closes the connection when it ends.
        with other:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout: float) -> tuple[str, Any, bool]:
        """TimeoutError if no answer comes, EOFError if the process has ended."""
        try:
            self._connection.send((function, arguments))
            if not self._connection.poll(max(timeout, 0)):
                raise TimeoutError
            became, result, spent = receive_answer(self._connection)
        except TimeoutError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # its end, or no answer
            raise EOFError from error
        return became, result, spent

    def end(self, *, at_once: bool = False) -> int:
        """Its exit status. It ends by itself when its connection is closed, unless it is at work."""
        self._connection.close()
        if at_once:
            self._process.kill()
        return self._process.wait()


DECODER = Decoder()
"""The server's own."""
