"""Patches of images by themselves: which of them a text is like, which are like one another, and where each looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inspector.encoder.inputs import ReadImages, check_phrases
from model import InputError
from model.encoders.protocol import ImageTextEncoder, PatchGrid
from model.values import is_whole, name_value

ALIKE = 8
"""So many patches that are most like the chosen one are named."""


@dataclass(frozen=True)
class PatchMap:
    """``cosines [patch]`` of one image, over its ``grids``."""

    image: int
    grids: tuple[PatchGrid, ...]
    cosines: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "grids": [
                {"rows": grid.rows, "cols": grid.cols, "start": grid.start, "box": list(vars(grid.box).values())}
                for grid in self.grids
            ],
            "cosines": list(self.cosines),
        }


@dataclass(frozen=True)
class PhrasePatches:
    """Of every phrase, a map of each image."""

    phrases: tuple[str, ...]
    maps: tuple[tuple[PatchMap, ...], ...]

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"phrase": phrase, "maps": [one.to_json() for one in maps]}
            for phrase, maps in zip(self.phrases, self.maps, strict=True)
        ]


@dataclass(frozen=True)
class Place:
    """A patch: ``row`` and ``col`` in its grid, counted from 0."""

    image: int
    patch: int
    row: int
    col: int


@dataclass(frozen=True)
class AlikePatches:
    """``chosen`` and how like it every patch of every image is; ``nearest``: the most alike with their cosines, itself
    left out."""

    chosen: Place
    maps: tuple[PatchMap, ...]
    nearest: tuple[tuple[Place, float], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "chosen": vars(self.chosen),
            "maps": [one.to_json() for one in self.maps],
            "nearest": [{**vars(place), "cosine": cosine} for place, cosine in self.nearest],
        }


@dataclass(frozen=True)
class EncoderAttention:
    """Where each head of one ``layer`` of ``n_layers`` looks from ``chosen``: ``heads [head][patch]``; what goes to a
    class token is left out."""

    chosen: Place
    layer: int
    n_layers: int
    grids: tuple[PatchGrid, ...]
    heads: tuple[tuple[float, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "chosen": vars(self.chosen),
            "layer": self.layer,
            "layers": self.n_layers,
            "heads": [list(head) for head in self.heads],
        }


def find_phrases(encoder: ImageTextEncoder, read: ReadImages, phrases: Sequence[str]) -> PhrasePatches:
    """InputError without a phrase or a text tower."""
    if not encoder.has_text:
        raise InputError(encoder.missing)
    check_phrases(phrases)
    texts = encoder.encode_texts(phrases)
    return PhrasePatches(tuple(phrases), tuple(_compare(read, text) for text in texts))


def find_alike(read: ReadImages, image: int, patch: int) -> AlikePatches:
    """Of patch ``patch`` of image ``image``, both from 0. InputError if there is none."""
    chosen = _place(read, image, patch)
    maps = _compare(read, read.encoded[image].patches[patch])
    every = sorted(
        ((cosine, one.image, n) for one in maps for n, cosine in enumerate(one.cosines)), key=lambda found: -found[0]
    )
    nearest = tuple((_place(read, i, n), cosine) for cosine, i, n in every if (i, n) != (image, patch))
    return AlikePatches(chosen, maps, nearest[:ALIKE])


def read_encoder_attention(
    encoder: ImageTextEncoder, read: ReadImages, image: int, patch: int, layer: int | None = None
) -> EncoderAttention:
    """At one layer, from 0, the last if None. InputError if there is no such patch or layer."""
    chosen = _place(read, image, patch)
    layer = encoder.n_layers - 1 if layer is None else layer
    if not (is_whole(layer) and 0 <= layer < encoder.n_layers):
        raise InputError(f"The layer is {name_value(layer)}; this encoder has the layers 0 to {encoder.n_layers - 1}.")
    heads = encoder.read_attention(read.processed[image], patch)[layer]
    return EncoderAttention(
        chosen, layer, encoder.n_layers, read.encoded[image].grids, tuple(map(tuple, heads.tolist()))
    )


def _compare(read: ReadImages, vector: Tensor) -> tuple[PatchMap, ...]:
    return tuple(
        PatchMap(n, image.grids, tuple((image.patches @ vector).tolist())) for n, image in enumerate(read.encoded)
    )


def find_patch(read: ReadImages, image: int, row: int, col: int) -> int:
    """The number of the patch in ``row`` and ``col`` of the first grid of an image, all from 0. InputError if there is
    none."""
    _check_image(read, image)
    grid = read.encoded[image].grids[0]
    if not (0 <= row < grid.rows and 0 <= col < grid.cols):
        raise InputError(
            f"There is no patch in row {row}, column {col}; the image has rows 0 to {grid.rows - 1} and columns 0 to "
            f"{grid.cols - 1}."
        )
    return grid.start + row * grid.cols + col


def _check_image(read: ReadImages, image: int) -> None:
    if not 0 <= image < len(read.encoded):
        raise InputError(f"There is no image {image + 1}; the images are 1 to {len(read.encoded)}.")


def _place(read: ReadImages, image: int, patch: int) -> Place:
    _check_image(read, image)
    for grid in read.encoded[image].grids:
        if 0 <= patch - grid.start < grid.rows * grid.cols:
            return Place(image, patch, *divmod(patch - grid.start, grid.cols))
    raise InputError(f"Image {image + 1} has no patch {patch}; it has {len(read.encoded[image].patches)}.")
