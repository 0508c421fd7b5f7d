"""How well a stage does on what it never trains on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from model.families.nanovlm import VLM
from model.training.batches import (
    FeatureCache,
    batched_patches,
    make_pairs,
    split_rows,
    usable_sample,
    with_features,
)
from model.training.evaluation.answering import answer_probes, count_families, probe_examples, score
from model.training.events import Answered
from model.training.recipe import Stage
from model.training.stages import ContrastiveLoss, count_labels
from model.training.tuned import Trainee

SHOWN_ANSWERS = 8
EVAL_ROWS = 16


@dataclass(frozen=True)
class HeldOutScore:
    """``loss``: mean in nats per label or pair; None if nothing held out has any. ``accuracy``: the share that is
    right, by family of questions, of ``counts``; ``answers``: some of them. ``shares``: see
    :class:`model.training.events.EvalEvent`."""

    loss: float | None
    accuracy: Mapping[str, float] = field(default_factory=dict)
    answers: tuple[Answered, ...] = ()
    shares: tuple[tuple[float, ...], ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


class HeldOut:
    """What a stage holds out. Questions are chosen once, so that every evaluation asks the same ones; only the main
    process asks them."""

    def __init__(
        self,
        vlm: Trainee,
        accelerator: Accelerator,
        stage: Stage,
        examples: Sequence[Any],
        seed: int,
        cache: FeatureCache | None,
    ) -> None:
        self._vlm, self._accelerator, self._seed, self._cache = vlm, accelerator, seed, cache
        self._examples = examples
        self._most_tokens = stage.batch_tokens
        asks = stage.kind != "contrastive" and bool(stage.eval_examples) and bool(accelerator.is_main_process)
        self._probes = probe_examples(vlm, examples, stage.eval_examples, seed) if asks else []

        self._shown = _choose_shown([probe.family for probe in self._probes])

    def __len__(self) -> int:
        return len(self._examples)

    def measure(self, module: nn.Module) -> HeldOutScore:
        """``module`` is the stage's own; it is left in the mode that it came in."""
        training = module.training
        module.eval()
        try:
            if isinstance(module, ContrastiveLoss):
                return self._contrast(module)
            loss = self._mean_loss()
            if not self._probes:
                return HeldOutScore(loss)
            with self._accelerator.autocast():
                answered = answer_probes(self._vlm, self._probes)
            shown = tuple(answered[n] for n in self._shown)
            return HeldOutScore(loss, score(answered), shown, counts=count_families(answered))
        finally:
            module.train(training)

    def _contrast(self, module: ContrastiveLoss) -> HeldOutScore:
        if not self._examples:
            return HeldOutScore(None)
        assert isinstance(self._vlm, VLM)
        pairs = make_pairs(self._vlm, list(self._examples), np.random.default_rng((self._seed, 3)))
        with torch.no_grad(), self._accelerator.autocast():
            loss, captions, phrases = module.measure(pairs.to(self._accelerator.device))
            shown = make_pairs(self._vlm, _choose_pairs(self._examples), np.random.default_rng((self._seed, 4)))
            shares = module.choose_captions(shown.to(self._accelerator.device)).float()
        found = {"caption": captions} | ({} if math.isnan(phrases) else {"phrase": phrases})
        # The texts stand among the answers, for those go with the data when they are deleted.
        nearest = shares.argmax(dim=1).tolist()
        answers = tuple(
            Answered("which of these captions?", own, shown.captions[place], "caption")
            for own, place in zip(shown.captions, nearest, strict=True)
        )
        counts = {name: len(pairs.tiles if name == "caption" else pairs.patch_places) for name in found}
        return HeldOutScore(float(loss), found, answers, tuple(map(tuple, shares.tolist())), counts)

    @torch.no_grad()
    def _mean_loss(self) -> float | None:
        """Over the labels of the examples that can be used; None without any."""
        total, labels = 0.0, 0
        for start in range(0, len(self._examples), EVAL_ROWS):
            samples = [
                sample
                for example in self._examples[start : start + EVAL_ROWS]
                if (sample := usable_sample(self._vlm, example)) is not None
            ]
            if not samples:
                continue
            for part in split_rows(samples, EVAL_ROWS, self._most_tokens, batched_patches(self._vlm)):
                batch = self._vlm.collate(list(part))
                count = count_labels(batch)
                with self._accelerator.autocast():
                    features = with_features(batch.to(self._vlm.device), self._cache)
                    vlm: Any = self._vlm  # each takes batches of its own making
                    total += float(vlm.loss(features)) * count
                labels += count
        return total / labels if labels else None


def _choose_pairs(examples: Sequence[Any]) -> list[Any]:
    """The first held-out pairs whose captions all differ."""
    different = {example.caption: example for example in reversed(examples)}
    return [example for example in examples if different[example.caption] is example][:SHOWN_ANSWERS]


def _choose_shown(families: Sequence[str]) -> list[int]:
    """The numbers of the answers that people are shown, always the same ones, so that they can be watched: the first
    of as many families as there is room for, then others."""
    first = {family: n for n, family in reversed(list(enumerate(families)))}
    chosen = sorted(first.values())[:SHOWN_ANSWERS]
    others = [n for n in range(len(families)) if n not in chosen]
    return sorted([*chosen, *others[: SHOWN_ANSWERS - len(chosen)]])
