"""Heads that follow the question: do some heads look at the image that is asked about, and does the answer need them?

A head's score is image k's share in the row that chooses the answer when k is asked about, less its mean share when
another image is, averaged over the images that were asked about: a head that always looks at one place scores 0. The
heads with the largest scores are then put to the test: the image is cut from the question and the answer in these
heads alone, and in random draws of as many heads of the same layers. Only heads that beat those draws are shown (after
the steering experiments of Gandikota & Bau 2026, arXiv 2606.14703, who redirect such heads; that many models have none
is in the same paper).

They are heads of this prompt. Other heads may do the same work when these are cut (Hydra effect, McGrath et al. 2023,
arXiv 2307.15771), so an effect is a lower bound, and heads that could not be shown may exist.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np
import torch

from inspector.interventions.continuations import Continuation
from inspector.interventions.target import Case, image_keys
from inspector.row.layout import ImageBlock
from inspector.row.numbers import say
from inspector.which_image.image_effects import STRONG
from inspector.which_image.question_contrast import Selection
from model import Cut

EXPLANATION = (
    "Each layer looks with several heads at once; here are those that turn to whichever image is asked about, listed "
    "only if hiding the image from just these heads hurts the answer more than hiding it from as many others chosen at "
    "random. "
    "It shows that these heads take part on this prompt and not that they do the work alone, nor that they would be "
    "the same for another question."
)

TOP_SHARE = 0.1
LEAST_HEADS = 2
DRAWS = 24
LEAST_DRAWS = 20
"""Other sets that there must be: against fewer no set of heads is shown."""
QUANTILE = 0.95

Head = tuple[int, int]
"""(layer, head), both from 0."""


@dataclass(frozen=True)
class Steered:
    """The answer when the heads see image ``image`` alone. ``predicted``: what the model says when it is asked about
    that image, None if that was not asked. ``followed``: whether it is that; None without a prediction, or where the
    prediction is the answer that the prompt has anyway."""

    image: int
    answer: str
    predicted: str | None
    followed: bool | None


@dataclass(frozen=True)
class Heads:
    """What is known so far. ``scores [layer][head]``: differences of shares of attention, None if fewer than two
    images were asked about. ``asked``: these images. ``top``: the heads with the largest scores above 0, the largest
    first.

    ``image`` (from 1) is cut from question and answer: ``effect`` in the heads of ``top``, ``random`` in each drawn
    set of as many heads of the same layers, ``all_heads`` in every head; falls of log p in nats, None until measured.
    ``possible``: how many such sets there are beside ``top``; if no more than wanted, ``random`` holds them all.
    ``shown``: there are :data:`LEAST_DRAWS` or more, and ``effect`` lies above their :data:`QUANTILE`, above
    ``noise_floor`` and above the :data:`inspector.which_image.image_effects.STRONG` nats that count anywhere.
    """

    scores: tuple[tuple[float, ...], ...] | None
    asked: tuple[int, ...]
    image: int | None
    noise_floor: float
    top: tuple[Head, ...] = ()
    effect: float | None = None
    all_heads: float | None = None
    random: tuple[float, ...] = ()
    possible: int = 0
    steered: tuple[Steered, ...] = ()
    sentence: str = ""

    @property
    def bar(self) -> float | None:
        """The quantile of ``random``, nats."""
        return float(np.quantile(self.random, QUANTILE)) if self.random else None

    @property
    def percentile(self) -> float | None:
        """Share of the random draws that cost less than the heads of ``top``."""
        if self.effect is None or not self.random:
            return None
        return sum(value < self.effect for value in self.random) / len(self.random)

    @property
    def shown(self) -> bool:
        if self.effect is None or self.bar is None or len(self.random) < LEAST_DRAWS:
            return False
        return self.effect > max(self.bar, self.noise_floor) and self.effect >= STRONG

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "bar": self.bar,
            "percentile": self.percentile,
            "shown": self.shown,
        }


def measure_heads(case: Case, selection: Selection, noise_floor: float) -> Iterator[Heads]:
    """Yields the scores, then the test, then what the heads can be steered to; fewer times where a step has nothing to
    go on, and the last always has its sentence. ``noise_floor``: nats, of the dependence."""
    image = selection.image if selection.image is not None else selection.asked[0].image
    block = next((block for block in case.reachable if block.number == image), None)
    scores, asked = score_heads(case, selection)
    found = Heads(None if scores is None else _rows(scores), asked, block.number if block else None, noise_floor)
    if scores is not None:
        found = replace(found, top=_top(scores))
    if not found.top or block is None:
        yield replace(found, sentence=_conclude(found))
        return
    yield found
    found = _validate(case, found, block)
    yield replace(found, sentence=_conclude(found))
    found = replace(found, steered=_steer(case, selection, found, block))
    yield replace(found, sentence=_conclude(found))


def score_heads(case: Case, selection: Selection) -> tuple[np.ndarray | None, tuple[int, ...]]:
    """(scores ``[layer head]``, the images asked about). None if these are fewer than two."""
    seen = {block.number for block in case.reachable}
    questions = [(one.image, one.prompt_ids) for one in selection.asked if one.image in seen]
    asked = tuple(sorted({image for image, _ in questions if image is not None}))
    if len(asked) < 2:
        return None, asked
    groups = torch.full((len(case.prefix_cache.row),), -1, dtype=torch.long)
    for n, block in enumerate(case.structure.images):
        groups[list(block.tokens)] = n
    shares = np.stack([_read(case, ids, groups) for _, ids in questions])
    about = np.array([image for image, _ in questions])
    differences = [
        shares[about == k][..., k - 1].mean(axis=0) - shares[about != k][..., k - 1].mean(axis=0) for k in asked
    ]
    return np.mean(differences, axis=0), asked


def _read(case: Case, ids: tuple[int, ...], groups: torch.Tensor) -> np.ndarray:
    """``[layer head image]``: shares in the row that chooses the answer to a question."""
    stop = case.target.start + len(ids)
    continuation = Continuation(case.target.start, ids, (stop, stop))
    reading = case.prefix_cache.read([continuation], [stop - 1], groups, len(case.structure.images))
    return reading.shares[:, :, 0].double().numpy()


def _top(scores: np.ndarray) -> tuple[Head, ...]:
    """A tenth of all heads, :data:`LEAST_HEADS` at least, and more until there are sets enough to compare with."""
    order = np.argsort(-scores, axis=None, kind="stable")
    heads = [divmod(int(place), scores.shape[1]) for place in order if scores.flat[place] > 0]
    count = max(LEAST_HEADS, round(TOP_SHARE * scores.size))
    while count < len(heads) and _count_others(heads[:count], scores.shape[1]) < LEAST_DRAWS:
        count += 1
    return tuple(heads[:count])


def _count_others(heads: Sequence[Head], n_heads: int) -> int:
    """How many other sets of as many heads of the same layers there are."""
    counts = Counter(layer for layer, _ in heads)
    return math.prod(math.comb(n_heads, count) for count in counts.values()) - 1


def _rows(scores: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in scores.tolist())


def _cut_in(queries: Sequence[int], blocks: Sequence[ImageBlock], heads: Sequence[Head]) -> tuple[Cut, ...]:
    """Some images cut from ``queries`` in some heads: one cut a layer."""
    keys = [p for block in blocks for p in image_keys(block)]
    layers = sorted({layer for layer, _ in heads})
    return tuple(
        Cut(queries, keys, frozenset({layer}), frozenset(head for other, head in heads if other == layer))
        for layer in layers
    )


def _validate(case: Case, found: Heads, block: ImageBlock) -> Heads:
    queries, base = case.target.queries, case.base
    sets, possible = _draw(found.top, case.vlm.n_heads, np.random.default_rng([case.seed, block.number]))
    tried = [base.cutting(*_cut_in(queries, [block], heads)) for heads in (found.top, *sets)]
    # All uncut and cut continuations have the same positions, so they round alike.
    before, everywhere, own, *others = case.prefix_cache.run([base, case.without(block), *tried])
    return replace(
        found,
        effect=before.logprob - own.logprob,
        all_heads=before.logprob - everywhere.logprob,
        random=tuple(before.logprob - outcome.logprob for outcome in others),
        possible=possible,
    )


def _draw(heads: Sequence[Head], n_heads: int, rng: np.random.Generator) -> tuple[list[tuple[Head, ...]], int]:
    """(other sets of as many heads of the same layers, each once; how many there are): :data:`DRAWS` of them, or all
    if there are no more."""
    counts = sorted(Counter(layer for layer, _ in heads).items())
    possible = _count_others(heads, n_heads)
    own = frozenset(heads)
    if possible <= DRAWS:
        choices = product(*(combinations([(layer, head) for head in range(n_heads)], count) for layer, count in counts))
        every = [tuple(head for part in choice for head in part) for choice in choices]
        return [choice for choice in every if frozenset(choice) != own], possible
    drawn: dict[frozenset[Head], tuple[Head, ...]] = {}
    while len(drawn) < DRAWS:
        choice = tuple(
            (layer, int(head)) for layer, count in counts for head in sorted(rng.choice(n_heads, count, replace=False))
        )
        if frozenset(choice) != own:
            drawn.setdefault(frozenset(choice), choice)
    return list(drawn.values()), possible


def _steer(case: Case, selection: Selection, found: Heads, block: ImageBlock) -> tuple[Steered, ...]:
    """The prompt's own question, answered anew while the heads see one of the other images alone."""
    target = case.target
    ids = case.prefix_cache.ids[target.start : target.scored[0]]
    stop = target.scored[0]
    behind = range(target.start, stop + case.max_new_tokens)
    chosen = [other for other in case.reachable if other.number != block.number]
    continuations = [
        Continuation(target.start, ids, (stop, stop)).cutting(
            *_cut_in(behind, [blocked for blocked in case.reachable if blocked.number != other.number], found.top)
        )
        for other in chosen
    ]
    steered = []
    for other, answer in zip(chosen, case.answer(continuations), strict=True):
        asked = selection.about(other.number)
        predicted, text = None if asked is None else asked.greedy_answer, case.text(answer)
        told = predicted not in (None, case.text(case.greedy_ids))
        steered.append(Steered(other.number, text, predicted, text == predicted if told else None))
    return tuple(steered)


