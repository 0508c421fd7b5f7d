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
    of_images, of_texts = cross_entropies(logits, text_of_image)
    return (of_images.mean() + of_texts[~of_texts.isnan()].mean()) / 2


def cross_entropies(logits: Tensor, text_of_image: Tensor) -> tuple[Tensor, Tensor]:
    """The terms of :func:`info_nce` in nats, of ``logits [image text]``: ``[image]``, each image's choice among the
    texts, and ``[text]``, each text's among the images; NaN for a text that describes none."""
    of_images = F.cross_entropy(logits, text_of_image, reduction="none")
    own = F.one_hot(text_of_image, logits.shape[1]).to(logits.dtype)
    of_texts = -(logits.log_softmax(dim=0) * own).sum(dim=0) / own.sum(dim=0)
    return of_images, of_texts


def sigmoid_loss(logits: Tensor, text_of_image: Tensor) -> Tensor:
    """SigLIP's loss in nats (Zhai et al. 2023, arXiv 2303.15343) of ``logits [image text]``, bias included: every pair
    is a yes or a no by itself, their losses are added and divided by the images."""
    sign = 2 * F.one_hot(text_of_image, logits.shape[1]).to(logits.dtype) - 1
    return -F.logsigmoid(sign * logits).sum(dim=1).mean()


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
