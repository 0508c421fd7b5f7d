"""Attention from both sides: where a token's went (per span, image and kind, the sinks that soak it up, and how spread
it is), and which later tokens look at it.

Attention is a reading, not a cause: a share says what was mixed into the token, not what the answer depends on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inspector.row.embedded_row import EmbeddedRow, read_column, read_positions, read_stretch, see
from model import InspectableVLM, Sample

SINK_SHARE = 0.1
"""A key that gets at least this share, averaged over all layers and heads, while being no more than a twentieth of
what the token sees, is called a sink (Xiao et al. 2023, arXiv 2309.17453, for the phenomenon)."""


TOP_READERS = 5
"""So many readers are named, of all layers and of each."""


@dataclass(frozen=True)
class Sink:
    """A position and the share that belongs to it: of a row's attention, or of its own where it is a reader."""

    position: int
    share: float


@dataclass(frozen=True)
class AttentionMap:
    """Attention of the token at ``position``, or the mean over the tokens from ``first`` to it; shares of 1.

    ``pattern [layer head pos]`` float32 over the whole row (0 where it can't look); ``image_share [layer head]``;
    ``image_shares [layer image]`` and ``kind_shares [layer kind]`` are means over heads; ``kinds`` names the columns;
    ``sinks`` by falling share; ``excluded`` are the positions whose share was set to 0 and the rest scaled up to 1.
    Of the pattern as it is, nothing excluded: ``entropy [layer head]`` in nats, the same as a share of the most that
    there can be, ``entropy_of_max [layer head]`` (each the mean over the rows of a stretch), and ``sink_share [layer
    head]``, what goes to all ``sinks``.
    """

    position: int
    first: int
    pattern: np.ndarray
    image_share: np.ndarray
    image_shares: np.ndarray
    kind_shares: np.ndarray
    kinds: tuple[str, ...]
    sinks: tuple[Sink, ...]
    entropy: np.ndarray
    entropy_of_max: np.ndarray
    sink_share: np.ndarray
    excluded: tuple[int, ...] = ()

    @property
    def mean_image_share(self) -> float:
        """Share that goes to image tokens, mean over layers and heads."""
        return float(self.image_share.mean())

    def heat(self, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """``[pos]``: the pattern of one layer and head, or the mean over those left None."""
        return _choose(self.pattern, layer, head).mean(axis=(0, 1))

    def share_images(self, sample: Sample, layer: int | None = None, head: int | None = None) -> tuple[float, ...]:
        """What goes to each image of the row, in one layer and head or as the mean over those left None."""
        heat = self.heat(layer, head)
        shares = [0.0] * len(sample.images)
        for span in sample.spans:
            if span.kind == "image" and span.image is not None:
                shares[span.image] += float(heat[span.start : span.stop].sum())
        return tuple(shares)

    @property
    def hidden_from_scale(self) -> tuple[int, ...]:
        """Positions whose shares would hide all others': the sinks."""
        return tuple(sink.position for sink in self.sinks)

    def to_json(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "first": self.first,
            "image_share": self.mean_image_share,
            "image_share_layer_head": self.image_share.round(6).tolist(),
            "image_shares_layer": self.image_shares.round(6).tolist(),
            "kinds": list(self.kinds),
            "kind_shares_layer": self.kind_shares.round(6).tolist(),
            "sinks": [{"position": sink.position, "share": round(sink.share, 6)} for sink in self.sinks],
            "excluded": list(self.excluded),
            "entropy_layer_head": self.entropy.round(6).tolist(),
            "entropy_of_max_layer_head": self.entropy_of_max.round(6).tolist(),
            "sink_share_layer_head": self.sink_share.round(6).tolist(),
        }


@dataclass(frozen=True)
class ReaderMap:
    """Which later tokens look at the tokens from ``first`` to ``position``, and with how much of their own attention.

    ``pattern [layer head pos]`` float32: the share that each position of the row gives to them, 0 where it can't see
    them. ``readers``: the positions behind them that can. Means over readers: ``received [layer head]``, and by kind of
    reader (mean over heads, too) ``received_kinds [layer kind]`` with the names ``kinds``: spans' kinds, an image's
    tokens as “image 1”.
    """

    position: int
    first: int
    pattern: np.ndarray
    readers: tuple[int, ...]
    received: np.ndarray
    received_kinds: np.ndarray
    kinds: tuple[str, ...]

    def heat(self, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """``[pos]``: the pattern of one layer and head, or the mean over those left None."""
        return _choose(self.pattern, layer, head).mean(axis=(0, 1))

    @property
    def hidden_from_scale(self) -> tuple[int, ...]:
        """Positions whose shares would hide all others': the tokens themselves, which look at themselves most."""
        return tuple(range(self.first, self.position + 1))

    def find_top(self, count: int, layer: int | None = None, head: int | None = None) -> tuple[Sink, ...]:
        """The readers that give them most, and how much; the largest first."""
        shares = self.heat(layer, head)
        order = sorted(self.readers, key=lambda position: -shares[position])
        return tuple(Sink(position, float(shares[position])) for position in order[:count])

    def to_json(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "first": self.first,
            "readers": len(self.readers),
            "received": float(self.received.mean()) if self.readers else 0.0,
            "received_layer_head": self.received.round(6).tolist(),
            "kinds": list(self.kinds),
            "received_layer_kind": self.received_kinds.round(6).tolist(),
            "top": [{"position": top.position, "share": round(top.share, 6)} for top in self.find_top(TOP_READERS)],
            "top_layer": [
                [{"position": top.position, "share": round(top.share, 6)} for top in self.find_top(TOP_READERS, layer)]
                for layer in range(len(self.pattern))
            ],
        }


def mean_of(values: np.ndarray, layer: int | None = None, head: int | None = None) -> float:
    """Of ``values [layer head]``: those of one layer and head, or the mean over those left None."""
    return float(_choose(values, layer, head).mean())


def _choose(pattern: np.ndarray, layer: int | None, head: int | None) -> np.ndarray:
    chosen = pattern if layer is None else pattern[layer : layer + 1]
    return chosen if head is None else chosen[:, head : head + 1]


def read_attention(
    vlm: InspectableVLM, read: EmbeddedRow, position: int, *, first: int | None = None, exclude_sinks: bool = False
) -> AttentionMap:
    """Where ``position`` of a row that was read looks, or the positions from ``first`` to it on average. IndexError for
    a position outside the row, ValueError for a stretch that ends before it begins."""
    if first is None or first == position:
        reading = read_positions(vlm, read, [position], torch.zeros(len(read), dtype=torch.long), 1, keep_patterns=True)
        assert reading.patterns is not None
        return summarise_pattern(reading.patterns[:, :, 0].numpy(), read.row, position, exclude_sinks=exclude_sinks)
    found = read_stretch(vlm, read, _stretch(first, position))
    entropies = found.entropy.numpy(), found.entropy_of_max.numpy()
    return summarise_pattern(
        found.pattern.numpy(), read.row, position, first=first, entropies=entropies, exclude_sinks=exclude_sinks
    )


def read_readers(vlm: InspectableVLM, read: EmbeddedRow, position: int, *, first: int | None = None) -> ReaderMap:
    """Which later tokens look at ``position`` of a row that was read, or at any of those from ``first`` to it. Errors
    as for :func:`read_attention`."""
    first = position if first is None else first
    keys = _stretch(first, position)
    pattern = read_column(vlm, read, keys).numpy()
    row = read.row
    sees = see(row, read.document_mask)[:, list(keys)].any(dim=1) & row.attention_mask
    sees[: position + 1] = False
    readers = sees.nonzero()[:, 0].tolist()
    by_kind: dict[str, list[int]] = {}
    for span in row.spans:
        kind = f"image {span.image + 1}" if span.kind == "image" and span.image is not None else span.kind
        if own := [one for one in range(span.start, span.stop) if sees[one]]:
            by_kind.setdefault(kind, []).extend(own)
    kinds = tuple(by_kind)
    received_kinds = np.zeros((len(pattern), len(kinds)))
    for index, kind in enumerate(kinds):
        received_kinds[:, index] = pattern[..., by_kind[kind]].mean(axis=(1, 2))
    received = pattern[..., readers].mean(axis=-1) if readers else np.zeros(pattern.shape[:2])
    return ReaderMap(position, first, pattern, tuple(readers), received, received_kinds, kinds)


def _stretch(first: int, position: int) -> range:
    if first > position:
        raise ValueError(f"The stretch from {first} to {position} ends before it begins.")
    return range(first, position + 1)


def summarise_pattern(
    pattern: np.ndarray,
    sample: Sample,
    position: int,
    *,
    first: int | None = None,
    entropies: tuple[np.ndarray, np.ndarray] | None = None,
    exclude_sinks: bool = False,
) -> AttentionMap:
    """Shares of one query row's ``pattern [layer head pos]``, or of the mean over a stretch from ``first`` on, whose
    ``entropies`` (in nats, and of the most) can't be told from the mean; see :class:`AttentionMap`."""
    first = position if first is None else first
    if entropies is None:
        entropies = _measure_entropies(pattern)
    mean = pattern.mean(axis=(0, 1))
    is_image = np.zeros(len(sample), dtype=bool)
    for span in sample.spans:
        if span.kind == "image":
            is_image[span.start : span.stop] = True
    visible = max(int((mean > 0).sum()), 1)
    # Image tokens are what a person came to see; one that draws attention is a finding, not a sink.
    candidates = np.flatnonzero((mean >= SINK_SHARE) & ~is_image) if visible >= 20 else np.array([], dtype=int)
    sinks = tuple(
        sorted((Sink(int(p), float(mean[p])) for p in candidates if not first <= p <= position), key=lambda s: -s.share)
    )
    sink_share = pattern[..., [sink.position for sink in sinks]].sum(axis=-1)
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
        first=first,
        pattern=pattern,
        image_share=pattern[..., is_image].sum(axis=-1),
        image_shares=image_shares,
        kind_shares=kind_shares,
        kinds=kinds,
        sinks=sinks,
        entropy=entropies[0],
        entropy_of_max=entropies[1],
        sink_share=sink_share,
        excluded=excluded,
    )


def _measure_entropies(pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[layer head]`` each, of one row's ``pattern [layer head pos]``: −Σ p ln p in nats, and that over ln n of the n
    keys that the row sees in a layer (0 where it sees one)."""
    entropy = -(pattern * np.log(np.where(pattern > 0, pattern, 1))).sum(axis=-1)
    largest = np.log(np.maximum((pattern > 0).any(axis=1).sum(axis=-1), 1))[:, None]
    return entropy, np.divide(entropy, largest, out=np.zeros_like(entropy), where=largest > 0)
