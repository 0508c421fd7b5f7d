"""Teaches a model a word by the recipe “teach_word” and measures what that did."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load_nanovlm
from model.families.nanovlm import VLM
from model.training.events import Event
from model.training.synthetic.word import WordSpec, measure_word, teaching_recipe
from model.training.trainer import Trainer


def teach_word(
    spec: WordSpec, out: str | Path, overrides: Sequence[str] = (), count: int = 60
) -> Iterator[Event | dict[str, Any]]:
    """Every event of the training, then one report: the shares of right answers ``before`` and ``after`` on the same
    ``count`` held-out prompts of every family, and the ``seconds`` and ``cpu_seconds`` that the training took, loading
    and measuring left out."""
    recipe = teaching_recipe(spec, overrides)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    vlm = load_nanovlm(recipe.base)
    trainer = Trainer(recipe, out, vlm=vlm)
    before = measure_word(vlm, spec, count)
    start, start_cpu = time.monotonic(), time.process_time()
    yield from trainer.run()
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - start_cpu
    assert isinstance(trainer.vlm, VLM)
    after = measure_word(trainer.vlm.eval(), spec, count)
    yield {
        "word": spec.table(),
        "before": before,
        "after": after,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "threads": torch.get_num_threads(),
        "model": str(Path(out) / "model"),
    }
