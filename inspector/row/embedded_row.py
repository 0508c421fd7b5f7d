"""A row as a model has read it: embedded once, its keys and values kept, and grown token by token as it is answered.

    read_row       the whole of it in one pass
    grow_row       on from what is kept of a row that begins alike
    answer_row     the answer, token by token, each read once
    read_positions attention of positions of the row: a pass of these positions on the kept keys
    read_stretch   the mean of it over a stretch
    read_column    the other side: what later positions give to some

Whatever comes later (a click on a token, an intervention, another turn) goes on from here and reads nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inspector.row.token_table import token_losses
from model import (
    AttentionReader,
    AttentionReading,
    ColumnReader,
    Cut,
    InspectableVLM,
    Row,
    StateReader,
    StretchReader,
    Tap,
)
from model.generate import Step, check_room, continue_row
from model.language import KeptKeys, KVCache
from model.sample import see as see


@dataclass(frozen=True, eq=False)
class EmbeddedRow:
    """``cache``: keys and values of every position. ``embedded``: what entered the language model. ``states [kept
    width]``: the last states of the positions for which ``has_state [pos]`` is true. ``losses [pos]``: see
    :func:`inspector.row.token_table.token_losses`; of the first positions only, or none, where they weren't asked for
    yet. ``document_mask``: packed samples don't see one another. Nothing here is changed once it is made."""

    row: Row
    document_mask: bool
    embedded: EmbeddedTokens
    cache: KVCache
    states: Tensor
    has_state: Tensor
    losses: Tensor

    def __len__(self) -> int:
        return len(self.row)

    @property
    def embeds(self) -> Tensor:
        """``[pos width]``: what enters the language model, image features in their places; made anew each time."""
        return self.embedded.lay_out()

    @property
    def hidden(self) -> Tensor:
        """``[pos width]``: the last states; NaN where :func:`thin_row` let go of one."""
        if bool(self.has_state.all()):
            return self.states
        found = self.states.new_full((len(self), self.states.shape[1]), torch.nan)
        found[self.has_state] = self.states
        return found

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes + self.embedded.nbytes + self.states.nbytes


@dataclass(frozen=True, eq=False)
class EmbeddedTokens:
    """What enters the language model at each position. ``text [text pos, width]``: at those that are no image token;
    ``features [token width]``: those of each part of an image, in order, the same that the feature store keeps, so that
    they are in memory once. ``is_image [pos]`` bool."""

    text: Tensor
    features: tuple[Tensor, ...]
    is_image: Tensor

    @property
    def nbytes(self) -> int:
        return self.text.nbytes + sum(part.nbytes for part in self.features)

    def lay_out(self) -> Tensor:
        """``[pos width]``."""
        found = self.text.new_empty((len(self.is_image), self.text.shape[1]))
        is_image = self.is_image.to(found.device)
        found[~is_image] = self.text
        if self.features:
            found[is_image] = torch.cat(self.features).to(found)
        return found


@torch.no_grad()
def read_row(vlm: InspectableVLM, row: Row, features: Sequence[Tensor], *, document_mask: bool = False) -> EmbeddedRow:
    """Reads the whole row. ``features``: ``[token width]`` of each image, or of each part of one."""
    return _read(vlm, row, _embed(vlm, row, features), document_mask)


@torch.no_grad()
def thin_row(vlm: InspectableVLM, read: EmbeddedRow) -> EmbeddedRow:
    """The row as it is kept: with the loss of every token, and without the last states from which nothing but an image
    token follows, for nobody asks for them then."""
    losses = token_losses(vlm, read.hidden, read.row, read.losses)
    follows = torch.cat((read.embedded.is_image[1:], torch.tensor([False])))
    kept = read.has_state & ~(read.embedded.is_image & follows)
    states = read.states[kept[read.has_state].to(read.states.device)]
    return replace(read, states=states, has_state=kept, losses=losses)


@torch.no_grad()
def reread_row(vlm: InspectableVLM, read: EmbeddedRow, cuts: Sequence[Cut]) -> EmbeddedRow:
    """The same row read again without the edges ``cuts``; no image is encoded for it."""
    return _read(vlm, read.row, read.embedded, read.document_mask, cuts)


@torch.no_grad()
def run_whole(vlm: InspectableVLM, row: Row, embeds: Tensor, document_mask: bool) -> Tensor:
    """The last states ``[pos width]`` of the row with other ``embeds [pos width]``, in one pass that keeps nothing:
    passes of one shape agree to the last bit wherever they see the same."""
    return run_whole_under(vlm, row, embeds, see(row, document_mask))


