"""Does the instrument measure what it says? Identities that must hold on this very prompt, with the error found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.target import Case, image_keys
from inspector.row.embedded_row import read_row, run_whole, run_whole_under, see
from inspector.row.feature_store import FEATURES
from inspector.row.layout import ImageBlock
from inspector.row.prompt import prepare_samples
from inspector.which_image.image_effects import Dependence, TurnMatrix
from model import Cut

PIXELS_CHECK = "with every image cut, other pixels change nothing"
"""Fails where an image gets past the cuts: through layers without attention, or states that are added behind one. Then
nothing that taking images away shows means anything."""
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Nats for each token of the answer: log p adds up as many roundings. ``python -m benchmarks precision`` measures the
errors on the embedded model and on every family's tiny checkpoints, on the CPU; the largest of hundreds were 7.6e-6,
0.037 and 0.0053. The limits are about seven to thirteen times that, for a deeper model rounds more often; how much more
on a GPU or in a large model was not measured."""
PADDING = 8


@dataclass(frozen=True)
class Check:
    """``value`` is the error found, in nats unless ``name`` says otherwise, ``limit`` what is allowed."""

    name: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok}


@torch.no_grad()
def run_checks(
    case: Case, dependence: Dependence, matrix: TurnMatrix, exchanges: ImageExchanges | None = None
) -> tuple[Check, ...]:
    """Every identity that this prompt allows to be tested, each against a number from another road; costs about three
    readings of the row and two of a part of it."""
    tolerance = LIMITS[case.prefix_cache.hidden.dtype] * max(1, len(case.answer_ids))
    whole = _score_hidden(case, case.prefix_cache.hidden)
    empty = case.prefix_cache.run([case.base.cutting(Cut(case.target.queries, ()))])[0].logprob
    checks = [
        Check("an empty knockout, read from the cache = the whole row read at once", abs(empty - whole), tolerance),
        Check(
            "Shapley values add up to log p with all images − without any",
            abs(sum(dependence.shapley) - (whole - _deleted(case, case.reachable))),
            tolerance,
        ),
        Check("effects of images that a question can't see", matrix.beyond_reach, 0.0),
    ]
    if case.structure.images:
        checks.append(Check(PIXELS_CHECK, abs(_cut_all(case) - dependence.text_only), tolerance))
    if case.reachable:
        image = max(case.reachable, key=lambda block: abs(dependence.leave_one_out[block.number - 1]))
        cut = dependence.logprob - dependence.leave_one_out[image.number - 1]
        checks.append(
            Check(
                f"image {image.number} taken away = its positions deleted from the row, the others kept",
                abs(cut - _deleted(case, [image])),
                tolerance,
            )
        )
        exchanges = exchanges or ImageExchanges(case)
        (partner,) = exchanges.partners(image, 1)
        checks.append(
            Check(
                f"image {image.number} replaced behind the kept prefix = the row read anew with the other picture",
                _replaced(case, exchanges, {image.number: partner.features}),
                tolerance,
            )
        )
    if len(case.prefix_cache.row) + PADDING <= case.vlm.max_positions:
        checks.append(
            Check("padding before the row, which nobody sees, changes nothing", _pad(case, dependence), tolerance)
        )
    if case.prompt.layout == "packed":
        checks.append(Check("the packed row with a document mask = the sample alone", _alone(case), 10 * tolerance))
    return tuple(checks)


def _score_hidden(case: Case, hidden: torch.Tensor, places: Sequence[int] | None = None) -> float:
    """log p of the answer from the decoder's output ``[pos width]``; ``places``: where each position of the row is in
    it, if not in its own place."""
    first, stop = case.target.scored
    rows = [(places[p] if places is not None else p) for p in range(first - 1, stop - 1)]
    logprobs = case.vlm.logits(hidden[rows]).log_softmax(dim=-1)
    ids = torch.tensor(case.answer_ids, device=logprobs.device)
    # In Python's precision: the sum of a long answer in float32 is off by about what the checks allow.
    return sum(logprobs.gather(-1, ids[:, None])[:, 0].tolist())


def _deleted(case: Case, images: Sequence[ImageBlock], padding: int = 0) -> float:
    """log p of the answer in the row without the images' positions, the others keeping their numbers; behind
    ``padding`` positions that move every one of them on and are seen by none."""
    row, hidden = case.prefix_cache.row, {position for image in images for position in image_keys(image)}
    kept = torch.tensor([p for p in range(len(row)) if p not in hidden])
    embeds = torch.cat(
        (case.vlm.embed_ids(torch.full((padding,), case.vlm.pad_token_id)), case.prefix_cache.embeds[kept])
    )
    positions = torch.arange(padding).expand(len(row.position_ids), -1)
    positions = torch.cat((positions, row.position_ids[:, kept] + padding), dim=1)
    visible = torch.eye(len(embeds), dtype=torch.bool)
    visible[padding:, padding:] = see(row, case.prefix_cache.document_mask)[kept][:, kept]
    out = case.vlm.decode(embeds[None], positions, visible[None, None])[0, padding:]
    places = {p: n for n, p in enumerate(kept.tolist())}
    return _score_hidden(case, out, [places.get(p, 0) for p in range(len(row))])


def _cut_all(case: Case) -> float:
    """log p of the answer with every image hidden from everything behind it, and holding something else."""
    row, cache = case.prefix_cache.row, case.prefix_cache
    visible = see(row, cache.document_mask)
    embeds = cache.embeds.clone()
    for image in case.structure.images:
        keys = torch.tensor(image_keys(image))
        visible[image.stop :, keys] = False
        # The same features in another order and with another sign: as large as before, and of no picture.
        embeds[list(image.tokens)] = -embeds[list(image.tokens)].flip(0)
    return _score_hidden(case, run_whole_under(case.vlm, row, embeds, visible))


def _replaced(case: Case, exchanges: ImageExchanges, replaced: Mapping[int, torch.Tensor]) -> float:
    """How far log p of the answer with some images replaced is from that of the whole row, embedded so."""
    cache = case.prefix_cache
    whole = run_whole(case.vlm, cache.row, exchanges.embed_replaced(replaced), cache.document_mask)
    ids = cache.ids[case.target.start : case.target.scored[1]]
    (behind,) = cache.run([exchanges.of_ending(replaced, case.target, ids, case.target.scored)])
    return abs(behind.logprob - _score_hidden(case, whole))


def _pad(case: Case, dependence: Dependence) -> float:
    """How far padding moves log p of the answer in the row with one image alone: the shortest row that has one."""
    if not case.reachable:
        return abs(_deleted(case, (), PADDING) - _score_hidden(case, case.prefix_cache.hidden))
    image = min(case.reachable, key=lambda block: len(block.tokens))
    others = [block for block in case.reachable if block is not image]
    return abs(_deleted(case, others, PADDING) - (dependence.text_only + dependence.alone[image.number - 1]))


def _alone(case: Case) -> float:
    samples = prepare_samples(case.vlm, case.prompt)
    row = case.vlm.place(samples[case.target.question.sample - 1])
    offset = sum(len(other) + 1 for other in samples[: case.target.question.sample - 1])
    apart = run_whole(case.vlm, case.prefix_cache.row, case.prefix_cache.embeds, True)
    alone = read_row(case.vlm, row, FEATURES.encode(case.vlm, row.images)).hidden
    places = [max(0, p - offset) for p in range(len(case.prefix_cache.row))]
    return abs(_score_hidden(case, apart) - _score_hidden(case, alone, places))
