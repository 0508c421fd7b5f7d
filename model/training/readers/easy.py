"""The pip package ``easy-vqa`` as a source: one picture per example, its questions as turns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from model.errors import InputError
from model.training.easy_vqa import EasyPicture, read_easy_vqa
from model.training.example import Example
from model.training.readers.options import Options, check_keys
from model.training.readers.source import Draft, ExampleSource, Record, open_record


def read_easy(spec: Mapping[str, Any], base_folder: Path) -> ExampleSource:
    """``split`` is “train” or “test”; ``turns`` questions of each picture, chosen by ``seed`` (0: all, in order)."""
    check_keys(spec, ("split", "turns", "seed", "limit"))
    options = Options("easy-vqa", spec, base_folder)
    split = cast(Literal["train", "test"], options.choice("split", ("train", "test"), "train"))
    turns, seed, limit = options.count("turns"), options.count("seed"), options.count("limit")
    try:
        pictures = read_easy_vqa(split)
    except ImportError as error:
        raise InputError("The package easy-vqa is not installed; install it with pip install easy-vqa.") from error

    def build(number: int) -> Example:
        picture: EasyPicture = pictures[number]
        chosen = list(picture.turns)
        if turns:
            order = np.random.default_rng((seed, number)).permutation(len(chosen))[:turns]
            chosen = [chosen[int(index)] for index in order]
        drafts: list[Draft] = []
        for question, answer, family in chosen:
            images = () if drafts else (picture.path,)
            drafts += [Draft("user", question, images), Draft("assistant", answer, family=family)]
        return open_record(Record(tuple(drafts)), f"easy-VQA {split} picture {number}")

    count = min(limit, len(pictures)) if limit else len(pictures)
    return ExampleSource(f"easy-VQA {split}", range(count), build)
