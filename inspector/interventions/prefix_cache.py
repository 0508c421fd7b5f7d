"""The end of a row, run again and otherwise: one cached pass, then as many changed endings as one likes.

A question and its answer come after the images that they can see, so a change to what *they* see leaves everything
before them as it was. The row is read once and its keys and values are kept; a changed ending (a :class:`Continuation`)
computes its own few positions only. All continuations of a batch stand side by side in one pass behind the cached row,
each with the positions that it would have had, and the mask lets each see its own prefix and itself: an intervention
costs tens of positions instead of thousands, and nothing is copied for it. Where a change reaches further back,
continuations share what they have in common: one can stand behind another instead of behind the row, and what others
stand behind stays in the cache, so that the next question about the same change finds it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from inspector.interventions.continuations import (
    Continuation,
    Outcome,
    RopeShift,
    StatePatch,
    count_positions,
    gather_line,
    gather_parents,
    lay_out,
    set_apart,
)
from model import VLM, ActivationPatch, AttentionReader, AttentionReading, Cut, InputError, Sample, Tap
from model.language import KVCache, build_mask
from model.layers import rotate

PASS_POSITIONS = 512
"""So many positions at most are computed in one pass, unless a single continuation has more: what bounds the memory.
What is to be kept is read in halves of it, for the fewer stand side by side, the less is masked only to be
multiplied."""
KEPT_ROWS = 2
"""What continuations stand behind is kept up to so many times the row's length (and :data:`PASS_POSITIONS` at
least)."""


class PrefixCache:
    """One row, read once. Not for two threads at the same time: continuations are computed behind the row in its cache.

    Memory: keys and values of the row and of :data:`KEPT_ROWS` times as many positions; during a pass a copy of those
    that it sees, :data:`PASS_POSITIONS` more, and one mask.
    """

    @torch.no_grad()
    def __init__(
        self,
        vlm: VLM,
        row: Sample,
        *,
        document_mask: bool = False,
        cuts: Sequence[Cut] = (),
        embeds: Tensor | None = None,
    ) -> None:
        """``cuts``: edges that the row is read without (a continuation names its own). ``embeds``: those of another
        reading of the same row, so that its images need not be encoded again."""
        self.vlm, self.row, self.document_mask = vlm, row, document_mask
        self.ids: tuple[int, ...] = tuple(row.input_ids.tolist())
        self._limit = vlm.config.lm_max_position_embeddings
        batch = vlm.collate([row], document_mask=document_mask)
        self.embeds = vlm.embed(batch)[0] if embeds is None else embeds
        """``[pos lm_hidden_dim]``: what enters the decoder, image tokens replaced."""
        self._length = len(row)
        self._attended = batch.attention_mask[0]
        self._segments = batch.segment_ids[0]
        self._kept: list[Continuation] = []
        """What continuations stood behind, in the order in which it stands in the cache behind the row."""
        self._ends: dict[int, Tensor] = {}
        """By the ``id`` of what is kept: the decoder's output at its last position."""
        self._cache = self._allocate(0)
        segments = batch.segment_ids if document_mask else None
        mask = build_mask(batch.attention_mask, segments, self._length, self.embeds.dtype)
        tap = Tap(cuts=tuple(cuts)) if cuts else None
        self.hidden: Tensor = vlm.decoder(self.embeds[None], mask, batch.position_ids, cache=self._cache, tap=tap)[0]
        """``[pos lm_hidden_dim]``: the decoder's output for the row as it stands."""

    def continuation(self, start: int, scored: tuple[int, int], *, stop: int | None = None) -> Continuation:
        """The row's own ending from ``start`` on, unchanged."""
        return Continuation(start, self.ids[start : self._length if stop is None else stop], scored)

    @torch.no_grad()
    def run(self, continuations: Sequence[Continuation], patches: Sequence[StatePatch] = ()) -> list[Outcome]:
        """Every continuation's outcome, in order. ``patches`` name them by their place; all then run in one
        pass."""
        continuations = set_apart(continuations)
        outcomes: dict[int, Outcome] = {}
        for group in [continuations] if patches else self._groups(continuations):
            self._keep(group)
            for chunk in [group] if patches else _chunks(group, {id(node) for node in self._kept}):
                linked = [(chunk[patch.source], chunk[patch.target], patch) for patch in patches]
                hidden, starts = self._forward(self._new(gather_line(chunk)), linked)
                outcomes |= zip(map(id, chunk), self._outcomes(chunk, hidden, starts), strict=True)
        return [outcomes[id(continuation)] for continuation in continuations]

    @torch.no_grad()
    def answer(self, continuations: Sequence[Continuation], max_new_tokens: int) -> list[tuple[int, ...]]:
        """The greedy continuation of every continuation, without the end token. Each continuation's ids end where the
        model is to go on."""
        ids: list[list[int]] = [[] for _ in continuations]
        open_ = list(range(len(continuations)))
        for step in range(max_new_tokens):
            if not open_:
                break
            grown = [continuations[n] if step == 0 else self._continue(continuations[n], ids[n]) for n in open_]
            for n, outcome in zip(tuple(open_), self.run(grown), strict=True):
                if outcome.next_id == self.vlm.eos_token_id:
                    open_.remove(n)
                else:
                    ids[n].append(outcome.next_id)
                    if continuations[n].stop + len(ids[n]) >= self._limit:
                        open_.remove(n)
        return [tuple(found) for found in ids]

    @torch.no_grad()
    def read(
        self,
        continuations: Sequence[Continuation],
        rows: Sequence[int],
        groups: Tensor,
        n_groups: int,
        *,
        weigh: bool = False,
    ) -> AttentionReading:
        """Attention of one position of each continuation, ``rows[n]`` of continuation n, over groups of the row's
        positions (``groups [pos]``, −1 for none). The continuations must fit one pass. See
        :class:`model.AttentionReader`."""
        continuations = set_apart(continuations)
        nodes = self._new(gather_line(continuations))
        held = [*self._kept, *nodes]
        starts = lay_out(held)
        kept = self._kept_positions
        positions = [
            starts[id(continuation)] - kept + row - continuation.start
            for row, continuation in zip(rows, continuations, strict=True)
        ]
        own = torch.full((count_positions(held),), -1, dtype=torch.long)
        for node in held:
            start, stop = starts[id(node)], min(node.stop, self._length)
            own[start : start + stop - node.start] = groups[node.start : stop]
        reader = AttentionReader(positions, torch.cat((groups, own)), n_groups, weigh_values=weigh)
        self._forward(nodes, (), reader)
        return reader.reading

    def _continue(self, continuation: Continuation, ids: Sequence[int]) -> Continuation:
        """``ids`` behind the continuation; its cuts hold for them too."""
        stop = continuation.stop
        if continuation.shifts:
            return replace(continuation, ids=(*continuation.ids, *ids))  # keys that are moved are so for one pass
        return Continuation(stop, tuple(ids), (stop, stop), continuation.cuts, parent=continuation)

    @property
    def _kept_positions(self) -> int:
        return count_positions(self._kept)

    @property
    def _room(self) -> int:
        return max(KEPT_ROWS * self._length, PASS_POSITIONS)

    def _new(self, nodes: Iterable[Continuation]) -> list[Continuation]:
        """Those that aren't kept."""
        kept = {id(node) for node in self._kept}
        return [node for node in nodes if id(node) not in kept]

    def _groups(self, continuations: list[Continuation]) -> Iterator[list[Continuation]]:
        """All at once if what they stand behind can be kept, else those side by side that share most of it."""
        if count_positions(gather_parents(continuations)) <= self._room:
            yield continuations
            return
        seen = {id(node): n for n, node in enumerate(gather_line(continuations))}
        group: list[Continuation] = []
        for continuation in sorted(
            continuations, key=lambda continuation: [seen[id(node)] for node in continuation.line[:-1]]
        ):
            if group and count_positions(gather_parents([*group, continuation])) > self._room:
                yield group
                group = []
            group.append(continuation)
        yield group

    def _keep(self, continuations: Sequence[Continuation]) -> None:
        """Reads what the continuations stand behind, unless that is done, and leaves it in the cache. Where there is
        no room what was kept before makes way; what doesn't fit at all is read with each pass."""
        needed = gather_parents(continuations)
        # Keys that are moved are so for one pass.
        if not needed or any(node.shifts for continuation in continuations for node in continuation.line):
            return
        new = self._new(needed)
        if self._kept_positions + count_positions(new) > self._room:
            self._kept, self._ends, new = [], {}, needed
            if count_positions(new) > self._room:
                return
        for chunk in _packs(new):
            hidden, starts = self._forward(chunk, keep=True)
            self._ends |= {id(node): hidden[starts[id(node)] + len(node.ids) - 1].clone() for node in chunk}
            self._kept += chunk

    def _store(self, keys: Tensor, values: Tensor) -> None:
        """Keys and values ``[layer 1 kv_head pos d]`` behind the row and what is kept."""
        held = self._length + self._kept_positions
        if self._cache.keys.shape[3] < held + keys.shape[3]:
            grown = self._allocate(self._room)
            grown.keys[:, :, :, :held] = self._cache.keys[:, :, :, :held]
            grown.values[:, :, :, :held] = self._cache.values[:, :, :, :held]
            self._cache = grown
        span = slice(held, held + keys.shape[3])
        self._cache.keys[:, :, :, span], self._cache.values[:, :, :, span] = keys, values

    def _allocate(self, positions: int) -> KVCache:
        return KVCache(self.vlm.config, 1, self._length + positions, self.embeds.device, self.embeds.dtype)

    def _forward(
        self,
        nodes: Sequence[Continuation],
        patches: Sequence[tuple[Continuation, Continuation, StatePatch]] = (),
        reader: AttentionReader | None = None,
        *,
        keep: bool = False,
    ) -> tuple[Tensor, dict[int, int]]:
        """The decoder's output ``[pos width]`` for the continuations side by side, and where each (by its ``id``)
        begins in it. Parents are kept, or among ``nodes`` before their children. With ``keep`` keys and values are
        stored behind what is kept already; ``reader`` is told of every key of row, kept and pass, in this order."""
        starts = lay_out([*self._kept, *nodes])
        kept = self._kept_positions
        # Beyond its length a model slows its rotary angles, and the cached keys would no longer fit.
        if (longest := max(node.stop for node in nodes)) > (limit := self._limit):
            raise InputError(
                f"A changed prompt is {longest:,} tokens long and this model reads at most {limit:,}; "
                "use fewer or smaller images, or less text."
            )
        mask = self._mask(nodes, starts)
        shifts = {node.shifts for node in nodes}
        cache, places, mask = self._view(mask, self._length + kept, shifts, whole=reader is not None)
        embeds = torch.cat([self._embed(node) for node in nodes])
        positions = torch.cat([torch.arange(node.start, node.stop) for node in nodes]).to(embeds.device)
        cuts: list[Cut] = []
        for node in nodes:
            for cut in node.cuts:
                queries = [p for p in cut.queries if node.start <= p < node.stop]
                keys = [p for p in cut.keys if p < node.stop]
                if queries and keys:
                    queries = places[self._places(node, starts, queries)].tolist()
                    keys = [p for p in places[self._places(node, starts, keys)].tolist() if p >= 0]
                    cuts.append(Cut(queries, keys, cut.layers, cut.heads))
        moved = [
            ActivationPatch(
                patch.layer,
                places[self._places(source, starts, patch.positions)].tolist(),
                places[self._places(target, starts, patch.positions)].tolist(),
            )
            for source, target, patch in patches
        ]
        tap = Tap(reader, tuple(cuts), tuple(moved)) if reader is not None or cuts or moved else None
        first = cache.length
        hidden = self.vlm.decoder(embeds[None], mask, positions[None], cache=cache, tap=tap)
        if keep:
            self._store(cache.keys[:, :, :, first:], cache.values[:, :, :, first:])
        return hidden[0], {id(node): starts[id(node)] - kept for node in nodes}

    def _view(
        self, mask: Tensor, held: int, shifts: set[tuple[RopeShift, ...]], *, whole: bool
    ) -> tuple[KVCache, Tensor, Tensor]:
        """(a cache of those of the ``held`` positions that a pass sees, all if ``whole``, with room for its own; where
        each key of ``mask`` is in it, −1 for the unseen; the mask of its keys). What no position of the pass sees would
        be multiplied all the same."""
        total = mask.shape[-2]
        seen = (mask[0, 0, :, :held] > -torch.inf).any(dim=0)
        seen |= whole
        count = int(seen.sum())
        places = torch.full((held + total,), -1, dtype=torch.long, device=mask.device)
        places[:held][seen] = torch.arange(count, device=mask.device)
        places[held:] = count + torch.arange(total, device=mask.device)
        view = KVCache(self.vlm.config, 1, count + total, self.embeds.device, self.embeds.dtype)
        with self._shifted(shifts):
            view.keys[:, :, :, :count] = self._cache.keys[:, :, :, :held][:, :, :, seen]
            view.values[:, :, :, :count] = self._cache.values[:, :, :, :held][:, :, :, seen]
        view.length = count
        return view, places, mask[..., places >= 0]

    def _places(self, node: Continuation, starts: dict[int, int], positions: Sequence[int]) -> list[int]:
        """Where positions of a continuation's row are among the keys of the pass."""
        moved = [(one.start, one.stop, self._length + starts[id(one)] - one.start) for one in node.line]
        return [next((p + by for start, stop, by in moved if start <= p < stop), p) for p in positions]

    def _embed(self, continuation: Continuation) -> Tensor:
        """``[pos width]``: image tokens keep the features that stand there in the row, if the continuation brings
        none."""
        ids = torch.tensor(continuation.ids, dtype=torch.long, device=self.embeds.device)
        is_image = ids == self.vlm.image_token_id
        embeds = self.vlm.decoder.token_embedding(ids.masked_fill(is_image, 0)).to(self.embeds.dtype)
        if bool(is_image.any()):
            places = continuation.start + is_image.nonzero()[:, 0]
            if int(places.max()) >= self._length or any(
                self.ids[place] != self.vlm.image_token_id for place in places.tolist()
            ):
                raise ValueError("A continuation has an image token where the row has none.")
            embeds[is_image] = self.embeds[places] if continuation.features is None else continuation.features
        return embeds

    def _mask(self, nodes: Sequence[Continuation], starts: dict[int, int]) -> Tensor:
        """``[1 1 query key]``, as :func:`model.language.build_mask` would give each continuation alone. ``starts``:
        where each, and what is kept, begins behind the row."""
        kept = self._kept_positions
        total = count_positions(nodes)
        held = [*self._kept, *nodes]
        dtype, device = self.embeds.dtype, self.embeds.device
        unseen = torch.finfo(dtype).min
        mask = torch.full((total, self._length + kept + total), -torch.inf, dtype=dtype, device=device)
        # Per key of the pass: what seeing it adds to a score, and its sample.
        seen = torch.cat((self._attended, *(self._own(node)[0] for node in held)))
        bias = torch.where(seen, 0.0, unseen).to(dtype)
        segments = torch.cat((self._segments, *(self._own(node)[1] for node in held)))
        for node in nodes:
            begin = starts[id(node)] - kept
            rows, own = slice(begin, begin + len(node.ids)), self._length + starts[id(node)]
            view = mask[rows]
            view[:, : node.start] = bias[: node.start]
            for parent in node.line[:-1]:
                place = self._length + starts[id(parent)]
                view[:, parent.start : parent.stop] = -torch.inf
                view[:, place : place + len(parent.ids)] = bias[place : place + len(parent.ids)]
            future = torch.ones(len(node.ids), len(node.ids), dtype=torch.bool, device=device).triu(1)
            mine = bias[own : own + len(node.ids)].expand(len(node.ids), -1)
            view[:, own : own + len(node.ids)] = mine.masked_fill(future, -torch.inf)
            if self.document_mask:
                other = segments[own : own + len(node.ids), None] != segments[None]
                mask[rows] = view.masked_fill(other, -torch.inf)
        return mask[None, None]

    def _own(self, node: Continuation) -> tuple[Tensor, Tensor]:
        """(attended, segment) of a continuation's own positions."""
        if node.ids == self.ids[node.start : node.stop]:
            return self._attended[node.start : node.stop], self._segments[node.start : node.stop]
        segment = self._segments[min(node.start, self._length - 1)]
        return torch.ones(len(node.ids), dtype=torch.bool, device=segment.device), segment.expand(len(node.ids))

    @contextmanager
    def _shifted(self, wanted: set[tuple[RopeShift, ...]]) -> Iterator[None]:
        """The cached keys moved while they are copied, then put back bit for bit. ValueError if a pass mixes shifts."""
        if len(wanted) > 1:
            raise ValueError("Variants with different shifts can't share a pass.")
        cache = self._cache
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

    def _before(self, continuation: Continuation, hidden: Tensor, starts: dict[int, int]) -> Tensor:
        """``[width]``: what predicts the continuation's first token."""
        parent = continuation.parent
        if parent is None or parent.stop < continuation.start:
            return self.hidden[continuation.start - 1]
        kept = self._ends.get(id(parent))
        return hidden[starts[id(parent)] + len(parent.ids) - 1] if kept is None else kept

    def _outcomes(self, continuations: Sequence[Continuation], hidden: Tensor, starts: dict[int, int]) -> list[Outcome]:
        """One vocabulary projection for all positions that predict something wanted."""
        wanted: list[Tensor] = []
        for continuation in continuations:
            first, stop = continuation.scored
            if first != stop and not max(1, continuation.start) <= first < stop <= continuation.stop:
                raise ValueError(
                    f"Positions {first} to {stop} can't be scored from {continuation.start} to {continuation.stop}."
                )
            start = starts[id(continuation)]
            if first != stop:
                if first == continuation.start:
                    wanted.append(self._before(continuation, hidden, starts)[None])
                inner = max(first - 1, continuation.start) - continuation.start
                wanted.append(hidden[start + inner : start + stop - 1 - continuation.start])
            wanted.append(hidden[start + len(continuation.ids) - 1][None])
        logprobs = self.vlm.decoder.head(torch.cat(wanted)).float().log_softmax(dim=-1)
        outcomes, at = [], 0
        for continuation in continuations:
            first, stop = continuation.scored
            own = logprobs[at : at + stop - first]
            last = logprobs[at + stop - first]
            at += stop - first + 1
            targets = torch.tensor(
                continuation.ids[first - continuation.start : stop - continuation.start], dtype=torch.long
            )
            chosen = own.gather(-1, targets.to(own.device)[:, None])[:, 0]
            outcomes.append(
                Outcome(
                    tuple(chosen.tolist()), tuple(own.argmax(dim=-1).tolist()), int(last.argmax()), float(last.max())
                )
            )
        return outcomes


def _packs(nodes: Sequence[Continuation]) -> Iterator[list[Continuation]]:
    """In order, so many at a time as fit half a pass."""
    pack: list[Continuation] = []
    for node in nodes:
        if pack and count_positions(pack) + len(node.ids) > PASS_POSITIONS // 2:
            yield pack
            pack = []
        pack.append(node)
    if pack:
        yield pack


def _chunks(continuations: Sequence[Continuation], kept: set[int]) -> Iterator[list[Continuation]]:
    """In order, so many at a time as fit a pass with their parents that are not ``kept`` (by ``id``); a change of
    shifts begins a new one."""
    chunk: list[Continuation] = []
    held = set(kept)
    size = 0
    for continuation in continuations:
        new = count_positions(node for node in continuation.line if id(node) not in held)
        if chunk and (size + new > PASS_POSITIONS or continuation.shifts != chunk[0].shifts):
            yield chunk
            chunk, held, size = [], set(kept), 0
            new = count_positions(node for node in continuation.line if id(node) not in held)
        chunk.append(continuation)
        held |= {id(node) for node in continuation.line}
        size += new
    if chunk:
        yield chunk
