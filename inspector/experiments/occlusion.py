"""Which part of an image an answer rests on, measured twice: in the picture, and in the row of tokens.

In the picture: a part is painted over in the picture's median colour, and the image is encoded and read again. In the
row: the tokens of that part are hidden from what comes after them (attention knockout, Geva et al. 2023, arXiv
2304.14767). The two differ, for the image encoder lets every token of a tile see the whole tile: what stands in one
corner of the picture may be known to all tokens.

A region is a rectangle of the original picture. Where the model got a thumbnail beside the tiles, it is what one
thumbnail token covers, with every tile token whose centre lies in it: both show the same place, and either could stand
in for the other. Without a thumbnail it is what one image token covers. In both cases neighbours are put together
until there are no more than :data:`MAX_REGIONS`.

Of each region two numbers are measured, in nats of the answer's log p: how much is lost without it, and how much it
brings alone. Where several regions tell the same, each is dispensable and only the second number shows them. Their mean
is the region's effect (the first and the last term of its Shapley value).

The deletion curve (Petsiuk et al. 2018, arXiv 1806.07421) takes away more and more regions, those with the largest
effect first. A map that points at the right places makes log p fall sooner than random orders do; the area under the
curve is its mean height, so lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from inspector.images.full_size import find_median, paint_over
from inspector.images.image_file import run_at_full_size
from inspector.interventions.continuations import Continuation
from inspector.interventions.prefix_cache import PASS_POSITIONS
from inspector.interventions.target import Case, image_keys
from inspector.row.feature_store import FEATURES
from inspector.row.layout import ImageBlock
from inspector.row.numbers import say
from inspector.row.token_table import locate_cell
from inspector.which_image.image_effects import STRONG
from model import Box, Cut
from model.picture import whole_box

EXPLANATION = (
    "Part by part, the picture was painted over and read again, and in a second test the part's tokens were hidden "
    "from the rest of the row; the darker a part is drawn, the more of the answer's probability goes when it is "
    "missing or comes when it is there alone. "
    "It can't show what the model takes a part for, paint is itself something to see, and the map of tokens may point "
    "nowhere, because a token knows of more of the picture than its own place."
)

MAX_REGIONS = 64
CURVE_STEPS = 8
"""So many steps at most has a curve: with more regions, several are taken away at once."""
RANDOM_ORDERS = 8
MOST_POSITIONS = 30_000
"""Readings that would send more positions through the language model for one map are made of a coarser one: at
nanoVLM's 222M shape on two cores both coarse maps of an image took 74 s, and the fine ones didn't end in minutes."""
ENOUGH = 0.9
"""Tokens are hidden from the question and the answer alone if that does so much of what hiding the whole image from
everything behind it does: these are a few positions, and everything behind it may be thousands."""
TILES_AT_ONCE = 16
HALF = 0.5

How = Literal["painted over", "hidden"]
BlindRows = Literal["question and answer", "everything behind it"]
Scorer = Callable[[Sequence[frozenset[int]]], list[float]]
"""log p of the answer when these regions are gone, for each of several sets."""


@dataclass(frozen=True)
class Detail:
    """How finely a map is measured: at most so many ``regions``, ``steps`` of a curve and random ``orders``. Between
    two reports of how far it is come ``at_once`` readings."""

    regions: int
    steps: int
    orders: int
    at_once: int

    def count_readings(self, regions: int) -> int:
        """Of one map."""
        return 2 + 2 * regions + (min(self.steps, regions) - 1) * (2 + self.orders)


COARSE = Detail(16, 4, 3, 4)


@dataclass(frozen=True)
class Tile:
    """A tile taken away with its region mark. ``tile`` counts from 0 as in ``ProcessedImage.tiles``; ``name`` is
    “thumbnail” or “r1c2”; ``effect``: fall of log p, nats."""

    tile: int
    name: str
    box: Box
    effect: float


@dataclass(frozen=True)
class Region:
    """``box`` in the original image's pixels; ``positions`` are the image tokens in it. ``loss``: fall of log p when
    this region is gone; ``gain``: rise over the image without any region when it is the only one left; nats."""

    box: Box
    positions: tuple[int, ...]
    loss: float
    gain: float

    @property
    def effect(self) -> float:
        return (self.loss + self.gain) / 2


@dataclass(frozen=True)
class Deletion:
    """log p of the answer while regions are taken away in one order. ``counts``: how many are gone at each point, from
    0 to all of them. ``logprobs``: nats, one for each."""

    counts: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def area(self) -> float:
        """Mean height of the curve (trapezoids), nats."""
        return float(np.trapezoid(self.logprobs, self.counts) / self.counts[-1])


@dataclass(frozen=True)
class RegionMap:
    """``how``: what was done to a region. ``logprob``: of the answer with all regions in place, ``nothing``: with none
    (of the map of tokens: the region marks are hidden then too). ``regions`` are row by row.

    ``strongest_first`` is the deletion curve, ``weakest_first`` the reversed order, ``random`` other orders; None and
    empty until measured."""

    how: How
    logprob: float
    nothing: float
    regions: tuple[Region, ...]
    strongest_first: Deletion | None = None
    weakest_first: Deletion | None = None
    random: tuple[Deletion, ...] = ()

    @property
    def whole(self) -> float:
        """Fall without any region, nats."""
        return self.logprob - self.nothing

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
        """Whether log p falls sooner than in random orders on average; None until that is measured."""
        return None if self.gap is None else self.gap > 0

    @property
    def band(self) -> tuple[tuple[float, float, float], ...]:
        """(lowest, mean, highest) log p of the random orders at each point of the curve."""
        points = zip(*(curve.logprobs for curve in self.random), strict=True)
        return tuple((min(values), sum(values) / len(values), max(values)) for values in points)

    def to_json(self) -> dict[str, Any]:
        def curve(deletion: Deletion | None) -> dict[str, Any] | None:
            return None if deletion is None else asdict(deletion) | {"area": deletion.area}

        return {
            "how": self.how,
            "logprob": self.logprob,
            "nothing": self.nothing,
            "whole": self.whole,
            "regions": [asdict(region) | {"effect": region.effect} for region in self.regions],
            "top": asdict(self.top.box),
            "strongest_first": curve(self.strongest_first),
            "weakest_first": curve(self.weakest_first),
            "random": [curve(deletion) for deletion in self.random],
            "gap": self.gap,
            "beaten": self.beaten,
            "better": self.better,
        }


@dataclass(frozen=True)
class Regions:
    """What is known so far of image ``image`` (from 1). ``grid``: (rows, columns) of regions. ``removed``: fall of
    log p without the image, hidden from everything behind it; ``tiles``: without each tile. ``rows``: what tiles and
    tokens were hidden from. Maps are None until they are begun; ``sentence`` grows with them. ``readings``: how many
    were made so far, and of how many; ``coarse``: by :data:`COARSE`, as a reading takes ``positions`` of the model."""

    image: int
    grid: tuple[int, int]
    noise_floor: float
    removed: float
    rows: BlindRows
    tiles: tuple[Tile, ...]
    pixels: RegionMap | None = None
    tokens: RegionMap | None = None
    sentence: str = ""
    readings: tuple[int, int] = (0, 0)
    coarse: bool = False
    positions: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "grid": list(self.grid),
            "noise_floor": self.noise_floor,
            "removed": self.removed,
            "rows": self.rows,
            "tiles": [asdict(tile) for tile in self.tiles],
            "pixels": None if self.pixels is None else self.pixels.to_json(),
            "tokens": None if self.tokens is None else self.tokens.to_json(),
            "sentence": self.sentence,
            "readings": list(self.readings),
            "coarse": self.coarse,
        }


def measure_regions(case: Case, image: int, noise_floor: float) -> Iterator[Regions]:
    """Yields the tiles, then the map of pixels and the map of tokens, each growing: its regions, its curve with the
    reverse, the random orders one by one. ``image`` counts from 1; ``noise_floor``: nats, of the dependence. InputError
    if the question can't see that image.

    Cost, for r regions: 2r + 2 + 10 · 7 readings of what stands behind the image, twice; the map of pixels also encodes
    the tiles that the paint has changed. Where that is more than :data:`MOST_POSITIONS`, :data:`COARSE` says how many.
    """
    block = case.find_reachable(image)
    detail, positions = choose_detail(case, block)
    grid, parts = cut_regions(case, block, detail.regions)
    per_map = detail.count_readings(len(parts))
    found = replace(
        _take_tiles(case, block, grid, noise_floor),
        readings=(0, 2 * per_map),
        coarse=detail is COARSE,
        positions=positions,
    )
    yield replace(found, sentence=_conclude(found))
    for done, pixels in _map(case, block, parts, "painted over", _painting(case, block, parts), detail):
        found = replace(found, pixels=pixels, readings=(done, 2 * per_map))
        yield replace(found, sentence=_conclude(found))
    for done, tokens in _map(case, block, parts, "hidden", _hiding(case, block, parts, found.rows), detail):
        found = replace(found, tokens=tokens, readings=(per_map + done, 2 * per_map))
        yield replace(found, sentence=_conclude(found))


def choose_detail(case: Case, image: ImageBlock) -> tuple[Detail, int]:
    """How finely, and how many positions a reading takes."""
    fine = Detail(MAX_REGIONS, CURVE_STEPS, RANDOM_ORDERS, 1 << 16)
    _, parts = cut_regions(case, image, fine.regions)
    positions = case.target.scored[1] - image.tokens[0]
    return (fine if positions * fine.count_readings(len(parts)) <= MOST_POSITIONS else COARSE), positions


ImagePart = tuple[Box, tuple[int, ...]]


def cut_regions(case: Case, image: ImageBlock, most: int | None = None) -> tuple[tuple[int, int], list[ImagePart]]:
    """((rows, columns), box and image tokens of every region, row by row), ``most`` of them (:data:`MAX_REGIONS`);
    every image token that has a place in the image is in one of them. What of the image the model doesn't get is in
    none."""
    most = MAX_REGIONS if most is None else most
    row = case.prefix_cache.row
    whole = [grid for grid in row.grids if grid.image == image.number - 1]
    shown = next((grid for grid in whole if grid.is_thumbnail), whole[0])
    cells = shown.rows, shown.cols
    processed = row.images[image.number - 1]
    seen = processed.seen or whole_box(processed.original_size)
    width, height = seen.right - seen.left, seen.bottom - seen.top
    tiles = (1, 1) if processed.has_thumbnail else image.grid
    rows, columns = tiles[0] * cells[0], tiles[1] * cells[1]
    block = 1
    while math.ceil(rows / block) * math.ceil(columns / block) > most:
        block += 1
    grid = (math.ceil(rows / block), math.ceil(columns / block))
    held: list[list[int]] = [[] for _ in range(grid[0] * grid[1])]
    for position in image.tokens:
        cell = locate_cell(row, position)
        if cell is None:
            continue  # of the image, but of no place in it: a class token, the end of a line
        across = ((cell.box.left + cell.box.right) / 2 - seen.left) / width * columns
        down = ((cell.box.top + cell.box.bottom) / 2 - seen.top) / height * rows
        held[int(down) // block * grid[1] + int(across) // block].append(position)

    def box(n: int) -> Box:
        top, left = (part * block for part in divmod(n, grid[1]))
        bottom, right = min(top + block, rows), min(left + block, columns)
        return Box(
            seen.left + width * left / columns,
            seen.top + height * top / rows,
            seen.left + width * right / columns,
            seen.top + height * bottom / rows,
        )

    return grid, [(box(n), tuple(positions)) for n, positions in enumerate(held)]


# --- the two ways of taking a region away ---


def _hide(base: Continuation, positions: Sequence[int]) -> Continuation:
    return base.cutting(Cut(range(base.start, base.stop), positions)) if positions else base


def _behind(case: Case, block: ImageBlock, rows: BlindRows) -> Continuation:
    """The row from where the image is hidden from it."""
    start = case.target.start if rows == "question and answer" else block.stop
    return case.prefix_cache.continuation(start, case.target.scored, stop=case.target.scored[1])


def _hiding(case: Case, block: ImageBlock, parts: Sequence[ImagePart], rows: BlindRows) -> Scorer:
    base = _behind(case, block, rows)

    def score(sets: Sequence[frozenset[int]]) -> list[float]:
        hidden = [
            image_keys(block) if len(gone) == len(parts) else [p for n in sorted(gone) for p in parts[n][1]]
            for gone in sets
        ]
        return [outcome.logprob for outcome in case.prefix_cache.run([_hide(base, keys) for keys in hidden])]

    return score


def _painting(case: Case, block: ImageBlock, parts: Sequence[ImagePart]) -> Scorer:
    image = case.prompt.images[block.number - 1]
    paint = run_at_full_size(image, find_median)
    covers = [
        (across.start, down.start, across.stop, down.stop) for down, across in (_pixels_of(box) for box, _ in parts)
    ]
    start = block.tokens[0]
    base = case.prefix_cache.continuation(start, case.target.scored, stop=case.target.scored[1])
    # Other images behind this one keep what they hold.
    others = [p for p in range(start, base.stop) if case.prefix_cache.ids[p] == case.vlm.image_token_id]
    others = others[len(block.tokens) :]
    at_once = max(1, PASS_POSITIONS // len(base.ids))

    def score(sets: Sequence[frozenset[int]]) -> list[float]:
        found: list[float] = []
        for first in range(0, len(sets), at_once):
            painted = [[covers[n] for n in sorted(gone)] for gone in sets[first : first + at_once]]
            pictures = run_at_full_size(image, paint_over, painted, paint, case.vlm.geometry)
            cut = [case.vlm.cut_image(one, image.size) for one in zip(*pictures, strict=True)]
            features = FEATURES.encode(case.vlm, cut)
            kept = case.prefix_cache.embeds[others]
            continuations = [replace(base, features=torch.cat((own, kept))) for own in features]
            found += [outcome.logprob for outcome in case.prefix_cache.run(continuations)]
        return found

    return score


def _pixels_of(box: Box) -> tuple[slice, slice]:
    """The pixels whose centres lie in a box: every pixel of a picture is in one of the boxes that tile it."""
    left, top, right, bottom = (math.ceil(edge - 0.5) for edge in (box.left, box.top, box.right, box.bottom))
    return slice(top, bottom), slice(left, right)


# --- measuring ---


def _take_tiles(case: Case, block: ImageBlock, grid: tuple[int, int], noise_floor: float) -> Regions:
    keys = image_keys(block)
    everything, question = (_behind(case, block, rows) for rows in ("everything behind it", "question and answer"))
    before, removed, cut = case.prefix_cache.run([everything, _hide(everything, keys), _hide(question, keys)])
    enough = before.logprob - cut.logprob >= ENOUGH * (before.logprob - removed.logprob)
    rows: BlindRows = "question and answer" if enough else "everything behind it"
    base = question if enough else everything
    held = [(*range(run.start, run.stop), *run.marks) for run in block.tiles]
    uncut, *outcomes = case.prefix_cache.run([base, *(_hide(base, positions) for positions in held)])
    boxes = case.prefix_cache.row.images[block.number - 1].boxes
    tiles = tuple(
        Tile(run.tile, run.name, boxes[run.tile], uncut.logprob - outcome.logprob)
        for run, outcome in zip(block.tiles, outcomes, strict=True)
    )
    return Regions(block.number, grid, noise_floor, before.logprob - removed.logprob, rows, tiles)


def _map(
    case: Case, block: ImageBlock, parts: Sequence[ImagePart], how: How, score: Scorer, detail: Detail
) -> Iterator[tuple[int, RegionMap | None]]:
    """Readings made so far, and what they say."""
    every = frozenset(range(len(parts)))
    alone = [frozenset({n}) for n in range(len(parts))]
    sets = [frozenset(), every, *alone, *(every - one for one in alone)]
    scores: list[float] = []
    for first in range(0, len(sets), detail.at_once):
        if scores:
            yield len(scores), None
        scores += score(sets[first : first + detail.at_once])
    full, nothing, *rest = scores
    losses, gains = rest[: len(parts)], rest[len(parts) :]
    regions = tuple(
        Region(box, positions, full - loss, gain - nothing)
        for (box, positions), loss, gain in zip(parts, losses, gains, strict=True)
    )
    found, done = RegionMap(how, full, nothing, regions), len(sets)
    yield done, found
    order = sorted(range(len(parts)), key=lambda n: -regions[n].effect)
    per_curve = min(detail.steps, len(parts)) - 1
    found = replace(
        found,
        strongest_first=_delete(found, order, score, detail.steps),
        weakest_first=_delete(found, order[::-1], score, detail.steps),
    )
    done += 2 * per_curve
    yield done, found
    rng = np.random.default_rng([case.seed, block.number])
    for _ in range(detail.orders):
        drawn = _delete(found, rng.permutation(len(parts)).tolist(), score, detail.steps)
        found, done = replace(found, random=(*found.random, drawn)), done + per_curve
        yield done, found


def _delete(found: RegionMap, order: Sequence[int], score: Scorer, most_steps: int) -> Deletion:
    count = len(order)
    steps = min(count, most_steps)
    counts = [round(step * count / steps) for step in range(steps + 1)]
    between = score([frozenset(order[:gone]) for gone in counts[1:-1]]) if steps > 1 else []
    return Deletion(tuple(counts), (found.logprob, *between, found.nothing))


# --- in words ---


def _conclude(found: Regions) -> str:
    floor = f"(noise floor {say(found.noise_floor)})"
    removed = f"costs at least {say(found.removed)} nats {floor}"
    said = [f"Hidden from everything behind it, image {found.image} as a whole {removed}."]
    if found.coarse:
        said.append(
            f"Measured coarsely, in {found.grid[0]} × {found.grid[1]} regions with {COARSE.orders} random orders: each "
            f"of the {found.readings[1]} readings takes up to {found.positions:,} positions of the model."
        )
    if found.pixels is not None:
        said += _say_pixels(found.pixels, found)
    if found.tokens is not None:
        said += _say_tokens(found.tokens, found)
    return " ".join(said)


def _say_pixels(pixels: RegionMap, found: Regions) -> list[str]:
    bar = max(found.noise_floor, STRONG)
    if pixels.whole < bar:
        sentence = (
            f"Painted over as a whole it costs {say(pixels.whole)} nats, less than the {say(bar)} that "
            f"count, so its parts say little; the largest effect is {_name_place(pixels.top)}."
        )
    else:
        sentence = (
            f"In the picture, the region that matters most is {_name_place(pixels.top)}; the whole picture "
            f"painted over costs {say(pixels.whole)}."
        )
    return [sentence, *_say_curve(pixels)]


def _name_place(region: Region) -> str:
    box = region.box
    return (
        f"x {box.left:.0f} to {box.right:.0f}, y {box.top:.0f} to {box.bottom:.0f} px: without it log p falls by "
        f"{say(region.loss)} nats, alone it brings {say(region.gain)}"
    )


def _say_tokens(tokens: RegionMap, found: Regions) -> list[str]:
    top = max(region.loss for region in tokens.regions)
    least = min(region.gain for region in tokens.regions)
    where = "the question and the answer" if found.rows == "question and answer" else found.rows
    sentence = (
        f"In the row, the tokens of one region hidden from {where} cost at most {say(top)} nats of the "
        f"{say(tokens.whole)} that all of them cost, and any region's tokens alone bring at least {say(least)}"
    )
    spread = tokens.whole >= STRONG and least >= HALF * tokens.whole
    sentence += ": each of them holds what the answer needs, so this map points nowhere." if spread else "."
    return [sentence, *_say_curve(tokens)]


def _say_curve(found: RegionMap) -> list[str]:
    if found.gap is None or found.strongest_first is None:
        return []
    areas = [curve.area for curve in found.random]
    done = "Painted over" if found.how == "painted over" else "Hidden"
    judged = "better than random" if found.better else "no better than random"
    sentence = (
        f"{done} in the order of effect, log p is {say(found.strongest_first.area)} nats on average, in random "
        f"orders {say(sum(areas) / len(areas))} ({found.beaten} of {len(areas)} beaten): {judged}, by "
        f"{say(found.gap, sign=True)}."
    )
    return [sentence]
