"""The pip package ``easy-vqa`` as conversations (Victor Zhou 2019): 64 × 64 pictures of one shape, its own split."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from model.training.scenes import COLOUR_NAMES, SHAPE_NAMES, Turn

Split = Literal["train", "test"]


@dataclass(frozen=True)
class EasyPicture:
    """One picture and all its questions, each with its answer and family."""

    path: Path
    turns: tuple[Turn, ...]

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
    turns: defaultdict[int, list[Turn]] = defaultdict(list)
    for text, answer, picture in zip(*questions, strict=True):
        turns[picture].append((text, answer, family_of(answer)))
    return [EasyPicture(Path(paths[picture]), tuple(turns[picture])) for picture in sorted(turns)]
