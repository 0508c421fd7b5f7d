"""Continuations behind a kept prefix: one reading of the row, then as many changed endings as one likes.

    row as it was read          [ system | image 1 | image 2 | question | answer ]
    another ending                                           └─[ other question | answer ]
    image 1 taken away                    └─[ image 2' | question' ]─┬─[ answer A ]
                                                                     └─[ answer B ]

A question and its answer come after the images that they can see, so a change to what *they* see leaves everything
before them as it was. The row's keys and values are kept (:class:`inspector.row.embedded_row.EmbeddedRow`); a changed
ending (a :class:`Continuation`) computes its own few positions only. All continuations of a batch stand side by side in
one pass behind the row, each with the positions that it would have had, and the mask lets each see its own prefix and
itself: an intervention costs tens of positions instead of thousands. Where a change reaches further back, continuations
share what they have in common: one can stand behind another instead of behind the row, and what others stand behind
stays in the cache, so that the next question about the same change finds it there. An answer is decoded token by token,
each position once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inspector.interventions.continuations import (
    Continuation,
    Outcome,
    StatePatch,
    count_positions,
    gather_line,
    gather_parents,
    lay_out,
    set_apart,
)
from inspector.row.embedded_row import EmbeddedRow
from model import ActivationPatch, AttentionReader, AttentionReading, Cut, InputError, InspectableVLM, Tap
from model.language import KVCache

PASS_POSITIONS = 512
"""So many positions at most are computed in one pass, unless a single continuation has more: what bounds the memory.
"""
KEEP_POSITIONS = 320
"""What is to be kept is read so many at a time: fewer side by side means less that is masked and multiplied all the
same, but an image of 256 tokens and the question behind it belong into one pass."""
KEPT_ROWS = 2
KEPT_BYTES = 256 << 20
"""What continuations stand behind is kept up to so many times the row's length, or so many bytes of keys and values if
that is more (and :data:`PASS_POSITIONS` in any case): every step of a study goes back to the same changed images."""
COPY_QUERIES = 24
"""A pass works on what is kept where it lies, or on a copy of what it sees of it, for what nobody sees would be
multiplied all the same: copying a key and its value takes about as long as so many queries' attention to one."""


@dataclass
class _Pass:
    """What one pass runs on. ``visible [query key]`` bool over the keys of ``cache`` and the pass's own; ``places``:
    where each key of row, kept and pass is among them, −1 for one that nobody sees; ``own``: the cache is not this
    object's, but made for the pass."""

    cache: KVCache
    visible: Tensor
    places: Tensor
    own: bool


