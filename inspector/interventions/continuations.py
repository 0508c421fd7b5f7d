"""Ways for a row to go on, and how they stand behind one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from model import Cut


@dataclass(frozen=True)
class RopeShift:
    """Cached keys of the positions ``start`` to ``stop``, seen as if they stood ``by`` positions further on (rotary
    positions only: what they hold and what can see them stays)."""

    start: int
    stop: int
    by: int


@dataclass(frozen=True)
class Continuation:
    """One way for a row to go on: positions before ``start`` stay as they were read, ``ids`` stand from there on.

    ``scored`` (start, stop) are the positions whose tokens' log-probabilities are wanted; the first may be its own
    first, which what stands before it predicts. ``cuts`` take edges away, in
    positions of the continuation's own row; queries before ``start`` are beyond change and ignored. ``shifts`` move the
    keys of positions before ``start``. Ids that differ from the row's belong to the sample that ``start`` lies in.
    ``parent``: a continuation that ends at or before ``start``; its positions are seen in place of the row's (and
    those of its own parent). Positions between the two are the row's as it was read. ``features [image token
    lm_hidden_dim]``: what its image tokens hold, in order, if not what they hold in the row.
    """

    start: int
    ids: tuple[int, ...]
    scored: tuple[int, int]
    cuts: tuple[Cut, ...] = ()
    shifts: tuple[RopeShift, ...] = ()
    parent: Continuation | None = None
    features: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.parent is not None and self.parent.stop > self.start:
            raise ValueError(
                f"A continuation from {self.start} can't stand behind one that ends at {self.parent.stop}."
            )

    @property
    def stop(self) -> int:
        return self.start + len(self.ids)

    def cutting(self, *cuts: Cut) -> Continuation:
        """The same with more edges cut."""
        return replace(self, cuts=(*self.cuts, *cuts))

    @property
    def line(self) -> tuple[Continuation, ...]:
        """Its parents, the farthest first, and itself."""
        return (*(self.parent.line if self.parent is not None else ()), self)


@dataclass(frozen=True)
class Outcome:
    """What a continuation gave. ``logprobs`` (nats) and ``top_ids`` (the likeliest token) for every scored position,
    each predicted from the position before it; ``next_id`` is the likeliest token after the last position and
    ``next_logprob`` its log-probability."""

    logprobs: tuple[float, ...]
    top_ids: tuple[int, ...]
    next_id: int
    next_logprob: float

    @property
    def logprob(self) -> float:
        """Of all scored tokens together, nats."""
        return sum(self.logprobs)


@dataclass(frozen=True)
class StatePatch:
    """Before ``layer`` continuation ``target`` takes over the states that continuation ``source`` holds at
    ``positions`` (numbered as in the row); both have these positions among their own. Variants are named by their
    place in what :meth:`PrefixCache.run` is given."""

    layer: int
    source: int
    target: int
    positions: tuple[int, ...]


def set_apart(continuations: Sequence[Continuation]) -> list[Continuation]:
    """Copies, so that one that is named twice stands in the pass twice; parents stay shared."""
    return [replace(continuation) for continuation in continuations]


def gather_line(continuations: Iterable[Continuation]) -> list[Continuation]:
    """The continuations and all their parents, each once, parents first."""
    found: dict[int, Continuation] = {}
    for continuation in continuations:
        for node in continuation.line:
            found.setdefault(id(node), node)
    return list(found.values())


def count_positions(nodes: Iterable[Continuation]) -> int:
    """Of all ``nodes`` together, without what they stand behind."""
    return sum(len(node.ids) for node in nodes)


def gather_parents(continuations: Iterable[Continuation]) -> list[Continuation]:
    """What the continuations stand behind, each once, parents first."""
    return gather_line(continuation.parent for continuation in continuations if continuation.parent is not None)


def lay_out(nodes: Iterable[Continuation]) -> dict[int, int]:
    """By the ``id`` of each continuation: where it begins in the pass."""
    starts, total = {}, 0
    for node in nodes:
        starts[id(node)] = total
        total += len(node.ids)
    return starts
