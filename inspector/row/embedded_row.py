"""A row as a model has read it: embedded once, its keys and values kept, and grown token by token as it is answered.

    read_row       the whole of it in one pass
    grow_row       on from what is kept of a row that begins alike
    answer_row     the answer, token by token, each read once
    read_positions attention of positions of the row: a pass of these positions on the kept keys

Whatever comes later (a click on a token, an intervention, another turn) goes on from here and reads nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model import AttentionReader, AttentionReading, Cut, InputError, InspectableVLM, Row, StateReader, Tap
from model.generate import AnswerText, Step, check_logits, check_sampling, choose_tokens, new_generator
from model.language import KeptKeys, KVCache
from model.sample import see as see


@dataclass(frozen=True, eq=False)
class EmbeddedRow:
    """``embeds [pos width]``: what enters the language model, image features in their places; ``cache``: its keys and
    values of every position; ``hidden [pos width]``: its last states. ``document_mask``: packed samples don't see one
    another. Nothing here is changed once it is made."""

    row: Row
    document_mask: bool
    embeds: Tensor
    cache: KVCache
    hidden: Tensor

    def __len__(self) -> int:
        return len(self.row)

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes + self.embeds.nbytes + self.hidden.nbytes


@torch.no_grad()
def read_row(vlm: InspectableVLM, row: Row, features: Sequence[Tensor], *, document_mask: bool = False) -> EmbeddedRow:
    """Reads the whole row. ``features``: ``[token width]`` per image."""
    return _read(vlm, row, _embed(vlm, row, features), document_mask)


@torch.no_grad()
def reread_row(vlm: InspectableVLM, read: EmbeddedRow, cuts: Sequence[Cut]) -> EmbeddedRow:
    """The same row read again without the edges ``cuts``; no image is encoded for it."""
    return _read(vlm, read.row, read.embeds, read.document_mask, cuts)


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
    embeds = _embed(vlm, row, features)
    common = _common(before, row, embeds)
    cache = before.cache.select(slice(0, common), len(row) - common)
    hidden = before.hidden[:common]
    if common < len(row):
        visible = see(row, before.document_mask, common)[None, None]
        new = vlm.decode(embeds[None, common:], row.position_ids[:, common:], visible, cache)[0]
        hidden = torch.cat((hidden, new))
    return EmbeddedRow(row, before.document_mask, embeds, cache, hidden)


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
    check_sampling(temperature, top_k, top_p, seed)
    length = len(read)
    if max_new_tokens > 0 and length >= vlm.max_positions:
        raise InputError(
            f"The prompt is {length:,} tokens long and this model reads at most {vlm.max_positions:,}, so no answer "
            "fits; use fewer or smaller images, or less text."
        )
    generator, text = new_generator(seed), AnswerText(vlm.decode_text)
    room = min(max_new_tokens, vlm.max_positions - length)
    if read.cache.capacity < length + room:
        read = replace(read, cache=read.cache.select(slice(0, length), room))
    for step in range(room):
        logits = vlm.logits(read.hidden[-1:])
        check_logits(logits)
        token_id = int(choose_tokens(logits, generator, temperature, top_k, top_p)[0])
        logprob = float(logits.log_softmax(dim=-1)[0, token_id])
        ended = token_id in vlm.eos_ids
        yield Step(token_id, "" if ended else text.add(token_id), logprob), read
        if ended or step == room - 1:
            return
        read = _append(vlm, read, token_id)


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
    for position in positions:
        if not 0 <= position < len(read):
            raise IndexError(f"Position {position} is outside the {len(read)} positions of the row.")
    chosen = torch.as_tensor(positions, dtype=torch.long)
    reader = AttentionReader(
        range(len(chosen)), groups, n_groups, keep_patterns=keep_patterns, weigh_values=weigh_values
    )
    visible = see(read.row, read.document_mask)[chosen]
    # Each position sees its own kept key, so the pass needs none of its own.
    kept = KeptKeys(read.cache)
    kept.length = len(read)
    vlm.decode(read.embeds[None, chosen], read.row.position_ids[:, chosen], visible[None, None], kept, Tap(reader))
    return replace(reader.reading, rows=chosen)


@torch.no_grad()
def read_states(
    vlm: InspectableVLM, read: EmbeddedRow, positions: Sequence[int], layers: Sequence[int], stream: str = "residual"
) -> dict[int, Tensor]:
    """By layer, ``[position width]``: what ``positions`` hold there, by one pass of these positions alone. ``stream``:
    one of :data:`model.STREAMS`."""
    chosen = torch.as_tensor(positions, dtype=torch.long)
    reader = StateReader(range(len(chosen)), layers, stream)
    visible = see(read.row, read.document_mask)[chosen]
    kept = KeptKeys(read.cache)
    kept.length = len(read)
    vlm.decode(
        read.embeds[None, chosen], read.row.position_ids[:, chosen], visible[None, None], kept, Tap(states=reader)
    )
    return reader.states


def _read(vlm: InspectableVLM, row: Row, embeds: Tensor, document_mask: bool, cuts: Sequence[Cut] = ()) -> EmbeddedRow:
    cache = vlm.new_cache(len(row))
    tap = Tap(cuts=tuple(cuts)) if cuts else None
    visible = see(row, document_mask)[None, None]
    hidden = vlm.decode(embeds[None], row.position_ids, visible, cache, tap)[0]
    return EmbeddedRow(row, document_mask, embeds, cache, hidden)


def _embed(vlm: InspectableVLM, row: Row, features: Sequence[Tensor]) -> Tensor:
    return vlm.embed_ids(row.input_ids, torch.cat(list(features)) if features else None)


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
    return EmbeddedRow(
        grown, read.document_mask, torch.cat((read.embeds, embeds)), cache, torch.cat((read.hidden, hidden))
    )


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
    return common
