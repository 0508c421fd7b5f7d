"""The instrument tried on prompts whose truth is known: does it name the right image, and only then?

Every cell of :mod:`inspector.analysis.battery_items` is first tried with its relevant image alone. A model that can't
answer that is not testable on the cell: what it says there would be about something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from inspector.analysis.attention import AttentionMap
from inspector.analysis.battery_items import CELLS, Item, build_items
from inspector.analysis.case import Case, open_case
from inspector.analysis.dependence import Dependence, measure_dependence
from inspector.analysis.inspection import GenerationSettings, Inspection, ask_and_inspect, attend
from inspector.analysis.permutations import permute_images, summarise_orders
from inspector.analysis.prompt import Prompt, Turn
from inspector.analysis.regions import measure_regions
from inspector.analysis.removal import Removals
from inspector.analysis.selection import Selection, measure_selection
from inspector.analysis.swaps import Swap, measure_swaps
from inspector.analysis.verdict import Verdict, judge, name_leader
from model import VLM, Box
from model.checkpoint import copy_vlm
from model.training.scratch import fresh_vlm

GATE = 0.95
"""Share of right answers about the relevant image alone that makes a cell testable."""
MIN_ITEMS = 48
"""Items a cell must have before its numbers are compared with a target."""
PERMUTED_CELLS = ("adjacent", "ordinal digit", "content")
PERMUTED_ITEMS = 12
"""So many items of these cells are also asked with their images in other orders."""
NULL_CELLS = ("null", "null, own sample")
STABILITY_CELL = "ordinal digit"
"""Whose items are also asked in other words, in bfloat16 and of random weights."""
WORDINGS = (
    "in image {image}, what color is the shape?",
    "in image {image}, what colour is the shape?",
    "In image {image}, what colour is the shape?",
    "what color is the shape in image {image}?",
    "what colour is the shape in image {image}?",
    "What colour is the shape in image {image}?",
)
PARAPHRASED_ITEMS = 12
HALVED_ITEMS = 24
REGION_ITEMS = 24
REGION_CANVAS = (128, 128)
"""Pixels (width, height) of the pictures, one at a time, on which the map of regions is tried: four tiles and a
thumbnail, so that no shape covers more than a quarter of the regions."""
MAX_CHANCE = 0.25
MAX_NEW_TOKENS = 8
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
        return {"count": self.count, "total": self.total, "value": self.value,
                "interval": None if self.interval is None else list(self.interval)}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One item tried. Images from 1. ``image`` is the relevant one, None for a null item; ``right``: the answer is the
    item's. ``kind`` and ``verdict_image``: the verdict; ``named``: the image of the largest Shapley value of the answer
    that the model gave; ``attended``: the one that the answer's first token attends to most. ``gold_named``: what
    plain knockout would name if it looked at the item's right answer whatever the model says. ``twin_right``: with the
    relevant image's twin in its place the model gives the twin's answer. ``others_flipped`` of ``others``: swaps of
    another image that change the answer. ``followed``: the cue whose image the answer comes from, "" for none of them.
    ``asked_right``: with its number changed, the question gets the other images' right answers too; ``orders_right`` of
    ``orders_predicted``: permutations."""

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


@dataclass(frozen=True)
class CellResult:
    """``gate``: right answers about the relevant image alone; the rest is over the items tried. ``followed``: how
    often the answer came from each cue's image. Shares after ``right`` but ``selected`` and ``gold_named`` are over
    the items that were answered rightly."""

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
    followed: tuple[tuple[str, Share], ...]

    @property
    def testable(self) -> bool:
        return self.gate.value is not None and self.gate.value >= GATE

    def to_json(self) -> dict[str, Any]:
        shares = {name: value.to_json() for name, value in vars(self).items() if isinstance(value, Share)}
        return {"cell": self.cell, "testable": self.testable, **shares,
                "followed": {name: share.to_json() for name, share in self.followed}}  # fmt: skip


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
        return {"name": self.name, **self.share.to_json(), "limit": self.limit,
                "at_least": self.at_least, "ok": self.ok}  # fmt: skip


