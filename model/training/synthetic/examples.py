"""The app's example prompts: pictures drawn from fixed seeds, the questions, and the right answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from model.training.synthetic.scenes import SINGLE_TILE, Scene, Shape, draw, random_shape

ExampleLayout = Literal["images-first", "per-turn", "packed"]


@dataclass(frozen=True)
class ExamplePrompt:
    """``draw_images()`` gives the pictures anew each time, always the same. ``turns`` are the questions and
    ``expected`` the right answers. images-first: all images come with the first turn; per-turn and packed: image i
    belongs to turn i."""

    name: str
    title: str
    scenes: Callable[[], list[Scene]]
    turns: tuple[str, ...]
    expected: tuple[str, ...]
    layout: ExampleLayout

    def draw_images(self) -> tuple[Image.Image, ...]:
        return tuple(draw(scene) for scene in self.scenes())


def _one(seed: int, colour: str, kind: str) -> Scene:
    rng = np.random.default_rng(seed)
    shape = random_shape(rng, SINGLE_TILE, colour=colour, kind=kind, size="large")
    return Scene(SINGLE_TILE, (244, 240, 250), (shape,))


def _single() -> list[Scene]:
    # Not the colour that the embedded model guesses unseen: there the picture would be worth nothing.
    return [_one(1, "blue", "triangle")]


def _three() -> list[Scene]:
    return [_one(2, "red", "circle"), _one(3, "blue", "triangle"), _one(4, "yellow", "rectangle")]


def _two() -> list[Scene]:
    return _three()[:2]


def _per_turn() -> list[Scene]:
    return [_one(5, "green", "rectangle"), _one(6, "black", "circle"), _one(7, "brown", "triangle")]


def _five() -> list[Scene]:
    pairs = (("gray", "circle"), ("red", "rectangle"), ("teal", "circle"), ("blue", "triangle"), ("green", "rectangle"))
    return [_one(10 + index, colour, kind) for index, (colour, kind) in enumerate(pairs)]


def _wide() -> list[Scene]:
    return [
        Scene(
            (192, 128),
            (240, 244, 250),
            (
                Shape("red", "circle", "large", (34.0, 36.0), (15.0, 15.0)),
                Shape("blue", "triangle", "large", (98.0, 92.0), (15.0, 13.5)),
                Shape("green", "rectangle", "large", (158.0, 40.0), (14.0, 11.0)),
            ),
        )
    ]


def _packed() -> list[Scene]:
    return [_one(21, "blue", "circle"), _one(22, "yellow", "triangle"), _one(23, "red", "rectangle")]


def _uneven() -> list[Scene]:
    return [*_single(), *_wide()]


EXAMPLES: tuple[ExamplePrompt, ...] = (
    ExamplePrompt("single", "One image", _single, ("What color is the shape?",), ("blue",), "images-first"),
    ExamplePrompt(
        "three",
        "Three images, one asked about",
        _three,
        ("In image 3, what colour is the shape?",),
        ("yellow",),
        "images-first",
    ),
    ExamplePrompt(
        "two",
        "Two images, both asked about",
        _two,
        ("In image 1, what colour is the shape?", "In image 2, what colour is the shape?"),
        ("red", "blue"),
        "images-first",
    ),
    ExamplePrompt(
        "per-turn",
        "One image per turn",
        _per_turn,
        ("What color is the shape?", "What shape is in the image?", "What color is the shape?"),
        ("green", "circle", "brown"),
        "per-turn",
    ),
    ExamplePrompt(
        "five",
        "Five images",
        _five,
        ("In image 2, what colour is the shape?",),
        ("red",),
        "images-first",
    ),
    ExamplePrompt(
        "tiles",
        "One wide image in six tiles",
        _wide,
        ("How many shapes are there?",),
        ("3",),
        "images-first",
    ),
    ExamplePrompt(
        "packed",
        "Three samples packed in one row",
        _packed,
        ("What color is the shape?", "What shape is in the image?", "What color is the shape?"),
        ("blue", "triangle", "red"),
        "packed",
    ),
    ExamplePrompt(
        "questions",
        "One image, many questions",
        _wide,
        ("How many shapes are there?", "What color is the circle?", "What color is the triangle?"),
        ("3", "red", "blue"),
        "images-first",
    ),
    ExamplePrompt(
        "uneven",
        "A short and a long sample",
        _uneven,
        ("What color is the shape?", "What color is the circle?"),
        ("blue", "red"),
        "per-turn",
    ),
)
