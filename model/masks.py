"""Who sees whom: the masks of attention.

A mask is additive, ``[batch 1|head query key]`` with −inf where nothing is seen, as the kernels take it. The plain
causal one may stay what it was made of, bool: the kernels are told that it is causal and read none, and at 4,096
positions the additive one would take 67 MB.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
