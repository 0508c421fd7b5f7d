"""The one way to look into or change the language model's attention.

A :class:`Tap` is handed to a forward pass. Its ``reader`` computes softmax(q kᵀ) a second time, for the rows that
were asked for alone, and reduces it on the spot; the pass itself never sees the reader, so its logits stay
bit-identical. Its ``column`` reads the other side: what all rows give to a few keys. Its ``cuts`` take edges out of the
mask before the softmax ("attention knockout", Geva et al. 2023, arXiv 2304.14767). Its ``patches`` put the states of
some positions in the place of others' before a layer ("activation patching", Meng et al. 2022, arXiv 2202.05262). The
cost of reading rows is rows × keys per layer and head, never keys²; a column costs a pass and little more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.masks import make_additive


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
class ActivationPatch:
    """Before ``layer`` (as many as there are layers: after the last) the states of the query positions ``targets``
    become those that ``sources`` of the same pass and row of the batch hold there, one for one."""

    layer: int
    sources: Sequence[int]
    targets: Sequence[int]
    row: int = 0


@dataclass(frozen=True)
class AttentionReading:
    """What a reader saw. ``rows [row]`` are the query positions; ``shares [layer head row group]`` are sums of the
    pattern over each group of keys; ``patterns [layer head row pos]`` the pattern itself, None unless kept. Float32,
    on the CPU. If the groups cover every key once, shares add up to 1.

    ``norms [layer head row group]``, None unless asked for: the length of what a group's keys add to the row through
    this head, ‖Σ pattern · W_O W_V x‖ (Kobayashi et al. 2020, arXiv 2004.10102: the sum of the vectors first)."""

    rows: Tensor
    shares: Tensor
    patterns: Tensor | None
    norms: Tensor | None = None


class AttentionReader:
    """Reads chosen query rows of one row of the batch during one forward pass, then gives :attr:`reading`.

    ``rows``: query positions. ``groups [pos]`` int64: the group of each key, −1 for none; ``n_groups`` of them.
    ``keep_patterns``: also keep the full rows (4 bytes × layers × heads × rows × keys). ``weigh_values``: also the
    lengths of what each group adds.
    """

    def __init__(
        self,
        rows: Sequence[int],
        groups: Tensor,
        n_groups: int,
        *,
        keep_patterns: bool = False,
        weigh_values: bool = False,
        batch_row: int = 0,
    ) -> None:
        self.rows = torch.as_tensor(rows, dtype=torch.long)
        self.batch_row = batch_row
        self.keep_patterns = keep_patterns
        self.weigh_values = weigh_values
        # One column more collects the keys without a group; it is thrown away.
        assignment = torch.nn.functional.one_hot(groups.where(groups >= 0, n_groups), n_groups + 1)
        self._assignment = assignment[:, :n_groups].float()
        self._shares: list[Tensor] = []
        self._patterns: list[Tensor] = []
        self._norms: list[Tensor] = []

    @torch.no_grad()
    def observe(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, output: Tensor) -> None:
        """Called by each layer in turn with rotated ``q [batch head pos d]``, ``k [batch kv_head pos d]``, values
        ``v [batch kv_head pos d]``, the ``mask [batch 1|head query key]`` and the weights of the output projection,
        ``[width head·d]``."""
        rows = self.rows.to(q.device)
        n_kv_heads = k.shape[1]
        queries = q[self.batch_row][:, rows].float().unflatten(0, (n_kv_heads, -1))
        unseen = make_additive(mask[self.batch_row][:, rows], torch.float32).expand(q.shape[1], -1, -1)
        unseen = unseen.unflatten(0, (n_kv_heads, -1))
        assignment = self._assignment.to(q.device)
        outputs = output.detach().float().unflatten(1, (n_kv_heads, q.shape[1] // n_kv_heads, -1))
        shares, patterns, norms = [], [], []
        # One key head at a time: all at once would copy the keys for every query head and hold several times the
        # pattern of the whole layer, which shows in the peak memory of the pass.
        for head in range(n_kv_heads):
            scores = (queries[head].flatten(0, 1) @ k[self.batch_row, head].float().T).unflatten(0, (-1, len(rows)))
            pattern = scores.mul_(scale).add_(unseen[head]).softmax(dim=-1)
            shares.append(pattern @ assignment)
            if self.keep_patterns:
                patterns.append(pattern.cpu())
            if self.weigh_values:
                values = v[self.batch_row, head].float()
                # One group at a time: all at once would be a value vector for each key and group.
                sums = torch.stack([pattern * assignment[:, n] @ values for n in range(assignment.shape[1])], dim=2)
                norms.append(torch.einsum("grnd,wgd->grnw", sums, outputs[:, head]).norm(dim=-1))
        self._shares.append(torch.cat(shares).cpu())
        if self.keep_patterns:
            self._patterns.append(torch.cat(patterns))
        if self.weigh_values:
            self._norms.append(torch.cat(norms).cpu())

    @property
    def reading(self) -> AttentionReading:
        if not self._shares:
            raise RuntimeError("Nothing was read: hand the tap to a forward pass first.")
        patterns = torch.stack(self._patterns) if self.keep_patterns else None
        norms = torch.stack(self._norms) if self.weigh_values else None
        return AttentionReading(self.rows, torch.stack(self._shares), patterns, norms)


_STRETCH_ROWS = 64
"""Rows of a stretch that are looked at together: a few MiB at 4,096 keys, which the processor's caches nearly hold."""


