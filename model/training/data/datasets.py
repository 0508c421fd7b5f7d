"""From a recipe's data tables to examples: sources, their mixture, and what is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from model.config import VLMConfig
from model.errors import InputError
from model.training.data.example import CaptionedImage, Example, caption_of
from model.training.synthetic.scene_sets import CaptionedScenes, check_numbers, read_scene_set

T = TypeVar("T")


class Subset(Sequence[T]):
    """Some of a sequence's items, by number."""

    def __init__(self, whole: Sequence[T], numbers: range | np.ndarray) -> None:
        self.whole, self.numbers = whole, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.whole[int(self.numbers[index])]


class Captioned(Sequence[CaptionedImage]):
    """Any examples as pairs of a picture and its caption: the first answer to the first picture."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        example = self.examples[index]
        pair = caption_of(example)
        if pair is None:
            raise InputError(
                f"{example.source or f'Example {index}'} has no picture with an answer; a pair needs both."
            )
        return pair


def open_examples(table: Mapping[str, Any], folder: Path) -> Sequence[Example]:
    """The examples of one data table. InputError if they can't be read."""
    spec = {key: value for key, value in table.items() if key != "weight"}
    if spec["source"] == "scenes":
        return read_scene_set(spec)
    if spec["source"] == "word":
        from model.training.synthetic.word import read_word_set

        return read_word_set(spec)
    from model.training.data.readers import read_source

    return read_source(spec, base_folder=folder)


def open_captioned(table: Mapping[str, Any], folder: Path, config: VLMConfig) -> Sequence[CaptionedImage]:
    """The pairs of one data table for the contrastive stage. “scenes” with set = "tiles" has phrases too."""
    if table["source"] == "scenes" and table.get("set", "tiles") == "tiles":
        spec = {key: value for key, value in table.items() if key not in ("source", "set", "weight")}
        if unknown := sorted(set(spec) - {"count", "seed", "easy_share"}):
            names = ", ".join(name[:40] for name in unknown[:6])
            raise InputError(f"A table of captioned scenes takes count, seed and easy_share, and has {names}.")
        check_numbers(spec, "a table of captioned scenes")
        return CaptionedScenes(config, **{"count": 100_000, "seed": 1, **spec})
    return Captioned(open_examples(table, folder))


def hold_out(whole: Sequence[T], seed: int, share: float = 0.05, most: int = 200) -> tuple[Subset[T], Subset[T]]:
    """What is trained on and what is held out: ``share`` of the items, at most ``most``, none of fewer than 20."""
    order = np.random.default_rng((seed, 77)).permutation(len(whole))
    count = 0 if len(whole) < 20 else min(most, int(len(whole) * share))
    return Subset(whole, order[count:]), Subset(whole, order[:count])


@dataclass(frozen=True)
class Mixture(Generic[T]):
    """Several sources drawn from by weight. Draw number n is always the same item, so a position is one number per
    run of draws and nothing of it depends on what was drawn before. Each source is gone through in an order of its
    own that changes from pass to pass."""

    sources: tuple[Sequence[T], ...]
    weights: tuple[float, ...]
    seed: int

    def __post_init__(self) -> None:
        if not any(len(source) for source in self.sources):
            raise InputError("The data hold no example to train on; choose other data.")

    def draw(self, number: int) -> T:
        """Item ``number`` of the endless mixture."""
        total = sum(w for w, s in zip(self.weights, self.sources, strict=True) if len(s))
        shares = [w / total if len(s) else 0.0 for w, s in zip(self.weights, self.sources, strict=True)]
        # A golden-ratio sequence: every stretch of draws holds the sources in their shares, and how often a source
        # was drawn before is nearly number × share, which spreads its items evenly over a pass.
        edges = np.cumsum(shares)
        place = (number * 0.6180339887498949 + self.seed * 0.3819660112501051) % 1.0
        which = min(int(np.searchsorted(edges, place, side="right")), len(edges) - 1)
        passes, within = divmod(number, max(1, round(len(self.sources[which]) / max(shares[which], 1e-9))))
        order = _order(self.seed, which, passes, len(self.sources[which]))
        return self.sources[which][int(order[min(int(within * shares[which]), len(order) - 1)])]


@lru_cache(maxsize=64)
def _order(seed: int, which: int, passes: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, which, passes)).permutation(length)
