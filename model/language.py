"""The causal decoder: Llama's architecture with nanoVLM's parameter names, and what Qwen2 and Qwen3 add to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VLMConfig
from model.layers import RMSNorm, RotaryEmbedding, SwiGLU, rotate, run_block
from model.masks import Documents, is_causal
from model.tap import Tap


class KVCache:
    """Rotated keys and values of all layers, ``[layer batch kv_head capacity d]`` each, filled from the left.

    Allocated once: growing a tensor at each step would copy the whole prefix for every token. ``positions [capacity]``
    int64 are the rotary positions of the keys (the first axis of several), for models whose masks ask how far apart two
    positions are; whoever runs such a model fills them.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        batch: int,
        capacity: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        shape = (layers, batch, kv_heads, capacity, head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.positions = torch.zeros(capacity, dtype=torch.long)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new positions of one layer; returns all of them. The caller advances :attr:`length` after the
        last layer."""
        stop = self.length + k.shape[2]
        if stop > self.keys.shape[3]:
            raise ValueError(f"The cache holds {self.keys.shape[3]} positions and {stop} were asked for.")
        self.keys[layer, :, :, self.length : stop] = k
        self.values[layer, :, :, self.length : stop] = v
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def select(self, places: Tensor | slice, room: int) -> KVCache:
        """A copy of the positions ``places`` (bool ``[length]`` or a slice of them) with room for ``room`` more."""
        keys = self.keys[:, :, :, : self.length][:, :, :, places]
        values = self.values[:, :, :, : self.length][:, :, :, places]
        found = object.__new__(KVCache)
        found.length = keys.shape[3]
        shape = (*keys.shape[:3], found.length + room, keys.shape[4])
        found.keys, found.values = keys.new_empty(shape), values.new_empty(shape)
        found.keys[:, :, :, : found.length], found.values[:, :, :, : found.length] = keys, values
        found.positions = self.positions.new_zeros(shape[3])
        found.positions[: found.length] = self.positions[: self.length][places]
        return found

    def put(self, other: KVCache, start: int, count: int) -> None:
        """Copies ``count`` positions of ``other`` from ``start`` on behind what is here, without making them its own:
        :attr:`length` stays."""
        there, here = slice(start, start + count), slice(self.length, self.length + count)
        self.keys[:, :, :, here] = other.keys[:, :, :, there]
        self.values[:, :, :, here] = other.values[:, :, :, there]
        self.positions[here] = other.positions[there]


class KeptKeys(KVCache):
    """Keys and values that a pass looks at and adds nothing to: its queries are positions that stand among them."""

    def __init__(self, cache: KVCache) -> None:
        self.keys, self.values, self.length = cache.keys, cache.values, cache.length
        self.positions = cache.positions

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]


@dataclass(frozen=True)
class Pass:
    """What all layers of one forward pass share: the mask ``[batch 1 query key]`` (see :mod:`model.masks`), the rotary
    angles ``[batch query d]``, the cache and the tap. ``causal``: the mask hides the future and nothing else.
    In a pass that nobody looks into, documents may stand for the mask."""

    mask: Tensor | Documents
    cos: Tensor
    sin: Tensor
    cache: KVCache | None = None
    tap: Tap | None = None
    causal: bool = False

    @property
    def first_query(self) -> int:
        return 0 if isinstance(self.mask, Documents) else self.mask.shape[-1] - self.mask.shape[-2]


class CausalAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) under one explicit mask. Where that is the plain causal one the
    kernel is told so instead, and leaves out the half of its work that would be masked."""

    def __init__(self, config: VLMConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.n_kv_heads = config.lm_n_heads, config.lm_n_kv_heads
        self.scale = config.head_dim**-0.5
        self.dropout = config.lm_dropout
        width, bias = config.lm_hidden_dim, config.lm_qkv_bias
        q_width, kv_width = config.head_dim * config.lm_n_heads, config.head_dim * config.lm_n_kv_heads
        self.q_proj = nn.Linear(width, q_width, bias=bias)
        self.k_proj = nn.Linear(width, kv_width, bias=bias)
        self.v_proj = nn.Linear(width, kv_width, bias=bias)
        self.out_proj = nn.Linear(q_width, width, bias=False)
        if config.lm_qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.lm_rms_eps)
            self.k_norm = RMSNorm(config.head_dim, config.lm_rms_eps)

    def forward(self, x: Tensor, context: Pass) -> Tensor:
        batch, pos, _ = x.shape
        q = self.q_proj(x).view(batch, pos, self.n_heads, -1)
        k = self.k_proj(x).view(batch, pos, self.n_kv_heads, -1)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q.transpose(1, 2), context.cos, context.sin)
        k = rotate(k.transpose(1, 2), context.cos, context.sin)
        v = self.v_proj(x).view(batch, pos, self.n_kv_heads, -1).transpose(1, 2)
        if context.cache is not None:
            k, v = context.cache.append(self.layer, k, v)
        dropout = self.dropout if self.training else 0.0
        mask, attend = context.mask, F.scaled_dot_product_attention
        if isinstance(mask, Documents):
            z = mask.attend(attend, q, k, v, dropout_p=dropout, scale=self.scale, enable_gqa=True)
            return self._leave(z, dropout)
        if context.tap is not None:
            attend = context.tap.attend
            mask = context.tap.edit(self.layer, mask, self.n_heads, context.first_query, q.dtype)
            if context.tap.reader is not None:
                context.tap.reader.observe(q, k, v, mask, self.scale, self.out_proj.weight)
        causal = context.causal and mask is context.mask
        z = attend(
            q,
            k,
            v,
            attn_mask=None if causal else mask.to(q.dtype),
            is_causal=causal,
            dropout_p=dropout,
            scale=self.scale,
            enable_gqa=True,
        )
        return self._leave(z, dropout)

    def _leave(self, z: Tensor, dropout: float) -> Tensor:
        """``[batch head pos d]`` to the residual stream."""
        return F.dropout(self.out_proj(z.transpose(1, 2).flatten(2)), dropout, self.training)


