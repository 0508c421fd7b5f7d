"""The dual encoder of the contrastive stage: the VLM's image encoder beside a small text tower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from model.losses import mean_over, unit
from model.tokenizer import TextEncoder
from model.vision import VisionEncoder

HeadKind = Literal["linear", "mlp"]
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)


def build_head(kind: HeadKind, width: int, out: int) -> nn.Module:
    """The projection into the shared space: CLIP's linear map, or SimCLR's small MLP (Chen et al. 2020)."""
    if kind == "linear":
        return nn.Linear(width, out, bias=False)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out, bias=False))


class TextTower(nn.Module):
    """A small bidirectional transformer over token ids; the mean over a text's tokens stands for the text."""

    def __init__(self, vocab_size: int, width: int, n_layers: int, n_heads: int, max_tokens: int) -> None:
        super().__init__()
        self.n_layers, self.n_heads, self.max_tokens = n_layers, n_heads, max_tokens
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.zeros(max_tokens, width).normal_(std=0.1))
        layer = nn.TransformerEncoderLayer(
            width, n_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """``ids [text pos]`` int64, ``mask [text pos]`` true where there is a token; to ``[text width]``."""
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        return mean_over(self.norm(self.blocks(x, src_key_padding_mask=~mask)), mask)


class DualEncoder(nn.Module):
    """Images and texts in one space (Radford et al. 2021). The temperature is learned as its logarithm, from 0.07, and
    never falls below 0.01, as in CLIP.

    Pictures are means over patches. A patch has its own way into the space (the same head before the mean), so that
    phrases can be matched to places as well as captions to pictures.
    """

    TEMPERATURES = ("log_temperature", "patch_log_temperature")

    def __init__(
        self,
        vision_encoder: VisionEncoder,
        tokenizer: PreTrainedTokenizerFast,
        *,
        head: HeadKind = "linear",
        width: int = 128,
        n_layers: int = 2,
        n_heads: int = 4,
        max_tokens: int = 48,
    ) -> None:
        super().__init__()
        self.head, self.tokenizer = head, tokenizer
        self.vision_encoder = vision_encoder
        d_vision = vision_encoder.layer_norm.normalized_shape[0]
        self.text = TextTower(len(tokenizer), width, n_layers, n_heads, max_tokens)
        self.image_head = build_head(head, d_vision, width)
        self.patch_head = build_head(head, d_vision, width)
        self.text_head = build_head(head, width, width)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
        self.patch_log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
        self._encoder = TextEncoder(tokenizer)

    def embed_images(self, patches: Tensor) -> Tensor:
        """``patches [tile patch d]`` of the image encoder to unit vectors ``[tile width]``."""
        return unit(self.image_head(patches.mean(dim=1)))

    def embed_patches(self, patches: Tensor) -> Tensor:
        """``patches [… d]`` to unit vectors ``[… width]``."""
        return unit(self.patch_head(patches))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors ``[text width]``; texts beyond ``max_tokens`` are cut there."""
        rows = [self._encoder.encode(text)[0][: self.text.max_tokens] or [0] for text in texts]
        longest = max(map(len, rows))
        device = self.log_temperature.device
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(longest, device=device)[None, :] < lengths[:, None]
        return unit(self.text_head(self.text(ids, mask)))

    @torch.no_grad()
    def bound_temperatures(self) -> None:
        """Takes back what a step did beyond the bound: a temperature that stays behind it has no gradient there."""
        for name in self.TEMPERATURES:
            parameter = getattr(self, name)
            parameter.copy_(self.bounded(parameter))

    @staticmethod
    def bounded(log_temperature: Tensor) -> Tensor:
        """CLIP's bound: similarities are multiplied by at most 100."""
        return log_temperature.clamp(min=math.log(0.01))
