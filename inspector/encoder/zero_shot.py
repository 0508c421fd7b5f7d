"""Zero-shot classification: which of a person's labels fits an image, by the nearest text (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inspector.encoder.inputs import ReadImages, check_labels, check_temperature, check_templates
from model import InputError
from model.encoders.protocol import ImageTextEncoder
from model.losses import unit

CURVE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Temperatures at which the probabilities are shown."""


@dataclass(frozen=True)
class ZeroShot:
    """``cosines [image][label]`` with the mean text of all templates, ``probabilities`` their softmax at
    ``temperature``. ``yes [image][label]``: each label by itself, of an encoder that was trained with the sigmoid loss,
    else None. ``curve [temperature][image][label]``: the softmax at each of :data:`CURVE`."""

    labels: tuple[str, ...]
    templates: tuple[str, ...]
    temperature: float
    cosines: tuple[tuple[float, ...], ...]
    probabilities: tuple[tuple[float, ...], ...]
    yes: tuple[tuple[float, ...], ...] | None
    curve: tuple[tuple[tuple[float, ...], ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "labels": list(self.labels),
            "templates": list(self.templates),
            "temperature": self.temperature,
            "cosines": [list(row) for row in self.cosines],
            "probabilities": [list(row) for row in self.probabilities],
            "yes": None if self.yes is None else [list(row) for row in self.yes],
            "curve": [
                {"temperature": temperature, "probabilities": [list(row) for row in rows]}
                for temperature, rows in zip(CURVE, self.curve, strict=True)
            ],
        }


def classify(
    encoder: ImageTextEncoder,
    read: ReadImages,
    labels: Sequence[str],
    templates: Sequence[str],
    temperature: float | None = None,
) -> ZeroShot:
    """A label's text is the mean of its unit vectors over all templates, scaled to length 1 again. InputError for
    labels, templates or a temperature that can't be used, and without a text tower."""
    if not encoder.has_text:
        raise InputError(encoder.missing)
    check_labels(labels)
    check_templates(templates)
    check_temperature(temperature)
    texts = [encoder.encode_texts([template.replace("{}", label) for label in labels]) for template in templates]
    images = torch.stack([image.embedding for image in read.encoded if image.embedding is not None])
    cosines = (images @ unit(torch.stack(texts).mean(dim=0)).T).double().cpu()
    scale = encoder.scale if temperature is None else 1 / temperature

    def rows(values: torch.Tensor) -> tuple[tuple[float, ...], ...]:
        return tuple(map(tuple, values.tolist()))

    return ZeroShot(
        tuple(labels),
        tuple(templates),
        1 / scale,
        rows(cosines),
        rows((cosines * scale).softmax(dim=1)),
        rows((cosines * scale + encoder.bias).sigmoid()) if encoder.loss_kind == "sigmoid" else None,
        tuple(rows((cosines / one).softmax(dim=1)) for one in CURVE),
    )
