"""The draws of a run, in order: each rendered by one process of the run alone, in that process or ahead of time by
workers, and told to all.

What a draw gives depends on its number alone (see :class:`model.training.data.datasets.Mixture`), so neither the number
of workers nor that of processes changes what a step is made of, and a run goes on from a number.
"""

from __future__ import annotations

import ctypes
import io
import itertools
import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.errors import InputError
from model.training.data.datasets import DataStopped
from model.training.data.ledger import Entry

AUTO = "auto"
MOST_WORKERS = 16
PAYS_SHARE, PAYS_S = 0.05, 10.0
"""A worker pays where rendering takes more than this share of a step, and more than so many seconds of the whole stage:
it has to be started, and takes a processor from the arithmetic."""
HEADROOM = 1.25
"""So much faster than the arithmetic workers should be."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Draw:
    """Draw ``number``. ``item``: what was rendered, where it was; ``summary``: what other processes must know of it;
    both None for a draw that can't be used, which ``passed_over`` tells of. ``stops``: the sentence that ends the run
    if it comes to this draw."""

    number: int
    item: Any = None
    summary: Any = None
    passed_over: Entry | None = None
    stops: str | None = None


class Feed:
    """The draws from any number on, of which each process of a run renders every so many'th. ``render(number)`` makes
    one; ``steps`` is how many times a step will be taken, and ``at_once`` how many draws one has at least."""

    def __init__(
        self,
        render: Callable[[int], Draw],
        steps: int,
        at_once: int,
        *,
        accelerator: Accelerator | None = None,
        workers: int | str = 0,
    ) -> None:
        if workers not in (0, AUTO) and not can_fork():
            raise InputError(f"Rows are rendered by forked processes, on Linux alone; set workers to 0, not {workers}.")
        self._render, self._steps, self._workers = render, steps, workers
        self.processes = 1 if accelerator is None else accelerator.num_processes
        self.process = 0 if accelerator is None else accelerator.process_index
        self._at_once = -(-at_once // self.processes)
        self._position: int | None = None
        self._ready: dict[int, Draw] = {}
        self._told: dict[int, Draw] = {}
        self._next_own = 0
        self._ahead: Iterator[bytes] | None = None
        self._waited_s = 0.0
        self._steps_taken = 0
        self._begun = 0.0
        self.last_step = 0, 0.0
        """Draws of the last step that were rendered for this process, and the seconds of rendering them here, or of
        waiting for those who do."""

    def seek(self, position: int) -> None:
        """The next step begins with draw ``position``."""
        if position == self._position:
            self._choose_workers()
            return
        self.close()
        self._ready.clear()
        self._told.clear()
        first = position + (self.process - position) % self.processes
        self._position, self._next_own = position, first

    def know(self, number: int) -> Draw:
        """Draw ``number``, not before the last :meth:`seek`; its item only where this process rendered it. All
        processes must ask alike. DataStopped where this draw ends the run, InputError where it can't be had."""
        while number not in self._told:
            self._tell()
        draw = self._told[number]
        if draw.stops is not None:
            raise DataStopped(draw.stops)
        return draw

    def take(self, end: int) -> list[Draw]:
        """All draws up to ``end``, which the next step begins with; items where they were rendered here."""
        assert self._position is not None
        draws = [self.know(number) for number in range(self._position, end)]
        for draw in draws:
            del self._told[draw.number]
        own = sum(number % self.processes == self.process for number in range(self._position, end))
        self.last_step = own, self._waited_s
        self._steps_taken, self._begun = self._steps_taken + 1, time.monotonic()
        self._waited_s, self._position = 0.0, end
        return draws

    def close(self) -> None:
        """Ends the workers."""
        self._ahead = None

    def _tell(self) -> None:
        """Renders the next draws and tells them to all. A fault of one process is one of all: else they would wait for
        it."""
        count = 1 if self.processes == 1 else self._at_once
        own, fault = [], None
        start = time.monotonic()
        try:
            own = [self._fetch() for _ in range(count)]
        except InputError as error:
            if self.processes == 1:
                raise
            fault = str(error)
        self._waited_s += time.monotonic() - start
        if self.processes == 1:
            self._told |= {draw.number: draw for draw in own}
            return
        told = gather_object([fault, *(replace(draw, item=None) for draw in own)])
        if faults := [entry for entry in told if isinstance(entry, str)]:
            raise InputError(faults[0])
        self._told |= {draw.number: draw for draw in [*told, *own] if isinstance(draw, Draw)}

    def _fetch(self) -> Draw:
        number = self._next_own
        if self._ahead is None:
            draw = self._render(number)
        else:
            try:
                draw = pickle.loads(next(self._ahead))
            except RuntimeError as error:
                if (ended := explain_worker(error)) is None:
                    raise
                raise ended from error
        self._next_own = number + self.processes
        return draw

    def _choose_workers(self) -> None:
        """Starts workers once it is known how many draws a step takes, and for “auto” how long."""
        if self._ahead is not None or self._workers == 0 or not self._steps_taken:
            return
        own, waited_s = self.last_step
        if self._workers == AUTO:
            if self._steps_taken == 1:
                return  # it is slower than those after it
            self._workers = count_workers(waited_s, time.monotonic() - self._begun, self._steps, self.processes)
        if self._workers:
            numbers = itertools.count(self._next_own, self.processes)
            self._ahead = _start_workers(self._render, numbers, int(self._workers), max(own, self._at_once))