class PrefixCache:
    """Continuations of one row. Not for two threads at the same time: they are computed behind a copy of the row's keys
    and values that belongs to this object; the row that was handed in stays as it is.

    Memory: keys and values of the row and of what :data:`KEPT_ROWS` and :data:`KEPT_BYTES` allow behind it,
    :data:`PASS_POSITIONS` more during a pass, and one mask.
    """

    def __init__(self, vlm: InspectableVLM, read: EmbeddedRow) -> None:
        self.vlm, self.read_row = vlm, read
        self.row, self.document_mask = read.row, read.document_mask
        self.ids: tuple[int, ...] = tuple(read.row.input_ids.tolist())
        self.embeds, self.hidden = read.embeds, read.hidden
        """``[pos width]``: what enters the decoder, image features in their places; its last states."""
        self._length = len(read)
        self._attended, self._segments = read.row.attention_mask, read.row.segment_ids
        self._kept: list[Continuation] = []
        """What continuations stood behind, in the order in which it stands in the cache behind the row."""
        self._ends: dict[int, Tensor] = {}
        """By the ``id`` of what is kept: the decoder's output at its last position."""
        self._cache: KVCache | None = None

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
        """What the model greedily says behind every continuation, without the end token. Each continuation's ids end
        where it is to go on."""
        continuations = set_apart(continuations)
        answers: dict[int, tuple[int, ...]] = {}
        for group in self._groups(continuations):
            self._keep(group)
            for chunk in _chunks(group, {id(node) for node in self._kept}):
                answers |= zip(map(id, chunk), self._decode(chunk, max_new_tokens), strict=True)
        return [answers[id(continuation)] for continuation in continuations]

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

    @property
    def _kept_positions(self) -> int:
        return count_positions(self._kept)

    @property
    def _held(self) -> int:
        return self._length + self._kept_positions

    @property
    def _room(self) -> int:
        cache = self.read_row.cache
        return max(KEPT_ROWS * self._length, KEPT_BYTES * cache.capacity // cache.nbytes, PASS_POSITIONS)

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
        no room the oldest makes way; what doesn't fit at all is read with each pass."""
        needed = gather_parents(continuations)
        # Keys that are moved are so for one pass.
        if not needed or any(node.shifts for continuation in continuations for node in continuation.line):
            return
        new = self._new(needed)
        excess = self._kept_positions + count_positions(new) - self._room
        if excess > 0:
            if count_positions(needed) > self._room:
                return
            self._drop(excess, needed)
        for chunk in _packs(new):
            hidden, starts = self._forward(chunk, keep=True)
            self._ends |= {id(node): hidden[starts[id(node)] + len(node.ids) - 1].clone() for node in chunk}
            self._kept += chunk

    def _drop(self, positions: int, needed: Sequence[Continuation]) -> None:
        """Lets go of at least so many kept positions: of what was read first, and behind which nothing is kept."""
        stay, freed = list(self._kept), 0
        asked_for = {id(node) for node in needed}
        while freed < positions:
            parents = {id(node.parent) for node in stay}
            gone = next(node for node in stay if id(node) not in parents | asked_for)
            stay = [node for node in stay if node is not gone]
            freed += len(gone.ids)
        starts, left = lay_out(self._kept), {id(node) for node in stay}
        places = torch.ones(self._held, dtype=torch.bool)
        for node in self._kept:
            if id(node) not in left:
                first = self._length + starts[id(node)]
                places[first : first + len(node.ids)] = False
                del self._ends[id(node)]
        cache = self._reserve(0)
        self._kept = stay
        self._cache = cache.select(places, positions)

    def _reserve(self, positions: int) -> KVCache:
        """The cache of row and kept, with room for so many positions behind them."""
        held = self._held
        if self._cache is None:
            self._cache = self.read_row.cache.select(slice(0, self._length), positions)
        elif self._cache.capacity < held + positions:
            self._cache.length = held
            self._cache = self._cache.select(slice(0, held), max(positions, min(self._room, held)))
        self._cache.length = held
        return self._cache

    def _forward(
        self,
        nodes: Sequence[Continuation],
        patches: Sequence[tuple[Continuation, Continuation, StatePatch]] = (),
        reader: AttentionReader | None = None,
        *,
        keep: bool = False,
    ) -> tuple[Tensor, dict[int, int]]:
        """The decoder's output ``[pos width]`` for the continuations side by side, and where each (by its ``id``)
        begins in it. Parents are kept, or among ``nodes`` before their children. With ``keep`` keys and values stay
        behind what is kept already; ``reader`` is told of every key of row, kept and pass, in this order."""
        starts = lay_out([*self._kept, *nodes])
        opened = self._open(nodes, starts, whole=reader is not None)
        hidden = self._compute(opened, nodes, starts, patches, reader)
        if keep and opened.own:
            total, first = count_positions(nodes), opened.cache.length - count_positions(nodes)
            self._reserve(total).put(opened.cache, first, total)
        return hidden, {id(node): starts[id(node)] - self._kept_positions for node in nodes}

    def _open(
        self, nodes: Sequence[Continuation], starts: dict[int, int], *, whole: bool = False, room: int = 0
    ) -> _Pass:
        """A pass of ``nodes`` with ``room`` for positions after it; all of row and kept are in it if ``whole``."""
        # Beyond its length a model slows its rotary angles, and the cached keys would no longer fit.
        if (longest := max(node.stop for node in nodes)) > (limit := self.vlm.max_positions):
            raise InputError(
                f"A changed prompt is {longest:,} tokens long and this model reads at most {limit:,}; "
                "use fewer or smaller images, or less text."
            )
        visible = self._see(nodes, starts)
        held, total = self._held, len(visible)
        seen = visible[:, :held].any(dim=0)
        places = torch.arange(held + total)
        shifts = {node.shifts for node in nodes}
        if len(shifts) > 1:
            raise ValueError("Continuations with different shifts can't share a pass.")
        (shift,) = shifts
        wasted = (total + room) * (held - int(seen.sum()))
        if not shift and (whole or wasted <= COPY_QUERIES * int(seen.sum())):
            return _Pass(self._reserve(total + room), visible, places, own=False)
        seen |= whole
        count = int(seen.sum())
        places[:held] = torch.where(seen, seen.cumsum(0) - 1, -1)
        places[held:] += count - held
        view = self._reserve(0).select(seen, total + room)
        for one in shift:
            moved = places[one.start : one.stop]
            moved = moved[moved >= 0]
            view.keys[:, :, :, moved] = self.vlm.rotate_keys(view.keys[:, 0, :, moved], one.by)[:, None]
            view.positions[moved] += one.by
        return _Pass(view, visible[:, places >= 0], places, own=True)

    def _compute(
        self,
        opened: _Pass,
        nodes: Sequence[Continuation],
        starts: dict[int, int],
        patches: Sequence[tuple[Continuation, Continuation, StatePatch]] = (),
        reader: AttentionReader | None = None,
    ) -> Tensor:
        """``[pos width]`` for the continuations side by side."""
        places = opened.places
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
        embeds = torch.cat([self._embed(node) for node in nodes])
        positions = torch.cat([self._position_ids(node) for node in nodes], dim=1)
        return self.vlm.decode(embeds[None], positions, opened.visible[None, None], opened.cache, tap)[0]

    def _decode(self, chunk: Sequence[Continuation], max_new_tokens: int) -> list[tuple[int, ...]]:
        """Greedy answers behind the continuations of one pass, side by side, every position computed once. Tokens are
        chosen as in :func:`model.generate.continue_row`: the checkpoint's own rules count the ids that an answer could
        see. What is hidden by a cut is counted too: a cut changes what the model reads, and not the rule."""
        nodes = self._new(gather_line(chunk))
        starts = lay_out([*self._kept, *nodes])
        opened = self._open(nodes, starts, room=len(chunk) * max_new_tokens)
        hidden = self._compute(opened, nodes, starts)
        kept, eos = self._kept_positions, self.vlm.eos_ids
        ends = [starts[id(one)] - kept + len(one.ids) - 1 for one in chunk]
        answers: list[list[int]] = [[] for _ in chunk]
        slots: list[list[int]] = [[] for _ in chunk]
        sees = [opened.visible[end] for end in ends]
        prompts = self._ids_seen(opened, nodes, sees)
        places = [self._place(one)[1] for one in chunk]
        states = hidden[ends]
        open_ = list(range(len(chunk)))
        for _ in range(max_new_tokens):
            said = self.vlm.choice_rules.adjust(
                self.vlm.logits(states), [prompts[n] for n in open_], [answers[n] for n in open_]
            ).argmax(dim=-1)
            going = []
            for n, token_id in zip(open_, said.tolist(), strict=True):
                if token_id not in eos:
                    answers[n].append(token_id)
                    if chunk[n].stop + len(answers[n]) < self.vlm.max_positions and len(answers[n]) < max_new_tokens:
                        going.append(n)
            open_ = going
            if not open_:
                break
            first = opened.cache.length
            visible = torch.zeros(len(open_), first + len(open_), dtype=torch.bool)
            cuts: list[Cut] = []
            for row, n in enumerate(open_):
                visible[row, : len(sees[n])] = sees[n]
                visible[row, first + row] = True
                sees[n] = visible[row]
                slots[n].append(first + row)
                cuts += self._cuts_of_next(chunk[n], starts, opened.places, slots[n])
            embeds = self.vlm.embed_ids(torch.tensor([answers[n][-1] for n in open_]))
            axes = self.row.position_ids.shape[0]
            at = torch.tensor([places[n] + len(answers[n]) - 1 for n in open_]).expand(axes, -1)
            tap = Tap(cuts=tuple(cuts)) if cuts else None
            states = self.vlm.decode(embeds[None], at, visible[None, None], opened.cache, tap)[0]
        if not opened.own:
            opened.cache.length = self._held
        return [tuple(ids) for ids in answers]

    def _ids_seen(self, opened: _Pass, nodes: Sequence[Continuation], sees: Sequence[Tensor]) -> list[Tensor]:
        """The ids of the keys that each of ``sees [key]`` bool names, in the order of their positions."""
        held = [*self._kept, *nodes]
        ids = torch.tensor([*self.ids, *(token_id for node in held for token_id in node.ids)])
        positions = torch.cat([torch.arange(self._length), *(torch.arange(node.start, node.stop) for node in held)])
        there = opened.places >= 0
        ids, positions = ids[there], positions[there]
        return [ids[seen][positions[seen].argsort()] for seen in sees]

    def _cuts_of_next(
        self, one: Continuation, starts: dict[int, int], places: Tensor, slots: Sequence[int]
    ) -> Iterator[Cut]:
        """The continuation's cuts for the last of the tokens that were said behind it, which lie at ``slots``."""
        position = one.stop + len(slots) - 1
        for cut in one.cuts:
            if position not in cut.queries:
                continue
            before = [p for p in cut.keys if p < one.stop]
            keys = [p for p in places[self._places(one, starts, before)].tolist() if p >= 0] if before else []
            keys += [slots[p - one.stop] for p in cut.keys if one.stop <= p <= position]
            if keys:
                yield Cut([slots[-1]], keys, cut.layers, cut.heads)

    def _places(self, node: Continuation, starts: dict[int, int], positions: Sequence[int]) -> list[int]:
        """Where positions of a continuation's row are among the keys of row, kept and pass."""
        moved = [(one.start, one.stop, self._length + starts[id(one)] - one.start) for one in node.line]
        return [next((p + by for start, stop, by in moved if start <= p < stop), p) for p in positions]

    def _position_ids(self, node: Continuation) -> Tensor:
        """``[axes pos]``."""
        return self._place(node)[0]

    def _place(self, node: Continuation) -> tuple[Tensor, int, bool]:
        """Rotary positions ``[axes pos]`` of a continuation, where text behind it goes on, and whether it has left the
        row's own: these hold as long as text stands on text and image tokens on image tokens, whatever they are. What
        comes then counts on from the largest, as the axes of an image's tokens are not alike."""
        left, first = False, self._place_behind(node.start)
        if node.parent is not None and node.parent.stop == node.start:
            _, first, left = self._place(node.parent)
        alike = 0 if left else self._count_alike(node)
        stop = node.start + alike
        if alike:
            first = self._place_behind(stop)
        table = self.row.position_ids
        rest = torch.arange(first, first + len(node.ids) - alike).expand(len(table), -1)
        places = torch.cat((table[:, node.start : stop], rest), dim=1)
        return places, first + rest.shape[1], left or stop < min(node.stop, self._length)

    def _place_behind(self, position: int) -> int:
        """Where text goes on behind the row's first ``position`` tokens."""
        behind = self.row.position_ids[:, :position]
        return (int(behind.amax()) + 1 if behind.numel() else 0) + max(0, position - self._length)

    def _count_alike(self, node: Continuation) -> int:
        """How many of its first tokens are image tokens where the row's are, and text where the row's are text."""
        theirs = self.ids[node.start : node.stop]
        if node.ids == theirs:
            return len(theirs)
        image = self.vlm.image_token_id
        pairs = zip(node.ids, theirs, strict=False)
        return next(
            (n for n, (own, there) in enumerate(pairs) if (own == image) != (there == image)),
            min(len(theirs), len(node.ids)),
        )

    def _embed(self, continuation: Continuation) -> Tensor:
        """``[pos width]``: image tokens keep the features that stand there in the row, if the continuation brings
        none."""
        ids = torch.tensor(continuation.ids, dtype=torch.long)
        is_image = ids == self.vlm.image_token_id
        if not bool(is_image.any()):
            return self.vlm.embed_ids(ids)
        places = continuation.start + is_image.nonzero()[:, 0]
        if int(places.max()) >= self._length or any(
            self.ids[place] != self.vlm.image_token_id for place in places.tolist()
        ):
            raise ValueError("A continuation has an image token where the row has none.")
        return self.vlm.embed_ids(ids, self.embeds[places] if continuation.features is None else continuation.features)

    def _see(self, nodes: Sequence[Continuation], starts: dict[int, int]) -> Tensor:
        """``[query key]`` bool, as :func:`inspector.row.embedded_row.see` would give each continuation alone.
        ``starts``: where each, and what is kept, begins behind the row."""
        kept = self._kept_positions
        total = count_positions(nodes)
        held = [*self._kept, *nodes]
        visible = torch.zeros((total, self._length + kept + total), dtype=torch.bool)
        attended = torch.cat((self._attended, *(self._own(node)[0] for node in held)))
        segments = torch.cat((self._segments, *(self._own(node)[1] for node in held)))
        for node in nodes:
            if self.row.first_to_see(node.start) < node.start:
                raise ValueError(f"Position {node.start} is inside an image whose tokens see one another.")
            begin = starts[id(node)] - kept
            rows, own = slice(begin, begin + len(node.ids)), self._length + starts[id(node)]
            view = visible[rows]
            view[:, : node.start] = attended[: node.start]
            for parent in node.line[:-1]:
                place = self._length + starts[id(parent)]
                view[:, parent.start : parent.stop] = False
                view[:, place : place + len(parent.ids)] = attended[place : place + len(parent.ids)]
            mine = slice(own, own + len(node.ids))
            past = torch.ones(len(node.ids), len(node.ids), dtype=torch.bool).tril() | self._see_together(node)
            view[:, mine] = past & attended[mine]
            if self.document_mask:
                visible[rows] = view & (segments[mine, None] == segments[None])
            visible[rows, mine].fill_diagonal_(True)
        return visible

    def _see_together(self, node: Continuation) -> Tensor:
        """``[pos pos]`` bool: which of a continuation's own positions see one another, behind them or before."""
        blocks = torch.full((len(node.ids),), -1, dtype=torch.long)
        if self.row.blocks is not None:
            own = self.row.blocks[node.start : node.stop]
            # What is an image stays one; other ids in its place are text.
            same = torch.tensor(
                [i == j for i, j in zip(node.ids, self.ids[node.start :], strict=False)], dtype=torch.bool
            )
            blocks[: len(own)] = own.where(same, -1)
        return (blocks[:, None] == blocks[None]) & (blocks >= 0)[:, None]

    def _own(self, node: Continuation) -> tuple[Tensor, Tensor]:
        """(attended, segment) of a continuation's own positions."""
        if node.ids == self.ids[node.start : node.stop]:
            return self._attended[node.start : node.stop], self._segments[node.start : node.stop]
        segment = self._segments[min(node.start, self._length - 1)]
        return torch.ones(len(node.ids), dtype=torch.bool), segment.expand(len(node.ids))

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
        logprobs = self.vlm.logits(torch.cat(wanted)).log_softmax(dim=-1)
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
    """In order, so many at a time as :data:`KEEP_POSITIONS` says."""
    pack: list[Continuation] = []
    for node in nodes:
        if pack and count_positions(pack) + len(node.ids) > KEEP_POSITIONS:
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
