"""A batch of images and captions under the contrastive losses, every number on the way to them kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inspector.encoder.inputs import ReadImages, check_captions, check_temperature
from model import InputError
from model.encoders.protocol import ImageTextEncoder
from model.losses import cross_entropies, sigmoid_loss

FIRST_BIAS = -10.0
"""With which SigLIP begins to train; stands in where an encoder has learned none."""

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Contrast:
    """``captions``: the different ones, ``text_of_image`` which of them is each image's. Matrices are ``[image]
    [text]``: ``cosines``; ``logits``, cosines / ``temperature`` + ``bias``; ``image_shares``, each image's softmax over
    the texts (a row adds up to 1), and ``text_shares``, each text's over the images (a column does). ``image_losses``
    and ``text_losses``: cross-entropies in nats, None of a text that describes no image; ``image_to_text`` and
    ``text_to_image`` their means, and ``loss`` the mean of both: InfoNCE. ``sigmoid_loss``: SigLIP's, with
    ``sigmoid_bias``. ``learned``: the encoder's own temperature."""

    encoder: str
    captions: tuple[str, ...]
    text_of_image: tuple[int, ...]
    temperature: float
    learned: float
    bias: float
    cosines: Matrix
    logits: Matrix
    image_shares: Matrix
    text_shares: Matrix
    image_losses: tuple[float, ...]
    text_losses: tuple[float | None, ...]
    image_to_text: float
    text_to_image: float
    loss: float
    sigmoid_loss: float
    sigmoid_bias: float
    notes: tuple[str, ...]

    @property
    def guessing(self) -> float:
        """The loss of a batch of which nothing is known: ln N."""
        return math.log(len(self.text_of_image))

    @property
    def right(self) -> int:
        """How many images have their own caption nearest."""
        return sum(max(row) == row[own] for row, own in zip(self.cosines, self.text_of_image, strict=True))

    def to_json(self) -> dict[str, Any]:
        """By the names of transformers where it has some; ``probabilities`` are each image's."""
        return {
            "encoder": self.encoder,
            "texts": list(self.captions),
            "text_of_image": list(self.text_of_image),
            "cosines": [list(row) for row in self.cosines],
            "scale": 1 / self.temperature,
            "temperature": self.temperature,
            "learned_temperature": self.learned,
            "bias": self.bias,
            "logits": [list(row) for row in self.logits],
            "probabilities": [list(row) for row in self.image_shares],
            "text_probabilities": [list(row) for row in self.text_shares],
            "image_losses": list(self.image_losses),
            "text_losses": list(self.text_losses),
            "image_to_text": self.image_to_text,
            "text_to_image": self.text_to_image,
            "loss": self.loss,
            "sigmoid_loss": self.sigmoid_loss,
            "sigmoid_bias": self.sigmoid_bias,
            "notes": list(self.notes),
        }


def measure_contrast(
    encoder: ImageTextEncoder, read: ReadImages, captions: Sequence[str], temperature: float | None = None
) -> Contrast:
    """``captions``: one for each image in their order, then any number that describe none. ``temperature`` None: the
    encoder's own. InputError for captions or a temperature that can't be used, and without a text tower."""
    if not encoder.has_text:
        raise InputError(encoder.missing)
    check_captions(captions, len(read.encoded))
    check_temperature(temperature)
    different = tuple(dict.fromkeys(captions))
    own = torch.tensor([different.index(caption) for caption in captions[: len(read.encoded)]])
    images = torch.stack([image.embedding for image in read.encoded if image.embedding is not None])
    cosines = (images @ encoder.encode_texts(different).T).double().cpu()
    scale = encoder.scale if temperature is None else 1 / temperature
    logits = cosines * scale + encoder.bias
    of_images, of_texts = cross_entropies(logits, own)
    sigmoid_bias = encoder.bias or FIRST_BIAS
    described = of_texts[~of_texts.isnan()]
    return Contrast(
        encoder.name,
        different,
        tuple(own.tolist()),
        1 / scale,
        1 / encoder.scale,
        encoder.bias,
        _matrix(cosines),
        _matrix(logits),
        _matrix(logits.softmax(dim=1)),
        _matrix(logits.softmax(dim=0)),
        tuple(of_images.tolist()),
        tuple(None if math.isnan(value) else value for value in of_texts.tolist()),
        float(of_images.mean()),
        float(described.mean()),
        float((of_images.mean() + described.mean()) / 2),
        float(sigmoid_loss(logits - encoder.bias + sigmoid_bias, own)),
        sigmoid_bias,
        _note(captions, different, len(read.encoded)),
    )


def _matrix(values: torch.Tensor) -> Matrix:
    return tuple(map(tuple, values.tolist()))


def _note(captions: Sequence[str], different: Sequence[str], images: int) -> tuple[str, ...]:
    found = []
    if len(set(captions[:images])) < images:
        found.append(
            "Images that share a caption share its column, as the trainer does it: none of them is a wrong answer to "
            "it, and the caption's loss is the mean over its images."
        )
    if len(different) > len(set(captions[:images])):
        found.append("Captions that describe no image are wrong answers to all, and have no loss of their own.")
    if images == 1 and len(different) == 1:
        found.append(
            "One image and one caption: there is nothing to choose between, so InfoNCE is 0 whatever they show. Add "
            "an image or a caption."
        )
    return tuple(found)
