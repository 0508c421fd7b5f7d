"""What processes that train one model tell each other on the way through it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(own: Tensor, process_of_row: Tensor) -> Tensor:
    """``[row d]``, of which each process has its ``own [own_row d]``, in their order: those whose number in
    ``process_of_row [row]`` is its own. For embeddings whose loss is between all of them, as CLIP's is.

    Every process then computes the whole loss, so each knows the gradient of its own rows without asking the others. It
    is returned as many times as there are processes, for what comes of it in the weights is averaged over them, and
    each has only its rows' part; weights behind this have the whole gradient in each process, and the average is
    that."""
    gathered: Tensor = _Gathered.apply(own, process_of_row)
    return gathered


def share_out(count: int) -> Tensor:
    """``[row]``: which process has each of ``count`` rows, in turn."""
    return torch.arange(count) % dist.get_world_size()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, process_of_row: Tensor) -> Tensor:
        world = dist.get_world_size()
        process_of_row = process_of_row.to(own.device)
        counts = torch.bincount(process_of_row, minlength=world).tolist()
        padded = own.new_zeros(max(counts), own.shape[1])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        found = own.new_empty(len(process_of_row), own.shape[1])
        for process, (part, count) in enumerate(zip(parts, counts, strict=True)):
            found[process_of_row == process] = part[:count]
        ctx.here, ctx.world = process_of_row == dist.get_rank(), world
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.here] * ctx.world, None