class StretchReader:
    """Reads the query ``rows`` of a stretch (of the first row of the batch) and keeps their means alone, so that a
    stretch of any length takes the memory of one row.

    After the pass: ``pattern [layer head pos]``, the mean of the rows' patterns; ``entropy [layer head]``, the mean of
    the rows' entropies −Σ p ln p in nats; ``entropy_of_max [layer head]``, the mean of each as a share of ln n, the
    entropy of looking at all n keys that the row sees alike (0 where it sees one). Float32, on the CPU."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = torch.as_tensor(rows, dtype=torch.long)
        self._means: list[tuple[Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def observe(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, output: Tensor) -> None:
        """As :meth:`AttentionReader.observe`."""
        heads, kv_heads = q.shape[1], k.shape[1]
        pattern = torch.zeros(heads, k.shape[2], device=q.device)
        entropy, of_max = torch.zeros(heads, device=q.device), torch.zeros(heads, device=q.device)
        for rows in self.rows.to(q.device).split(_STRETCH_ROWS):
            queries = q[0][:, rows].float().unflatten(0, (kv_heads, -1))
            unseen = make_additive(mask[0][:, rows], torch.float32).expand(heads, -1, -1)
            # Of what is masked by the lowest finite number (padding) nothing is seen either.
            largest = (unseen > torch.finfo(torch.float32).min / 2).sum(dim=-1).clamp(min=1).log()
            for head in range(kv_heads):
                own = slice(head * heads // kv_heads, (head + 1) * heads // kv_heads)
                scores = queries[head] @ k[0, head].float().T
                found = scores.mul_(scale).add_(unseen[own]).softmax(dim=-1)
                pattern[own] += found.sum(dim=1)
                own_entropy = torch.special.entr(found).sum(dim=-1)
                entropy[own] += own_entropy.sum(dim=1)
                of_max[own] += (own_entropy / largest[own].clamp(min=torch.finfo(torch.float32).tiny)).sum(dim=1)
        count = len(self.rows)
        self._means.append(((pattern / count).cpu(), (entropy / count).cpu(), (of_max / count).cpu()))

    @property
    def pattern(self) -> Tensor:
        return torch.stack([pattern for pattern, _, _ in self._means])

    @property
    def entropy(self) -> Tensor:
        return torch.stack([entropy for _, entropy, _ in self._means])

    @property
    def entropy_of_max(self) -> Tensor:
        return torch.stack([of_max for _, _, of_max in self._means])


class ColumnReader:
    """Reads the pattern's other side: how much of each query row's attention goes to ``keys`` together.

    That is what the pass's own kernel gives for a value that is 1 at these keys and 0 elsewhere: :meth:`attend` lets
    it stand beside the values as one dimension more, so no row's softmax is worked out a second time, no kernel is
    needed that tells its denominators, and nothing of the size keys² comes into being. After the pass
    :attr:`shares` are ``[layer head query]``, float32 on the CPU, for the first row of the batch; they are as exact
    as the numbers that the pass computes in."""

    WIDTH = 8
    """Dimensions more: kernels like multiples of eight."""

    def __init__(self, keys: Sequence[int]) -> None:
        self.keys = torch.as_tensor(keys, dtype=torch.long)
        self._shares: list[Tensor] = []

    @torch.no_grad()
    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """:func:`torch.nn.functional.scaled_dot_product_attention` with the same arguments, ``scale`` among them."""
        q, k, wide = (F.pad(part, (0, self.WIDTH)) for part in (q, k, v))
        wide[:, :, self.keys.to(v.device), v.shape[-1]] = 1
        found = F.scaled_dot_product_attention(q, k, wide, **options)
        self._shares.append(found[0, ..., v.shape[-1]].float().cpu())
        return found[..., : v.shape[-1]]

    @property
    def shares(self) -> Tensor:
        return torch.stack(self._shares)


STREAMS = ("residual", "attention", "mlp")
"""What can be read of a layer: the states that leave it, and what its attention and its MLP add to them."""


class StateReader:
    """Keeps states of chosen query rows of one forward pass: ``states [layer] → [row width]`` float32 on the CPU.

    ``rows``: query positions; ``layers``: which, from 0; ``stream``: one of :data:`STREAMS`. A layer's residual is what
    leaves it, before the last norm."""

    def __init__(self, rows: Sequence[int], layers: Sequence[int], stream: str = "residual") -> None:
        self.rows = torch.as_tensor(rows, dtype=torch.long)
        self.layers, self.stream = frozenset(layers), stream
        self.states: dict[int, Tensor] = {}

    @torch.no_grad()
    def observe(self, layer: int, before: Tensor, middle: Tensor, after: Tensor) -> None:
        """Called by each layer in turn with the states ``[batch query width]`` that enter it, that stand between its
        attention and its MLP, and that leave it."""
        if layer not in self.layers:
            return
        before, middle, after = (states[0, self.rows.to(states.device)].float() for states in (before, middle, after))
        found = {"residual": after, "attention": middle - before, "mlp": after - middle}[self.stream]
        self.states[layer] = found.cpu()


@dataclass(frozen=True)
class Tap:
    """What a forward pass is to read and to change; one tap per pass."""

    reader: AttentionReader | StretchReader | None = None
    cuts: tuple[Cut, ...] = ()
    patches: tuple[ActivationPatch, ...] = ()
    states: StateReader | None = None
    column: ColumnReader | None = None
    # By the cuts that are active in a layer: the pass's own mask and what was made of it, of the last layer alone
    # (neighbours mostly share their cuts, and one mask of each kind would fill the memory). A new pass (each step of
    # generating is one) comes with a mask of its own, so nothing outlives the pass that it was made for.
    _masks: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def attend(self) -> Callable[..., Tensor]:
        """The kernel of the pass: PyTorch's, or the column's, which is the same with something beside the values."""
        return F.scaled_dot_product_attention if self.column is None else self.column.attend

    def replace(self, layer: int, x: Tensor, first_query: int = 0) -> Tensor:
        """The states ``x [batch query width]`` that enter ``layer``, patched. All sources are read before any target
        is written."""
        active = [patch for patch in self.patches if patch.layer == layer]
        if not active:
            return x
        patched = x.clone()
        for patch in active:
            sources = torch.as_tensor(patch.sources, dtype=torch.long, device=x.device) - first_query
            targets = torch.as_tensor(patch.targets, dtype=torch.long, device=x.device) - first_query
            patched[patch.row, targets] = x[patch.row, sources]
        return patched

    def edit(
        self, layer: int, mask: Tensor, n_heads: int, first_query: int = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The layer's mask with its cuts: ``[batch 1|head query key]`` of ``dtype``, −inf where an edge is cut;
        ``mask`` itself where none is. Query positions are counted from ``first_query`` (positions before it are cached
        and can't be changed any more).

        ValueError if a row is left without any key: what it would attend to is undefined, keep its own position."""
        active = tuple(n for n, cut in enumerate(self.cuts) if cut.layers is None or layer in cut.layers)
        if not active:
            return mask
        base, edited = self._masks.get(active, (None, None))
        if base is not mask or edited is None:
            by_head = any(self.cuts[n].heads is not None for n in active)
            edited = make_additive(mask, dtype)
            edited = edited.expand(-1, n_heads, -1, -1).clone() if by_head else edited.clone()
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
            self._masks.clear()
            self._masks[active] = (mask, edited)
        return edited
