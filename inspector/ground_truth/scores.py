"""What trials on known prompts add up to: shares with their intervals, per cell and over all cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

GATE = 0.95
"""Share of right answers about the relevant image alone that makes a cell testable."""
MIN_ITEMS = 48
"""Items a cell must have before its numbers are compared with a target."""
NULL_CELLS = ("null", "null, own sample")
_Z = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """``count`` of ``total``."""

    count: int
    total: int

    @property
    def value(self) -> float | None:
        return self.count / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval (Wilson 1927)."""
        if not self.total:
            return None
        n, p, z = self.total, self.count / self.total, _Z
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "total": self.total,
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
        }


@dataclass(frozen=True)
class ItemResult:
    """One item tried. Images from 1. ``image`` is the relevant one, None for a null item; ``right``: the answer is the
    item's. ``kind`` and ``verdict_image``: the verdict; ``named``: the image of the largest Shapley value of the answer
    that the model gave; ``attended``: the one that the answer's first token attends to most. ``gold_named``: what
    plain knockout would name if it looked at the item's right answer whatever the model says. ``twin_right``: with the
    relevant image's twin in its place the model gives the twin's answer. ``others_flipped`` of ``others``: swaps of
    another image that change the answer. ``followed``: the cue whose image the answer comes from, "" for none of them.
    ``asked_right``: with its number changed, the question gets the other images' right answers too; ``orders_right`` of
    ``orders_predicted``: permutations. ``exchange_named``: the image of the largest Shapley value with images replaced
    instead of taken away. ``seen`` of ``tokens``: the answer's (:mod:`inspector.which_image.seen`), and those
    ``following`` the images though they would have been said without them."""

    cell: str
    number: int
    image: int | None
    gold: str
    answer: str
    right: bool
    probability: float
    kind: str
    verdict_image: int | None
    named: int
    attended: int
    gold_named: int
    contrast: float | None
    twin_right: bool | None
    others_flipped: int
    others: int
    followed: str
    asked_right: bool
    orders_right: int
    orders_predicted: int
    exchange_named: int = 0
    seen: int = 0
    tokens: int = 0
    following: int = 0


@dataclass(frozen=True)
class CellResult:
    """``gate``: right answers about the relevant image alone; the rest is over the items tried. ``followed``: how
    often the answer came from each cue's image. ``named`` by images taken away, ``exchanged`` by images replaced. The
    shares after ``right`` but ``selected`` and ``gold_named`` are over the items that were answered rightly."""

    cell: str
    gate: Share
    right: Share
    named: Share
    attended: Share
    selected: Share
    dependent: Share
    gold_named: Share
    twin: Share
    others: Share
    orders: Share
    exchanged: Share
    followed: tuple[tuple[str, Share], ...]

    @property
    def testable(self) -> bool:
        return self.gate.value is not None and self.gate.value >= GATE

    def to_json(self) -> dict[str, Any]:
        shares = {name: value.to_json() for name, value in vars(self).items() if isinstance(value, Share)}
        return {
            "cell": self.cell,
            "testable": self.testable,
            **shares,
            "followed": {name: share.to_json() for name, share in self.followed},
        }


_SHARES = tuple(field.name for field in fields(CellResult) if field.type == "Share")


@dataclass(frozen=True)
class Score:
    """A number over all testable cells beside what it should reach (``limit`` None: it stands there for comparison);
    ``ok`` None where there is nothing to reach or too few items say anything."""

    name: str
    share: Share
    limit: float | None
    at_least: bool

    @property
    def ok(self) -> bool | None:
        value = self.share.value
        if value is None or self.limit is None or self.share.total < MIN_ITEMS // 2:
            return None
        return value >= self.limit if self.at_least else value <= self.limit

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.share.to_json(),
            "limit": self.limit,
            "at_least": self.at_least,
            "ok": self.ok,
        }


@dataclass(frozen=True)
class Battery:
    """The result for one checkpoint; ``finished`` False where it was stopped on the way. ``n_each`` items a cell.
    ``notes``: what could not be tried on this model, a sentence each."""

    fingerprint: str
    n_each: int
    seed: int
    finished: bool
    cells: tuple[CellResult, ...]
    scores: tuple[Score, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "n_each": self.n_each,
            "seed": self.seed,
            "finished": self.finished,
            "cells": [cell.to_json() for cell in self.cells],
            "scores": [score.to_json() for score in self.scores],
            "notes": list(self.notes),
        }


def read_battery(facts: dict[str, Any]) -> Battery:
    """The inverse of :meth:`Battery.to_json`. KeyError or TypeError for anything else."""

    def share(value: dict[str, Any]) -> Share:
        return Share(value["count"], value["total"])

    cells = []
    for cell in facts["cells"]:
        followed = tuple((name, share(value)) for name, value in cell["followed"].items())
        shares: dict[str, Any] = {name: share(cell[name]) for name in _SHARES}
        cells.append(CellResult(cell=cell["cell"], followed=followed, **shares))
    scores = tuple(Score(one["name"], share(one), one["limit"], one["at_least"]) for one in facts["scores"])
    return Battery(
        facts["fingerprint"],
        facts["n_each"],
        facts["seed"],
        facts["finished"],
        tuple(cells),
        scores,
        tuple(facts.get("notes", ())),
    )


def count(held: Sequence[bool]) -> Share:
    """How many of ``held`` are true, of all of them."""
    return Share(sum(held), len(held))


def _share(trials: Sequence[ItemResult], holds: Callable[[ItemResult], bool]) -> Share:
    return Share(sum(holds(trial) for trial in trials), len(trials))


