"""``python -m benchmarks training``: a training step of ours against a plain loop, same weights, same precision.

The plain loop is what a tutorial writes: the whole model forward for every step, the frozen encoder and the logits of
every position included, and torch's AdamW as it comes. Random weights: only shapes matter. Both run in turn in this
process; ratios are what counts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from benchmarks.timing import SHAPE_222M, embedded_tokenizer, peak_mib, reset_peak
from model import VLM, Batch, VLMConfig
from model.training.accelerator import choose_precision
from model.training.batches import FeatureCache, with_features
from model.training.cpu import processor_flags
from model.training.events import StepEvent
from model.training.recipe import Recipe, Stage
from model.training.stages import build_optimizer, build_stage, count_labels
from model.training.trainer import Trainer
from model.training.trainer_state import GoodWeights

SHAPE_8K = {
    **SHAPE_222M,
    "vit_img_size": 512,
    "mp_pixel_shuffle_factor": 4,
    "mp_image_token_length": 64,
    "max_img_size": 2048,
    "lm_vocab_size": 49218,
}
ALIGNMENT = {"MP": 1e-9}
INSTRUCTION = {"MP": 1e-9, "decoder": 1e-9}
EVERYTHING = {"MP": 1e-9, "decoder": 1e-9, "vision_encoder": 1e-9}
"""Rates that leave the weights where they are: a batch that was learnt by heart has gradients too small to be normal
numbers, with which a processor takes many times as long."""


@dataclass(frozen=True)
class Measured:
    """Seconds and peak MiB of one step, medians."""

    seconds: float
    mib: float


def make_batch(vlm: VLM, rows: int, tokens: int, tiles_per_row: int, answer: int = 40) -> Batch:
    """Rows of ``tiles_per_row`` tiles and text up to ``tokens``, the last ``answer`` of them labelled."""
    generator = torch.Generator().manual_seed(0)
    # Text tokens alone: the tokenizer's special ones come after them.
    ids = torch.randint(20, 500, (rows, tokens), generator=generator)
    ids[:, 4 : 4 + tiles_per_row * vlm.config.tokens_per_tile] = vlm.image_token_id
    labels = torch.full_like(ids, -100)
    labels[:, -answer:] = ids[:, -answer:]
    side = vlm.config.vit_img_size
    tiles = torch.rand(rows * tiles_per_row, 3, side, side, generator=generator)
    return Batch(
        ids,
        torch.ones_like(ids).bool(),
        labels,
        torch.arange(tokens).expand(rows, tokens),
        torch.zeros_like(ids),
        tiles,
        torch.arange(rows).repeat_interleave(tiles_per_row),
    )


def our_step(
    vlm: VLM, rates: dict[str, float], batch: Batch, precision: str
) -> tuple[nn.Module, Callable[[], torch.Tensor], Callable[[], object]]:
    """What trains, its loss, and a step as the trainer takes it."""
    stage = Stage("benchmark", "instruction", 100, rates, ({"source": "none"},))
    module = build_stage(stage, vlm, 0, vlm.tokenizer).train()
    optimizer = build_optimizer(stage, module)
    cache, good = FeatureCache(vlm), GoodWeights(module)

    def find_loss() -> torch.Tensor:
        with cast_to(precision):
            return module(batch if "vision_encoder" in rates else with_features(batch, cache)) / count_labels(batch)

    def step() -> None:
        loss = find_loss()
        good.keep()
        finish(loss, module, optimizer)

    return module, find_loss, step


def cast_to(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def plain_optimizer(model: nn.Module, rates: dict[str, float]) -> torch.optim.Optimizer:
    """AdamW as it comes, with a rate for each part."""
    return torch.optim.AdamW(
        [{"params": list(getattr(model, part).parameters()), "lr": rate} for part, rate in rates.items()]
    )


def finish(loss: torch.Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The second half of any step."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def check_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    if abs(ours.item() - theirs.item()) > 1e-3 * theirs.item():
        raise SystemExit(f"The two don't train the same model: their first losses are {ours.item(), theirs.item()}.")


def steps(
    vlm: VLM, rates: dict[str, float], batch: Batch, precision: str = "fp32"
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Our step, as the trainer takes it, and the plain loop's, on the same weights."""
    module, our_loss, ours = our_step(vlm, rates, batch, precision)
    optimizer = plain_optimizer(vlm, rates)

    def plain_loss() -> torch.Tensor:
        with cast_to(precision):
            logits = vlm(batch)[:, :-1].reshape(-1, vlm.config.lm_vocab_size)
            return F.cross_entropy(logits.float(), batch.labels[:, 1:].reshape(-1), ignore_index=-100)

    with torch.no_grad():
        check_equal(our_loss(), plain_loss())
    return ours, lambda: finish(plain_loss(), module, optimizer)


