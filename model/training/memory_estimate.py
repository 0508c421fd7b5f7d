"""What a run will take, by part, before it is started: counted from shapes, nothing is computed and no weights are
needed. Of nanoVLM's own models, whose layers are known; a step's rows are those of the run's first draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from model.checkpoint import empty_vlm
from model.config import VLMConfig
from model.families.nanovlm import VLM
from model.memory import format_bytes
from model.sample import Sample
from model.training.accelerator import choose_precision
from model.training.batches import RowMaker, count_patches, split_rows
from model.training.events import ModuleSize
from model.training.recipe import Recipe, Stage
from model.training.stage_data import StageData, stage_seed
from model.training.stages import build_stage, module_sizes

ENCODED = 64
"""Tiles that a frozen encoder computes at a time."""
PROGRAM = 360_000_000
"""Bytes of Python, torch and transformers with a data set open and nothing of the model, as measured on Linux; on a GPU
that is the machine's memory and no part of the account."""
KERNELS = {"bf16": 70_000_000, "fp32": 0}
"""Bytes of oneDNN's kernels, for rows of as many lengths as :func:`model.training.cpu.bound_memory` keeps."""
GAPS, MOST_GAPS = 1.3, 150_000_000
"""What rows of other lengths leave free in the heap and can't use again: so many times the activations, as measured,
and no more in all, for large pieces are given back."""
SHOWN_PAIRS = 16
MOMENTS = 2
"""AdamW keeps the mean of the gradients and of their squares."""
LOGIT_BYTES = 12
"""Of a label and a word, where the way back begins: the logarithms of the probabilities, and two gradients of them."""
_PARTS = ("program", "weights", "kept", "optimizer", "gradients", "activations", "features")


