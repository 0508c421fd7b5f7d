"""What a training run told so far, read from its ``metrics.jsonl`` as that grows. No gradio here."""

from __future__ import annotations

import json
import math
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_STEPS = 10**15
"""More than any run takes; a larger number wasn't counted."""
MOST_PAIRS = 64
"""Of a contrastive stage's matrix; more weren't shown."""
CACHED = 32
"""Of so many runs what was read is kept; the least looked at go first."""


@dataclass(frozen=True)
class StagePart:
    """A stage as far as it has begun: its steps are counted on from ``offset``."""

    name: str
    kind: str
    steps: int
    offset: int


@dataclass(frozen=True)
class Progress:
    """``train``: (step, loss, highest learning rate, gradient norm), ``held_out``: (step, loss), steps counted through
    all stages; a loss that is no number is NaN. ``damaged``: how many lines say nothing that can be used.
    ``generation`` changes whenever something was taken back, as when a run goes on from an earlier
    state."""

    generation: int = 0
    stages: tuple[StagePart, ...] = ()
    train: tuple[tuple[float, float, float, float], ...] = ()
    held_out: tuple[tuple[float, float], ...] = ()
    trainable: tuple[dict[str, Any], ...] = ()
    data: dict[str, int] = field(default_factory=dict)
    last_step: dict[str, Any] | None = None
    evaluations: tuple[dict[str, Any], ...] = ()
    damaged: int = 0


@dataclass
class _Cursor:
    inode: int
    offset: int
    progress: Progress


class ProgressReader:
    """Reads the metrics of many runs, each time only what is new."""

    def __init__(self) -> None:
        self._cursors: OrderedDict[Path, _Cursor] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, metrics: Path) -> Progress:
        """Everything that the file says; nothing where it isn't there yet, or is no file."""
        with self._lock:
            cursor = self._cursors.setdefault(metrics, _Cursor(0, 0, Progress()))
            self._cursors.move_to_end(metrics)
            while len(self._cursors) > CACHED:
                self._cursors.popitem(last=False)
            try:
                found = metrics.stat()
                if not stat.S_ISREG(found.st_mode):
                    raise FileNotFoundError(metrics)
                file = metrics.open("rb")
            except OSError:
                # What of it can't be read is said where the run's state is.
                if cursor.offset:
                    cursor.inode, cursor.offset = 0, 0
                    cursor.progress = Progress(cursor.progress.generation + 1)
                return cursor.progress
            if found.st_ino != cursor.inode or found.st_size < cursor.offset:
                generation = cursor.progress.generation + (cursor.inode != 0)
                cursor.inode, cursor.offset, cursor.progress = found.st_ino, 0, Progress(generation)
            with file:
                file.seek(cursor.offset)
                text = file.read()
            # The last line may still be being written.
            whole = text[: text.rfind(b"\n") + 1]
            cursor.offset += len(whole)
            cursor.progress = _advance(cursor.progress, whole)
            return cursor.progress

    def forget(self, metrics: Path) -> None:
        with self._lock:
            self._cursors.pop(metrics, None)


