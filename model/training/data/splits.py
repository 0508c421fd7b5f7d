"""What is held out: chosen by image before anything is trained on, over all the data of a recipe at once.

An image is known by its content, so a copy under another name is the same image, and every question about a held-out
image is held out with it. Data without an image are known by their questions. Sets that are drawn here hold out images
that are drawn anew, from other seeds.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from model.training.data.content import TEXT, key_of, size_of

SHARE, MOST, FEWEST = 0.05, 200, 20
"""Of a source's items so many are held out, at most so many, and none of fewer than so many."""
_COST = 2
"""At most so many times the wanted items are given up for the held-out images of a source …"""
_LARGEST = 4
"""… unless every image has more questions than that: then one image, if it has at most this part of them all."""

T = TypeVar("T")
Key = bytes
"""What an image or a question is known by."""
Content = str | Key
"""A file's path, or what is known without one."""


@runtime_checkable
class Known(Protocol):
    """A source that says what its items show without opening it."""

    def content(self, number: int) -> tuple[Content, ...]:
        """The images of item ``number``; its questions where it has no image."""
        ...

    def count_questions(self, number: int) -> int: ...

    def __len__(self) -> int: ...


@runtime_checkable
class Drawn(Protocol):
    """A source whose images are drawn, so that others can be drawn to be held out. ``files``: those that it takes from
    elsewhere."""

    files: Sequence[str]

    def hold_out(self, held_files: Collection[str], count: int) -> tuple[Sequence[Any], Sequence[Any]]:
        """What is trained on, without the images ``held_files``, and ``count`` items that are held out."""
        ...


class Subset(Sequence[T]):
    """Some of a sequence's items, by number."""

    def __init__(self, whole: Sequence[T], numbers: range | np.ndarray) -> None:
        self.whole, self.numbers = whole, numbers
        self.stops = bool(getattr(whole, "stops", False))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.whole[int(self.numbers[index])]


@dataclass(frozen=True)
class Split:
    """A source's items to train on and those held out. ``images`` are held out with ``questions`` about them; None for
    drawn sets, whose examples are drawn when they are taken. ``beside``: items that are neither, for they show a
    held-out image beside others."""

    train: Sequence[Any]
    held: Sequence[Any]
    images: int | None = None
    questions: int | None = None
    beside: int = 0


def count_held(length: int) -> int:
    """How many of ``length`` items are to be held out."""
    return 0 if length < FEWEST else min(MOST, int(length * SHARE))


@dataclass
class _Contents:
    """What every item of a source is known by."""

    items: list[tuple[Content, ...]]
    keys: list[tuple[Key, ...]] = field(default_factory=list)


def split_sources(
    sources: Sequence[Sequence[Any]], seeds: Sequence[int | None], own: Sequence[Sequence[Any]] = ()
) -> list[Split]:
    """A split of each source: an image that one of them holds out is trained on in none. ``seeds`` belong to the
    sources; one of None holds out nothing itself. ``own`` are sources that are held out whole."""
    read = [_read_contents(source) for source in (*sources, *(source for source in own if isinstance(source, Known)))]
    _name_keys(read)
    held: set[Key] = {key for contents in read[len(sources) :] for keys in contents.keys for key in keys}
    for contents, seed in zip(read, seeds, strict=False):
        if seed is not None:
            _choose(contents.keys, seed, held)
    found = []
    for source, contents, seed in zip(sources, read[: len(sources)], seeds, strict=True):
        if isinstance(source, Drawn):
            files = {str(part) for (part,), (key,) in zip(contents.items, contents.keys, strict=True) if key in held}
            found.append(Split(*source.hold_out(files, 0 if seed is None else count_held(len(source)))))
        else:
            found.append(_sort(source, contents.keys, held, seed))
    return found


def _read_contents(source: Sequence[Any]) -> _Contents:
    if isinstance(source, Drawn):
        return _Contents([(path,) for path in source.files])
    if isinstance(source, Known):
        return _Contents([source.content(number) for number in range(len(source))])
    # Examples that nobody knows anything of are each their own.
    return _Contents([(TEXT + f"{id(source)} {number}".encode(),) for number in range(len(source))])


def _name_keys(read: Sequence[_Contents]) -> None:
    """Gives every content its key. A file is only read where something else has its size: files of different sizes are
    different."""
    every = {part for contents in read for item in contents.items for part in item}
    taken = {part[-8:] for part in every if isinstance(part, bytes)}
    sizes: defaultdict[int, list[str]] = defaultdict(list)
    for path in (part for part in every if isinstance(part, str)):
        sizes[size_of(path)].append(path)
    keys: dict[str, Key] = {}
    for size, alike in sizes.items():
        alone = len(alike) == 1 and size.to_bytes(8, "big") not in taken
        for path in alike:
            known = alone or not os.path.isfile(path)
            keys[path] = b"file" + os.fsencode(path) if known else key_of(Path(path).read_bytes())
    for contents in read:
        contents.keys = [
            tuple(dict.fromkeys(keys[part] if isinstance(part, str) else part for part in item))
            for item in contents.items
        ]


def _choose(items: Sequence[tuple[Key, ...]], seed: int, held: set[Key]) -> None:
    """Adds to ``held`` what a source of these items holds out: whole images, until enough items are."""
    wanted = count_held(len(items))
    if not wanted:
        return
    of_key: defaultdict[Key, list[int]] = defaultdict(list)
    for number, keys in enumerate(items):
        for key in keys:
            of_key[key].append(number)
    given_up = {number for key in held & of_key.keys() for number in of_key[key]}
    out = sum(held.issuperset(keys) for keys in items)
    order = _shuffle(len(items), seed)
    cheapest: tuple[int, int] | None = None
    for number in order:
        if out >= wanted:
            return
        new = [key for key in items[number] if key not in held]
        if not new:
            continue
        touched = {other for key in new for other in of_key[key]} - given_up
        if cheapest is None or len(touched) < cheapest[0]:
            cheapest = len(touched), number
        if len(given_up) + len(touched) > _COST * wanted:
            continue
        held.update(new)
        given_up |= touched
        out += sum(held.issuperset(items[other]) for other in touched)
    if not out and cheapest is not None and cheapest[0] * _LARGEST <= len(items):
        held.update(items[cheapest[1]])


def _shuffle(length: int, seed: int) -> list[int]:
    return [int(number) for number in np.random.default_rng((seed, 77)).permutation(length)]


def _sort(source: Sequence[Any], items: Sequence[tuple[Key, ...]], held: set[Key], seed: int | None) -> Split:
    order = range(len(items)) if seed is None else _shuffle(len(items), seed)
    out = np.array([number for number in order if held.issuperset(items[number])], dtype=np.int64)
    kept = np.array([number for number in order if held.isdisjoint(items[number])], dtype=np.int64)
    images = {key for number in out for key in items[number] if not key.startswith(TEXT)}
    questions = sum(source.count_questions(int(number)) for number in out) if isinstance(source, Known) else 0
    beside = len(items) - len(out) - len(kept)
    if seed is None:
        # The recipe has tables of its own to measure on; what is held out there, or elsewhere, is only left out here.
        return Split(Subset(source, kept), (), 0, 0, beside + len(out))
    return Split(Subset(source, kept), Subset(source, out), len(images), questions, beside)
