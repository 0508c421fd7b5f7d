"""Does the instrument measure what it says? Identities that must hold on this very prompt, with the error found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.target import Case, image_keys
from inspector.row.layout import ImageBlock
from inspector.row.prompt import prepare_samples
from inspector.which_image.image_effects import Dependence, TurnMatrix
from model import Batch, Cut, Tap, collate
from model.language import build_mask

TOLERANCE = 1e-4
"""Nats in float32."""
HALF_TOLERANCE = 0.25
"""Nats in a 16-bit type, whose sums differ by the order they are taken in."""
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
    """Every identity that this prompt allows to be tested, each against a number from another road; costs about five
    readings of the row."""
    tolerance = TOLERANCE if case.prefix_cache.hidden.dtype == torch.float32 else HALF_TOLERANCE
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
    if len(case.prefix_cache.row) + PADDING <= case.vlm.config.lm_max_position_embeddings:
        checks.append(Check("a knockout of padding", _cut_padding(case), tolerance))
    if case.prompt.layout == "packed":
        checks.append(Check("the packed row with a document mask = the sample alone", _alone(case), 10 * tolerance))
    return tuple(checks)


def _score_hidden(case: Case, hidden: torch.Tensor, places: Sequence[int] | None = None) -> float:
    """log p of the answer from the decoder's output ``[pos width]``; ``places``: where each position of the row is in
    it, if not in its own place."""
    first, stop = case.target.scored
    rows = [(places[p] if places is not None else p) for p in range(first - 1, stop - 1)]
    logprobs = case.vlm.decoder.head(hidden[rows]).float().log_softmax(dim=-1)
    ids = torch.tensor(case.answer_ids, device=logprobs.device)
    return float(logprobs.gather(-1, ids[:, None]).sum())


def _batch(case: Case) -> Batch:
    return case.vlm.collate([case.prefix_cache.row], document_mask=case.prefix_cache.document_mask)


def _deleted(case: Case, images: Sequence[ImageBlock]) -> float:
    """log p of the answer in the row without the images' positions, the others keeping their numbers."""
    batch = _batch(case)
    hidden = {position for image in images for position in image_keys(image)}
    kept = [p for p in range(len(case.prefix_cache.row)) if p not in hidden]
    embeds = case.prefix_cache.embeds[kept][None]
    segments = batch.segment_ids[:, kept] if batch.document_mask else None
    mask = build_mask(batch.attention_mask[:, kept], segments, len(kept), embeds.dtype)
    out = case.vlm.decoder(embeds, mask, batch.position_ids[:, kept], rope_length=len(case.prefix_cache.row))
    places = {p: n for n, p in enumerate(kept)}
    return _score_hidden(case, out[0], [places.get(p, 0) for p in range(len(case.prefix_cache.row))])


def _replaced(case: Case, exchanges: ImageExchanges, replaced: Mapping[int, torch.Tensor]) -> float:
    """How far log p of the answer with some images replaced is from that of the whole row, embedded so."""
    batch, cache = _batch(case), case.prefix_cache
    segments = batch.segment_ids if batch.document_mask else None
    mask = build_mask(batch.attention_mask, segments, len(cache.row), cache.embeds.dtype)
    whole = case.vlm.decoder(exchanges.embed_replaced(replaced)[None], mask, batch.position_ids)[0]
    ids = cache.ids[case.target.start : case.target.scored[1]]
    (behind,) = cache.run([exchanges.of_ending(replaced, case.target, ids, case.target.scored)])
    return abs(behind.logprob - _score_hidden(case, whole))


def _cut_padding(case: Case) -> float:
    row = case.prefix_cache.row
    batch = collate(
        [row],
        pad_token_id=case.vlm.pad_token_id,
        max_length=len(row) + PADDING,
        document_mask=case.prefix_cache.document_mask,
    ).to(case.vlm.device)
    places = range(PADDING, PADDING + len(row))
    cut = Tap(cuts=(Cut(places, range(PADDING)),))
    return abs(
        _score_hidden(case, case.vlm.hidden(batch)[0], places)
        - _score_hidden(case, case.vlm.hidden(batch, cut)[0], places)
    )


def _alone(case: Case) -> float:
    samples = prepare_samples(case.vlm, case.prompt)
    sample = samples[case.target.question.sample - 1]
    apart = case.vlm.collate([case.prefix_cache.row], document_mask=True)
    offset = sum(len(other) + 1 for other in samples[: case.target.question.sample - 1])
    alone = case.vlm.hidden(case.vlm.collate([sample]))[0]
    places = [max(0, p - offset) for p in range(len(case.prefix_cache.row))]
    return abs(_score_hidden(case, case.vlm.hidden(apart)[0]) - _score_hidden(case, alone, places))
