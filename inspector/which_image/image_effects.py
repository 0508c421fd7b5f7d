"""What an answer depends on: images taken away, and how far log p of the answer falls.

Taking an image away cuts every edge from its tokens and region marks into everything behind it: attention knockout
(Geva et al. 2023, arXiv 2304.14767), complete, so that the row goes on as if the image's positions were empty. A model
may find another way to the same answer then, so a fall is a lower bound of what the image was worth. Shapley values
(Shapley 1953) share log p(all images) − log p(no image) out among the images. What replacing images by others does is
measured beside it, in :mod:`inspector.which_image.exchange_effects`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.target import Case, Target, is_answered, target_of
from inspector.row.embedded_row import run_whole
from inspector.row.layout import ImageBlock, Question
from inspector.which_image.exchange_effects import ExchangeEffects, measure_exchange
from inspector.which_image.noise_floor import measure_noise_floor
from inspector.which_image.shapley import (
    all_subsets,
    draw_orders,
    sampled_shapley,
    shapley_interactions,
    shapley_values,
    subsets_of_orders,
)

EXACT_IMAGES = 5
"""Up to so many images all 2ⁿ subsets are run; beyond, orders are drawn."""
SAMPLED_ORDERS = 32
STRONG = 1.0
"""Nats that count as an effect, whatever the noise: 1 nat is a factor of e in the answer's probability."""


@dataclass(frozen=True)
class Dependence:
    """Effects in nats of log p of the answer's tokens; lists are in image order, 0 for images out of reach.

    ``logprob``: with everything in place; ``text_only``: without any image. ``leave_one_out``: fall without that
    image; ``alone``: rise over ``text_only`` with that image only. ``interactions [image image]`` are Shapley
    interaction values, positive where two images are needed together and negative where either will do; None if
    sampled. ``standard_errors`` of the Shapley values, None if exact. ``noise_floor``: the 95th percentile of the
    change that ``noise_draws`` stretches of ``noise_size`` positions of text make that are taken away as images are,
    times ``noise_scale`` (see :class:`inspector.which_image.noise_floor.NoiseFloor`). ``exchange``: the same answer
    with images replaced, None if that was not measured.
    """

    answer: str
    tokens: int
    logprob: float
    text_only: float
    shapley: tuple[float, ...]
    standard_errors: tuple[float, ...] | None
    leave_one_out: tuple[float, ...]
    alone: tuple[float, ...]
    interactions: tuple[tuple[float, ...], ...] | None
    noise_floor: float
    noise_draws: int
    noise_size: int
    runs: int
    noise_scale: float = 1.0
    exchange: ExchangeEffects | None = None

    @property
    def exact(self) -> bool:
        return self.standard_errors is None

    @property
    def probability(self) -> float:
        """Of one answer token, the geometric mean over the answer."""
        return math.exp(self.logprob / self.tokens)

    @property
    def total(self) -> float:
        """What all images together are worth, nats."""
        return self.logprob - self.text_only

    def to_json(self) -> dict[str, Any]:
        return {
            "answer": self.answer,
            "logprob": self.logprob,
            "probability": self.probability,
            "text_only": self.text_only,
            "shapley": list(self.shapley),
            "standard_errors": None if self.standard_errors is None else list(self.standard_errors),
            "exact": self.exact,
            "leave_one_out": list(self.leave_one_out),
            "alone": list(self.alone),
            "interactions": None if self.interactions is None else [list(row) for row in self.interactions],
            "noise_floor": self.noise_floor,
            "noise_draws": self.noise_draws,
            "noise_size": self.noise_size,
            "noise_scale": self.noise_scale,
            "runs": self.runs,
            "exchange": None if self.exchange is None else self.exchange.to_json(),
        }


