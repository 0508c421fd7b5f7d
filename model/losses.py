"""Losses that are not the model's own next-token loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(images: Tensor, texts: Tensor, text_of_image: Tensor, log_temperature: Tensor) -> Tensor:
    """CLIP's symmetric InfoNCE (Radford et al. 2021, arXiv 2103.00020), in nats.

    ``images [image d]`` and ``texts [text d]`` of unit length, ``text_of_image [image]`` int64: which text describes
    each image. The similarity of a pair is divided by exp(``log_temperature``). With one text per image, in the same
    order, this is CLIP's loss exactly; where several images share a text, none of them counts as a wrong answer to it
    (the text's loss takes all of them together, as in Khosla et al. 2020, arXiv 2004.11362, outside the logarithm's
    sum). Texts that describe no image are wrong answers to all images and have no loss of their own.
    """
    # Autocast would round similarities to bfloat16's three digits before they are multiplied by up to 100.
    with torch.autocast(images.device.type, enabled=False):
        logits = (images.float() @ texts.float().T) * (-log_temperature.float()).exp()
    image_loss = F.cross_entropy(logits, text_of_image)
    log_share = logits.log_softmax(dim=0)
    own = F.one_hot(text_of_image, len(texts)).to(log_share.dtype)
    counts = own.sum(dim=0)
    described = counts > 0
    text_loss = -((log_share * own).sum(dim=0)[described] / counts[described]).mean()
    return (image_loss + text_loss) / 2


def retrieval_accuracy(images: Tensor, texts: Tensor, text_of_image: Tensor) -> float:
    """Share of images whose nearest text is their own."""
    if not len(images):
        return float("nan")
    return float(((images @ texts.T).argmax(dim=1) == text_of_image).float().mean())


def unit(x: Tensor) -> Tensor:
    """Each row scaled to length 1."""
    return F.normalize(x.float(), dim=-1)


def mean_over(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x [row pos d]`` over the positions where ``mask [row pos]`` is true; zero where there is none."""
    weights = mask.to(x.dtype)[..., None]
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
