"""One prompt to two models: what each answers, where it looks in the same pictures, and what its answer rests on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inspector.row.ask import GenerationSettings, Inspection, ask_and_inspect, attend
from inspector.row.attention import AttentionMap
from inspector.row.prompt import Prompt
from inspector.which_image.image_effects import STRONG, Dependence
from inspector.which_image.study import study_answer
from inspector.which_image.verdict import Verdict
from model import Box, InspectableVLM


@dataclass(frozen=True)
class AnswerDependence:
    """What one model's answer to the last turn rests on, by interventions; see :class:`Dependence`."""

    dependence: Dependence
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict.to_json(), "dependence": self.dependence.to_json()}


@dataclass(frozen=True)
class AttentionGrid:
    """``shares [row col]``: what of one position's attention goes to each image token of a rectangle of them, which
    lies over ``box`` (in the original image's pixels)."""

    box: Box
    shares: tuple[tuple[float, ...], ...]

    @property
    def densities(self) -> np.ndarray:
        """``[row col]``: share by pixel of the original, so that models that cut an image otherwise can be laid on one
        scale."""
        shares = np.array(self.shares)
        area = (self.box.right - self.box.left) * (self.box.bottom - self.box.top)
        return shares * (shares.size / area)


@dataclass(frozen=True)
class Side:
    """One model's answers to a prompt. Of the position that chose the last answer's first token, mean over layers and
    heads: ``image_shares``, the share of its attention that goes to each image, and ``image_maps``, the same for each
    image token where it lies in the picture (the thumbnail's tokens are left out). ``rest``: None until it is measured,
    where the prompt has no image, and where ``no_rest`` says why there is none. ``tokens``: length of the row."""

    fingerprint: str
    tokens: int
    answers: tuple[str, ...]
    probabilities: tuple[float, ...]
    image_shares: tuple[float, ...]
    image_maps: tuple[tuple[AttentionGrid, ...], ...]
    rest: AnswerDependence | None = None
    no_rest: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "tokens": self.tokens,
            "answers": list(self.answers),
            "probabilities": [None if value != value else value for value in self.probabilities],
            "image_shares": list(self.image_shares),
            "image_maps": [
                [
                    {"box": list(vars(grid.box).values()), "shares": [list(line) for line in grid.shares]}
                    for grid in grids
                ]
                for grids in self.image_maps
            ],
            "which_image": None if self.rest is None else self.rest.to_json(),
            "no_which_image": self.no_rest,
        }


@dataclass(frozen=True)
class Comparison:
    """One prompt to both models: a run's ``before`` and ``after``, or the one that was asked first and another."""

    prompt: Prompt
    before: Side
    after: Side

    @property
    def shifts(self) -> tuple[bool, ...]:
        """Per image, whether its worth for the answer differs by more than either side's noise floor and 1 nat. Empty
        until both sides are measured."""
        one, two = self.before.rest, self.after.rest
        if one is None or two is None:
            return ()
        bar = max(STRONG, one.dependence.noise_floor, two.dependence.noise_floor)
        pairs = zip(one.dependence.shapley, two.dependence.shapley, strict=True)
        return tuple(abs(a - b) >= bar for a, b in pairs)

    def to_json(self) -> dict[str, Any]:
        """The contract of ``compare --json``; ``models`` are in the order in which they were named, lists in image
        order."""
        return {
            "questions": [turn.user for turn in self.prompt.turns],
            "models": [self.before.to_json(), self.after.to_json()],
            "same_answers": [one == two for one, two in zip(self.before.answers, self.after.answers, strict=True)],
            "shifts": list(self.shifts),
        }


def compare_answers(
    before: InspectableVLM, after: InspectableVLM, prompt: Prompt, settings: GenerationSettings
) -> Iterator[Comparison]:
    """Answers and attention of both, then the same with what the answer rests on: first of one, then of both. Answers
    that a person gave stay as given. InputError if the prompt doesn't fit one of the models."""
    inspections = [ask_and_inspect(vlm, prompt, settings) for vlm in (before, after)]
    one, two = (_side(vlm, inspection) for vlm, inspection in zip((before, after), inspections, strict=True))
    yield (found := Comparison(prompt, one, two))
    if not prompt.images:
        return
    yield (found := replace(found, before=_with_rest(one, before, inspections[0], settings)))
    yield replace(found, after=_with_rest(two, after, inspections[1], settings))


def _side(vlm: InspectableVLM, inspection: Inspection) -> Side:
    found = attend(vlm, inspection, inspection.row_that_chose(inspection.first_answer_position))
    odds = tuple(
        float(np.prod([token.probability for token in tokens])) if tokens else float("nan")
        for tokens in inspection.answers
    )
    return Side(
        inspection.fingerprint,
        len(inspection.row),
        tuple(turn.assistant for turn in inspection.prompt.turns),
        odds,
        tuple(float(share) for share in found.image_shares.mean(axis=0)),
        _lay_out(inspection, found),
    )


def _lay_out(inspection: Inspection, attention: AttentionMap) -> tuple[tuple[AttentionGrid, ...], ...]:
    """Per image, the grids of its tiles, or of the thumbnail where that is all there is."""
    heat = attention.heat()
    found = []
    for index in range(len(inspection.row.images)):
        grids = [grid for grid in inspection.row.grids if grid.image == index]
        tiles = [grid for grid in grids if not grid.is_thumbnail] or grids
        found.append(
            tuple(
                AttentionGrid(grid.box, tuple(map(tuple, heat[list(grid.positions)].reshape(grid.rows, -1).tolist())))
                for grid in tiles
            )
        )
    return tuple(found)


def _with_rest(side: Side, vlm: InspectableVLM, inspection: Inspection, settings: GenerationSettings) -> Side:
    if not side.answers[-1]:
        return replace(side, no_rest="it answered nothing")
    for found in study_answer(vlm, inspection, max_new_tokens=settings.max_new_tokens, seed=settings.seed):
        # Its verdict is final then; what follows is attention, which is there already, and self-checks.
        if found.step == "swaps" and found.dependence is not None and found.verdict is not None:
            return replace(side, rest=AnswerDependence(found.dependence, found.verdict))
    raise AssertionError("the study of an answer ends with its verdict")
