"""The end of a row, run again and otherwise: one cached pass, then as many changed endings as one likes.

A question and its answer come after the images that they can see, so a change to what *they* see leaves everything
before them as it was. The row is read once and its keys and values are kept; a changed ending (a :class:`Variant`)
computes its own few positions only. All variants of a batch stand side by side in one pass behind the cached row, each
with the positions that it would have had, and the mask lets each see its own prefix and itself: an intervention costs
tens of positions instead of thousands, and nothing is copied for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model import VLM, AttentionReader, AttentionReading, Cut, InputError, Patch, Sample, Tap
from model.language import KVCache, build_mask
from model.layers import rotate

PASS_POSITIONS = 768
"""So many positions at most are computed in one pass, unless a single variant has more: what bounds the memory."""


@dataclass(frozen=True)
class Shift:
    """Cached keys of the positions ``start`` to ``stop``, seen as if they stood ``by`` positions further on (rotary
    positions only: what they hold and what can see them stays)."""

    start: int
    stop: int
    by: int


@dataclass(frozen=True)
class Variant:
    """One way for a row to go on: positions before ``start`` stay as they were read, ``ids`` stand from there on.

    ``scored`` (start, stop) are the positions whose tokens' log-probabilities are wanted. ``cuts`` take edges away, in
    positions of the variant's own row; queries before ``start`` are beyond change and ignored. ``shifts`` move the
    keys of positions before ``start``. Ids that differ from the row's belong to the sample that ``start`` lies in.
    """

    start: int
    ids: tuple[int, ...]
    scored: tuple[int, int]
    cuts: tuple[Cut, ...] = ()
    shifts: tuple[Shift, ...] = ()

    @property
    def stop(self) -> int:
        return self.start + len(self.ids)

    def cutting(self, *cuts: Cut) -> Variant:
        """The same with more edges cut."""
        return replace(self, cuts=(*self.cuts, *cuts))


@dataclass(frozen=True)
class Outcome:
    """What a variant gave. ``logprobs`` (nats) and ``top_ids`` (the likeliest token) for every scored position, each
    predicted from the position before it; ``next_id`` is the likeliest token after the last position and
    ``next_logprob`` its log-probability."""

    logprobs: tuple[float, ...]
    top_ids: tuple[int, ...]
    next_id: int
    next_logprob: float

    @property
    def logprob(self) -> float:
        """Of all scored tokens together, nats."""
        return sum(self.logprobs)


@dataclass(frozen=True)
class StatePatch:
    """Before ``layer`` variant ``target`` takes over the states that variant ``source`` holds at ``positions``
    (numbered as in the row); both have these positions among their own."""

    layer: int
    source: int
    target: int
    positions: tuple[int, ...]


class Replay:
    """One row, read once. Not for two threads at the same time: variants are computed behind the row in its cache.

    Memory: keys and values of the row and of :data:`PASS_POSITIONS` more, and one mask of a pass.
    """

    @torch.no_grad()
    def __init__(self, vlm: VLM, row: Sample, *, document_mask: bool = False) -> None:
        self.vlm, self.row, self.document_mask = vlm, row, document_mask
        self.ids: tuple[int, ...] = tuple(row.input_ids.tolist())
        self._limit = vlm.config.lm_max_position_embeddings
        batch = vlm.collate([row], document_mask=document_mask)
        self.embeds = vlm.embed(batch)[0]
        """``[pos lm_hidden_dim]``: what enters the decoder, image tokens replaced."""
        self._length = len(row)
        self._attended = batch.attention_mask[0]
        self._segments = batch.segment_ids[0]
        self._cache: KVCache | None = None
        self._reserve(PASS_POSITIONS)
        segments = batch.segment_ids if document_mask else None
        mask = build_mask(batch.attention_mask, segments, self._length, self.embeds.dtype)
        assert self._cache is not None
        self.hidden = vlm.decoder(self.embeds[None], mask, batch.position_ids, cache=self._cache)[0]
        """``[pos lm_hidden_dim]``: the decoder's output for the row as it stands."""

    def variant(self, start: int, scored: tuple[int, int], *, stop: int | None = None) -> Variant:
        """The row's own ending from ``start`` on, unchanged."""
        return Variant(start, self.ids[start : self._length if stop is None else stop], scored)

    @torch.no_grad()
    def run(self, variants: Sequence[Variant], patches: Sequence[StatePatch] = ()) -> list[Outcome]:
        """Every variant's outcome, in order. Variants that ``patches`` connect must fit one pass together (ValueError
        if they don't)."""
        outcomes: list[Outcome] = []
        first = 0
        for chunk in _chunks(variants, PASS_POSITIONS if not patches else None):
            hidden, starts = self._forward(chunk, _inner(patches, first, len(chunk), len(variants)))
            outcomes += self._outcomes(chunk, hidden, starts)
            first += len(chunk)
        return outcomes

    @torch.no_grad()
    def answer(self, variants: Sequence[Variant], max_new_tokens: int) -> list[tuple[int, ...]]:
        """The greedy continuation of every variant, without the end token. Each variant's ids end where the model is
        to go on."""
        ids: list[list[int]] = [[] for _ in variants]
        open_ = list(range(len(variants)))
        for _ in range(max_new_tokens):
            if not open_:
                break
            grown = [replace(variants[n], ids=(*variants[n].ids, *ids[n])) for n in open_]
            for n, outcome in zip(tuple(open_), self.run(grown), strict=True):
                if outcome.next_id == self.vlm.eos_token_id:
                    open_.remove(n)
                else:
                    ids[n].append(outcome.next_id)
                    if variants[n].stop + len(ids[n]) >= self._limit:
                        open_.remove(n)
        return [tuple(found) for found in ids]

    @torch.no_grad()
    def read(
        self, variants: Sequence[Variant], rows: Sequence[int], groups: Tensor, n_groups: int, *, weigh: bool = False
    ) -> AttentionReading:
        """Attention of one position of each variant, ``rows[n]`` of variant n, over groups of the row's positions
        (``groups [pos]``, −1 for none). The variants must fit one pass. See :class:`model.AttentionReader`."""
        starts = _starts(variants)
        positions = [start + row - variant.start for start, row, variant in zip(starts, rows, variants, strict=True)]
        own = torch.full((sum(len(variant.ids) for variant in variants),), -1, dtype=torch.long)
        for start, variant in zip(starts, variants, strict=True):
            stop = min(variant.stop, self._length)
            own[start : start + stop - variant.start] = groups[variant.start : stop]
        reader = AttentionReader(positions, torch.cat((groups, own)), n_groups, weigh_values=weigh)
        self._forward(variants, (), reader)
        return reader.reading

    def _reserve(self, positions: int) -> None:
        """Room for so many positions behind the row."""
        capacity = self._length + positions
        if self._cache is not None and self._cache.keys.shape[3] >= capacity:
            return
        grown = KVCache(self.vlm.config, 1, capacity, self.embeds.device, self.embeds.dtype)
        if self._cache is not None:
            grown.keys[:, :, :, : self._length] = self._cache.keys[:, :, :, : self._length]
            grown.values[:, :, :, : self._length] = self._cache.values[:, :, :, : self._length]
            grown.length = self._length
        self._cache = grown

    def _forward(
        self, variants: Sequence[Variant], patches: Sequence[StatePatch], reader: AttentionReader | None = None
    ) -> tuple[Tensor, list[int]]:
        """The decoder's output ``[pos width]`` for the variants side by side, and where each begins in it."""
        starts = _starts(variants)
        total = sum(len(variant.ids) for variant in variants)
        # Beyond its length a model slows its rotary angles, and the cached keys would no longer fit.
        if (longest := max(variant.stop for variant in variants)) > (limit := self._limit):
            raise InputError(
                f"A changed prompt is {longest:,} tokens long and this model reads at most {limit:,}; "
                "use fewer or smaller images, or less text."
            )
        self._reserve(total)
        cache = self._cache
        assert cache is not None
        device = self.embeds.device
        embeds = torch.cat([self._embed(variant) for variant in variants])
        positions = torch.cat([torch.arange(variant.start, variant.stop) for variant in variants]).to(device)
        cuts: list[Cut] = []
        for variant, start in zip(variants, starts, strict=True):
            for cut in variant.cuts:
                queries = _placed(cut.queries, variant, self._length + start, own_only=True)
                keys = _placed(cut.keys, variant, self._length + start, own_only=False)
                if queries and keys:
                    cuts.append(Cut(queries, keys, cut.layers, cut.heads))
        moved = [
            Patch(
                patch.layer,
                [self._length + starts[patch.source] + p - variants[patch.source].start for p in patch.positions],
                [self._length + starts[patch.target] + p - variants[patch.target].start for p in patch.positions],
            )
            for patch in patches
        ]
        tap = Tap(reader, tuple(cuts), tuple(moved)) if reader is not None or cuts or moved else None
        mask = self._mask(variants, starts, total)
        cache.length = self._length
        with self._shifted({variant.shifts for variant in variants}):
            hidden = self.vlm.decoder(embeds[None], mask, positions[None], cache=cache, tap=tap)
        cache.length = self._length
        return hidden[0], starts

    def _embed(self, variant: Variant) -> Tensor:
        """``[pos width]``: image tokens keep the features that stand there in the row."""
        ids = torch.tensor(variant.ids, dtype=torch.long, device=self.embeds.device)
        is_image = ids == self.vlm.image_token_id
        embeds = self.vlm.decoder.token_embedding(ids.masked_fill(is_image, 0)).to(self.embeds.dtype)
        if bool(is_image.any()):
            places = variant.start + is_image.nonzero()[:, 0]
            if int(places.max()) >= self._length or any(
                self.ids[place] != self.vlm.image_token_id for place in places.tolist()
            ):
                raise ValueError("A variant has an image token where the row has none.")
            embeds[is_image] = self.embeds[places]
        return embeds

    def _mask(self, variants: Sequence[Variant], starts: Sequence[int], total: int) -> Tensor:
        """``[1 1 query key]``, as :func:`model.language.build_mask` would give each variant alone."""
        dtype, device = self.embeds.dtype, self.embeds.device
        unseen = torch.finfo(dtype).min
        mask = torch.full((total, self._length + total), -torch.inf, dtype=dtype, device=device)
        prefix = torch.where(self._attended, 0.0, unseen).to(dtype)
        for variant, start in zip(variants, starts, strict=True):
            rows, own = slice(start, start + len(variant.ids)), self._length + start
            as_read = variant.ids == self.ids[variant.start : variant.stop]
            if as_read:
                attended = self._attended[variant.start : variant.stop]
                segments = self._segments[variant.start : variant.stop]
            else:
                attended = torch.ones(len(variant.ids), dtype=torch.bool, device=device)
                segment = self._segments[min(variant.start, self._length - 1)]
                segments = segment.expand(len(variant.ids))
            mask[rows, : variant.start] = prefix[: variant.start]
            seen = torch.where(attended, 0.0, unseen).to(dtype)
            future = torch.ones(len(variant.ids), len(variant.ids), dtype=torch.bool, device=device).triu(1)
            mask[rows, own : own + len(variant.ids)] = seen.expand(len(variant.ids), -1).masked_fill(future, -torch.inf)
            if self.document_mask:
                other = segments[:, None] != self._segments[None, : variant.start]
                mask[rows, : variant.start] = mask[rows, : variant.start].masked_fill(other, -torch.inf)
                other = segments[:, None] != segments[None]
                mine = mask[rows, own : own + len(variant.ids)]
                mask[rows, own : own + len(variant.ids)] = mine.masked_fill(other, -torch.inf)
        return mask[None, None]

    @contextmanager
    def _shifted(self, wanted: set[tuple[Shift, ...]]) -> Iterator[None]:
        """The cached keys moved for one pass, then put back bit for bit. ValueError if the pass mixes shifts."""
        if len(wanted) > 1:
            raise ValueError("Variants with different shifts can't share a pass.")
        cache = self._cache
        assert cache is not None
        kept = []
        for shift in next(iter(wanted)):
            span = slice(shift.start, shift.stop)
            kept.append((span, cache.keys[:, :, :, span].clone()))
            by = torch.tensor([[shift.by]], device=cache.keys.device)
            cos, sin = self.vlm.decoder.rotary_embd(by, self._length)
            cache.keys[:, 0, :, span] = rotate(cache.keys[:, 0, :, span], cos, sin)
        try:
            yield
        finally:
            for span, keys in kept:
                cache.keys[:, :, :, span] = keys

    def _outcomes(self, variants: Sequence[Variant], hidden: Tensor, starts: Sequence[int]) -> list[Outcome]:
        """One vocabulary projection for all positions that predict something wanted."""
        wanted: list[Tensor] = []
        for variant, start in zip(variants, starts, strict=True):
            first, stop = variant.scored
            if not variant.start < first <= stop <= variant.stop and first != stop:
                raise ValueError(f"Positions {first} to {stop} can't be scored from {variant.start} to {variant.stop}.")
            wanted.append(hidden[start + first - 1 - variant.start : start + stop - 1 - variant.start])
            wanted.append(hidden[start + len(variant.ids) - 1][None])
        logprobs = self.vlm.decoder.head(torch.cat(wanted)).float().log_softmax(dim=-1)
        outcomes, at = [], 0
        for variant in variants:
            first, stop = variant.scored
            own = logprobs[at : at + stop - first]
            last = logprobs[at + stop - first]
            at += stop - first + 1
            targets = torch.tensor(variant.ids[first - variant.start : stop - variant.start], dtype=torch.long)
            chosen = own.gather(-1, targets.to(own.device)[:, None])[:, 0]
            outcomes.append(
                Outcome(
                    tuple(chosen.tolist()), tuple(own.argmax(dim=-1).tolist()), int(last.argmax()), float(last.max())
                )
            )
        return outcomes