# --- in words ---


def _conclude(found: Heads) -> str:
    unshown = "No routing heads could be shown on this prompt: "
    if found.scores is None:
        about = f"image {found.asked[0]} alone" if found.asked else "no image"
        return unshown + f"the questions that were tried ask about {about}, and a contrast needs two images."
    if found.image is None:
        return unshown + "it is open which image the answer rests on."
    if not found.top:
        return unshown + "no head gives an image a larger share when it is asked about than when another one is."
    assert found.effect is not None
    assert found.all_heads is not None
    names = ", ".join(f"layer {layer} head {head}" for layer, head in found.top)
    heads = f"{len(found.top)} heads have the largest scores, {_mean_score(found):.3f} on average: {names}"
    if found.bar is None or len(found.random) < LEAST_DRAWS:
        return unshown + (
            f"{heads}. Their layers have {len(found.random)} other sets of as many heads, and a "
            f"comparison needs {LEAST_DRAWS}."
        )
    beaten = sum(value < found.effect for value in found.random)
    others = "other sets, all that there are," if found.possible <= DRAWS else "random draws"
    part = ""
    if found.all_heads >= STRONG:
        share = max(found.effect, 0.0) / found.all_heads
        part = f" ({share:.0%} of the {say(found.all_heads)} nats that all heads together cost)"
    compared = (
        f"Cutting image {found.image} in them lowers log p by at least {say(found.effect)} nats{part}, "
        f"more than in {beaten} of {len(found.random)} {others} "
        f"of as many heads of the same layers ({QUANTILE:.0%} of these lower it by at most {say(found.bar)}; "
        f"noise floor {say(found.noise_floor)}, and {say(STRONG)} nats count)."
    )
    told = [one for one in found.steered if one.followed is not None]
    if told:
        right = sum(bool(one.followed) for one in told)
        compared += (
            f" Shown another image alone in these heads, the model gives that image's answer in {right} of "
            f"{len(told)} cases."
        )
    return f"{heads}. {compared}" if found.shown else f"{unshown}{heads}. {compared}"


def _mean_score(found: Heads) -> float:
    assert found.scores is not None
    return sum(found.scores[layer][head] for layer, head in found.top) / len(found.top)