@dataclass(frozen=True)
class TurnMatrix:
    """``effects [turn][image]``: fall of log p of each turn's answer without each image, nats; None for a turn without
    an answer. ``reachable`` says which images the turn can see. Elsewhere there is nothing to take away: the image's
    pixels and ids were changed instead, and the effect of that must be exactly 0.
    ``own``: per turn the images that the turn itself brings (where all stand before the first question: all of them,
    for every turn)."""

    effects: tuple[tuple[float, ...] | None, ...]
    reachable: tuple[tuple[bool, ...], ...]
    own: tuple[tuple[bool, ...], ...]

    @property
    def beyond_reach(self) -> float:
        """The largest effect of an image that the turn can't see."""
        return max(
            (
                abs(value)
                for row, seen in zip(self.effects, self.reachable, strict=True)
                if row is not None
                for value, reachable in zip(row, seen, strict=True)
                if not reachable
            ),
            default=0.0,
        )

    @property
    def leakage(self) -> float | None:
        """Share of all effects, by size, that is of images another turn brought; None where nothing has an effect."""
        total = foreign = 0.0
        for row, own in zip(self.effects, self.own, strict=True):
            if row is not None:
                total += sum(abs(value) for value in row)
                foreign += sum(abs(value) for value, mine in zip(row, own, strict=True) if not mine)
        return foreign / total if total else None

    def to_json(self) -> dict[str, Any]:
        return {
            "effects": [None if row is None else list(row) for row in self.effects],
            "reachable": [list(row) for row in self.reachable],
            "own": [list(row) for row in self.own],
            "beyond_reach": self.beyond_reach,
            "leakage": self.leakage,
        }


def measure_dependence(
    case: Case,
    ablations: ImageAblations | None = None,
    exchanges: ImageExchanges | None = None,
    *,
    answer_ids: Sequence[int] | None = None,
) -> Dependence:
    """See :class:`Dependence`. ``exchanges``: measures the exchange of images too. ``answer_ids``: another answer in
    the place of the row's own (a reference answer); then images are taken away only."""
    prefix_cache, structure, target = case.prefix_cache, case.structure, case.target
    ablations = ablations or ImageAblations(case)
    first = target.scored[0]
    prompt = prefix_cache.ids[target.start : first]
    ids = case.answer_ids if answer_ids is None else tuple(answer_ids)
    scored = (first, first + len(ids))
    target = Target(target.question, target.start, scored)
    whole = (*prompt, *ids)
    seen = case.reachable
    n = len(seen)
    rng = np.random.default_rng(case.seed)
    orders = None if n <= EXACT_IMAGES else draw_orders(rng, n, SAMPLED_ORDERS)
    subsets = all_subsets(n) if orders is None else subsets_of_orders(orders)
    hidden = [frozenset(seen[k].number for k in range(n) if k not in subset) for subset in subsets]
    outcomes = prefix_cache.run([ablations.of_ending(gone, target, whole, scored) for gone in hidden])
    value = {subset: outcome.logprob for subset, outcome in zip(subsets, outcomes, strict=True)}
    full = frozenset(range(n))
    if orders is None:
        shapley, errors = shapley_values(value, n), None
        interactions = shapley_interactions(value, n)
    else:
        shapley, errors = sampled_shapley(value, orders)
        interactions = None
    leave_one_out = [value[full] - value[full - {k}] for k in range(n)]
    alone = [value[frozenset({k})] - value[frozenset()] for k in range(n)]
    noise = measure_noise_floor(case, target, whole, value[full])

    def spread(values: Sequence[float]) -> tuple[float, ...]:
        by_number = {image.number: value for image, value in zip(seen, values, strict=True)}
        return tuple(by_number.get(image.number, 0.0) for image in structure.images)

    whole_interactions = None
    if interactions is not None:
        places = {image.number: k for k, image in enumerate(seen)}
        whole_interactions = tuple(
            tuple(
                interactions[places[one.number]][places[other.number]]
                if one.number in places and other.number in places
                else 0.0
                for other in structure.images
            )
            for one in structure.images
        )
    return Dependence(
        answer=target.question.answer_text if answer_ids is None else case.text(ids),
        tokens=len(ids),
        logprob=value[full],
        text_only=value[frozenset()],
        shapley=spread(shapley),
        standard_errors=None if errors is None else spread(errors),
        leave_one_out=spread(leave_one_out),
        alone=spread(alone),
        interactions=whole_interactions,
        noise_floor=noise.floor,
        noise_draws=noise.draws,
        noise_size=noise.size,
        runs=len(subsets) + noise.draws,
        noise_scale=noise.scale,
        exchange=None if exchanges is None or answer_ids is not None else measure_exchange(case, exchanges),
    )


