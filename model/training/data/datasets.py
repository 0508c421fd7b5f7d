"""From a recipe's data tables to examples: sources, their mixture, and what is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from model.config import VLMConfig
from model.errors import InputError
from model.training.data.example import CaptionedImage, Example, caption_of
from model.training.data.ledger import stop_at
from model.training.data.splits import Subset
from model.training.synthetic.scene_sets import CaptionedScenes, check_numbers, read_scene_set

T = TypeVar("T")


class Captioned(Sequence[CaptionedImage]):
    """Any examples as pairs of a picture and its caption: the first answer to the first picture."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self.stops = bool(getattr(examples, "stops", False))

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


def open_pairs(table: Mapping[str, Any], folder: Path, config: VLMConfig) -> Sequence[Any]:
    """What one data table of the contrastive stage holds: pairs for “scenes” with set = "tiles", which have phrases
    too, else examples, to be taken as :class:`Captioned`."""
    if table["source"] == "scenes" and table.get("set", "tiles") == "tiles":
        spec = {key: value for key, value in table.items() if key not in ("source", "set", "weight")}
        if unknown := sorted(set(spec) - {"count", "seed", "easy_share"}):
            names = ", ".join(name[:40] for name in unknown[:6])
            raise InputError(f"A table of captioned scenes takes count, seed and easy_share, and has {names}.")
        check_numbers(spec, "a table of captioned scenes")
        return CaptionedScenes(config, **{"count": 100_000, "seed": 1, **spec})
    return open_examples(table, folder)


def as_pairs(source: Sequence[Any]) -> Sequence[CaptionedImage]:
    """Any part of what :func:`open_pairs` opens, as pairs."""
    whole = source.whole if isinstance(source, Subset) else source
    return source if isinstance(whole, CaptionedScenes) else Captioned(source)


class DataStopped(Exception):
    """An example can't be opened, and its data may not be passed over: on_error is “stop”. Its message is one sentence.
    No InputError, for those are passed over where examples are drawn."""


@dataclass(frozen=True)
class Mixture(Generic[T]):
    """Several sources drawn from by weight. Draw number n is always the same item, so a position is one number per
    run of draws and nothing of it depends on what was drawn before. Each source is gone through in an order of its
    own that changes from pass to pass: every item once, then every item once more."""

    sources: tuple[Sequence[T], ...]
    weights: tuple[float, ...]
    seed: int

    def __post_init__(self) -> None:
        if not any(len(source) for source in self.sources):
            raise InputError("The data hold no example to train on; choose other data.")

    def draw(self, number: int) -> T:
        """Item ``number`` of the endless mixture. InputError if it can't be opened; DataStopped if that is to end the
        run."""
        which, place = self.locate(number)
        source = self.sources[which]
        try:
            return source[place]
        except InputError as error:
            if getattr(source, "stops", False):
                raise DataStopped(str(stop_at(error))) from error
            raise

    def locate(self, number: int) -> tuple[int, int]:
        """Which source draw ``number`` is of, and which of its items."""
        for which, share in self._shares:
            # How many of the draws before this one, and with it, are this source's: as near to its share as whole
            # numbers are, so its draws are counted without going through them.
            before, after = (n * share.numerator // share.denominator for n in (number, number + 1))
            if after > before or share == 1:
                passes, place = divmod(before, len(self.sources[which]))
                return which, int(_order(self.seed, which, passes, len(self.sources[which]))[place])
            number -= before
        raise AssertionError("the last share is 1")

    @cached_property
    def _shares(self) -> list[tuple[int, Fraction]]:
        """Every source that has items, with its share of the draws that those before it leave."""
        filled = [which for which, source in enumerate(self.sources) if len(source)]
        weights = [Fraction(self.weights[which]) for which in filled]
        return [(which, weights[n] / sum(weights[n:])) for n, which in enumerate(filled)]


@lru_cache(maxsize=64)
def _order(seed: int, which: int, passes: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, which, passes)).permutation(length)
