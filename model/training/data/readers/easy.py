"""The pip package ``easy-vqa`` as a source: one picture per example, its questions as turns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from model.errors import InputError
from model.training.data.readers.options import MAX_TURNS, Options, check_keys
from model.training.synthetic.easy_vqa import EasySet


def read_easy(spec: Mapping[str, Any], base_folder: Path) -> EasySet:
    """``split`` is “train” or “test”; up to ``turns`` questions an example, in an order that ``seed`` gives; ``limit``
    pictures, spread over the split (0: all). InputError for anything else, or without the package."""
    check_keys(spec, ("split", "turns", "seed", "limit"))
    options = Options("easy-vqa", spec, base_folder)
    split = cast(Literal["train", "test"], options.choice("split", ("train", "test"), "train"))
    turns, limit = options.count("turns", 4, least=1, most=MAX_TURNS), options.count("limit")
    try:
        return EasySet(split, turns, limit, options.seed)
    except ImportError as error:
        raise InputError("The package easy-vqa is not installed; install it with pip install easy-vqa.") from error
