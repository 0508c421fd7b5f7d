"""Attention inside transformers' image encoders, read for some of their places while a pass goes on.

One function, known to transformers by a name, has PyTorch's kernel do the work, so that the output is the same whether
somebody reads or not. A layer may work through its places in parts that don't see one another (windows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.families.transformers_text import register_attention

ATTENTION = "vlm_inspector_encoder"
"""The name under which transformers knows :func:`attend`."""


class PlaceReader:
    """What one pass over one image is read for. ``cells [place]``: the cell in which each place of the encoder lies,
    −1 for one in none (a class token); ``cell`` is the one that is read from."""

    def __init__(self, cells: Tensor, cell: int) -> None:
        self._cells, self._cell = cells, cell
        self._module: nn.Module | None = None
        self._start = 0
        self._layers: list[Tensor] = []

    def observe(self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> None:
        """``query`` and ``key`` ``[1 head pos d]`` of a layer, or of the next part of it."""
        if module is not self._module:
            self._module, self._start = module, 0
            self._layers.append(query.new_zeros((query.shape[1], int(self._cells.max()) + 1), dtype=torch.float32))
        cells = self._cells[self._start : self._start + query.shape[2]].to(query.device)
        self._start += query.shape[2]
        rows = (cells == self._cell).nonzero()[:, 0]
        if not len(rows):
            return
        scores = query[0][:, rows].float() * scale @ key[0].float().transpose(-1, -2)
        if mask is not None:
            own = mask[0, :, rows]
            scores = scores.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else scores + own
        shares = scores.softmax(dim=-1).sum(dim=1) / (self._cells == self._cell).sum()
        inside = cells >= 0
        self._layers[-1].index_add_(1, cells[inside], shares[:, inside])

    @property
    def patterns(self) -> Tensor:
        """``[layer head cell]``: the mean over the cell's places of what they give to the places of each cell."""
        return torch.stack([layer.cpu() for layer in self._layers])


_READER: ContextVar[PlaceReader | None] = ContextVar("reader", default=None)
"""Who reads this thread's pass; None where nobody does."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of an image encoder as transformers calls it, ``[image head pos d]`` each."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if (reader := _READER.get()) is not None:
        reader.observe(module, query, key, attention_mask, scale)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scale)
    return found.transpose(1, 2).contiguous(), None


@contextmanager
def reading(cells: Tensor, cell: int) -> Iterator[PlaceReader]:
    """Reads the passes of this thread: they should be one, over one image."""
    reader = PlaceReader(cells, cell)
    kept = _READER.set(reader)
    try:
        yield reader
    finally:
        _READER.reset(kept)


def make_readable(blocks: Sequence[nn.Module]) -> None:
    """Has the blocks of an encoder attend by :func:`attend`."""
    register_attention(ATTENTION, attend)
    for block in blocks:
        for module in block.modules():
            if (config := getattr(module, "config", None)) is not None:
                config._attn_implementation = ATTENTION