def sum_up_cell(cell: str, gate: Sequence[bool], trials: Sequence[ItemResult]) -> CellResult:
    """``gate``: for every item whether it is answered rightly about its relevant image alone."""
    conflict = " vs " in cell
    right = list(trials) if conflict else [trial for trial in trials if trial.right]
    cues = cell.split(" vs ") if conflict else []
    return CellResult(
        cell=cell,
        gate=Share(sum(gate), len(gate)),
        right=_share([] if conflict else trials, lambda t: t.right),
        named=_share([t for t in right if t.image is not None and not conflict], lambda t: t.named == t.image),
        attended=_share([t for t in right if t.image is not None and not conflict], lambda t: t.attended == t.image),
        selected=_share(trials, lambda t: t.kind == "selected"),
        dependent=_share(trials, lambda t: t.verdict_image is not None),
        gold_named=_share([t for t in trials if t.image is not None], lambda t: t.gold_named == t.image),
        twin=_share([t for t in right if t.twin_right is not None and not conflict], lambda t: bool(t.twin_right)),
        others=Share(sum(t.others_flipped for t in right), sum(t.others for t in right)),
        orders=_orders(right),
        exchanged=_share(
            [t for t in right if t.image is not None and not conflict], lambda t: t.exchange_named == t.image
        ),
        followed=tuple((cue, count([trial.followed == cue for trial in trials])) for cue in (*cues, ""))
        if conflict
        else (),
    )


def _seen(trials: Sequence[ItemResult]) -> Share:
    return Share(sum(trial.seen + trial.following for trial in trials), sum(trial.tokens for trial in trials))


def _orders(trials: Sequence[ItemResult]) -> Share:
    """A prediction is built from what the model says about each image; where that is wrong it is no prediction."""
    known = [trial for trial in trials if trial.asked_right]
    return Share(sum(trial.orders_right for trial in known), sum(trial.orders_predicted for trial in known))


def score_trials(trials: Sequence[ItemResult]) -> tuple[Score, ...]:
    """The targets of the battery; conflicts have no right answer and count nowhere."""
    plain = [t for t in trials if " vs " not in t.cell]
    right = [t for t in plain if t.right and t.image is not None]
    nulls = [t for t in plain if t.cell in NULL_CELLS]
    swapped = [t for t in right if t.twin_right is not None]
    right_swaps = Share(sum(t.others_flipped for t in right), sum(t.others for t in right))
    return (
        Score(
            "right image named by Shapley value, where the answer is right",
            _share(right, lambda t: t.named == t.image),
            0.98,
            True,
        ),
        Score(
            "right image named by Shapley value, images replaced instead of taken away",
            _share(right, lambda t: t.exchange_named == t.image),
            0.98,
            True,
        ),
        Score(
            "verdict names the right image, where the answer is right",
            _share(right, lambda t: t.verdict_image == t.image),
            None,
            True,
        ),
        Score(
            "right image attended to most, for comparison", _share(right, lambda t: t.attended == t.image), None, True
        ),
        Score(
            "swap of the relevant image gives its twin's answer",
            _share(swapped, lambda t: bool(t.twin_right)),
            0.9,
            True,
        ),
        Score("swap of another image changes the answer", right_swaps, 0.05, False),
        Score(
            "“depends on image k” where no image is needed",
            _share(nulls, lambda t: t.verdict_image is not None),
            0.05,
            False,
        ),
        Score("permutation predicted rightly", _orders(right), 0.95, True),
        Score(
            "tokens called seen, where the answer is right",
            Share(sum(t.seen for t in right), sum(t.tokens for t in right)),
            None,
            True,
        ),
        Score("tokens called seen or following the images, where the answer is right", _seen(right), 0.95, True),
        Score("tokens called seen or following the images, where no image is needed", _seen(nulls), 0.05, False),
    )


def format_battery(battery: Battery) -> str:
    """A plain-text table."""
    lines = [
        f"model {battery.fingerprint[:12]} · {battery.n_each} items a cell · seed {battery.seed}"
        + ("" if battery.finished else " · stopped"),
        "",
    ]
    head = ("cell", "alone", "right", "named", "exchanged", "attended", "selected", "twin", "others", "orders")
    rows: list[tuple[str, ...]] = [head]
    for cell in battery.cells:
        if not cell.testable:
            rows.append((cell.cell, _cell_text(cell.gate), "not testable on this model", *[""] * 7))
            continue
        shares = (
            cell.gate,
            cell.right,
            cell.named,
            cell.exchanged,
            cell.attended,
            cell.selected,
            cell.twin,
            cell.others,
            cell.orders,
        )
        rows.append((cell.cell, *(_cell_text(share) for share in shares)))
    widths = [
        max(len(row[n]) for row in rows if row[2:3] != ("not testable on this model",) or n < 2)
        for n in range(len(head))
    ]
    lines += ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for cell in battery.cells:
        if cell.testable and cell.followed:
            told = ", ".join(f"{name or 'neither'} {_cell_text(share)}" for name, share in cell.followed)
            lines.append(f"{cell.cell}: the answer follows {told}")
    lines.append("")
    for score in battery.scores:
        if score.limit is None:
            lines.append(f"{score.name}: {_cell_text(score.share)}")
            continue
        mark = {True: "reached", False: "MISSED", None: "too few items"}[score.ok]
        wanted = f"{'≥' if score.at_least else '≤'} {score.limit:g}"
        lines.append(f"{score.name}: {_cell_text(score.share)}, wanted {wanted}: {mark}")
    return "\n".join((*lines, *battery.notes))


def _cell_text(share: Share) -> str:
    if share.value is None or share.interval is None:
        return "–"
    low, high = share.interval
    return f"{share.value:.2f} [{low:.2f}, {high:.2f}] of {share.total}"
