"""Another picture in an image's place: does the answer follow?

A swap stays within what the model knows, which cutting edges need not; a verdict wants both. The partner has the same
size, so that the row keeps its length and every other token its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from inspector.images.full_size import read_preview, stretch_image
from inspector.images.image_file import PromptImage, run_at_full_size
from inspector.interventions.prefix_cache import PrefixCache
from inspector.interventions.target import Case
from inspector.row.embedded_row import grow_row
from inspector.row.feature_store import FEATURES
from inspector.row.prompt import prepare_row
from inspector.which_image.question_contrast import Selection
from model import OpenedImage
from model.training.synthetic.scenes import SINGLE_TILE, draw, random_scene


@dataclass(frozen=True)
class Counterfactual:
    """``image`` (from 1) was replaced. ``partner`` says by what, ``partner_image`` is its number if it is another
    image of the prompt. ``fall``: of log p of the answer under study, nats. ``predicted``: the answer that should
    come if the model reads this image, None where nothing could be predicted; ``answer``: what it said; ``flipped``:
    whether that is another answer than ``before``, which the model itself gives to the unchanged row. ``picture``: a
    preview of what came in its place."""

    image: int
    partner: str
    partner_image: int | None
    predicted: str | None
    answer: str
    fall: float
    flipped: bool
    before: str
    picture: Image.Image

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "partner": self.partner,
            "partner_image": self.partner_image,
            "predicted": self.predicted,
            "answer": self.answer,
            "fall": self.fall,
            "flipped": self.flipped,
            "before": self.before,
        }


def measure_counterfactuals(
    case: Case, selection: Selection, *, twins: Mapping[int, tuple[OpenedImage, str]] | None = None
) -> tuple[Counterfactual, ...]:
    """One swap for every image that the question can see, in image order. ``twins``: (picture, answer that it should
    give) by image number, instead of a partner chosen here."""
    return tuple(
        measure_swap(case, selection, block.number, (twins or {}).get(block.number)) for block in case.reachable
    )


def measure_swap(
    case: Case, selection: Selection, image: int, twin: tuple[OpenedImage, str] | None = None
) -> Counterfactual:
    """Image ``image`` replaced; the row is read again."""
    vlm, prompt = case.vlm, case.prompt
    partner = _choose_partner(case, image, selection) if twin is None else _Partner(twin[0], "its twin", None, twin[1])
    size = prompt.images[image - 1].size
    facts, resized = run_at_full_size(partner.image, stretch_image, size, vlm.geometry)
    row = prepare_row(vlm, prompt, replaced={image - 1: vlm.cut_image(resized, size)})
    if tuple(row.input_ids.tolist()) != case.prefix_cache.ids:
        raise ValueError("A swapped image of the same size must leave every token in its place.")
    # Everything before the image is as it was read.
    features = FEATURES.encode(vlm, row.images)
    swapped = PrefixCache(vlm, grow_row(vlm, case.prefix_cache.read_row, row, features))
    before, after = case.prefix_cache.run([case.base])[0], swapped.run([case.base])[0]
    first = case.target.scored[0]
    open_ended = swapped.continuation(case.target.start, (first, first), stop=first)
    (ids,) = replace(case, prefix_cache=swapped).answer([open_ended])
    return Counterfactual(
        image,
        partner.name,
        partner.number,
        partner.predicted,
        case.text(ids),
        before.logprob - after.logprob,
        ids != case.greedy_ids,
        case.text(case.greedy_ids),
        read_preview(facts),
    )


@dataclass(frozen=True)
class _Partner:
    """What comes in an image's place, stretched to its size: what it is called, its number if it is another image of
    the prompt, and the answer that should come."""

    image: PromptImage
    name: str
    number: int | None
    predicted: str | None


def _choose_partner(case: Case, image: int, selection: Selection) -> _Partner:
    """Another image of the prompt if its own answer is known and differs, else a drawn scene."""
    prompt, own = case.prompt, selection.about(image)
    answers = {asked.image: asked.greedy_answer for asked in selection.asked if asked.image is not None}
    for offset in range(1, len(prompt.images)):
        number = (image - 1 + offset) % len(prompt.images) + 1
        if own is not None and answers.get(number, own.greedy_answer) != own.greedy_answer:
            other = prompt.images[number - 1]
            fitted = other.size != prompt.images[image - 1].size
            name = f"image {number}" + (", stretched to its size" if fitted else "")
            return _Partner(other, name, number, answers[number])
    scene = random_scene(np.random.default_rng([case.seed, image]), SINGLE_TILE, 1)
    shape = scene.shapes[0]
    return _Partner(OpenedImage(draw(scene)), f"a drawn {shape.name}, stretched to its size", None, None)


def swap_of(swaps: Sequence[Counterfactual], image: int) -> Counterfactual | None:
    return next((swap for swap in swaps if swap.image == image), None)
