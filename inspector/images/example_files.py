"""The page's examples: drawn scenes and photographs, as files, and whether an image of a prompt is one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from inspector.images.image_file import SHELF
from model.training.synthetic.examples import EXAMPLES, ExamplePrompt

_PHOTOGRAPHS = Path(__file__).parent / "photographs"


@dataclass(frozen=True)
class PhotographPrompt(ExamplePrompt):
    """Nothing is drawn; the images are files of this package (their README says whose)."""

    files: tuple[str, ...] = ()

    def draw_images(self) -> tuple[Image.Image, ...]:
        return tuple(Image.open(_PHOTOGRAPHS / file).convert("RGB") for file in self.files)


PAGE_EXAMPLES: tuple[ExamplePrompt, ...] = (
    *EXAMPLES,
    PhotographPrompt(
        "photographs",
        "Photographs",
        list,
        ("In image 1, what animal is shown?",),
        (),
        "images-first",
        ("chelsea.jpg", "coffee.jpg", "rocket.jpg"),
    ),
)
"""A model that knows drawn shapes alone answers the last one with a guess, so that has no answer to be expected."""


def write_example(example: ExamplePrompt, folder: Path) -> list[Path]:
    """One PNG for each image in ``folder``, drawn where it isn't there yet."""
    paths = []
    for number, picture in enumerate(example.draw_images(), start=1):
        paths.append(folder / f"{example.name}-{number}.png")
        if not paths[-1].exists():
            picture.save(paths[-1])
    return paths


def recognise_example(paths: Sequence[str | Path], folder: Path) -> ExamplePrompt | None:
    """The example whose images these are, in its order, by what is in the files: gradio gives them other places.
    InputError for a file that is gone."""
    digests = [SHELF.find(path).digest for path in paths]
    # By name first: nobody's own photographs have every example drawn to be compared with.
    for example in PAGE_EXAMPLES:
        if paths and [Path(path).name for path in paths] == [f"{example.name}-{n + 1}.png" for n in range(len(paths))]:
            return example if digests == [_digest(path) for path in write_example(example, folder)] else None
    return None


@cache
def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
