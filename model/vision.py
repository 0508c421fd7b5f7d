"""The image encoder: a pre-norm ViT with nanoVLM's parameter names; SigLIP's numerics, or CLIP's or DINOv2's where the
configuration says so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Activation, VLMConfig
from model.layers import LayerNorm, run_block


class PatchEmbedding(nn.Module):
    """``[tile patch d]``, behind the class token where the encoder has one; its place is part of its embedding."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        side = config.vit_img_size // config.vit_patch_size
        self.conv = nn.Conv2d(3, config.vit_hidden_dim, config.vit_patch_size, stride=config.vit_patch_size)
        self.position_embedding = nn.Parameter(torch.zeros(1, side * side, config.vit_hidden_dim))
        if config.vit_class_token:
            self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.vit_hidden_dim))

    def forward(self, tiles: Tensor) -> Tensor:
        patches = self.conv(tiles).flatten(2).transpose(1, 2) + self.position_embedding
        if not hasattr(self, "class_embedding"):
            return patches
        return torch.cat((self.class_embedding.expand(len(patches), -1, -1), patches), dim=1)


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), OpenAI CLIP's approximation of GELU (Hendrycks & Gimpel 2016)."""
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
}


class VisionAttention(nn.Module):
    """Attention of every patch to every patch of the same tile; there is nothing to mask."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.n_heads = config.vit_n_heads
        self.dropout = config.vit_dropout
        self.qkv_proj = nn.Linear(config.vit_hidden_dim, 3 * config.vit_hidden_dim)
        self.out_proj = nn.Linear(config.vit_hidden_dim, config.vit_hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        tile, patch, d_model = x.shape
        q, k, v = self._project(x)
        z = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        z = self.out_proj(z.transpose(1, 2).reshape(tile, patch, d_model))
        return F.dropout(z, self.dropout, self.training)

    def read_pattern(self, x: Tensor, patch: int) -> Tensor:
        """``[tile head patch]``: where each head looks from one ``patch``."""
        q, k, _ = self._project(x)
        return (q[:, :, patch, None] * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)[:, :, 0]

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``[tile head patch d]`` each."""
        tile, patch, _ = x.shape
        q, k, v = self.qkv_proj(x).view(tile, patch, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v


class VisionMLP(nn.Module):
    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.vit_hidden_dim, config.vit_inter_dim)
        self.fc2 = nn.Linear(config.vit_inter_dim, config.vit_hidden_dim)
        self.dropout = config.vit_dropout
        self.activation = _ACTIVATIONS[config.vit_activation]

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc2(self.activation(self.fc1(x))), self.dropout, self.training)


class VisionBlock(nn.Module):
    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.ln1 = LayerNorm(config.vit_hidden_dim, eps=config.vit_ln_eps)
        self.attn = VisionAttention(config)
        self.ln2 = LayerNorm(config.vit_hidden_dim, eps=config.vit_ln_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class VisionEncoder(nn.Module):
    """``tiles [tile 3 tile_px tile_px]`` with values in [0, 1], not normalised (nanoVLM's checkpoints expect exactly
    that; what other encoders expect is part of their first layer here), to ``[tile patch vit_hidden_dim]``, patches row
    by row."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.dropout = config.vit_dropout
        self._tile_px = config.tile_px
        self.first_patch = int(config.vit_class_token)
        if config.vit_pre_norm:
            self.pre_norm = LayerNorm(config.vit_hidden_dim, eps=config.vit_ln_eps)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.vit_n_blocks))
        if config.vit_post_norm:
            self.layer_norm = LayerNorm(config.vit_hidden_dim, eps=config.vit_ln_eps)
        self.recompute = False
        """As :attr:`model.language.LanguageModel.recompute`."""

    def blank(self) -> Tensor:
        """``[1 3 tile_px tile_px]``: a tile of nothing."""
        return self.patch_embedding.position_embedding.new_zeros(1, 3, self._tile_px, self._tile_px)

    def forward(self, tiles: Tensor) -> Tensor:
        x = F.dropout(self.patch_embedding(tiles), self.dropout, self.training)
        if hasattr(self, "pre_norm"):
            x = self.pre_norm(x)
        for block in self.blocks:
            x = run_block(block, x, recompute=self.recompute and self.training)
        x = x[:, self.first_patch :]
        return self.layer_norm(x) if hasattr(self, "layer_norm") else x