@dataclass(frozen=True)
class StepShape:
    """The largest micro-batch of a step: ``positions`` of its rows with their padding, ``labels`` that meet the
    vocabulary, ``tiles`` that the encoder computes. ``parts``: micro-batches of a step. ``words``: positions of
    captions in a contrastive stage."""

    positions: int
    labels: int
    tiles: int
    parts: int = 1
    words: int = 0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part. ``kept``: the last good weights of what trains; ``features``: what a frozen encoder made of the
    pictures. ``total``: the peak, which is less than the sum, as gradients grow while activations are let go."""

    program: int
    weights: int
    kept: int
    optimizer: int
    gradients: int
    activations: int
    features: int
    total: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @property
    def largest(self) -> str:
        """The part that most is won at, by its name."""
        found = {name: int(getattr(self, name)) for name in ("activations", "optimizer", "features", "weights")}
        return max(found, key=found.__getitem__)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {format_bytes(value)}" for name in _PARTS if (value := getattr(self, name)))
        return f"about {format_bytes(self.total)} ({parts})"


def estimate_stage(vlm: VLM, recipe: Recipe, index: int, data: StageData, step: FirstStep) -> MemoryEstimate:
    """The peak of stage ``index`` on ``data``, whose first ``step`` was drawn; of ``vlm`` the shape is looked at."""
    stage = recipe.stages[index]
    precision = choose_precision(recipe.precision)
    empty = empty_vlm(vlm.config, vlm.tokenizer)
    with torch.device("meta"):
        sizes = module_sizes(build_stage(stage, empty, 0, vlm.tokenizer))
    features = _count_features(vlm.config, recipe, stage, data, step, precision)
    return combine(vlm.config, stage, sizes, step.shape, features, precision)


@dataclass(frozen=True)
class FirstStep:
    """What the first step of a stage is made of: its ``samples``, or ``captions`` of a contrastive stage; the ``shape``
    of its largest micro-batch; its ``tiles`` and ``images``."""

    shape: StepShape
    tiles: int
    images: int
    samples: tuple[Sample, ...] = ()
    captions: tuple[str, ...] = ()


def draw_step(vlm: VLM, recipe: Recipe, index: int, data: StageData) -> FirstStep:
    """The first step as the run will draw it; ``vlm`` needs no weights. InputError where no row can be drawn."""
    stage = recipe.stages[index]
    if stage.kind == "contrastive":
        pairs = stage.batch_rows * stage.accumulate
        captions = tuple(data.mixture.draw(n).caption for n in range(min(pairs, SHOWN_PAIRS)))
        longest = max(len(vlm.tokenizer(text)["input_ids"]) for text in captions)
        return FirstStep(StepShape(0, 0, pairs, words=2 * pairs * longest), pairs, pairs, captions=captions)
    samples = RowMaker(vlm, stage, data.mixture, stage_seed(recipe, index)).take(0).samples
    patches = count_patches(vlm.config) if "vision_encoder" in stage.learning_rates else 0
    parts = list(split_rows(samples, stage.batch_rows, stage.batch_tokens, patches))
    shapes = [_measure(part, len(parts)) for part in parts]
    largest = max(shapes, key=lambda shape: shape.positions)
    images = sum(len(sample.images) for sample in samples)
    return FirstStep(largest, sum(map(_count_tiles, parts)), images, samples)


def _measure(samples: Sequence[Sample], parts: int) -> StepShape:
    positions = len(samples) * max(map(len, samples))
    return StepShape(positions, sum(int(s.loss_mask.sum()) for s in samples), _count_tiles(samples), parts)


def _count_tiles(samples: Sequence[Sample]) -> int:
    return sum(len(image.tiles) for sample in samples for image in sample.images)


def _count_features(
    config: VLMConfig, recipe: Recipe, stage: Stage, data: StageData, step: FirstStep, precision: str
) -> int:
    """What the feature cache will hold when the stage ends: no more than it may, than the steps show, and than the
    pictures make."""
    if stage.kind == "contrastive" or "vision_encoder" in stage.learning_rates or not step.images:
        return 0
    rows = max(1, len(step.samples))
    examples = sum(data.counts.values())
    drawn = [int(table.get("pictures") or 0) for table in stage.data]
    pictures = sum(drawn) if all(drawn) else examples * max(1, step.images // rows)
    tiles = min(step.tiles * stage.steps, pictures * step.tiles // step.images)
    itemsize = 2 if precision == "bf16" else 4
    return min(recipe.cache_mib << 20, tiles * count_patches(config) * config.vit_hidden_dim * itemsize)


def combine(
    config: VLMConfig,
    stage: Stage,
    sizes: Sequence[ModuleSize],
    step: StepShape,
    features: int,
    precision: str,
) -> MemoryEstimate:
    """The parts of one stage, and what they make together at the worst moment of a step."""
    whole = 4 * sum(size.parameters for size in sizes)
    trained = 4 * sum(size.trainable for size in sizes)
    activations = _count_activations(config, stage, step, precision)
    # Whoever accumulates has all gradients while the last micro-batch is computed; else they take the place of what
    # is let go on the way back, but for the table of words, whose gradient comes first of all.
    table = 4 * config.lm_vocab_size * config.lm_hidden_dim
    early = table if "decoder" in stage.learning_rates and not stage.lora_rank else 0
    step_peak = activations + trained if step.parts > 1 else max(activations + min(early, trained), trained)
    program = PROGRAM + KERNELS[precision] + min(int(GAPS * activations), MOST_GAPS)
    program = 0 if torch.cuda.is_available() else program
    kept, moments = trained, MOMENTS * trained
    # The last thing that a stage does is to make a plain copy of the model and to write it.
    total = program + whole + kept + moments + features + max(step_peak, whole)
    return MemoryEstimate(program, whole, kept, moments, trained, activations, features, total)


def _count_activations(config: VLMConfig, stage: Stage, step: StepShape, precision: str) -> int:
    """What autograd keeps for the way back. Per position and block, in float32: what enters the norms and leaves
    them; in the precision of the products: what enters each matrix."""
    item = 2 if precision == "bf16" else 4
    found = 0
    if stage.kind != "contrastive" and "vision_encoder" not in stage.learning_rates:
        # Computed before anything of the decoder is kept, and let go.
        patches = min(step.tiles, ENCODED) * count_patches(config)
        encoding = patches * (8 * config.vit_hidden_dim + 2 * item * config.vit_inter_dim)
        return max(encoding, _count_decoder(config, stage, step, precision))
    if "vision_encoder" in stage.learning_rates:
        width, inner = config.vit_hidden_dim, config.vit_inter_dim
        patches = step.tiles * count_patches(config)
        block = patches * (9 * width + item * (2 * inner + 6 * width))
        found += _count_blocks(stage, config.vit_n_blocks, block, 4 * patches * width)
        found += config.vit_n_blocks * _cast(precision, 4 * width * width + 2 * width * inner)
    if stage.kind == "contrastive":
        # The text tower is as wide whatever the model is: two layers of 128.
        return found + 2 * step.words * 128 * (9 + item * 14)
    return found + _count_decoder(config, stage, step, precision)


def _count_decoder(config: VLMConfig, stage: Stage, step: StepShape, precision: str) -> int:
    item = 2 if precision == "bf16" else 4
    width, inner = config.lm_hidden_dim, config.lm_inter_dim
    queries, keys = config.lm_n_heads * config.head_dim, config.lm_n_kv_heads * config.head_dim
    inside = 4 * inner + 2 * queries + 2 * keys
    trains = "decoder" in stage.learning_rates
    if precision == "bf16":
        norms = 4 * (4 if trains and not stage.lora_rank else 2) * width
        entering = (5 if trains else 0) * width + inside - (0 if trains else inner) + 4 * config.head_dim
    else:
        norms, entering = 4 * (6 if trains else 2) * width, inside - (0 if trains else inner)
    block = norms + item * (entering + 7 * stage.lora_rank)
    matrices = 2 * width * queries + 2 * width * keys + 3 * width * inner
    found = _count_blocks(stage, config.lm_n_blocks, step.positions * block, 4 * step.positions * width)
    found += config.lm_n_blocks * _cast(precision, matrices)
    return found + LOGIT_BYTES * step.labels * config.lm_vocab_size


def _count_blocks(stage: Stage, blocks: int, inside: int, entering: int) -> int:
    """All blocks' activations; what is computed again on the way back is there for one block at a time."""
    return blocks * entering + inside if stage.checkpointing else blocks * inside


def _cast(precision: str, weights: int) -> int:
    """Autocast makes a copy of the weights that it multiplies with, and keeps it for the way back."""
    return 2 * weights if precision == "bf16" else 0
