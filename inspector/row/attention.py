"""Where a token's attention went: shares per span, per image, per kind, and the sinks that soak it up.

Attention is a reading, not a cause: a share says what was mixed into the token, not what the answer depends on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inspector.row.embedded_row import EmbeddedRow, read_positions
from model import InspectableVLM, Sample

SINK_SHARE = 0.1
"""A key that gets at least this share, averaged over all layers and heads, while being no more than a twentieth of
what the token sees, is called a sink (Xiao et al. 2023, arXiv 2309.17453, for the phenomenon)."""


@dataclass(frozen=True)
class Sink:
    position: int
    share: float


@dataclass(frozen=True)
class AttentionMap:
    """Attention of the token at ``position``, shares of 1.

    ``pattern [layer head pos]`` float32 over the whole row (0 where it can't look); ``image_share [layer head]``;
    ``image_shares [layer image]`` and ``kind_shares [layer kind]`` are means over heads; ``kinds`` names the columns;
    ``sinks`` by falling share; ``excluded`` are the positions whose share was set to 0 and the rest scaled up to 1.
    """

    position: int
    pattern: np.ndarray
    image_share: np.ndarray
    image_shares: np.ndarray
    kind_shares: np.ndarray
    kinds: tuple[str, ...]
    sinks: tuple[Sink, ...]
    excluded: tuple[int, ...] = ()

    @property
    def mean_image_share(self) -> float:
        """Share that goes to image tokens, mean over layers and heads."""
        return float(self.image_share.mean())

    def heat(self, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """``[pos]``: the pattern of one layer and head, or the mean over those left None."""
        chosen = self.pattern if layer is None else self.pattern[layer : layer + 1]
        chosen = chosen if head is None else chosen[:, head : head + 1]
        return chosen.mean(axis=(0, 1))

    def to_json(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "image_share": self.mean_image_share,
            "image_share_layer_head": self.image_share.round(6).tolist(),
            "image_shares_layer": self.image_shares.round(6).tolist(),
            "kinds": list(self.kinds),
            "kind_shares_layer": self.kind_shares.round(6).tolist(),
            "sinks": [{"position": sink.position, "share": round(sink.share, 6)} for sink in self.sinks],
            "excluded": list(self.excluded),
        }


def read_attention(
    vlm: InspectableVLM, read: EmbeddedRow, position: int, *, exclude_sinks: bool = False
) -> AttentionMap:
    """Where ``position`` of a row that was read looks. IndexError for a position outside the row."""
    reading = read_positions(vlm, read, [position], torch.zeros(len(read), dtype=torch.long), 1, keep_patterns=True)
    assert reading.patterns is not None
    return summarise_pattern(reading.patterns[:, :, 0].numpy(), read.row, position, exclude_sinks=exclude_sinks)


def summarise_pattern(
    pattern: np.ndarray, sample: Sample, position: int, *, exclude_sinks: bool = False
) -> AttentionMap:
    """Shares of one query row's ``pattern [layer head pos]``; see :class:`AttentionMap`."""
    mean = pattern.mean(axis=(0, 1))
    is_image = np.zeros(len(sample), dtype=bool)
    for span in sample.spans:
        if span.kind == "image":
            is_image[span.start : span.stop] = True
    visible = max(int((mean > 0).sum()), 1)
    # Image tokens are what a person came to see; one that draws attention is a finding, not a sink.
    candidates = np.flatnonzero((mean >= SINK_SHARE) & ~is_image) if visible >= 20 else np.array([], dtype=int)
    sinks = tuple(sorted((Sink(int(p), float(mean[p])) for p in candidates if p != position), key=lambda s: -s.share))
    excluded: tuple[int, ...] = ()
    if exclude_sinks and sinks:
        excluded = tuple(sink.position for sink in sinks)
        pattern = pattern.copy()
        pattern[..., list(excluded)] = 0
        total = pattern.sum(axis=-1, keepdims=True)
        pattern = np.divide(pattern, total, out=np.zeros_like(pattern), where=total > 0)
    kinds = tuple(dict.fromkeys(span.kind for span in sample.spans))
    image_shares = np.zeros((pattern.shape[0], len(sample.images)))
    kind_shares = np.zeros((pattern.shape[0], len(kinds)))
    for span in sample.spans:
        share = pattern[..., span.start : span.stop].sum(axis=-1).mean(axis=1)
        kind_shares[:, kinds.index(span.kind)] += share
        if span.kind == "image" and span.image is not None:
            image_shares[:, span.image] += share
    return AttentionMap(
        position=position,
        pattern=pattern,
        image_share=pattern[..., is_image].sum(axis=-1),
        image_shares=image_shares,
        kind_shares=kind_shares,
        kinds=kinds,
        sinks=sinks,
        excluded=excluded,
    )