def _events(text: bytes) -> Iterator[dict[str, Any] | None]:
    """Each line's; None for one that says nothing that can be used."""
    # Only "\n" ends a line: answers may hold Unicode's other line ends.
    for line in text.decode("utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            yield _KINDS[event["event"]](event)
        # Cut by the end of an earlier process, or written by nobody here: it may hold anything.
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            yield None


def _advance(progress: Progress, text: bytes) -> Progress:
    if not text:
        return progress
    stages, train, held_out = list(progress.stages), list(progress.train), list(progress.held_out)
    evaluations = list(progress.evaluations)
    trainable, data, last, damaged = progress.trainable, progress.data, progress.last_step, progress.damaged
    for event in _events(text):
        if event is None:
            damaged += 1
            continue
        kind = event["event"]
        if kind == "start":
            if not stages or stages[-1].name != event["stage"]:
                offset = stages[-1].offset + stages[-1].steps if stages else 0
                stages.append(StagePart(event["stage"], event["kind"], event["steps"], offset))
            trainable, data = event["trainable"], event["data"]
        offset = next((part.offset for part in reversed(stages) if part.name == event["stage"]), 0)
        if kind == "step":
            rate = max(event["learning_rates"].values(), default=0.0)
            train.append((offset + event["step"], event["loss"], rate, event["gradient_norm"]))
            last = event
        elif kind == "eval":
            if math.isfinite(event["loss"]):  # else nothing could be measured
                held_out.append((offset + event["step"], event["loss"]))
            evaluations.append({**event, "at": offset + event["step"]})
    return Progress(
        progress.generation,
        tuple(stages),
        tuple(train),
        tuple(held_out),
        trainable,
        data,
        last,
        tuple(evaluations),
        damaged,
    )


# --- what an event holds, each of the kind that it must be of ---


def _text(value: Any) -> str:
    """TypeError for what is no text. Lone surrogates, which no page could show, are replaced."""
    if not isinstance(value, str):
        raise TypeError
    return value.encode("utf-8", "replace").decode()


def _count(value: Any) -> int:
    """TypeError and ValueError for what is no number of steps."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    if not 0 <= value <= MOST_STEPS:
        raise ValueError
    return value


def _number(value: Any) -> float:
    """NaN for what couldn't be measured, which is null in JSON. TypeError for what is no number."""
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise TypeError
    return math.nan if value is None else float(value)


def _finite(value: Any) -> float:
    """0 for what is no finite number; of things that only stand beside the curves."""
    number = _number(value)
    return number if math.isfinite(number) else 0.0


def _start(event: dict[str, Any]) -> dict[str, Any]:
    return {
        "event": "start",
        "stage": _text(event["stage"]),
        "kind": _text(event.get("kind", "")),
        "steps": _count(event["steps"]),
        "trainable": tuple(
            {
                "module": _text(part["module"]),
                "parameters": _count(part["parameters"]),
                "trainable": _count(part["trainable"]),
            }
            for part in event.get("trainable", ())
        ),
        "data": {_text(name): _count(count) for name, count in event.get("data", {}).items()},
    }


def _step(event: dict[str, Any]) -> dict[str, Any]:
    return {
        "event": "step",
        "stage": _text(event["stage"]),
        "step": _count(event["step"]),
        "steps": _count(event.get("steps", event["step"])),
        "loss": _number(event["loss"]),
        "learning_rates": {_text(part): _finite(rate) for part, rate in event.get("learning_rates", {}).items()},
        **{name: _finite(event.get(name, 0.0)) for name in ("gradient_norm", "tokens_per_s", "seconds", "eta_s")},
    }


def _eval(event: dict[str, Any]) -> dict[str, Any]:
    shares = {_text(family): _number(share) for family, share in event.get("accuracy", {}).items()}
    answers = [
        {name: _text(one.get(name, "")) for name in ("question", "expected", "answered", "family")}
        for one in event.get("answers", ())
    ]
    matrix = [[_number(share) for share in row] for row in event.get("shares", ())]
    if any(len(row) != len(matrix) for row in matrix[:MOST_PAIRS]):
        raise ValueError
    return {
        "event": "eval",
        "shares": matrix[:MOST_PAIRS],
        "stage": _text(event["stage"]),
        "step": _count(event["step"]),
        "loss": _number(event["loss"]),
        "accuracy": {family: share for family, share in shares.items() if math.isfinite(share)},
        "answers": answers,
        "counts": {_text(family): _count(count) for family, count in event.get("counts", {}).items()},
    }


def _other(event: dict[str, Any]) -> dict[str, Any]:
    return {"event": "other", "stage": _text(event["stage"])}


_KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "start": _start,
    "step": _step,
    "eval": _eval,
    "saved": _other,
    "done": _other,
    "failed": _other,
}
