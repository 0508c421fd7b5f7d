"""From the encoder's patches to the language model's image tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VLMConfig


def shuffle_pixels(x: Tensor, factor: int) -> Tensor:
    """Merges each ``factor`` × ``factor`` block of patches into one token: ``[tile side² d]`` to
    ``[tile (side / factor)² factor² · d]``, tokens row by row (Shi et al. 2016; IDEFICS 3's order of channels)."""
    tile, patches, d_model = x.shape
    side = round(patches**0.5)
    if side * side != patches or side % factor:
        raise ValueError(f"{patches} patches are no square grid that divides by {factor}.")
    small = side // factor
    x = x.view(tile, small, factor, small, factor, d_model).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(tile, small * small, factor * factor * d_model)


class Projector(nn.Module):
    """``[tile patch vit_hidden_dim]`` to ``[tile token lm_hidden_dim]``: pixel shuffle, then one linear map (nanoVLM;
    LLaVA had it without the shuffle), or two with a GELU between them and biases (LLaVA-1.5, Liu et al. 2023)."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.factor = config.mp_pixel_shuffle_factor
        two = config.mp_kind == "mlp"
        self.proj = nn.Linear(config.vit_hidden_dim * self.factor**2, config.lm_hidden_dim, bias=two)
        if two:
            self.out = nn.Linear(config.lm_hidden_dim, config.lm_hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(shuffle_pixels(x, self.factor))
        return self.out(F.gelu(x)) if hasattr(self, "out") else x
