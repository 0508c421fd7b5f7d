"""A stage's weights, gradients and moments shared out among the processes of a run: each keeps its part of every tensor
and has a block's weights whole only while that block is computed (FSDP; Zhao et al. 2023, arXiv 2304.11277).

What is written, read again and measured is what one process would have: tensors are put together by name, and parts are
cut from those.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class Sharded(nn.Module):
    """A stage's ``module``, to be called in its place, by all processes at once. ``blocks`` are those of its modules
    that are put together one after the other; all else is whole throughout a step. Made by :func:`shard`."""

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module], accelerator: Accelerator) -> None:
        super().__init__()
        self.module = module
        self._blocks: tuple[Any, ...] = tuple(blocks)
        self._accelerator = accelerator

    def forward(self, batch: Any = None) -> Tensor | None:
        """The loss of ``batch``; without one nothing is computed, and what is no block's is put together."""
        if batch is None:
            return None
        with self._accelerator.autocast():
            loss: Tensor = self.module(batch)
        return loss.float()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """While this lasts every process has all weights, and may compute what others don't."""
        with torch.no_grad():
            self()
        parts = (cast(Any, self), *self._blocks)
        for block in self._blocks:
            block.set_reshard_after_forward(False)
        for part in parts:
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()
            for block in self._blocks:
                block.set_reshard_after_forward(True)

    @torch.no_grad()
    def clip(self, most: float) -> float:
        """The length of all gradients, which are shortened to ``most``."""
        shared, own = [], []
        for parameter in self.module.parameters():
            if parameter.grad is None:
                continue
            if is_shared(parameter):
                shared.append(cast(Any, parameter.grad).to_local())
            else:
                # What is too small to be shared out has a gradient in each process.
                parameter.grad = self._accelerator.reduce(parameter.grad, "mean")
                own.append(parameter.grad)
        squares = [torch.stack([part.square().sum() for part in parts]).sum() for parts in (shared, own) if parts]
        if shared:
            squares[0] = self._accelerator.reduce(squares[0], "sum")
        norm = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
        if math.isfinite(norm) and norm > most:
            for gradient in (*shared, *own):
                gradient.mul_(most / (norm + 1e-6))
        return norm


def shard(
    module: nn.Module, blocks: Sequence[nn.Module], apart: Sequence[nn.Parameter], accelerator: Accelerator
) -> Sharded:
    """``module``, on its device, with the weights of each of ``blocks`` and then all others shared out, but for those
    ``apart`` and single numbers."""
    from torch.distributed.device_mesh import init_device_mesh  # which take long to import
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    ignored = {*apart, *(parameter for parameter in module.parameters() if parameter.ndim == 0)}
    policy = MixedPrecisionPolicy()
    if accelerator.mixed_precision == "bf16":
        # Autocast would keep a copy in bfloat16 of every whole weight for the way back. States stay in float32, as
        # there: it is the weights alone that come in the other precision.
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=ignored)
    found = Sharded(module, blocks, accelerator)
    fully_shard(found, mesh=mesh, ignored_params=ignored)
    return found


def is_shared(tensor: Tensor) -> bool:
    """Whether a process has a part of it alone."""
    return hasattr(tensor, "full_tensor")


def join(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be shared out; then all processes must ask for it."""
    return cast(Any, tensor).full_tensor() if is_shared(tensor) else tensor


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """Of a ``whole`` tensor, which every process has, what it keeps of one that is ``like`` it; on its device."""
    whole = whole.to(like.device)
    if not is_shared(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    shared = cast(Any, like)
    return distribute_tensor(whole, shared.device_mesh, shared.placements, src_data_rank=None)
