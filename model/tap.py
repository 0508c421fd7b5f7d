"""The one way to look into or change the language model's attention.

A :class:`Tap` is handed to a forward pass. Its ``reader`` computes softmax(q kᵀ) a second time, for the rows that
were asked for alone, and reduces it on the spot; the pass itself never sees the reader, so its logits stay
bit-identical. Its ``cuts`` take edges out of the mask before the softmax ("attention knockout", Geva et al. 2023,
arXiv 2304.14767). The cost of reading is rows × keys per layer and head, never keys².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """Edges that are taken away: every query position in ``queries`` stops seeing every key position in ``keys``.

    ``layers`` and ``heads`` count from 0, None means all; ``row`` is one row of the batch, None means all.
    """

    queries: Sequence[int]
    keys: Sequence[int]
    layers: frozenset[int] | None = None
    heads: frozenset[int] | None = None
    row: int | None = None


@dataclass(frozen=True)
class AttentionReading:
    """What a reader saw. ``rows [row]`` are the query positions; ``shares [layer head row group]`` are sums of the
    pattern over each group of keys; ``patterns [layer head row pos]`` the pattern itself, None unless kept. Float32,
    on the CPU. If the groups cover every key once, shares add up to 1."""

    rows: Tensor
    shares: Tensor
    patterns: Tensor | None


class AttentionReader:
    """Reads chosen query rows of one row of the batch during one forward pass, then gives :attr:`reading`.

    ``rows``: query positions. ``groups [pos]`` int64: the group of each key, −1 for none; ``n_groups`` of them.
    ``keep_patterns``: also keep the full rows (4 bytes × layers × heads × rows × keys).
    """

    def __init__(
        self, rows: Sequence[int], groups: Tensor, n_groups: int, *, keep_patterns: bool = False, batch_row: int = 0
    ) -> None:
        self.rows = torch.as_tensor(rows, dtype=torch.long)
        self.batch_row = batch_row
        self.keep_patterns = keep_patterns
        # One column more collects the keys without a group; it is thrown away.
        assignment = torch.nn.functional.one_hot(groups.where(groups >= 0, n_groups), n_groups + 1)
        self._assignment = assignment[:, :n_groups].float()
        self._shares: list[Tensor] = []
        self._patterns: list[Tensor] = []

    @torch.no_grad()
    def observe(self, q: Tensor, k: Tensor, mask: Tensor, scale: float) -> None:
        """Called by each layer in turn with rotated ``q [batch head pos d]``, ``k [batch kv_head pos d]`` and the
        additive ``mask [batch 1|head query key]``."""
        rows = self.rows.to(q.device)
        n_kv_heads = k.shape[1]
        queries = q[self.batch_row][:, rows].float().unflatten(0, (n_kv_heads, -1))
        unseen = mask[self.batch_row][:, rows].float().expand(q.shape[1], -1, -1).unflatten(0, (n_kv_heads, -1))
        assignment = self._assignment.to(q.device)
        shares, patterns = [], []
        # One key head at a time: all at once would copy the keys for every query head and hold several times the
        # pattern of the whole layer, which shows in the peak memory of the pass.
        for head in range(n_kv_heads):
            scores = (queries[head].flatten(0, 1) @ k[self.batch_row, head].float().T).unflatten(0, (-1, len(rows)))
            pattern = scores.mul_(scale).add_(unseen[head]).softmax(dim=-1)
            shares.append(pattern @ assignment)
            if self.keep_patterns:
                patterns.append(pattern.cpu())
        self._shares.append(torch.cat(shares).cpu())
        if self.keep_patterns:
            self._patterns.append(torch.cat(patterns))

    @property
    def reading(self) -> AttentionReading:
        if not self._shares:
            raise RuntimeError("Nothing was read: hand the tap to a forward pass first.")
        patterns = torch.stack(self._patterns) if self.keep_patterns else None
        return AttentionReading(self.rows, torch.stack(self._shares), patterns)


@dataclass(frozen=True)
class Tap:
    """What a forward pass is to read and to change; one tap per pass."""

    reader: AttentionReader | None = None
    cuts: tuple[Cut, ...] = ()
    # By the cuts that are active in a layer: the pass's own mask and what was made of it. A new pass (each step of
    # generating is one) comes with a mask of its own, so nothing outlives the pass that it was made for.
    _masks: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def edit(self, layer: int, mask: Tensor, n_heads: int, first_query: int = 0) -> Tensor:
        """The layer's mask with its cuts: ``[batch 1|head query key]``, −inf where an edge is cut. Query positions
        are counted from ``first_query`` (positions before it are cached and can't be changed any more).

        ValueError if a row is left without any key: what it would attend to is undefined, keep its own position."""
        active = tuple(n for n, cut in enumerate(self.cuts) if cut.layers is None or layer in cut.layers)
        if not active:
            return mask
        base, edited = self._masks.get(active, (None, None))
        if base is not mask or edited is None:
            by_head = any(self.cuts[n].heads is not None for n in active)
            edited = mask.expand(-1, n_heads, -1, -1).clone() if by_head else mask.clone()
            for n in active:
                cut = self.cuts[n]
                queries = torch.as_tensor(cut.queries, dtype=torch.long, device=mask.device) - first_query
                queries = queries[(queries >= 0) & (queries < mask.shape[-2])]
                keys = torch.as_tensor(cut.keys, dtype=torch.long, device=mask.device)
                keys = keys[keys < mask.shape[-1]]
                rows = range(mask.shape[0]) if cut.row is None else (cut.row,)
                heads = range(edited.shape[1]) if cut.heads is None else sorted(cut.heads)
                for row in rows:
                    for head in heads:
                        edited[row, head, queries[:, None], keys] = -torch.inf
            if (edited == -torch.inf).all(dim=-1).any():
                raise ValueError("A cut leaves a position with nothing to attend to; leave it its own position.")
            self._masks[active] = (mask, edited)
        return edited