@torch.no_grad()
def run_whole_under(vlm: InspectableVLM, row: Row, embeds: Tensor, visible: Tensor) -> Tensor:
    """:func:`run_whole` where each position sees what ``visible [query key]`` says."""
    return vlm.decode(embeds[None], row.position_ids, visible[None, None])[0]


@torch.no_grad()
def grow_row(vlm: InspectableVLM, before: EmbeddedRow, row: Row, features: Sequence[Tensor]) -> EmbeddedRow:
    """``row``, of which only what comes after its common beginning with ``before`` is computed."""
    embedded = _embed(vlm, row, features)
    embeds = embedded.lay_out()
    common = _common(before, row, embeds)
    cache = before.cache.select(slice(0, common), len(row) - common)
    has_state = before.has_state[:common]
    states = before.states[: int(has_state.sum())]
    if common < len(row):
        visible = see(row, before.document_mask, common)[None, None]
        new = vlm.decode(embeds[None, common:], row.position_ids[:, common:], visible, cache)[0]
        states = torch.cat((states, new))
        has_state = torch.cat((has_state, torch.ones(len(new), dtype=torch.bool)))
    return EmbeddedRow(row, before.document_mask, embedded, cache, states, has_state, before.losses[:common])


@torch.no_grad()
def answer_row(
    vlm: InspectableVLM,
    read: EmbeddedRow,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Iterator[tuple[Step, EmbeddedRow]]:
    """Goes on from the end of the row: each token, and the row with every token before it, read once and kept. The
    last step is the end token if the model said it. InputError if there is no room, for numbers that nothing can be
    drawn with, and if the model's own are no numbers any more. The cache is written behind the row, so a row is
    answered once."""
    length = len(read)
    room = check_room(max_new_tokens, length, vlm.max_positions)
    if read.cache.capacity < length + room:
        read = replace(read, cache=read.cache.select(slice(0, length), room))
    grown = read

    def grow(token_id: int) -> Tensor:
        nonlocal grown
        grown = _append(vlm, grown, token_id)
        return grown.states[-1:]

    for step in continue_row(
        vlm,
        read.row,
        read.states[-1:],
        grow,
        room=room,
        document_mask=read.document_mask,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    ):
        yield step, grown


@torch.no_grad()
def read_positions(
    vlm: InspectableVLM,
    read: EmbeddedRow,
    positions: Sequence[int],
    groups: Tensor,
    n_groups: int,
    *,
    keep_patterns: bool = False,
    weigh_values: bool = False,
) -> AttentionReading:
    """Attention of ``positions`` over groups of the row's positions (``groups [pos]``, −1 for none), by one pass of
    these positions alone. See :class:`model.AttentionReader`. IndexError for one outside the row."""
    _check_positions(read, positions)
    reader = AttentionReader(
        range(len(positions)), groups, n_groups, keep_patterns=keep_patterns, weigh_values=weigh_values
    )
    _pass_again(vlm, read, positions, Tap(reader))
    return replace(reader.reading, rows=torch.as_tensor(positions, dtype=torch.long))


@torch.no_grad()
def read_stretch(vlm: InspectableVLM, read: EmbeddedRow, positions: Sequence[int]) -> StretchReader:
    """What the positions of a stretch look at on average, by one pass of these positions alone. IndexError for one
    outside the row."""
    _check_positions(read, positions)
    reader = StretchReader(range(len(positions)))
    _pass_again(vlm, read, positions, Tap(reader))
    return reader


@torch.no_grad()
def read_column(vlm: InspectableVLM, read: EmbeddedRow, keys: Sequence[int]) -> Tensor:
    """``[layer head pos]`` float32: how much of each position's attention goes to ``keys`` together; 0 where it can't
    look at them. One pass of the positions that see any of them on the kept keys. IndexError for a key outside the
    row."""
    _check_positions(read, keys)
    begin = min(read.row.first_to_see(key) for key in keys)
    # A part of the row has no plain causal mask, without which the kernel computes what nobody sees, too.
    if 3 * begin < len(read):
        begin = 0
    column = ColumnReader(keys)
    _pass_again(vlm, read, range(begin, len(read)), Tap(column=column))
    shares = torch.zeros(*column.shares.shape[:2], len(read))
    shares[..., begin:] = column.shares
    return shares


@torch.no_grad()
def read_states(
    vlm: InspectableVLM, read: EmbeddedRow, positions: Sequence[int], layers: Sequence[int], stream: str = "residual"
) -> dict[int, Tensor]:
    """By layer, ``[position width]``: what ``positions`` hold there, by one pass of these positions alone. ``stream``:
    one of :data:`model.STREAMS`."""
    reader = StateReader(range(len(positions)), layers, stream)
    _pass_again(vlm, read, positions, Tap(states=reader))
    return reader.states


def _check_positions(read: EmbeddedRow, positions: Sequence[int]) -> None:
    for position in positions:
        if not 0 <= position < len(read):
            raise IndexError(f"Position {position} is outside the {len(read)} positions of the row.")


def _pass_again(vlm: InspectableVLM, read: EmbeddedRow, positions: Sequence[int], tap: Tap) -> None:
    """A pass of ``positions`` alone on the kept keys of the whole row."""
    chosen = torch.as_tensor(positions, dtype=torch.long)
    # Of the positions before the first chosen one nobody asks what they see: of a long row that is most of the square.
    first = min(positions, default=0)
    visible = see(read.row, read.document_mask, first)[chosen - first]
    # Each position sees its own kept key, so the pass needs none of its own.
    kept = KeptKeys(read.cache)
    kept.length = len(read)
    vlm.decode(read.embeds[None, chosen], read.row.position_ids[:, chosen], visible[None, None], kept, tap)


def _read(
    vlm: InspectableVLM, row: Row, embedded: EmbeddedTokens, document_mask: bool, cuts: Sequence[Cut] = ()
) -> EmbeddedRow:
    cache = vlm.new_cache(len(row))
    tap = Tap(cuts=tuple(cuts)) if cuts else None
    visible = see(row, document_mask)[None, None]
    hidden = vlm.decode(embedded.lay_out()[None], row.position_ids, visible, cache, tap)[0]
    has_state = torch.ones(len(row), dtype=torch.bool)
    return EmbeddedRow(row, document_mask, embedded, cache, hidden, has_state, torch.empty(0))


def _embed(vlm: InspectableVLM, row: Row, features: Sequence[Tensor]) -> EmbeddedTokens:
    is_image = row.input_ids == vlm.image_token_id
    count = sum(len(part) for part in features)
    if int(is_image.sum()) != count:
        raise ValueError(f"{int(is_image.sum())} image tokens can't hold {count} features.")
    return EmbeddedTokens(vlm.embed_ids(row.input_ids[~is_image]), tuple(features), is_image)


def _append(vlm: InspectableVLM, read: EmbeddedRow, token_id: int) -> EmbeddedRow:
    """The row with one token of its answer more."""
    row, length = read.row, len(read)
    token = torch.tensor([token_id])
    grown = replace(
        row,
        input_ids=torch.cat((row.input_ids, token)),
        loss_mask=torch.cat((row.loss_mask, torch.tensor([True]))),
        attention_mask=torch.cat((row.attention_mask, torch.tensor([True]))),
        segment_ids=torch.cat((row.segment_ids, row.segment_ids[-1:])),
        position_ids=torch.cat((row.position_ids, _next_positions(row)), dim=1),
        blocks=None if row.blocks is None else torch.cat((row.blocks, torch.tensor([-1]))),
    )
    embeds = vlm.embed_ids(token)
    visible = see(grown, read.document_mask, length)[None, None]
    cache = read.cache
    cache.length = length
    hidden = vlm.decode(embeds[None], grown.position_ids[:, length:], visible, cache)[0]
    embedded = replace(
        read.embedded,
        text=torch.cat((read.embedded.text, embeds)),
        is_image=torch.cat((read.embedded.is_image, torch.tensor([False]))),
    )
    states, has_state = torch.cat((read.states, hidden)), torch.cat((read.has_state, torch.tensor([True])))
    return EmbeddedRow(grown, read.document_mask, embedded, cache, states, has_state, read.losses)


def _next_positions(row: Row) -> Tensor:
    """``[axes 1]``: behind the largest so far, on all axes alike, as text goes on."""
    axes = row.position_ids.shape[0]
    return (row.position_ids.amax() + 1).expand(axes, 1)


def _common(before: EmbeddedRow, row: Row, embeds: Tensor) -> int:
    """How many positions at the beginning are the same to the language model."""
    old = before.row
    count = min(len(old), len(row))
    same = (old.input_ids[:count] == row.input_ids[:count]) & (old.attention_mask[:count] == row.attention_mask[:count])
    if before.document_mask:
        same &= old.segment_ids[:count] == row.segment_ids[:count]
    same &= (old.position_ids[:, :count] == row.position_ids[:, :count]).all(dim=0)
    same &= (before.embeds[:count] == embeds[:count]).all(dim=-1).cpu()
    common = int(same.long().cumprod(dim=0).sum())
    # Positions that see one another are read together or not at all.
    while row.blocks is not None and 0 < common < len(row) and row.blocks[common] >= 0:
        if row.blocks[common - 1] != row.blocks[common]:
            break
        common -= 1
    # What is computed begins behind a position whose last state is kept: the next token's loss follows from it.
    while common and not before.has_state[common - 1]:
        common -= 1
    return common