def measure_matrix(
    case: Case, ablations: ImageAblations | None = None, exchanges: ImageExchanges | None = None
) -> TurnMatrix:
    """Every turn's answer without every image; see :class:`TurnMatrix`. ``exchanges`` bring the pictures that images
    out of reach are changed to."""
    ablations = ablations or ImageAblations(case)
    structure = case.structure
    questions = [question for question in structure.questions if is_answered(question)]
    # By image: its removal for all turns at once, which share what stands before them.
    wanted = [(question.number, 0) for question in questions]
    wanted += [(q.number, image.number) for image in structure.images for q in questions if image.number in q.reachable]
    by_number = {question.number: question for question in questions}
    outcomes = case.prefix_cache.run(
        [ablations.of_answer(frozenset({image} if image else ()), by_number[turn]) for turn, image in wanted]
    )
    logprobs = {cell: outcome.logprob for cell, outcome in zip(wanted, outcomes, strict=True)}
    beyond = _change_unseen(case, exchanges or ImageExchanges(case), questions)
    effects = tuple(
        tuple(
            logprobs[q.number, 0] - logprobs[q.number, image.number]
            if (q.number, image.number) in logprobs
            else beyond[q.number, image.number]
            for image in structure.images
        )
        if q.number in by_number
        else None
        for q in structure.questions
    )
    first = structure.row.kind in ("one image", "several images, first")
    return TurnMatrix(
        effects,
        tuple(tuple(sight.reachable for sight in question.sights) for question in structure.questions),
        tuple(
            tuple(first or image.question == question.number for image in structure.images)
            for question in structure.questions
        ),
    )


@torch.no_grad()
def _change_unseen(
    case: Case, exchanges: ImageExchanges, questions: Sequence[Question]
) -> dict[tuple[int, int], float]:
    """By (turn, image out of its reach): fall of log p of the turn's answer when the image becomes another picture and
    the ids of its marks and of its name other tokens. Whole passes of one shape, which agree to the last bit."""
    cache, vlm = case.prefix_cache, case.vlm
    hidden_from = {
        image: blind for image in case.structure.images if (blind := [q for q in questions if not _sees(q, image)])
    }
    if not hidden_from:
        return {}

    def score(embeds: torch.Tensor) -> dict[int, float]:
        hidden = run_whole(vlm, cache.row, embeds, cache.document_mask)
        found = {}
        for question in questions:
            first, stop = target_of(case.structure, question).scored
            logprobs = vlm.logits(hidden[first - 1 : stop - 1]).log_softmax(dim=-1)
            ids = torch.tensor(cache.ids[first:stop], device=logprobs.device)
            found[question.number] = float(logprobs.gather(-1, ids[:, None]).sum())
        return found

    # The cached reading would do, but its keys lie elsewhere in memory, and that may cost the last bit.
    before = score(cache.embeds)
    found: dict[tuple[int, int], float] = {}
    for image, blind in hidden_from.items():
        (partner,) = exchanges.partners(image, 1)
        embeds = exchanges.embed_replaced({image.number: partner.features})
        named = [p for p in range(image.start, image.stop) if cache.ids[p] != vlm.image_token_id]
        if named:
            # A token of the row that is none of them, so surely one that the model has.
            ids = [cache.ids[p] for p in named]
            other = next((p for p in cache.ids if p not in (*ids, vlm.image_token_id)), ids[0])
            embeds[named] = vlm.embed_ids(torch.full((len(named),), other)).to(embeds)
        after = score(embeds)
        found |= {(q.number, image.number): before[q.number] - after[q.number] for q in blind}
    return found


def _sees(question: Question, image: ImageBlock) -> bool:
    return image.number in question.reachable
