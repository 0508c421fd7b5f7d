"""Another picture in an image's place: does the answer follow?

A swap stays within what the model knows, which cutting edges need not; a verdict wants both. The partner has the same
size, so that the row keeps its length and every other token its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from inspector.interventions.image_exchange import ImageExchanges, Partner
from inspector.interventions.target import Case
from inspector.row.layout import ImageBlock
from inspector.which_image.question_contrast import Selection
from model import OpenedImage


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
    case: Case,
    selection: Selection,
    exchanges: ImageExchanges | None = None,
    *,
    twins: Mapping[int, tuple[OpenedImage, str]] | None = None,
) -> tuple[Counterfactual, ...]:
    """One swap for every image that the question can see, in image order. ``twins``: (picture, answer that it should
    give) by image number, instead of a partner chosen here."""
    exchanges = exchanges or ImageExchanges(case)
    chosen: list[tuple[ImageBlock, Partner, str | None]] = []
    for block in case.reachable:
        if twins is not None and block.number in twins:
            picture, predicted = twins[block.number]
            chosen.append((block, exchanges.fit(block, picture, "its twin"), predicted))
        else:
            chosen.append((block, *_choose_partner(exchanges, block, selection)))
    target = case.target
    asked = case.prefix_cache.ids[target.start : target.scored[0]]
    whole = case.prefix_cache.ids[target.start : target.scored[1]]
    replaced = [{block.number: partner.features} for block, partner, _ in chosen]
    before, *after = case.prefix_cache.run(
        [exchanges.of_ending(one, target, whole, target.scored) for one in ({}, *replaced)]
    )
    answers = case.answer([exchanges.of_question(one, target, asked) for one in replaced])
    return tuple(
        Counterfactual(
            block.number,
            partner.name,
            partner.number,
            predicted,
            case.text(ids),
            before.logprob - outcome.logprob,
            ids != case.greedy_ids,
            case.text(case.greedy_ids),
            partner.picture,
        )
        for (block, partner, predicted), outcome, ids in zip(chosen, after, answers, strict=True)
    )


def _choose_partner(exchanges: ImageExchanges, image: ImageBlock, selection: Selection) -> tuple[Partner, str | None]:
    """(partner, answer that should come): another image of the prompt if its own answer is known and differs, else a
    drawn scene."""
    prompt, own = exchanges.case.prompt, selection.about(image.number)
    answers = {asked.image: asked.greedy_answer for asked in selection.asked if asked.image is not None}
    for offset in range(1, len(prompt.images)):
        number = (image.number - 1 + offset) % len(prompt.images) + 1
        if own is not None and answers.get(number, own.greedy_answer) != own.greedy_answer:
            return exchanges.of_prompt(image, number), answers[number]
    return exchanges.drawn(image, image.number - 1), None


def swap_of(swaps: Sequence[Counterfactual], image: int) -> Counterfactual | None:
    return next((swap for swap in swaps if swap.image == image), None)
