"""What a training run told so far, read from its ``metrics.jsonl`` as that grows. No gradio here."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    all stages. ``generation`` changes whenever something was taken back, as when a run goes on from an earlier
    state."""

    generation: int = 0
    stages: tuple[StagePart, ...] = ()
    train: tuple[tuple[float, float, float, float], ...] = ()
    held_out: tuple[tuple[float, float], ...] = ()
    trainable: tuple[dict[str, Any], ...] = ()
    data: dict[str, int] = field(default_factory=dict)
    last_step: dict[str, Any] | None = None
    evaluations: tuple[dict[str, Any], ...] = ()


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
        """Everything that the file says; nothing where it isn't there yet."""
        with self._lock:
            cursor = self._cursors.setdefault(metrics, _Cursor(0, 0, Progress()))
            self._cursors.move_to_end(metrics)
            while len(self._cursors) > CACHED:
                self._cursors.popitem(last=False)
            try:
                found = metrics.stat()
            except FileNotFoundError:
                if cursor.offset:
                    cursor.inode, cursor.offset = 0, 0
                    cursor.progress = Progress(cursor.progress.generation + 1)
                return cursor.progress
            if found.st_ino != cursor.inode or found.st_size < cursor.offset:
                generation = cursor.progress.generation + (cursor.inode != 0)
                cursor.inode, cursor.offset, cursor.progress = found.st_ino, 0, Progress(generation)
            with metrics.open("rb") as file:
                file.seek(cursor.offset)
                text = file.read()
            # The last line may still be being written.
            whole = text[: text.rfind(b"\n") + 1]
            cursor.offset += len(whole)
            cursor.progress = _advance(cursor.progress, list(_events(whole)))
            return cursor.progress

    def forget(self, metrics: Path) -> None:
        with self._lock:
            self._cursors.pop(metrics, None)


def _events(text: bytes) -> Iterator[dict[str, Any]]:
    # Only "\n" ends a line: answers may hold Unicode's other line ends.
    for line in text.decode("utf-8", errors="replace").split("\n"):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut by the end of an earlier process
        if isinstance(event, dict):
            yield event


def _advance(progress: Progress, events: list[dict[str, Any]]) -> Progress:
    if not events:
        return progress
    stages, train, held_out = list(progress.stages), list(progress.train), list(progress.held_out)
    evaluations = list(progress.evaluations)
    trainable, data, last = progress.trainable, progress.data, progress.last_step
    for event in events:
        kind = event.get("event")
        if kind == "start":
            if not stages or stages[-1].name != event["stage"]:
                offset = stages[-1].offset + stages[-1].steps if stages else 0
                stages.append(StagePart(event["stage"], event.get("kind", ""), int(event["steps"]), offset))
            trainable, data = tuple(event.get("trainable", ())), dict(event.get("data", {}))
        offset = next((part.offset for part in reversed(stages) if part.name == event.get("stage")), 0)
        if kind == "step":
            rate = max(event.get("learning_rates", {}).values(), default=0.0)
            train.append((offset + event["step"], event["loss"], rate, event.get("gradient_norm", 0.0)))
            last = event
        elif kind == "eval":
            if event.get("loss") is not None:  # null: nothing could be measured
                held_out.append((offset + event["step"], event["loss"]))
            evaluations.append({**event, "at": offset + event["step"]})
    return Progress(progress.generation, tuple(stages), tuple(train), tuple(held_out), trainable, data, last,
                    tuple(evaluations))  # fmt: skip
