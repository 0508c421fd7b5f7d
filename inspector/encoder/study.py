"""Everything about the images and texts of one page or command line, as far as it was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inspector.encoder.contrast import Contrast, measure_contrast
from inspector.encoder.inputs import ReadImages
from inspector.encoder.patches import PhrasePatches, find_phrases
from inspector.encoder.zero_shot import ZeroShot, classify
from model import InputError
from model.encoders.protocol import ImageTextEncoder


@dataclass(frozen=True)
class TextQuestions:
    """What a person typed. Without ``labels`` nothing is classified, without ``phrases`` nothing is looked for.
    ``temperature`` None: the encoder's own."""

    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    temperature: float | None = None


@dataclass(frozen=True)
class TextStudy:
    """What an encoder says to them; ``zero_shot`` and ``phrases`` None where they weren't asked for."""

    contrast: Contrast
    zero_shot: ZeroShot | None
    phrases: PhrasePatches | None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.contrast.to_json(),
            "zero_shot": None if self.zero_shot is None else self.zero_shot.to_json(),
            "phrases": None if self.phrases is None else self.phrases.to_json(),
        }


def study_texts(encoder: ImageTextEncoder, read: ReadImages, asked: TextQuestions) -> TextStudy:
    """InputError for a text that can't be used, and without a text tower."""
    return TextStudy(
        measure_contrast(encoder, read, asked.captions, asked.temperature),
        classify(encoder, read, asked.labels, asked.templates, asked.temperature) if asked.labels else None,
        find_phrases(encoder, read, asked.phrases) if asked.phrases else None,
    )


def describe_encoder(encoder: ImageTextEncoder) -> dict[str, Any]:
    """What it is and which parts it has."""
    return {
        "encoder": encoder.name,
        "loss_kind": encoder.loss_kind,
        "has_text": encoder.has_text,
        "layers": encoder.n_layers,
        "heads": encoder.n_heads,
        "about_patches": encoder.about_patches,
        "missing": encoder.missing,
    }


def read_place(text: str) -> tuple[int, int, int]:
    """Image, row and column, all from 0, of “1:4,3”, where images are counted from 1 as everywhere. InputError."""
    try:
        image, _, place = text.partition(":")
        row, _, col = place.partition(",")
        found = int(image) - 1, int(row), int(col)
    except ValueError:
        found = (-1, 0, 0)
    if min(found) < 0:
        raise InputError(
            f"The patch is “{text[:40]}”; write IMAGE:ROW,COLUMN, as 1:0,3: images from 1, rows and columns from 0."
        )
    return found
