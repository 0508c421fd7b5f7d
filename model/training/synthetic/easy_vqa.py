"""The pip package ``easy-vqa`` as conversations (Victor Zhou 2019): 64 × 64 pictures of one shape, its own split."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from model.chat import Conversation, Message
from model.training.data.example import Example, ExampleSet, ExampleTurn
from model.training.synthetic.scenes import COLOUR_NAMES, SHAPE_NAMES

Split = Literal["train", "test"]


@dataclass(frozen=True)
class EasyPicture:
    """One picture and all its questions, each with its answer and family."""

    path: Path
    turns: tuple[ExampleTurn, ...]

    def open(self) -> Image.Image:
        with Image.open(self.path) as image:
            return image.convert("RGB")


def family_of(answer: str) -> str:
    """“easy-VQA colour”, “easy-VQA shape” or “easy-VQA yes/no”, by the answer."""
    if answer in COLOUR_NAMES:
        return "easy-VQA colour"
    return "easy-VQA shape" if answer in SHAPE_NAMES else "easy-VQA yes/no"


def read_easy_vqa(split: Split) -> list[EasyPicture]:
    """All pictures of a split in the order of their numbers. ImportError if the package is not installed."""
    import easy_vqa

    if split == "train":
        questions, paths = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    else:
        questions, paths = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    turns: defaultdict[int, list[ExampleTurn]] = defaultdict(list)
    for text, answer, picture in zip(*questions, strict=True):
        turns[picture].append((text, answer, family_of(answer)))
    return [EasyPicture(Path(paths[picture]), tuple(turns[picture])) for picture in sorted(turns)]


class EasySet(ExampleSet):
    """A split as conversations of up to ``turns`` questions about one picture. Going through all of them meets every
    question once; the order of a picture's questions comes from ``seed``. ``limit`` pictures, spread evenly over the
    split, if it is not 0."""

    problems: tuple[Any, ...] = ()
    """None: the package's files are whole. Other sources name here what they left out."""

    def __init__(self, split: Split = "train", turns: int = 4, limit: int = 0, seed: int = 0) -> None:
        pictures = read_easy_vqa(split)
        if limit:
            pictures = pictures[:: max(1, len(pictures) // limit)][:limit]
        self.name = f"easy-vqa {split}"
        self._pictures, self._turns = pictures, turns
        self._parts = [
            (n, part) for n, picture in enumerate(pictures) for part in range(-(-len(picture.turns) // turns))
        ]
        self._seed = seed

    def __len__(self) -> int:
        return len(self._parts)

    def content(self, number: int) -> tuple[str, ...]:
        """See :class:`model.training.data.splits.Known`."""
        return (str(self._pictures[self._parts[number][0]].path),)

    def count_questions(self, number: int) -> int:
        """Of example ``number``."""
        place, part = self._parts[number]
        return min(self._turns, len(self._pictures[place].turns) - part * self._turns)

    def make(self, number: int) -> Example:
        place, part = self._parts[number]
        picture = self._pictures[place]
        order = np.random.default_rng((self._seed, place)).permutation(len(picture.turns))
        turns = [picture.turns[int(n)] for n in order[part * self._turns : (part + 1) * self._turns]]
        messages: list[Message] = []
        for question, answer, _ in turns:
            images = () if messages else (picture.open(),)
            messages += [Message("user", question, images), Message("assistant", answer)]
        families = tuple(family for _, _, family in turns)
        return Example(Conversation(tuple(messages)), families, f"{self.name}: {picture.path.name}")
