"""What a run says while it runs; ``metrics.jsonl`` holds one of these a line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Answered:
    """One held-out question with the right answer and the model's."""

    question: str
    expected: str
    answered: str
    family: str = ""

    @property
    def right(self) -> bool:
        """To the letter, blanks around it aside."""
        return self.answered.strip() == self.expected.strip()


@dataclass(frozen=True)
class ModuleSize:
    """How many parameters a module has and how many of them are trained."""

    module: str
    parameters: int
    trainable: int


@dataclass(frozen=True)
class Event:
    """``stage`` is the stage's name, ``time`` seconds since 1970."""

    name: ClassVar[str] = ""
    stage: str
    time: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no NaN: what couldn't be measured is null."""
        return {"event": self.name, **_plain(dataclasses.asdict(self))}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class StartEvent(Event):
    """A stage begins, or goes on after ``resumed_at`` steps. ``precision`` is what the stage computes in."""

    name: ClassVar[str] = "start"
    kind: str
    steps: int
    trainable: tuple[ModuleSize, ...]
    data: Mapping[str, int]
    held_out: int
    precision: str
    processes: int
    resumed_at: int = 0


@dataclass(frozen=True)
class StepEvent(Event):
    """After optimizer step ``step`` of ``steps``. ``loss`` in nats per trained token (per pair in the contrastive
    stage), of the weights before the step; ``gradient_norm`` before clipping; ``tokens_per_s`` counts every position
    that is no padding (tiles in the contrastive stage); ``seconds`` since the stage began, breaks not counted;
    ``dropped`` examples of the step's draw that can't be used (too long, no answer, unreadable). ``rendered`` draws of
    the step by the main process, or for it by its workers, which it spent ``waited_s`` seconds on."""

    name: ClassVar[str] = "step"
    step: int
    steps: int
    loss: float
    learning_rates: Mapping[str, float]
    gradient_norm: float
    tokens_per_s: float
    seconds: float
    eta_s: float
    dropped: int = 0
    rendered: int = 0
    waited_s: float = 0.0


@dataclass(frozen=True)
class EvalEvent(Event):
    """On held-out data, after ``step`` steps (0: before the first): the mean loss, the share of answers that are right
    to the letter per family, of how many (``counts``), some answers.
    ``shares [pair caption]``, of a contrastive stage: how each picture's choice is spread over the captions of the
    pairs that ``answers`` are about, in their order."""

    name: ClassVar[str] = "eval"
    step: int
    loss: float
    accuracy: Mapping[str, float]
    answers: tuple[Answered, ...] = field(default=())
    shares: tuple[tuple[float, ...], ...] = field(default=())
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedEvent(Event):
    """``path`` is relative to the run's folder."""

    name: ClassVar[str] = "saved"
    step: int
    path: str


@dataclass(frozen=True)
class DoneEvent(Event):
    """The end: ``status`` is “done”, or “stopped” where somebody asked to stop and keep."""

    name: ClassVar[str] = "done"
    status: str
    path: str
    fingerprint: str


@dataclass(frozen=True)
class FailedEvent(Event):
    """The run can't go on. ``error`` is one sentence; the last good weights are kept in ``path``, if any."""

    name: ClassVar[str] = "failed"
    error: str
    path: str | None = None
