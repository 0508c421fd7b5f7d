"""Which part of an image an answer rests on: tiles and regions of it taken away, one by one and one after another.

A region is a rectangle of the original picture. Where the model got a thumbnail beside the tiles, it is what one
thumbnail token covers, with every tile token whose centre lies in it: both show the same place, and either could stand
in for the other. Without a thumbnail it is what one image token covers. In both cases neighbours are put together
until there are no more than :data:`MAX_REGIONS`. A region is taken away by attention knockout (Geva et al. 2023, arXiv
2304.14767), effects are falls of log p in nats.

The deletion curve (Petsiuk et al. 2018, arXiv 1806.07421) cuts more and more regions, those with the largest effect
first. A map that points at the right places makes log p fall sooner than random orders do; the area under the curve is
its mean height, so lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from inspector.analysis.case import Case, image_keys
from inspector.analysis.dependence import STRONG
from inspector.analysis.replay import Variant
from inspector.analysis.structure import ImageBlock
from inspector.analysis.tokens import locate_cell
from model import Box, Cut, InputError

EXPLANATION = (
    "One part of the image at a time is hidden from everything that comes after it, and the darker a part is drawn, "
    "the less likely the answer became without it; the curve then hides them one after another, the strongest first. "
    "It can't show that a pale part is unused, for what two parts both show is missed only when both are gone, and a "
    "token knows something of the whole tile around its own place."
)

MAX_REGIONS = 64
CURVE_STEPS = 16
"""So many steps at most has a curve: with more regions, several are cut at once."""
RANDOM_ORDERS = 12
ENOUGH = 0.9
"""Regions are hidden from the question and the answer alone if that does so much of what hiding the whole image from
everything behind it does: these are a few positions, and everything behind it may be thousands."""

Rows = Literal["question and answer", "everything behind it"]


@dataclass(frozen=True)
class Tile:
    """A tile taken away with its region mark. ``tile`` counts from 0 as in ``ProcessedImage.tiles``; ``name`` is
    “thumbnail” or “r1c2”; ``effect`` in nats."""

    tile: int
    name: str
    box: Box
    effect: float


@dataclass(frozen=True)
class Region:
    """``box`` in the original image's pixels; ``positions`` are the image tokens in it; ``effect`` in nats."""

    box: Box
    positions: tuple[int, ...]
    effect: float


@dataclass(frozen=True)
class Deletion:
    """log p of the answer while regions are cut in one order. ``counts``: how many are gone at each point, from 0 to
    all of them; at the last point the region marks are gone too. ``logprobs``: log p at each point, nats."""

    counts: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def area(self) -> float:
        """Mean height of the curve (trapezoids), nats."""
        heights, counts = np.array(self.logprobs), np.array(self.counts)
        return float(np.trapezoid(heights, counts) / (counts[-1] - counts[0]))


