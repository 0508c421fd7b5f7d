"""Linear against MLP head: two text towers trained on the same batches against the same frozen encoder.

CLIP (Radford et al. 2021) maps both encoders linearly into the shared space, found no difference to the MLP of SimCLR
(Chen et al. 2020) in how fast it learns, and takes that to be of more use between images alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model import VLM, InputError, InspectableVLM
from model.clip import HEADS, DualEncoder, HeadKind
from model.losses import info_nce, retrieval_accuracy
from model.training.batches import make_pairs
from model.training.evaluation.text_tower import BATCH, draw_different
from model.training.recipe import Stage
from model.training.stages import ContrastiveLoss, rate_factor
from model.training.synthetic.scene_sets import CaptionedScenes

STEPS, ROWS, SHOWN = 50, 48, 6
HELD_OUT = 4
"""Batches of :data:`BATCH` different captions that nothing is trained on."""
EVERY = 25
RATE = 1.5e-3
SEED = 40_001


@dataclass(frozen=True)
class HeadResult:
    """``weights``: what trains, tower and heads. Accuracies and ``loss`` (InfoNCE, nats) are means over the held-out
    batches; ``shares [image][text]``: the softmax over each row of the pictures that are shown."""

    head: HeadKind
    weights: int
    image_accuracy: float
    text_accuracy: float
    loss: float
    temperature: float
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class HeadComparison:
    """After ``step`` of ``steps``, ``seconds`` in all. ``pictures`` and ``captions`` are the first held-out ones."""

    step: int
    steps: int
    rows: int
    seconds: float
    pictures: tuple[Image.Image, ...]
    captions: tuple[str, ...]
    results: tuple[HeadResult, ...]

    @property
    def sentence(self) -> str:
        """What was found, with its numbers."""
        linear, mlp = self.results
        gap = 100 * abs(linear.image_accuracy - mlp.image_accuracy)
        cases = HELD_OUT * BATCH
        # Twice the standard error of the difference of two shares: below that a gap says nothing.
        share = (linear.image_accuracy + mlp.image_accuracy) / 2
        noise = 200 * (2 * share * (1 - share) / cases) ** 0.5
        verdict = "no difference that these pictures could show" if gap <= max(noise, 100 / cases) else "a difference"
        return (
            f"After {self.step} steps of {self.rows} pairs ({self.seconds:.0f} s), the image's own caption is found "
            f"among {BATCH} in {linear.image_accuracy:.1%} (linear) and {mlp.image_accuracy:.1%} (MLP) of {cases} "
            f"held-out pictures: {gap:.1f} points, where chance alone makes up to {noise:.1f}; {verdict}."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "steps": self.steps,
            "rows": self.rows,
            "seconds": self.seconds,
            "captions": list(self.captions),
            "heads": [{**vars(one), "shares": [list(row) for row in one.shares]} for one in self.results],
            "sentence": self.sentence,
        }


def compare_heads(vlm: InspectableVLM, steps: int = STEPS, rows: int = ROWS, seed: int = 0) -> Iterator[HeadComparison]:
    """Before the first step, every :data:`EVERY`, and at the end. The model's own weights stay as they are. InputError
    for a model whose encoder isn't a nanoVLM's for drawn scenes."""
    if not isinstance(vlm, VLM) or vlm.config.tile_px != 64:
        raise InputError(
            "The heads are compared on drawn scenes, whose captions a nanoVLM with tiles of 64 px and a small "
            "vocabulary can learn in a minute; choose the embedded model."
        )
    began = time.monotonic()
    stage = Stage("heads", "contrastive", steps, {"text": RATE}, ({"source": "scenes"},))
    losses, optimizers = [], []
    for head in HEADS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            dual = DualEncoder(vlm.vision_encoder, vlm.tokenizer, head=head).to(vlm.device)
        losses.append(ContrastiveLoss(dual))
        trained = [weight for name, weight in dual.named_parameters() if not name.startswith("vision_encoder.")]
        optimizers.append(torch.optim.AdamW(trained, RATE, betas=(0.9, 0.95)))
    held_out = _HeldOut(vlm, seed)
    scenes = CaptionedScenes(vlm.config, steps * rows, SEED + seed)

    def look(step: int) -> HeadComparison:
        results = tuple(held_out.measure(loss.dual) for loss in losses)
        spent = time.monotonic() - began
        shown = held_out.pictures[:SHOWN], held_out.captions[:SHOWN]
        return HeadComparison(step, steps, rows, spent, *shown, results)

    yield look(0)
    for step in range(steps):
        pairs = make_pairs(vlm, [scenes[step * rows + n] for n in range(rows)], np.random.default_rng((seed, step))).to(
            vlm.device
        )
        with torch.no_grad():
            patches = vlm.vision_encoder(pairs.tiles.to(vlm.dtype)).float()
        for loss, optimizer in zip(losses, optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = RATE * rate_factor(stage, step)
            optimizer.zero_grad()
            with torch.enable_grad():
                loss.contrast(patches, pairs)[0].backward()
            optimizer.step()
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            yield look(step + 1)


class _HeldOut:
    """Pictures with different captions, read by the encoder once."""

    def __init__(self, vlm: VLM, seed: int) -> None:
        rng = np.random.default_rng((SEED, seed, 1))
        drawn = [draw_different(rng, BATCH) for _ in range(HELD_OUT)]
        self.pictures = tuple(picture for picture, _ in drawn[0])
        self.captions = tuple(caption for _, caption in drawn[0])
        self._batches = [(self._read(vlm, [one for one, _ in batch]), [text for _, text in batch]) for batch in drawn]

    @staticmethod
    @torch.no_grad()
    def _read(vlm: VLM, pictures: Sequence[Image.Image]) -> Tensor:
        tiles = torch.stack([vlm.process_image(picture).tiles[0] for picture in pictures])
        return vlm.vision_encoder(tiles.to(vlm.device, vlm.dtype)).float()

    @torch.no_grad()
    def measure(self, dual: DualEncoder) -> HeadResult:
        own = torch.arange(BATCH, device=dual.log_temperature.device)
        temperature = dual.bounded(dual.log_temperature)
        measured, shares = [], None
        for patches, captions in self._batches:
            images, texts = dual.embed_images(patches), dual.embed_texts(captions)
            if shares is None:
                shares = (images[:SHOWN] @ texts[:SHOWN].T / temperature.exp()).softmax(dim=1)
            loss = float(info_nce(images, texts, own, temperature))
            measured.append((retrieval_accuracy(images, texts, own), retrieval_accuracy(texts, images, own), loss))
        assert shares is not None
        of_images, of_texts, loss = np.mean(measured, axis=0).tolist()
        weights = sum(w.numel() for n, w in dual.named_parameters() if not n.startswith("vision_encoder."))
        table = tuple(map(tuple, shares.tolist()))
        return HeadResult(dual.head, weights, of_images, of_texts, loss, float(temperature.exp()), table)
