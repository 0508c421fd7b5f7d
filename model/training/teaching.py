"""Teaches a model a word by the recipe “teach_word” and measures what that did."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load_vlm
from model.errors import InputError
from model.training.events import Event
from model.training.outlines import OUTLINES
from model.training.trainer import Trainer
from model.training.word import WordSpec, measure_word, teaching_recipe


def parse_rgb(text: str) -> tuple[int, int, int]:
    """From “128,0,128” or “#800080”. InputError otherwise; whether the colour can be taught is for WordSpec to say."""
    plain = text.strip()
    try:
        if plain.startswith("#") and len(plain) == 7:
            values = [int(plain[place : place + 2], 16) for place in (1, 3, 5)]
        else:
            values = [int(part) for part in plain.split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise InputError(f"The RGB value is {text!r}; write it as 128,0,128 or #800080.")
    return values[0], values[1], values[2]


def parse_word(word: str, rgb: str | None = None, shape: str | None = None) -> WordSpec:
    """The word as people give it: a colour with ``rgb``, a shape with ``shape``, without both what the word is known
    to be. InputError for what can't be taught."""
    if rgb is not None and shape is not None:
        raise InputError("A word names a colour or a shape; give an RGB value or a drawing, not both.")
    if shape is not None or (rgb is None and word in OUTLINES):
        return WordSpec(word, "shape", shape=shape)
    return WordSpec(word, "colour", rgb=None if rgb is None else parse_rgb(rgb))


def teach_word(
    spec: WordSpec, out: str | Path, overrides: Sequence[str] = (), count: int = 60
) -> Iterator[Event | dict[str, Any]]:
    """Every event of the training, then one report: the shares of right answers ``before`` and ``after`` on the same
    ``count`` held-out prompts of every family, and the ``seconds`` and ``cpu_seconds`` that the training took, loading
    and measuring left out."""
    recipe = teaching_recipe(spec, overrides)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    vlm = load_vlm(recipe.base)
    trainer = Trainer(recipe, out, vlm=vlm)
    before = measure_word(vlm, spec, count)
    start, start_cpu = time.monotonic(), time.process_time()
    yield from trainer.run()
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - start_cpu
    after = measure_word(trainer.vlm.eval(), spec, count)
    yield {"word": spec.table(), "before": before, "after": after, "seconds": round(seconds, 1),
           "cpu_seconds": round(cpu_seconds, 1), "threads": torch.get_num_threads(),
           "model": str(Path(out) / "model")}  # fmt: skip