@dataclass(frozen=True)
class Regions:
    """What is known so far of image ``image`` (from 1). ``rows``: what the regions were hidden from. ``logprob``: of
    the answer with all in place; ``whole``: fall without the whole image, by the same rows, and ``removed``: fall when
    it is hidden from everything behind it. ``regions`` are row by row, ``grid`` (rows, columns) of them.

    ``strongest_first`` is the deletion curve, ``weakest_first`` the reversed order, ``random`` other orders; None and
    empty until measured. ``sentence`` is there from the first yield on and grows.
    """

    image: int
    rows: Rows
    logprob: float
    whole: float
    removed: float
    noise_floor: float
    tiles: tuple[Tile, ...]
    grid: tuple[int, int]
    regions: tuple[Region, ...]
    strongest_first: Deletion | None = None
    weakest_first: Deletion | None = None
    random: tuple[Deletion, ...] = ()
    sentence: str = ""

    @property
    def top(self) -> Region:
        """The region with the largest effect; its box is what the map points at."""
        return max(self.regions, key=lambda region: region.effect)

    @property
    def gap(self) -> float | None:
        """Mean area of the random orders less the own, nats: above 0 where the map is better than chance."""
        if self.strongest_first is None or not self.random:
            return None
        return sum(curve.area for curve in self.random) / len(self.random) - self.strongest_first.area

    @property
    def beaten(self) -> int:
        """How many of the random orders have a larger area."""
        own = self.strongest_first
        return 0 if own is None else sum(curve.area > own.area for curve in self.random)

    @property
    def better(self) -> bool | None:
        """Whether the area is smaller than that of every random order; None until that is measured."""
        return None if self.gap is None else self.beaten == len(self.random)

    @property
    def band(self) -> tuple[tuple[float, float, float], ...]:
        """(lowest, mean, highest) log p of the random orders at each point of the curve."""
        points = zip(*(curve.logprobs for curve in self.random), strict=True)
        return tuple((min(values), sum(values) / len(values), max(values)) for values in points)

    def to_json(self) -> dict[str, Any]:
        def curve(deletion: Deletion | None) -> dict[str, Any] | None:
            return None if deletion is None else asdict(deletion) | {"area": deletion.area}

        return {
            "image": self.image,
            "rows": self.rows,
            "logprob": self.logprob,
            "whole": self.whole,
            "removed": self.removed,
            "noise_floor": self.noise_floor,
            "tiles": [asdict(tile) for tile in self.tiles],
            "grid": list(self.grid),
            "regions": [asdict(region) for region in self.regions],
            "top": asdict(self.top),
            "strongest_first": curve(self.strongest_first),
            "weakest_first": curve(self.weakest_first),
            "random": [curve(deletion) for deletion in self.random],
            "gap": self.gap,
            "beaten": self.beaten,
            "better": self.better,
            "sentence": self.sentence,
        }


def measure_regions(case: Case, image: int, noise_floor: float) -> Iterator[Regions]:
    """Yields the effects of tiles and regions, then the curve with its reverse, then the random orders one after
    another. ``image`` counts from 1; ``noise_floor``: nats, of the dependence. InputError if the question can't see
    that image."""
    block = next((block for block in case.reachable if block.number == image), None)
    if block is None:
        seen = ", ".join(str(number) for number in case.target.question.reachable) or "none"
        raise InputError(f"Question {case.turn} can't see image {image}; images that it can see: {seen}.")
    found = _measure_effects(case, block, noise_floor)
    found = replace(found, sentence=_conclude(case, found))
    yield found
    order = sorted(range(len(found.regions)), key=lambda n: -found.regions[n].effect)
    strongest, weakest = (_delete(case, block, found, chosen) for chosen in (order, order[::-1]))
    found = replace(found, strongest_first=strongest, weakest_first=weakest)
    yield found
    rng = np.random.default_rng([case.seed, image])
    for _ in range(RANDOM_ORDERS):
        drawn = _delete(case, block, found, rng.permutation(len(order)).tolist())
        found = replace(found, random=(*found.random, drawn))
        yield replace(found, sentence=_conclude(case, found))