class DecoderBlock(nn.Module):
    def __init__(self, config: VLMConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.lm_hidden_dim, config.lm_rms_eps)
        self.attn = CausalAttention(config, layer)
        self.norm2 = RMSNorm(config.lm_hidden_dim, config.lm_rms_eps)
        self.mlp = SwiGLU(config.lm_hidden_dim, config.lm_inter_dim)

    def forward(self, x: Tensor, context: Pass) -> Tensor:
        middle = x + self.attn(self.norm1(x), context)
        after: Tensor = middle + self.mlp(self.norm2(middle))
        if context.tap is not None and context.tap.states is not None:
            context.tap.states.observe(self.attn.layer, x, middle, after)
        return after


class LanguageModel(nn.Module):
    """``inputs_embeds [batch pos lm_hidden_dim]`` to hidden states of the same shape, after the last norm;
    :attr:`head` makes logits of them. Under :class:`model.masks.Documents` the batch is one flat run of positions."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self._kv_heads, self._head_dim = config.lm_n_kv_heads, config.head_dim
        self.token_embedding = nn.Embedding(config.lm_vocab_size, config.lm_hidden_dim)
        self.rotary_embd = RotaryEmbedding(config.head_dim, config.lm_re_base, config.lm_max_position_embeddings)
        self.blocks = nn.ModuleList(DecoderBlock(config, layer) for layer in range(config.lm_n_blocks))
        self.norm = RMSNorm(config.lm_hidden_dim, config.lm_rms_eps)
        self.head = nn.Linear(config.lm_hidden_dim, config.lm_vocab_size, bias=False)
        if config.lm_tie_weights:
            self.head.weight = self.token_embedding.weight
        self.recompute = False
        """Whether training runs the blocks again on the way back; see :func:`model.layers.run_block`."""

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache of the weights' own type, where they are."""
        weight = self.token_embedding.weight
        return KVCache(
            layers=len(self.blocks),
            kv_heads=self._kv_heads,
            head_dim=self._head_dim,
            batch=batch,
            capacity=capacity,
            device=weight.device,
            dtype=weight.dtype,
        )

    def forward(
        self,
        inputs_embeds: Tensor,
        mask: Tensor | Documents,
        position_ids: Tensor,
        *,
        cache: KVCache | None = None,
        tap: Tap | None = None,
        rope_length: int | None = None,
    ) -> Tensor:
        cos, sin = self.rotary_embd(position_ids, rope_length)
        causal = isinstance(mask, Tensor) and (mask.dtype == torch.bool or is_causal(mask))
        context = Pass(mask, cos, sin, cache, tap, causal)
        x = inputs_embeds
        for layer, block in enumerate(self.blocks):
            if tap is not None:
                x = tap.replace(layer, x, context.first_query)
            x = run_block(block, x, context, recompute=self.recompute and self.training)
        if tap is not None:
            x = tap.replace(len(self.blocks), x, context.first_query)
        if cache is not None and not isinstance(cache, KeptKeys):
            cache.length += inputs_embeds.shape[1]
        return self.norm(x)
