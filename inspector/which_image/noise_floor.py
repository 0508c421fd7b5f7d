"""How far log p of an answer moves when something is taken away that it should not depend on.

Taken away in the same way as images are: from everything behind it, so that later images and the question are read
again without it. Stretches are text of the row that stands before the question, belongs to no image and names none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inspector.interventions.continuations import Continuation
from inspector.interventions.target import Case, Target, image_keys
from model import Cut

NOISE_DRAWS = 24
NOISE_QUANTILE = 0.95
NOISE_ROWS = 4
NOISE_POSITIONS = 2048
"""What the draws may cost: so many rows' lengths, or so many positions if that is more."""
LEAST_DRAWS = 4


@dataclass(frozen=True)
class NoiseFloor:
    """``floor`` in nats: the :data:`NOISE_QUANTILE` of the changes that ``draws`` stretches of ``size`` positions made,
    times ``scale``. ``scale`` is above 1 where the row has less such text than an image has positions: the floor is
    then brought to an image's length in proportion."""

    floor: float
    size: int
    draws: int
    scale: float


def measure_noise_floor(case: Case, target: Target, ids: Sequence[int], logprob: float) -> NoiseFloor:
    """``ids`` from ``target``'s start on, the answer among them, whose log p with everything in place is ``logprob``
    (nats). Nothing is drawn, and the floor is 0, where the row has no such text or no image."""
    keys = [len(image_keys(image)) for image in case.structure.images]
    stretches = choose_stretches(case, target, int(np.median(keys)) if keys else 0)
    if not stretches:
        return NoiseFloor(0.0, 0, 0, 1.0)
    stop = target.scored[1]
    continuations = []
    for gone in stretches:
        start, hidden = gone[0], frozenset(gone)
        cut = Cut([p for p in range(start, stop) if p not in hidden], gone)
        before = case.prefix_cache.ids[start : target.start]
        continuations.append(Continuation(start, (*before, *ids), target.scored, (cut,)))
    changes = [abs(logprob - outcome.logprob) for outcome in case.prefix_cache.run(continuations)]
    size = len(stretches[0])
    scale = max(1.0, float(np.median(keys)) / size)
    return NoiseFloor(float(np.quantile(changes, NOISE_QUANTILE)) * scale, size, len(stretches), scale)


def choose_stretches(case: Case, target: Target, wanted: int) -> list[list[int]]:
    """Runs of ``wanted`` positions each (fewer where there is little text: half of it), evenly spread over the text;
    images and what they are called in the row (``<image: k>``) are stepped over. The row's first position is left
    alone: in most models it soaks up attention that has nowhere to go, and without it the model breaks."""
    row, structure = case.prefix_cache.row, case.structure
    attended, segments = row.attention_mask.tolist(), row.segment_ids.tolist()
    images = {p for image in structure.images for p in range(image.start, image.stop)}
    first = next((p for p in range(target.start) if attended[p]), 0)
    pool = [
        p
        for p in range(first + 1, target.start)
        if p not in images and attended[p] and (not structure.document_mask or segments[p] == segments[target.start])
    ]
    if not pool or not wanted:
        return []
    size = min(wanted, max(1, len(pool) // 2))
    places = len(pool) - size + 1
    budget = max(NOISE_POSITIONS, NOISE_ROWS * len(row))
    for count in range(min(NOISE_DRAWS, places), 0, -1):
        chosen = [round(at) for at in np.linspace(0, places - 1, count).tolist()]
        if count <= LEAST_DRAWS or sum(target.scored[1] - pool[at] for at in chosen) <= budget:
            return [pool[at : at + size] for at in chosen]
    return []
