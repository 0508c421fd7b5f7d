"""Attention beside the causal result: how much each image got, layer by layer, and whether it points the same way.

One pass reads the row that chose the answer's first token and the rows of the question. A share says what was mixed
into a row and not what the answer depends on (Jain & Wallace 2019, arXiv 1902.10186); it is shown because people look
at it, and the badge says whether it would have led them to the same image as the interventions did.

Shares are means over heads. *Without sinks*: tokens that soak up attention (those that
:mod:`inspector.row.attention` names) are left out and the rest of each head scaled up to 1. *Norm*: what an image
brings through each head instead, by its length ‖Σ pattern · W_O W_V x‖ (Kobayashi et al. 2020, arXiv 2004.10102).
*Lift* is an image's part of what goes to all images, over its part of all image tokens: 1 is uniform over all image
tokens, so an image gains nothing by being large.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from inspector.interventions.target import Case
from inspector.row.attention import AttentionMap
from inspector.row.embedded_row import read_positions
from inspector.row.numbers import say
from inspector.which_image.image_effects import STRONG, Dependence

EXPLANATION = (
    "Here is how much the model looked at each image, layer by layer, while it read the question and when it chose the "
    "answer's first word, set beside what taking the images away did to the answer. "
    "Looking is not using: a part of the picture that is looked at much may change nothing and one that is looked at "
    "little may decide, so this panel explains no answer and only says whether the two agree."
)

Badge = Literal["agrees", "disagrees", "too few images to tell", "no effect to compare with"]

MAX_ROWS = 128
"""So many rows of a question at most are read, evenly spread: what bounds the memory."""


@dataclass(frozen=True)
class AttentionSummary:
    """Where some rows looked. ``rows``: the row that chose the answer's first token, or the mean over the ``count``
    rows of the question that were read.

    All are ``[layer][image]``, images in order and 0 for those out of reach. ``shares`` and ``without_sinks`` are
    shares of all attention, ``norm_shares`` of what all images bring. ``lifts`` are of ``without_sinks``,
    ``norm_lifts`` of ``norm_shares``. ``correlations [layer]``: Spearman's rank correlation of ``without_sinks`` with
    the Shapley values over the images in reach; None for fewer than three, or where either is the same for all.
    """

    rows: Literal["chooser", "question"]
    count: int
    shares: tuple[tuple[float, ...], ...]
    without_sinks: tuple[tuple[float, ...], ...]
    lifts: tuple[tuple[float, ...], ...]
    norm_shares: tuple[tuple[float, ...], ...]
    norm_lifts: tuple[tuple[float, ...], ...]
    correlations: tuple[float | None, ...]

    @property
    def totals(self) -> tuple[float, ...]:
        """Per layer, the share of all attention that goes to images."""
        return tuple(sum(shares) for shares in self.shares)

    @property
    def totals_without_sinks(self) -> tuple[float, ...]:
        """The same with sinks left out."""
        return tuple(sum(shares) for shares in self.without_sinks)

    @property
    def leaders(self) -> tuple[int | None, ...]:
        """Per layer, the image (from 1) with the largest share, sinks left out; None where no image got any."""
        return tuple(_leader(shares) for shares in self.without_sinks)

    @property
    def norm_leaders(self) -> tuple[int | None, ...]:
        """Per layer, the image (from 1) that brought most."""
        return tuple(_leader(shares) for shares in self.norm_shares)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "totals": list(self.totals),
            "totals_without_sinks": list(self.totals_without_sinks),
            "leaders": list(self.leaders),
            "norm_leaders": list(self.norm_leaders),
        }


@dataclass(frozen=True)
class AttentionAgreement:
    """``attended``: the image (from 1) that the chooser's row looks at most, mean over layers, sinks left out;
    ``share`` is its part of all attention, ``total`` that of all images, ``lift`` as above. ``causal``: the image with
    the largest Shapley value, if that counts. ``correlation``: Spearman's, of the mean shares with ``shapley``.
    ``sinks``: positions left out. ``sentence`` says the badge with its numbers."""

    chooser: AttentionSummary
    question: AttentionSummary | None
    sinks: tuple[int, ...]
    shapley: tuple[float, ...]
    attended: int | None
    share: float
    total: float
    lift: float
    causal: int | None
    correlation: float | None
    badge: Badge
    sentence: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "chooser": self.chooser.to_json(),
            "question": None if self.question is None else self.question.to_json(),
        }


@torch.no_grad()
def measure_attention_agreement(case: Case, attention: AttentionMap, dependence: Dependence) -> AttentionAgreement:
    """One pass over the row. ``attention``: of the position that chose the answer's first token; its sinks are left
    out here too. ValueError if it is of another position."""
    chooser = case.target.scored[0] - 1
    if attention.position != chooser:
        raise ValueError(f"The attention is of position {attention.position}; the answer was chosen at {chooser}.")
    images = case.structure.images
    sinks = tuple(sink.position for sink in attention.sinks)
    asked = _spread(case.target.question_rows)
    # What is neither image nor sink is a group of its own: 1 − sinks would be rounding where a head sees little else.
    groups = torch.full((len(case.prefix_cache.row),), len(images), dtype=torch.long)
    for n, image in enumerate(images):
        groups[list(image.tokens)] = n
    groups[list(sinks)] = -1
    rows = [chooser, *asked]
    reading = read_positions(case.vlm, case.prefix_cache.read_row, rows, groups, len(images) + 1, weigh_values=True)
    assert reading.norms is not None
    shares, norms = reading.shares.double().numpy(), reading.norms.double().numpy()
    look = _summarise(case, "chooser", shares[:, :, :1], norms[:, :, :1], dependence.shapley)
    beside = _summarise(case, "question", shares[:, :, 1:], norms[:, :, 1:], dependence.shapley) if asked else None
    return _judge(case, look, beside, sinks, dependence)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's, ties sharing their mean rank; None for fewer than three pairs, or where all values of either are
    equal."""
    if len(one) < 3:
        return None
    first, second = _rank(one), _rank(other)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _rank(values: np.ndarray) -> np.ndarray:
    less = (values[None] < values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    return less + (equal + 1) / 2


def _spread(rows: range) -> list[int]:
    if len(rows) <= MAX_ROWS:
        return list(rows)
    return sorted({rows[round(at)] for at in np.linspace(0, len(rows) - 1, MAX_ROWS).tolist()})


def _summarise(
    case: Case, rows: Literal["chooser", "question"], shares: np.ndarray, norms: np.ndarray, shapley: tuple[float, ...]
) -> AttentionSummary:
    """From ``[layer head row group]``, the last group being all that is neither image nor sink."""
    images = case.structure.images
    to_images, left = shares[..., : len(images)], shares.sum(axis=-1, keepdims=True)
    without = np.divide(to_images, left, out=np.zeros_like(to_images), where=left > 0)
    brought = norms[..., : len(images)].mean(axis=(1, 2))
    plain, scaled = to_images.mean(axis=(1, 2)), without.mean(axis=(1, 2))
    sizes = np.array([len(image.tokens) if image.number in case.target.question.reachable else 0 for image in images])
    seen = sizes > 0
    parts = sizes / max(sizes.sum(), 1)
    effects = np.array(shapley)[seen]
    return AttentionSummary(
        rows,
        shares.shape[2],
        _rows(plain),
        _rows(scaled),
        _rows(_lift(scaled, parts)),
        _rows(_normalise(brought)),
        _rows(_lift(brought, parts)),
        tuple(rank_correlation(row[seen], effects) for row in scaled),
    )


def _normalise(values: np.ndarray) -> np.ndarray:
    """Rows ``[layer image]`` made to add up to 1, or 0 where there is nothing."""
    total = values.sum(axis=1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)


def _lift(values: np.ndarray, parts: np.ndarray) -> np.ndarray:
    return np.divide(_normalise(values), parts, out=np.zeros_like(values), where=parts > 0)


def _rows(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())


def _leader(shares: tuple[float, ...]) -> int | None:
    return max(range(len(shares)), key=shares.__getitem__) + 1 if any(shares) else None


def _judge(
    case: Case, look: AttentionSummary, beside: AttentionSummary | None, sinks: tuple[int, ...], dependence: Dependence
) -> AttentionAgreement:
    shapley = dependence.shapley
    means = np.array(look.without_sinks).mean(axis=0)
    attended = _leader(tuple(means.tolist()))
    share = float(means[attended - 1]) if attended else 0.0
    lift = float(np.array(look.lifts)[:, attended - 1].mean()) if attended else 0.0
    seen = [image.number - 1 for image in case.reachable]
    correlation = rank_correlation(means[seen], np.array(shapley)[seen])
    strongest = max(seen, key=shapley.__getitem__, default=None)
    bar = max(dependence.noise_floor, STRONG)
    causal = strongest + 1 if strongest is not None and shapley[strongest] >= bar else None
    badge: Badge
    if len(seen) < 2:
        badge = "too few images to tell"
    elif causal is None:
        badge = "no effect to compare with"
    else:
        badge = "agrees" if attended == causal else "disagrees"
    total = float(means.sum())
    found = AttentionAgreement(
        look, beside, sinks, shapley, attended, share, total, lift, causal, correlation, badge, ""
    )
    return replace(found, sentence=_say(case, found, bar))


def _say(case: Case, agreement: AttentionAgreement, bar: float) -> str:
    count = len(case.reachable)
    sinks = f", {len(agreement.sinks)} sink{'s' * (len(agreement.sinks) != 1)} left out" if agreement.sinks else ""
    if agreement.attended is None:
        return "Too few images to tell: the question can see none." if not count else "Attention goes to no image."
    looked = (
        f"the row that chose the answer looks most at image {agreement.attended} "
        f"({agreement.share:.3f} of its attention, all images together "
        f"{agreement.total:.3f}{sinks}; lift {agreement.lift:.2f})"
    )
    if agreement.badge == "too few images to tell":
        return f"Too few images to tell: {looked}, and the question can see no other."
    if agreement.causal is None:
        return (
            f"No effect to compare with: {looked}, and no image has a Shapley value of the {say(bar)} nats that count."
        )
    layers = [n for n, leader in enumerate(agreement.chooser.leaders) if leader == agreement.causal]
    where = f"image {agreement.causal} leads in {len(layers)} of {len(agreement.chooser.leaders)} layers"
    if layers:
        where += f" ({', '.join(map(str, layers))})"
    ranks = (
        "fewer than three images, so no rank correlation"
        if count < 3
        else (
            "no rank correlation, as all are equal"
            if agreement.correlation is None
            else f"rank correlation with the Shapley values {say(agreement.correlation, sign=True)} over {count} images"
        )
    )
    named = (
        f"the interventions name image {agreement.causal} (Shapley {say(agreement.shapley[agreement.causal - 1])} nats)"
    )
    if agreement.badge == "agrees":
        return f"Attention agrees: {looked}, and {named}; {where}; {ranks}."
    return f"Attention disagrees: {looked}, but {named}; {where}; {ranks}."