@dataclass(frozen=True)
class Battery:
    """The result for one checkpoint; ``finished`` False where it was stopped on the way. ``n_each`` items a cell."""

    fingerprint: str
    n_each: int
    seed: int
    finished: bool
    cells: tuple[CellResult, ...]
    scores: tuple[Score, ...]

    def to_json(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "n_each": self.n_each, "seed": self.seed, "finished": self.finished,
                "cells": [cell.to_json() for cell in self.cells],
                "scores": [score.to_json() for score in self.scores]}  # fmt: skip


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
    return Battery(facts["fingerprint"], facts["n_each"], facts["seed"], facts["finished"], tuple(cells), scores)


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` items; ``battery`` is the result so far."""

    cell: str
    done: int
    total: int
    battery: Battery


def run_battery(
    vlm: VLM, *, cells: Sequence[str] = CELLS, n_each: int = MIN_ITEMS, seed: int = 1
) -> Iterator[Progress]:
    """Yields after every gate and every item; the last one is the finished result. A cell that fails its gate is
    skipped. Stopping in between loses nothing of what was found. InputError for an unknown cell."""
    items = list(build_items(cells, n_each, seed))
    found = _Found(vlm, n_each, seed)
    named = [item for item in items if item.cell == STABILITY_CELL]
    total = len(items) + len(named[:PARAPHRASED_ITEMS]) + len(named[:HALVED_ITEMS]) + len(named)
    pictures = list(build_items([STABILITY_CELL], REGION_ITEMS, seed, canvas=REGION_CANVAS)) if named else []
    total += len(pictures)
    done = 0
    for cell in dict.fromkeys(item.cell for item in items):
        mine = [item for item in items if item.cell == cell]
        yield Progress(cell, done, total, found.sum_up())
        gate = found.gates[cell] = [_answer_alone(vlm, item) for item in mine]
        testable = sum(gate) >= GATE * len(mine)
        for item in mine if testable else []:
            yield Progress(cell, done, total, found.sum_up())
            found.trials.append(try_item(vlm, item))
            done += 1
        done += 0 if testable else len(mine)
    for item in named[:PARAPHRASED_ITEMS]:
        yield Progress("other wordings", done, total, found.sum_up())
        found.paraphrased += _compare_wordings(vlm, item)
        done += 1
    for item in pictures:
        yield Progress("regions", done, total, found.sum_up())
        found.regions += _try_regions(vlm, item)
        done += 1
    half = copy_vlm(vlm).to(torch.bfloat16)
    for item in named[:HALVED_ITEMS]:
        yield Progress("in bfloat16", done, total, found.sum_up())
        found.halved.append(_told(_study(half, item, item.prompt)) == _told(_study(vlm, item, item.prompt)))
        done += 1
    random = fresh_vlm(vlm.config, vlm.tokenizer, seed)
    for item in named:
        yield Progress("random weights", done, total, found.sum_up())
        study = _study(random, item, item.prompt)
        found.random.append(study is not None and study.verdict.image is not None)
        done += 1
    yield Progress("", total, total, found.sum_up(finished=True))


@dataclass
class _Found:
    """What has been tried so far. ``paraphrased`` and ``halved``: was the verdict the same; ``random``: did random
    weights get a verdict that names an image; ``regions``: per picture (deletion curve below the mean of random orders,
    strongest region on the shape, share of regions that are)."""

    vlm: VLM
    n_each: int
    seed: int
    gates: dict[str, list[bool]] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    paraphrased: list[bool] = field(default_factory=list)
    halved: list[bool] = field(default_factory=list)
    random: list[bool] = field(default_factory=list)
    regions: list[tuple[bool, bool, float]] = field(default_factory=list)

    def sum_up(self, finished: bool = False) -> Battery:
        cells = tuple(_cell_result(cell, gate, [t for t in self.trials if t.cell == cell])
                      for cell, gate in self.gates.items())  # fmt: skip
        scores = (
            *_scores(self.trials),
            Score("deletion curve of regions below random orders", _counted([r[0] for r in self.regions]), 0.9, True),
            Score(
                f"strongest region lies on the shape (by chance {self.chance:.2f})",
                _counted([r[1] for r in self.regions]),
                0.7,
                True,
            ),
            Score("the same verdict in other words", _counted(self.paraphrased), 0.9, True),
            Score("the same verdict in bfloat16", _counted(self.halved), 0.98, True),
            Score("an image named on random weights", _counted(self.random), 0.01, False),
        )
        return Battery(self.vlm.fingerprint, self.n_each, self.seed, finished, cells, scores)

    @property
    def chance(self) -> float:
        """Mean share of a picture's regions that lie on its shape."""
        return sum(region[2] for region in self.regions) / len(self.regions) if self.regions else 0.0


def _try_regions(vlm: VLM, item: Item) -> list[tuple[bool, bool, float]]:
    """See :class:`_Found`; nothing where the model answers wrongly about the picture alone, and nothing where its shape
    lies on more than a quarter of the regions."""
    inspection = ask_and_inspect(vlm, item.single_prompt, GenerationSettings(MAX_NEW_TOKENS))
    if item.box is None or inspection.prompt.turns[-1].assistant.strip() != item.answer:
        return []
    case = open_case(vlm, inspection, max_new_tokens=MAX_NEW_TOKENS, seed=item.number)
    steps = measure_regions(case, 1, measure_dependence(case).noise_floor)
    # The map of tokens comes last; when it begins, the map of pixels is complete.
    found = next(step.pixels for step in steps if step.tokens is not None)
    assert found is not None
    on = [_overlap(region.box, item.box) for region in found.regions]
    chance = sum(on) / len(on)
    if found.gap is None or chance > MAX_CHANCE:
        return []
    return [(found.gap > 0, _overlap(found.top.box, item.box), chance)]


def _overlap(one: Box, other: Box) -> bool:
    return (one.left < other.right and other.left < one.right
            and one.top < other.bottom and other.top < one.bottom)  # fmt: skip


def _counted(held: Sequence[bool]) -> Share:
    return Share(sum(held), len(held))


def _told(study: _Study | None) -> tuple[str, int | None] | None:
    return None if study is None else (study.verdict.kind, study.verdict.image)


def _compare_wordings(vlm: VLM, item: Item) -> list[bool]:
    """Whether each other wording of the question gets the verdict of the item's own."""
    own = _told(_study(vlm, item, item.prompt))
    found = []
    for wording in WORDINGS:
        question = wording.format(image=item.image)
        if question != item.prompt.turns[item.turn].user:
            prompt = replace(item.prompt, turns=(Turn(question),))
            found.append(_told(_study(vlm, item, prompt)) == own)
    return found


def _answer_alone(vlm: VLM, item: Item) -> bool:
    inspection = ask_and_inspect(vlm, item.single_prompt, GenerationSettings(MAX_NEW_TOKENS))
    return inspection.prompt.turns[-1].assistant.strip() == item.answer


@dataclass(frozen=True)
class _Study:
    """A prompt's experiments as a person's are run."""

    inspection: Inspection
    case: Case
    removals: Removals
    dependence: Dependence
    selection: Selection
    swaps: tuple[Swap, ...]
    verdict: Verdict


def _study(vlm: VLM, item: Item, prompt: Prompt) -> _Study | None:
    """The item, or another wording of it, with its twin as the relevant image's partner; None for an empty answer."""
    inspection = ask_and_inspect(vlm, prompt, GenerationSettings(MAX_NEW_TOKENS))
    if not inspection.prompt.turns[item.turn].assistant.strip():
        return None
    case = open_case(vlm, inspection, item.turn + 1, max_new_tokens=MAX_NEW_TOKENS, seed=item.number)
    removals = Removals(case)
    dependence = measure_dependence(case, removals)
    selection = measure_selection(case, name_leader(dependence), removals)
    twins = {item.image: (item.twin, item.twin_answer or "")} if item.image and item.twin else None
    swaps = measure_swaps(case, selection, twins=twins)
    verdict = judge(case, dependence, selection, swaps)
    return _Study(inspection, case, removals, dependence, selection, swaps, verdict)


def try_item(vlm: VLM, item: Item) -> Trial:
    """One item through the same experiments as a person's prompt."""
    study = _study(vlm, item, item.prompt)
    if study is None:
        return Trial(item.cell, item.number, item.image, item.answer, "", False, 0.0, "unclear", None, 0, 0, 0, None,
                     None, 0, 0, "", False, 0, 0)  # fmt: skip
    answer = study.inspection.prompt.turns[item.turn].assistant.strip()
    gold_ids = vlm.tokenizer(item.answer, add_special_tokens=False).input_ids
    gold = measure_dependence(study.case, study.removals, answer_ids=gold_ids)
    others = [swap for swap in study.swaps if swap.image != item.image]
    twin = next((swap for swap in study.swaps if swap.image == item.image), None)
    orders = (0, 0)
    if item.cell in PERMUTED_CELLS and item.number < PERMUTED_ITEMS:
        summary = summarise_orders(list(permute_images(study.case, study.selection)))
        orders = summary.right, summary.predicted
    chooser = study.case.target.question.chooser
    assert chooser is not None
    followed = [cue.name for cue in item.cues if item.answers_by_image[cue.image - 1] == answer]
    return Trial(
        cell=item.cell,
        number=item.number,
        image=item.image,
        gold=item.answer,
        answer=answer,
        right=answer == item.answer,
        probability=study.dependence.probability,
        kind=study.verdict.kind,
        verdict_image=study.verdict.image,
        named=_largest(study.dependence.shapley),
        attended=_attended(attend(vlm, study.inspection, chooser)),
        gold_named=_largest(gold.leave_one_out),
        contrast=study.selection.contrast,
        twin_right=None if twin is None else twin.answer.strip() == item.twin_answer,
        others_flipped=sum(swap.flipped for swap in others),
        others=len(others),
        followed=followed[0] if followed else "",
        asked_right=_all_right(study.selection, item),
        orders_right=orders[0],
        orders_predicted=orders[1],
    )


def _all_right(selection: Selection, item: Item) -> bool:
    return all(asked.answer.strip() == item.answers_by_image[asked.image - 1]
               for asked in selection.asked if asked.image is not None and asked.source != "image named")  # fmt: skip


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda k: values[k]) + 1 if values else 0


def _attended(attention: AttentionMap) -> int:
    return _largest(attention.image_shares.mean(axis=0).tolist())


def _share(trials: Sequence[Trial], holds: Callable[[Trial], bool]) -> Share:
    return Share(sum(holds(trial) for trial in trials), len(trials))


def _cell_result(cell: str, gate: Sequence[bool], trials: Sequence[Trial]) -> CellResult:
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
        followed=tuple((cue, _counted([trial.followed == cue for trial in trials])) for cue in (*cues, ""))
        if conflict
        else (),
    )


def _orders(trials: Sequence[Trial]) -> Share:
    """A prediction is built from what the model says about each image; where that is wrong it is no prediction."""
    known = [trial for trial in trials if trial.asked_right]
    return Share(sum(trial.orders_right for trial in known), sum(trial.orders_predicted for trial in known))


def _scores(trials: Sequence[Trial]) -> tuple[Score, ...]:
    """The targets of the battery; conflicts have no right answer and count nowhere."""
    plain = [t for t in trials if " vs " not in t.cell]
    right = [t for t in plain if t.right and t.image is not None]
    nulls = [t for t in plain if t.cell in NULL_CELLS]
    swapped = [t for t in right if t.twin_right is not None]
    right_swaps = Share(sum(t.others_flipped for t in right), sum(t.others for t in right))
    return (
        Score("right image named by Shapley value, where the answer is right",
              _share(right, lambda t: t.named == t.image), 0.98, True),
        Score("right image attended to most, for comparison",
              _share(right, lambda t: t.attended == t.image), None, True),
        Score("swap of the relevant image gives its twin's answer",
              _share(swapped, lambda t: bool(t.twin_right)), 0.9, True),
        Score("swap of another image changes the answer", right_swaps, 0.05, False),
        Score("“depends on image k” where no image is needed",
              _share(nulls, lambda t: t.verdict_image is not None), 0.05, False),
        Score("permutation predicted rightly", _orders(right), 0.95, True),
    )  # fmt: skip


def format_battery(battery: Battery) -> str:
    """A plain-text table."""
    lines = [f"model {battery.fingerprint[:12]} · {battery.n_each} items a cell · seed {battery.seed}"
             + ("" if battery.finished else " · stopped"), ""]  # fmt: skip
    head = ("cell", "alone", "right", "named", "attended", "selected", "twin", "others", "orders")
    rows: list[tuple[str, ...]] = [head]
    for cell in battery.cells:
        if not cell.testable:
            rows.append((cell.cell, _cell_text(cell.gate), "not testable on this model", *[""] * 6))
            continue
        shares = (cell.gate, cell.right, cell.named, cell.attended, cell.selected, cell.twin, cell.others, cell.orders)
        rows.append((cell.cell, *(_cell_text(share) for share in shares)))
    widths = [max(len(row[n]) for row in rows if row[2:3] != ("not testable on this model",) or n < 2)
              for n in range(len(head))]  # fmt: skip
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
    return "\n".join(lines)


def _cell_text(share: Share) -> str:
    if share.value is None or share.interval is None:
        return "–"
    low, high = share.interval
    return f"{share.value:.2f} [{low:.2f}, {high:.2f}] of {share.total}"
