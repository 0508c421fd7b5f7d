"""Pieces that are not an attention block: normalisation, rotary positions, feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, x: Tensor, *context: Any, recompute: bool = False) -> Tensor:
    """The block's output. ``recompute``: the way back keeps ``x`` alone and runs the block again (Chen et al. 2016,
    arXiv 1604.06174), so that the memory of a pass is that of one block and of what stands between them."""
    if not (recompute and torch.is_grad_enabled()):
        return block(x, *context)
    found: Tensor = checkpoint(block, x, *context, use_reentrant=False)
    return found


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension, computed in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.LayerNorm):
    """torch's, with weights that may be of another precision than what they are multiplied with."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class RotaryEmbedding(nn.Module):
    """Rotary position embedding, the half-split variant that Llama checkpoints use (Su et al. 2021).

    ``inv_freq [head_dim / 2]`` is a persistent buffer because nanoVLM's files hold it. Angles are always computed in
    float32: in bfloat16 neighbouring positions above 256 would coincide.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int, base: float, max_positions: int) -> None:
        super().__init__()
        self.max_positions = max_positions
        # On the CPU in any case: arithmetic on torch's meta device would import its compiler.
        steps = torch.arange(0, head_dim, 2, device="cpu").float()
        self.register_buffer("inv_freq", 1.0 / base ** (steps / head_dim))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        """Moves with the model, but stays float32 in a model of another precision: rounded to bfloat16 the angles of
        far positions are off by whole turns."""
        exact = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != torch.float32:
            self.inv_freq = exact.to(device=self.inv_freq.device, dtype=torch.float32)
        return self

    def forward(self, position_ids: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin ``[batch pos head_dim]`` for ``position_ids [batch pos]``.

        A sequence ``length`` beyond ``max_positions`` slows all angles by length / max_positions, as upstream does.
        ``length`` defaults to the largest position + 1. A caller that caches keys must pass the same one each time, or
        refuse: keys rotated on different scales don't fit together.
        """
        inv_freq = self.inv_freq.float()
        length = int(position_ids.max()) + 1 if length is None else length
        if length > self.max_positions:
            inv_freq = inv_freq / (length / self.max_positions)
        angles = position_ids.float()[..., None] * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates queries or keys ``[batch head pos head_dim]`` by cos and sin ``[batch pos head_dim]``."""
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