def _starts(variants: Iterable[Variant]) -> list[int]:
    starts, total = [], 0
    for variant in variants:
        starts.append(total)
        total += len(variant.ids)
    return starts


def _placed(positions: Sequence[int], variant: Variant, own: int, *, own_only: bool) -> list[int]:
    """Positions of a variant's row as positions of the pass, where its own begin at ``own``."""
    placed = [own + p - variant.start for p in positions if variant.start <= p < variant.stop]
    return placed if own_only else [p for p in positions if p < variant.start] + placed


def _chunks(variants: Sequence[Variant], limit: int | None) -> Iterator[list[Variant]]:
    """In order, so many at a time as fit a pass; a change of shifts begins a new one."""
    chunk: list[Variant] = []
    size = 0
    for variant in variants:
        full = limit is not None and size + len(variant.ids) > limit
        if chunk and (full or variant.shifts != chunk[0].shifts):
            yield chunk
            chunk, size = [], 0
        chunk.append(variant)
        size += len(variant.ids)
    if chunk:
        yield chunk


def _inner(patches: Sequence[StatePatch], first: int, count: int, whole: int) -> Sequence[StatePatch]:
    if patches and (first, count) != (0, whole):
        raise ValueError("Variants that are patched from one another can't have different shifts.")
    return patches
