"""The gradients of one optimizer step, whatever process or micro-batch its rows are in."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from model.collator import Batch
from model.errors import InputError
from model.families.nanovlm import VLM
from model.image import ProcessedImage
from model.sample import Sample
from model.training.batches import (
    MAX_DROPPED,
    FeatureCache,
    PairBatch,
    RowMaker,
    batched_patches,
    count_patches,
    make_pairs,
    split_rows,
    with_features,
)
from model.training.data.datasets import Mixture
from model.training.data.example import CaptionedImage
from model.training.data.ledger import UNRENDERED, Entry
from model.training.recipe import Stage
from model.training.stages import count_row_labels
from model.training.tuned import Trainee


@dataclass(frozen=True)
class Learned:
    """``loss``: mean over what the step is trained on, of the weights before it. ``work``: positions that are no
    padding, or tiles. ``position``: the draw that the next step begins with. ``dropped``: draws that couldn't be
    used."""

    loss: float
    work: int
    position: int
    dropped: int


class Learner(ABC):
    """Draws the rows of a step from a stage's mixture and computes their loss."""

    def __init__(self, vlm: Trainee, accelerator: Accelerator, stage: Stage) -> None:
        self.vlm, self.accelerator, self.stage = vlm, accelerator, stage
        self.passed_over: list[Entry] = []
        """Draws that couldn't be used, until somebody takes them off."""

    @abstractmethod
    def learn(self, module: nn.Module, position: int) -> Learned:
        """Leaves the gradients of the step that begins with draw ``position`` in ``module``'s parameters. InputError if
        there is nothing to learn from."""


class LanguageLearner(Learner):
    """Rows of tokens under the next-token loss. ``cache`` holds what a frozen image encoder made; None if it trains,
    and then its patches count as tokens do."""

    def __init__(
        self,
        vlm: Trainee,
        accelerator: Accelerator,
        stage: Stage,
        mixture: Mixture[Any],
        seed: int,
        cache: FeatureCache | None,
    ) -> None:
        super().__init__(vlm, accelerator, stage)
        self._rows = RowMaker(vlm, stage, mixture, seed)
        self.passed_over = self._rows.passed_over
        self._cache = cache
        self._tile_patches = 0 if cache is not None else batched_patches(vlm)

    def learn(self, module: nn.Module, position: int) -> Learned:
        rows = self._rows.take(position)
        world = self.accelerator.num_processes
        micro = [
            self._share(part)
            for part in split_rows(rows.samples, self.stage.batch_rows, self.stage.batch_tokens, self._tile_patches)
        ]
        # Batches are made one at a time: the pictures of a whole step may be more than the memory.
        counts = [
            sum(map(count_row_labels, micro)),
            sum(int(sample.attention_mask.sum()) for part in micro for sample in part),
        ]
        counted = torch.tensor(counts, device=self.accelerator.device)
        labels, positions = (int(value) for value in self.accelerator.reduce(counted, "sum"))
        if not labels:
            raise InputError(
                "No position of the step has a label, so there is nothing to learn; check the data's answers."
            )
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(micro):
            # Gradients are exchanged once a step, with its last micro-batch.
            last = number == len(micro) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(module):
                loss = module(self._batch(part)) * (world / labels)
                self.accelerator.backward(loss)
            total += loss.detach().float()
        mean = float(self.accelerator.reduce(total, "sum")) / world
        return Learned(mean, positions, rows.position, rows.dropped)

    def _share(self, rows: Sequence[Sample]) -> Sequence[Sample]:
        """This process's rows of a micro-batch; where there are fewer rows than processes, one without labels: every
        process must take part in the exchange of gradients."""
        empty = torch.zeros_like(rows[0].loss_mask)
        own = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        return own or [replace(rows[0], loss_mask=empty, attention_mask=empty)]

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        mask = self.stage.packing == "document"
        batch = self.vlm.collate(list(samples), document_mask=mask)
        with self.accelerator.autocast():
            return with_features(batch.to(self.accelerator.device), self._cache)


class PairLearner(Learner):
    """Pictures against captions under InfoNCE. Every process sees the whole batch: the contrast is between all its
    pairs."""

    def __init__(
        self, vlm: VLM, accelerator: Accelerator, stage: Stage, mixture: Mixture[CaptionedImage], seed: int
    ) -> None:
        super().__init__(vlm, accelerator, stage)
        self.vlm: VLM = vlm
        self._mixture, self._seed = mixture, seed
        pairs, patches = stage.batch_rows * stage.accumulate, count_patches(vlm.config)
        if pairs * patches > stage.batch_tokens:
            # The contrast is between all pairs of a step: it can't be computed in parts.
            raise InputError(
                f"A step of stage “{stage.name}” has {pairs:,} pairs of {patches:,} patches each, and batch_tokens is "
                f"{stage.batch_tokens:,}; take at most {stage.batch_tokens // patches:,} pairs."
            )

    def learn(self, module: nn.Module, position: int) -> Learned:
        pairs, after, dropped = self._draw(position)
        loss = module(pairs) / len(pairs.tiles)
        self.accelerator.backward(loss)
        return Learned(float(loss.detach()), len(pairs.tiles), after, dropped)

    def _draw(self, first: int) -> tuple[PairBatch, int, int]:
        """The pairs of a step, the next draw's number, and how many were dropped."""
        items: list[CaptionedImage] = []
        position, reason = first, ""
        count = self.stage.batch_rows * self.stage.accumulate
        while len(items) < count:
            try:
                item = self._mixture.draw(position)
                shown = item.image if isinstance(item.image, ProcessedImage) else self.vlm.process_image(item.image)
                items.append(replace(item, image=shown))
            except InputError as error:
                reason = str(error)
                self.passed_over.append(Entry(UNRENDERED, 1, reason))
            position += 1
            if position - first - len(items) >= MAX_DROPPED:
                raise InputError(f"{MAX_DROPPED:,} of the pairs of one step can't be used (the last one: {reason}).")
        pairs = make_pairs(self.vlm, items, np.random.default_rng((self._seed, first)))
        return pairs.to(self.accelerator.device), position, position - first - count