def cut_regions(case: Case, image: ImageBlock) -> tuple[tuple[int, int], list[tuple[Box, tuple[int, ...]]]]:
    """((rows, columns), box and image tokens of every region, row by row); every image token is in one of them."""
    row, cells = case.replay.row, case.vlm.config.cells_per_side
    processed = row.images[image.number - 1]
    width, height = processed.original_size
    tiles = (1, 1) if processed.has_thumbnail else image.grid
    rows, columns = tiles[0] * cells, tiles[1] * cells
    block = 1
    while math.ceil(rows / block) * math.ceil(columns / block) > MAX_REGIONS:
        block += 1
    grid = (math.ceil(rows / block), math.ceil(columns / block))
    held: list[list[int]] = [[] for _ in range(grid[0] * grid[1])]
    for position in image.tokens:
        cell = locate_cell(case.vlm, row, position)
        assert cell is not None
        across = (cell.box.left + cell.box.right) / 2 / width * columns
        down = (cell.box.top + cell.box.bottom) / 2 / height * rows
        held[int(down) // block * grid[1] + int(across) // block].append(position)

    def box(n: int) -> Box:
        top, left = (part * block for part in divmod(n, grid[1]))
        bottom, right = min(top + block, rows), min(left + block, columns)
        return Box(width * left / columns, height * top / rows, width * right / columns, height * bottom / rows)

    return grid, [(box(n), tuple(positions)) for n, positions in enumerate(held)]


def _base(case: Case, block: ImageBlock, rows: Rows) -> Variant:
    """The ending that begins where the regions are hidden from."""
    start = case.target.start if rows == "question and answer" else block.stop
    return case.replay.variant(start, case.target.scored, stop=case.target.scored[1])


def _hide(base: Variant, positions: Sequence[int]) -> Variant:
    return base.cutting(Cut(range(base.start, base.stop), positions))


def _measure_effects(case: Case, block: ImageBlock, noise_floor: float) -> Regions:
    keys = image_keys(block)
    everything, question = (_base(case, block, rows) for rows in ("everything behind it", "question and answer"))
    before, removed, cut = case.replay.run([everything, _hide(everything, keys), _hide(question, keys)])
    falls = before.logprob - removed.logprob, before.logprob - cut.logprob
    rows: Rows = "question and answer" if falls[1] >= ENOUGH * falls[0] else "everything behind it"
    base = question if rows == "question and answer" else everything
    grid, parts = cut_regions(case, block)
    tiles = [(*range(run.start, run.stop), *(() if run.mark is None else (run.mark,))) for run in block.tiles]
    before, whole, *after = case.replay.run(
        [base, _hide(base, keys), *(_hide(base, held) for held in (*tiles, *(held for _, held in parts)))]
    )
    effects = [before.logprob - outcome.logprob for outcome in after]
    boxes = case.replay.row.images[block.number - 1].boxes
    return Regions(
        image=block.number,
        rows=rows,
        logprob=before.logprob,
        whole=before.logprob - whole.logprob,
        removed=falls[0],
        noise_floor=noise_floor,
        tiles=tuple(
            Tile(run.tile, run.name, boxes[run.tile], effect) for run, effect in zip(block.tiles, effects, strict=False)
        ),
        grid=grid,
        regions=tuple(
            Region(box, held, effect) for (box, held), effect in zip(parts, effects[len(block.tiles) :], strict=True)
        ),
    )


def _delete(case: Case, block: ImageBlock, found: Regions, order: Sequence[int]) -> Deletion:
    count = len(order)
    steps = min(count, CURVE_STEPS)
    counts = [round(step * count / steps) for step in range(steps + 1)]
    base = _base(case, block, found.rows)
    variants = [base]
    for gone in counts[1:-1]:
        variants.append(_hide(base, [p for n in order[:gone] for p in found.regions[n].positions]))
    variants.append(_hide(base, image_keys(block)))
    return Deletion(tuple(counts), tuple(outcome.logprob for outcome in case.replay.run(variants)))


# --- in words ---


def _conclude(case: Case, found: Regions) -> str:
    bar = max(found.noise_floor, STRONG)
    floor = f"noise floor {found.noise_floor:.2f}"
    top = found.top
    box = top.box
    place = f"x {box.left:.0f} to {box.right:.0f}, y {box.top:.0f} to {box.bottom:.0f} px"
    hidden = f"hidden from {'the question and the answer' if found.rows == 'question and answer' else found.rows}"
    whole = f"the whole image {found.whole:.2f}; {floor}"
    if found.whole < bar:
        sentence = (f"Image {found.image} as a whole costs {found.whole:.2f} nats, less than the {bar:.2f} that count "
                    f"({floor}), so its regions say nothing.")  # fmt: skip
    elif top.effect < found.noise_floor:
        sentence = (f"No single region of image {found.image} matters more than noise: the largest effect is "
                    f"{top.effect:.2f} nats ({place}; {whole}).")  # fmt: skip
    else:
        sentence = (f"The region of image {found.image} that matters most is {place}: {hidden} it lowers log p by at "
                    f"least {top.effect:.2f} nats ({whole}).")  # fmt: skip
    if found.gap is None or found.strongest_first is None:
        return sentence
    areas = [curve.area for curve in found.random]
    how = "better than" if found.better else "no better than"
    return sentence + (
        f" Cut in this order, log p is {found.strongest_first.area:.2f} nats on average, {how} every one of "
        f"{len(areas)} random orders ({sum(areas) / len(areas):.2f} on average, {min(areas):.2f} at best; "
        f"{found.beaten} of {len(areas)} beaten)."
    )
