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
from model.sample import Sample
from model.training.batches import (
    MAX_DROPPED,
    FeatureCache,
    PairBatch,
    RowMaker,
    batched_patches,
    blank_sample,
    count_patches,
    join_pairs,
    pass_over,
    render_pair,
    split_rows,
    with_features,
)
from model.training.data.datasets import DataStopped, Mixture
from model.training.data.example import CaptionedImage
from model.training.data.ledger import UNRENDERED, Entry
from model.training.feed import Draw, Feed
from model.training.recipe import Stage
from model.training.sharding import Sharded
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
        self.feed: Feed
        """Where the draws come from; to be closed in the end."""

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
        workers: int | str = 0,
    ) -> None:
        super().__init__(vlm, accelerator, stage)
        self._rows = RowMaker(vlm, stage, mixture, seed, accelerator=accelerator, workers=workers)
        self.passed_over, self.feed = self._rows.passed_over, self._rows.feed
        self._cache = cache
        self._tile_patches = 0 if cache is not None else batched_patches(vlm)

    def learn(self, module: nn.Module, position: int) -> Learned:
        rows = self._rows.take(position)
        world = self.accelerator.num_processes
        # A process whose draws all went unused still takes part in the exchange of gradients.
        own = rows.samples or (blank_sample(self.vlm.pad_token_id),)
        most_rows = -(-self.stage.batch_rows // world)
        micro = list(split_rows(own, most_rows, self.stage.batch_tokens, self._tile_patches))
        shared = isinstance(module, Sharded)
        if shared:
            # Whoever computes needs all others' weights, so all take as many micro-batches.
            parts = self.accelerator.gather(torch.tensor([len(micro)], device=self.accelerator.device))
            micro += [(blank_sample(self.vlm.pad_token_id),)] * (int(parts.max()) - len(micro))
        # Batches are made one at a time: the pictures of a whole step may be more than the memory.
        counts = [
            sum(map(count_row_labels, micro)),
            sum(int(sample.attention_mask.sum()) for part in micro for sample in part),
            sum(len(sample.images) for part in micro for sample in part),
        ]
        counted = torch.tensor(counts, device=self.accelerator.device)
        labels, positions, images = (int(value) for value in self.accelerator.reduce(counted, "sum"))
        if not labels:
            raise InputError(
                "No position of the step has a label, so there is nothing to learn; check the data's answers."
            )
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(micro):
            # Gradients are exchanged once a step, with its last micro-batch.
            last = number == len(micro) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(module):
                loss = module(self._batch(part, blank=shared and images > 0)) * (world / labels)
                self.accelerator.backward(loss)
            total += loss.detach().float()
        mean = float(self.accelerator.reduce(total, "sum")) / world
        return Learned(mean, positions, rows.position, rows.dropped)

    def _batch(self, samples: Sequence[Sample], blank: bool) -> Batch:
        mask = self.stage.packing == "document"
        batch = self.vlm.collate(list(samples), document_mask=mask)
        if blank:
            batch = replace(batch, blank=not len(batch.tiles))
        with self.accelerator.autocast():
            return with_features(batch.to(self.accelerator.device), self._cache)


class PairLearner(Learner):
    """Pictures against captions under InfoNCE. The contrast is between all pairs of a step, whichever process has a
    picture: see :class:`model.training.stages.ContrastiveLoss`."""

    def __init__(
        self,
        vlm: VLM,
        accelerator: Accelerator,
        stage: Stage,
        mixture: Mixture[CaptionedImage],
        seed: int,
        workers: int | str = 0,
    ) -> None:
        super().__init__(vlm, accelerator, stage)
        self.vlm: VLM = vlm
        self._mixture, self._seed = mixture, seed
        self._pairs, patches = stage.batch_rows * stage.accumulate, count_patches(vlm.config)
        most = stage.batch_tokens // patches * accelerator.num_processes
        if self._pairs > most:
            # The contrast is between all pairs of a step: it can't be computed in parts.
            raise InputError(
                f"A step of stage “{stage.name}” has {self._pairs:,} pairs of {patches:,} patches each, and "
                f"batch_tokens is {stage.batch_tokens:,}; take at most {most:,} pairs."
            )
        self.feed = Feed(self._render, stage.steps, self._pairs, accelerator=accelerator, workers=workers)

    def learn(self, module: nn.Module, position: int) -> Learned:
        pairs, after, dropped = self._draw(position)
        loss = module(pairs) / len(pairs)
        self.accelerator.backward(loss)
        return Learned(float(loss.detach()), len(pairs), after, dropped)

    def _draw(self, first: int) -> tuple[PairBatch, int, int]:
        """The pairs of a step, the next draw's number, and how many were dropped."""
        self.feed.seek(first)
        end, dropped = first, 0
        while end - first - dropped < self._pairs:
            draw = self.feed.know(end)
            end += 1
            if draw.passed_over is not None:
                dropped += 1
                if dropped >= MAX_DROPPED:
                    reason = draw.passed_over.first.rstrip(".")
                    raise InputError(
                        f"{MAX_DROPPED:,} of the pairs of one step can't be used (the last one: {reason})."
                    )
        draws = self.feed.take(end)
        self.passed_over += [draw.passed_over for draw in draws if draw.passed_over is not None]
        kept = [draw for draw in draws if draw.passed_over is None]
        processes = torch.tensor([draw.number % self.feed.processes for draw in kept])
        pairs = join_pairs(
            [draw.item for draw in kept if draw.item is not None],
            [draw.summary for draw in kept],
            np.random.default_rng((self._seed, first)),
            processes if self.feed.processes > 1 else None,
        )
        return pairs.to(self.accelerator.device), end, dropped

    def _render(self, number: int) -> Draw:
        """The tile of draw ``number``; its summary is what is said of it."""
        try:
            tile, text = render_pair(self.vlm, self._mixture.draw(number))
        except DataStopped as error:
            return Draw(number, stops=str(error))
        except InputError as error:
            return pass_over(number, UNRENDERED, "", str(error))
        return Draw(number, tile, text)
