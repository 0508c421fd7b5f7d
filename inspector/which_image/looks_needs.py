"""One line on an answer: the image that its first token looked at most, and the one that it needs most.

Looking is read off the attention; needing is measured: log p of the answer with one image taken away at a time (the
verdict's leave-one-out). The two need not be one image, and the line decides nothing that the verdict doesn't test.
"""

from __future__ import annotations

from dataclasses import dataclass

from inspector.interventions.target import open_case
from inspector.row.ask import Inspection
from inspector.row.attention import AttentionMap
from inspector.row.numbers import say, say_factor
from inspector.which_image.image_effects import STRONG, measure_dependence
from model import InspectableVLM

QUICK = 2_000_000_000
"""Weights × positions of a row: below, needing is measured with every answer (.3 s for the embedded model)."""


@dataclass(frozen=True)
class LooksNeeds:
    """Images from 1. ``share`` of the attention goes to ``looks``; ``needs``: the image with the largest fall of log p
    (``fall``, nats), None where that is below ``bar``."""

    looks: int
    share: float
    needs: int | None
    fall: float
    bar: float

    @property
    def sentence(self) -> str:
        looked = f"looks most at image {self.looks} ({self.share:.0%})"
        if self.needs is None:
            return (
                f"{looked}; needs none of them by itself: taken away, each costs less than {say(self.bar)} nats. "
                "“Which image?” tries other pictures in their places."
            )
        return (
            f"{looked}; needs image {self.needs}: without it the answer is {say_factor(-self.fall)} "
            f"({say(self.fall)} nats)."
        )


def is_quick(vlm: InspectableVLM, inspection: Inspection) -> bool:
    return vlm.n_parameters * len(inspection.row) <= QUICK


def measure_looks_needs(vlm: InspectableVLM, inspection: Inspection, attention: AttentionMap) -> LooksNeeds | None:
    """Of the last answer; None where it can see no image. ``attention``: of the position that chose its first token."""
    case = open_case(vlm, inspection)
    if not case.reachable:
        return None
    shares = attention.image_shares.mean(axis=0).tolist()
    looks = max(range(len(shares)), key=shares.__getitem__)
    dependence = measure_dependence(case)
    falls = dependence.leave_one_out
    most = max(case.reachable, key=lambda image: falls[image.number - 1]).number
    bar = max(dependence.noise_floor, STRONG)
    fall = falls[most - 1]
    return LooksNeeds(looks + 1, shares[looks], most if fall >= bar else None, fall, bar)
