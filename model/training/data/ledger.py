"""One account of a data table: what was read, what was dropped and why, what is held out. The same for a look at the
data, for a run and for the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from model.errors import InputError
from model.training.data.readers.source import Problem

LOOKED_AT = 1000
"""Examples of a table that are looked at before they are trained on, unless there are fewer."""
UNRENDERED, TOO_LONG, NO_LABEL = "can't be rendered", "too long", "no label"
"""Why a run passes over an example."""
MOST_REASONS, OTHERS = 40, "other reasons"
"""So many are told apart: beyond that nobody reads them."""
_VARYING = re.compile(r"“[^”]*”|'[^']*'|\d[\d,]*")


@dataclass(frozen=True)
class Entry:
    """``count`` records or examples have the same fate for the same ``reason``. ``first`` tells of the first of them,
    with its place."""

    reason: str
    count: int
    first: str

    def __str__(self) -> str:
        # Where alike sentences have nothing that varies, the place is all that the first one adds.
        first = self.first.removesuffix(f": {self.reason}")
        return f"{self.reason} ({first})" if first else self.reason


@dataclass(frozen=True)
class Ledger:
    """The account of the table ``name``. Of ``read`` records those ``skipped`` can't be used, those ``left_out`` the
    recipe doesn't want, and ``usable`` are left; ``notes`` say what happened to some. Of these ``looked_at`` were
    rendered, and those ``dropped`` a run passes over. ``trained`` examples are trained on; ``held_out`` ones never,
    with ``held_out_images`` and ``held_out_questions`` about them (of a drawn set: those that are measured on);
    ``beside`` are neither, for they show a held-out image beside another."""

    name: str
    read: int
    usable: int
    skipped: tuple[Entry, ...] = ()
    left_out: tuple[Entry, ...] = ()
    notes: tuple[Entry, ...] = ()
    looked_at: int = 0
    dropped: tuple[Entry, ...] = ()
    trained: int = 0
    held_out: int = 0
    held_out_images: int = 0
    held_out_questions: int = 0
    beside: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ledger:
        """What :meth:`to_json` wrote."""
        lists = {
            key: tuple(Entry(**entry) for entry in values[key]) for key in ("skipped", "left_out", "notes", "dropped")
        }
        return cls(**{**values, **lists})

    @property
    def numbers(self) -> str:
        """All of them, in words."""
        about = f"{_count(self.held_out_images, 'image')}, {_count(self.held_out_questions, 'question')}"
        told = f"{self.read:,} read, {self.usable:,} usable, {self.trained:,} to train on, {self.held_out:,} held out"
        beside = f", {self.beside:,} neither, for they show a held-out image" if self.beside else ""
        return f"{told} ({about}){beside}"

    def without_places(self) -> Ledger:
        """See :meth:`StageLedger.without_places`."""
        return replace(
            self,
            skipped=_without_places(self.skipped),
            left_out=_without_places(self.left_out),
            notes=_without_places(self.notes),
            dropped=_without_places(self.dropped),
        )

    def lines(self) -> list[str]:
        """For people: one line of numbers, then one for each fate."""
        entries = (
            *(("skipped", entry, self.read) for entry in self.skipped),
            *(("left out", entry, self.read) for entry in self.left_out),
            *(("dropped", entry, self.looked_at) for entry in self.dropped),
            *(("note", entry, self.usable) for entry in self.notes),
        )
        return [
            f"{self.name}: {self.numbers}",
            *(f"  {kind} {entry.count:,} of {of:,}: {entry}" for kind, entry, of in entries),
        ]


@dataclass(frozen=True)
class StageLedger:
    """The accounts of a stage's ``tables``, and what its draws ``passed_over``: an example counts as often as it was
    drawn."""

    tables: tuple[Ledger, ...]
    passed_over: tuple[Entry, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "tables": [table.to_json() for table in self.tables],
            "passed_over": [asdict(entry) for entry in self.passed_over],
        }

    def without_places(self) -> StageLedger:
        """The same without the first place of each entry, which quotes the data."""
        return StageLedger(tuple(table.without_places() for table in self.tables), _without_places(self.passed_over))

    def lines(self, stage: str) -> list[str]:
        """For people, each with the stage's name."""
        told = [line for table in self.tables for line in table.lines()]
        told += [f"  passed over {_count(entry.count, 'draw')}: {entry}" for entry in self.passed_over]
        return [f"[{stage}] data {line}" for line in told]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _without_places(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    return tuple(replace(entry, first="") for entry in entries)


def read_stage_ledgers(values: Any) -> dict[str, StageLedger]:
    """By stage, from what a run's file holds; nothing from a run of before there were any, or from a damaged one."""
    try:
        return {
            str(name): StageLedger(
                tuple(Ledger.from_json(table) for table in stage["tables"]),
                tuple(Entry(**entry) for entry in stage["passed_over"]),
            )
            for name, stage in (values or {}).items()
        }
    except (AttributeError, KeyError, TypeError):
        return {}


def open_ledger(name: str, source: Sequence[Any]) -> Ledger:
    """What a source says of its reading; nothing is looked at yet."""
    problems: tuple[Problem, ...] = tuple(getattr(source, "problems", ()))

    def entries(kind: str) -> tuple[Entry, ...]:
        return join_entries(
            Entry(shorten_reason(problem.sentence), problem.count, f"{problem.where}: {problem.sentence}")
            for problem in problems
            if problem.kind == kind
        )

    read = int(getattr(source, "read", len(source)))
    return Ledger(name, read, len(source), entries("skipped"), entries("left out"), entries("note"))


def join_entries(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Entries of one reason as one, the most first."""
    found: dict[str, Entry] = {}
    for entry in entries:
        known = found.get(entry.reason)
        found[entry.reason] = entry if known is None else replace(known, count=known.count + entry.count)
    ordered = sorted(found.values(), key=lambda entry: -entry.count)
    rest = sum(entry.count for entry in ordered[MOST_REASONS:])
    others = (Entry(OTHERS, rest, ordered[MOST_REASONS].first),) if rest else ()
    return (*ordered[:MOST_REASONS], *others)


def shorten_reason(sentence: str) -> str:
    """A sentence without the names and numbers of one record: what alike records have in common."""
    return _VARYING.sub("…", sentence)[:200]


def choose_numbers(length: int, sample: int, seed: int) -> list[int]:
    """``sample`` of ``length`` numbers, drawn by ``seed``; all if there are no more, or ``sample`` is 0."""
    if not sample or sample >= length:
        return list(range(length))
    return sorted(int(number) for number in np.random.default_rng((seed, 0)).choice(length, sample, replace=False))


def stop_at(error: InputError) -> InputError:
    """The sentence for data that may not be passed over."""
    sentence = str(error).rstrip(".")
    return InputError(f'{sentence}; correct the data, or set on_error = "skip" to leave such records out.')
