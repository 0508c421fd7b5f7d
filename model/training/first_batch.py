"""The beginning of a stage's first batch, small enough to be kept with a run and shown on a page: what the model
really gets, before it learns anything from it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from model.families.protocol import InspectableVLM
from model.sample import Sample
from model.training.data.data_report import write_text
from model.training.memory_estimate import FirstStep

ROWS, IMAGES, IMAGE_PX, TEXT = 4, 4, 96, 4_000
"""Rows, images of a row, their longest side, and letters of a row's text."""
PLAIN_BYTES = 4_000
"""Of an image that is kept as it is; a photograph of this size has more, and is kept as JPEG."""
IMAGE_STARTS = ("data:image/png;base64,", "data:image/jpeg;base64,")


@dataclass(frozen=True)
class BatchRow:
    """One row of a batch: its text with image tokens counted, and its images as data URIs."""

    text: str
    images: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BatchRow:
        """What :meth:`to_json` wrote. TypeError, KeyError or ValueError for anything else."""
        text, images = values["text"], tuple(values["images"])
        if not isinstance(text, str) or not all(str(image).startswith(IMAGE_STARTS) for image in images):
            raise ValueError("it is no row of a batch")
        return cls(_cut(text), images[:IMAGES])


def show_rows(vlm: InspectableVLM, step: FirstStep) -> tuple[BatchRow, ...]:
    """The first rows of a step; of a contrastive one its captions."""
    captions = [BatchRow(_cut(caption)) for caption in step.captions[:ROWS]]
    samples = [BatchRow(_cut(write_text(vlm, sample)), _draw_images(sample)) for sample in step.samples[:ROWS]]
    return (*captions, *samples)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else text[:TEXT] + "…"


def _draw_images(sample: Sample) -> tuple[str, ...]:
    found = []
    for image in sample.images[:IMAGES]:
        pixels = (image.tiles[0].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
        picture = Image.fromarray(pixels)
        picture.thumbnail((IMAGE_PX, IMAGE_PX))
        start, data = IMAGE_STARTS[0], _encode(picture, "PNG")
        if len(data) > PLAIN_BYTES:
            start, data = IMAGE_STARTS[1], _encode(picture, "JPEG")
        found.append(start + base64.b64encode(data).decode())
    return tuple(found)


def _encode(picture: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, quality=80)
    return out.getvalue()
