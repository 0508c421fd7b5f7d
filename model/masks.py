"""Who sees whom: the masks of attention.

A mask is additive, ``[batch 1|head query key]`` with −inf where nothing is seen, as the kernels take it. The plain
causal one may stay what it was made of, bool: the kernels are told that it is causal and read none, and at 4,096
positions the additive one would take 67 MB. Where rows are trained on, none is made at all: :class:`Documents` says
which positions see one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Stretches of one flat run of positions, each causal in itself and blind for all others: what a mask says of rows
    that are packed or padded, without the mask.

    Documents of like lengths (none twice as long as another) stand side by side, padded on the right, where nobody who
    counts sees the padding; so the kernel is told “causal” and reads no mask. Laid out like this they need neither
    FlexAttention nor a kernel for rows of several lengths (varlen); on a GPU neither of the two was tried. ``groups``:
    for each of them the places ``[document pos]`` int64 in the flat run. ``order [pos]``: where each position of the
    flat run lies among those of all groups.
    """

    groups: tuple[Tensor, ...]
    order: Tensor

    def attend(self, kernel: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """What ``kernel``, called as torch's scaled_dot_product_attention, gives for ``q``, ``k``, ``v``
        ``[1 head pos d]`` of the flat run."""
        found = []
        for places in self.groups:
            parts = (
                x[0].transpose(0, 1)[places.flatten()].unflatten(0, places.shape).transpose(1, 2) for x in (q, k, v)
            )
            z = _attend_causally(kernel, *parts, **options)
            found.append(z.transpose(1, 2).flatten(0, 1))
        return torch.cat(found)[self.order].transpose(0, 1)[None]


SHORT = 256
"""Below so many positions PyTorch's kernel for CPUs takes less time in float32 than in bfloat16, there and back: at
131 of them 3.5 ms instead of 7.9, at 256 as much."""


def _attend_causally(kernel: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """``kernel`` under the causal mask; in float32 where autocast would choose a dtype that takes longer."""
    if q.device.type != "cpu" or q.shape[-2] >= SHORT or not torch.is_autocast_enabled("cpu"):
        return kernel(q, k, v, attn_mask=None, is_causal=True, **options)
    with torch.autocast("cpu", enabled=False):
        return kernel(q.float(), k.float(), v.float(), attn_mask=None, is_causal=True, **options)


def find_documents(attention_mask: Tensor, segment_ids: Tensor | None) -> Documents:
    """The documents of the positions that ``attention_mask [batch pos]`` keeps, laid out flat: the rows, or each row's
    runs of ``segment_ids [batch pos]``. The same as :func:`build_mask` says, for all positions that are attended to."""
    rows = torch.arange(len(attention_mask), device=attention_mask.device)[:, None].expand_as(attention_mask)
    marks = torch.stack((rows, rows if segment_ids is None else segment_ids))[:, attention_mask]
    lengths = torch.unique_consecutive(marks, dim=1, return_counts=True)[1].tolist()
    starts = [0, *torch.tensor(lengths, dtype=torch.long).cumsum(0).tolist()]
    groups, kept = [], []
    for members in group_documents(lengths):
        chosen = torch.tensor(members)
        own = torch.tensor(lengths)[chosen, None]
        steps = torch.arange(int(own.max()))[None]
        # What is behind the end of a document repeats its last position: any one would do.
        groups.append((torch.tensor(starts)[chosen, None] + steps.minimum(own - 1)).to(attention_mask.device))
        kept.append((steps < own).to(attention_mask.device))
    valid = torch.cat([mask.flatten() for mask in kept]).nonzero()[:, 0]
    flat = torch.cat([places.flatten() for places in groups])[valid]
    order = torch.empty_like(flat)
    order[flat] = valid
    return Documents(tuple(groups), order)


def group_documents(lengths: Sequence[int]) -> list[list[int]]:
    """The numbers of the documents of these ``lengths`` that stand side by side: none twice as long as another."""
    ordered = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [list(members) for _, members in groupby(ordered, key=lambda document: lengths[document].bit_length())]


def build_mask(
    attention_mask: Tensor, segment_ids: Tensor | None, queries: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The additive mask ``[batch 1 query key]`` for the last ``queries`` positions of ``attention_mask [batch key]``.

    −inf for the future and, if ``segment_ids [batch key]`` are given (the document mask), for other segments; the
    dtype's minimum for padding and separators. So a padding row, which sees nothing else, is uniform over the padding
    before it and finite, as upstream's.
    """
    keys = attention_mask.shape[1]
    positions = torch.arange(keys, device=attention_mask.device)
    hidden = (positions[None, :] > positions[keys - queries :, None])[None]
    if segment_ids is not None:
        hidden = hidden | (segment_ids[:, keys - queries :, None] != segment_ids[:, None, :])
    unseen = torch.where(attention_mask, 0.0, torch.finfo(dtype).min).to(dtype)
    return unseen[:, None, :].masked_fill(hidden, -torch.inf)[:, None]


def make_mask(attention_mask: Tensor, segment_ids: Tensor | None, dtype: torch.dtype) -> Tensor:
    """:func:`build_mask` of whole rows; bool where that is the plain causal one."""
    length = attention_mask.shape[1]
    if bool(attention_mask.all()) and (segment_ids is None or bool((segment_ids == segment_ids[:, :1]).all())):
        return torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()[None, None]
    return build_mask(attention_mask, segment_ids, length, dtype)


def mask_visible(visible: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The mask of ``visible [batch 1 query key]`` bool; that itself where it is the plain causal one."""
    visible = visible.to(device)
    return visible if is_causal(visible) else make_additive(visible, dtype)


def make_additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """``mask`` with −inf where nothing is seen, if it isn't so already."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def is_causal(mask: Tensor) -> bool:
    """Whether a mask ``[batch 1 query key]`` hides the future and nothing else."""
    queries, keys = mask.shape[-2:]
    if queries != keys or queries == 1:
        return False
    hidden = ~mask if mask.dtype == torch.bool else mask == -torch.inf
    # The last query sees everything in a causal mask, and nearly always not in another.
    if bool(hidden[:, :, -1].any()) or (mask.dtype != torch.bool and bool(mask[:, :, -1].any())):
        return False
    future = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).triu(1)
    if not all(torch.equal(row[0], future) for row in hidden):
        return False
    return mask.dtype == torch.bool or not bool(mask.masked_select(~hidden).any())