def explain_worker(error: Exception) -> InputError | None:
    """What there is to say if ``error`` tells that a worker was ended. torch raises that out of a signal's handler,
    wherever the program is."""
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
        return None
    return InputError(
        f"A process that renders rows was ended ({str(error).splitlines()[0].strip(' .')}), mostly for want of memory; "
        "go on from the last state (--resume), with fewer workers."
    )


def count_workers(rendering_s: float, computing_s: float, steps: int, processes: int = 1) -> int:
    """As many workers as make the rows of a step, which take one of them ``rendering_s``, while ``computing_s`` go by;
    0 where a worker would cost more than it gains."""
    small = rendering_s < PAYS_SHARE * (rendering_s + computing_s) or rendering_s * steps < PAYS_S
    if small or not can_fork():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(1, min(MOST_WORKERS, cores // processes))
    return min(most, math.ceil(HEADROOM * rendering_s / max(computing_s, 1e-3)))


def can_fork() -> bool:
    """Workers are forked: they share the data and the tokenizer, which other ways of starting would copy to each."""
    return sys.platform.startswith("linux") and "fork" in multiprocessing.get_all_start_methods()


class _Pickler(pickle.Pickler):
    """Tensors as numpy's arrays, so that they go through the worker's pipe: shared memory, torch's own way, is 64 MB in
    many containers, and takes a file handle for each tensor."""

    def reducer_override(self, obj: Any) -> Any:
        return (torch.from_numpy, (obj.numpy(),)) if isinstance(obj, Tensor) else NotImplemented


class _Rendered(Dataset[bytes]):
    """The draws, rendered, for a worker to send."""

    def __init__(self, render: Callable[[int], Draw]) -> None:
        self._render = render

    def __getitem__(self, number: int) -> bytes:
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=5).dump(self._render(number))
        return buffer.getvalue()


def _start_workers(
    render: Callable[[int], Draw], numbers: Iterator[int], workers: int, at_once: int
) -> Iterator[bytes]:
    """The draws ``numbers`` in that order, rendered by ``workers`` processes: those of a step while the one before is
    computed."""
    return iter(
        DataLoader(
            _Rendered(render),
            batch_size=None,
            sampler=numbers,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=max(2, -(-at_once // workers)),
            multiprocessing_context="fork",
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # else it would draw from the run's own random numbers
        )
    )


def _as_it_is(draw: Any) -> Any:
    return draw


def _begin_worker(number: int) -> None:
    """A worker ends with its process, however that ends (the lock of the run's folder is held by both), and is not
    asked to end by whoever asks that one."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