def compare(ours: Callable[[], object], plain: Callable[[], object], repeats: int) -> tuple[Measured, Measured]:
    """Both in turn after one unmeasured step each: AdamW makes its moments then."""
    plain()
    ours()
    found: tuple[list[Measured], list[Measured]] = ([], [])
    for _ in range(repeats):
        for step, entries in zip((ours, plain), found, strict=True):
            reset_peak()
            start = time.perf_counter()
            step()
            entries.append(Measured(time.perf_counter() - start, peak_mib()))
    return tuple(  # type: ignore[return-value]
        Measured(statistics.median(m.seconds for m in entries), statistics.median(m.mib for m in entries))
        for entries in found
    )


def report(name: str, target: float, ours: Measured, plain: Measured, baseline: str = "plain loop") -> None:
    ratio = plain.seconds / ours.seconds
    print(
        f"{name:56} {ours.seconds:7.2f} s {ours.mib:6.0f} MiB  {baseline} {plain.seconds:7.2f} s {plain.mib:6.0f} MiB"
        f"   {ratio:5.2f} x (wanted {target} x)",
        flush=True,
    )


def write_photos(folder: Path, count: int) -> None:
    """JPEG files of 12 megapixels with a caption beside each, about as large as a telephone's."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (1500, 2000, 3), dtype=np.uint8))
        coarse.resize((4000, 3000), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=85)
        (folder / f"{number}.txt").write_text(f"photo number {number}")


def feed(steps: int = 8, rows: int = 4) -> None:
    """How much of a step of the trainer itself goes by waiting for rows, with and without workers."""
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        photos.mkdir()
        write_photos(photos, 12)
        for workers in (0, 1):
            stage = Stage(
                "feed",
                "instruction",
                steps,
                INSTRUCTION,
                ({"source": "captions", "path": str(photos)},),
                batch_rows=rows,
                eval_examples=0,
                save_every_s=1e9,
            )
            vlm = VLM(VLMConfig(**SHAPE_222M), embedded_tokenizer())
            run = Trainer(Recipe((stage,), workers=workers), Path(place) / f"run {workers}", vlm=vlm).run()
            found = [event for event in run if isinstance(event, StepEvent)]
            # The first step warms up, and the second is the first that workers are there for.
            seconds = found[-1].seconds - found[1].seconds
            waited = sum(event.waited_s for event in found[2:])
            print(
                f"{f'{rows} photos of 12 MP a step, 222M shape, workers = {workers}':56} "
                f"{seconds / (steps - 2):7.2f} s, of which {waited / seconds:6.1%} for rows (wanted 5 % at most)",
                flush=True,
            )


def checkpoint() -> None:
    """Time and memory of a step that keeps only what enters each block, against one that keeps all."""
    vlm = VLM(VLMConfig(**SHAPE_222M), embedded_tokenizer())
    batch = make_batch(vlm, 4, 512, 1)
    ours, _ = steps(vlm, INSTRUCTION, batch, choose_precision("auto"))

    def keeping() -> None:
        vlm.decoder.recompute = False
        ours()

    def recomputing() -> None:
        vlm.decoder.recompute = True
        ours()

    ratios = compare(recomputing, keeping, 2)
    for name, found in zip(("checkpointing = true", "checkpointing = false"), ratios, strict=True):
        print(
            f"instruction step, 4 rows of 512 tokens, {name:22} {found.seconds:7.2f} s {found.mib:6.0f} MiB", flush=True
        )


def main(repeats: int = 3, which: tuple[str, ...] = ("222m", "8k", "bf16", "checkpoint", "feed")) -> None:
    torch.manual_seed(0)
    if "222m" in which:
        for name, rates, target in (("alignment", ALIGNMENT, 1.8), ("instruction", INSTRUCTION, 1.4)):
            vlm = VLM(VLMConfig(**SHAPE_222M), embedded_tokenizer())
            pair = steps(vlm, rates, make_batch(vlm, 4, 128, 1))
            report(f"{name} step, 222M shape, 4 rows of 128 tokens", target, *compare(*pair, repeats))
            del vlm, pair
    if "8k" in which:
        # 640 x 480 is 3 x 4 tiles of 512 after resizing to 2048, and the thumbnail.
        vlm = VLM(VLMConfig(**SHAPE_8K), embedded_tokenizer())
        pair = steps(vlm, ALIGNMENT, make_batch(vlm, 1, 900, 13))
        report("alignment step, 230M-8k shape, one 640 x 480 image", 8.0, *compare(*pair, max(1, repeats // 2)))
        del vlm, pair
    if "bf16" in which:
        amx = "amx_bf16" in processor_flags()
        print(f"precision “auto” is {choose_precision('auto')} here ({'AMX' if amx else 'no AMX'})")
        if amx:
            vlm = VLM(VLMConfig(**SHAPE_222M), embedded_tokenizer())
            batch = make_batch(vlm, 4, 128, 1)
            pair = steps(vlm, INSTRUCTION, batch, "bf16")[0], steps(vlm, INSTRUCTION, batch)[0]
            report("instruction step, 222M shape, bf16 against fp32", 1.5, *compare(*pair, repeats))
    if "checkpoint" in which:
        checkpoint()
    if "feed" in which:
        feed()
