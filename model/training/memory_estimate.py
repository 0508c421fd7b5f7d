"""What a run will take, by part, before it is started: counted from shapes, nothing is computed and no weights are
needed. A step's rows are those of the run's first draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from model.families.nanovlm import VLM
from model.families.protocol import InspectableVLM
from model.masks import SHORT, group_documents
from model.memory import format_bytes
from model.sample import Sample
from model.training.accelerator import choose_precision
from model.training.batches import RowMaker, count_patches, split_rows
from model.training.events import ModuleSize
from model.training.model_shape import ModelShape, count_patches_of, shape_of, size_modules
from model.training.recipe import Recipe, Stage
from model.training.stage_data import StageData, stage_seed
from model.training.tuned import TunedVLM, measure_documents, needs_mask

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
    """The largest micro-batch of a step: ``positions`` of its rows, with padding where a mask is made; ``attended``:
    those that attention reads, with what pads documents, twice where it computes in float32 beside bfloat16;
    ``labels`` that meet the vocabulary; ``patches`` that go through the encoder, ``encoded`` of them at a time where it
    is frozen. ``parts``: micro-batches of a step. ``words``: positions of captions in a contrastive stage. ``pairs``:
    of positions that a mask says of whether they see one another, 0 where none is made."""

    positions: int = 0
    attended: int = 0
    labels: int = 0
    patches: int = 0
    encoded: int = 0
    parts: int = 1
    words: int = 0
    pairs: int = 0


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


def estimate_stage(
    vlm: InspectableVLM | TunedVLM, recipe: Recipe, index: int, data: StageData, step: FirstStep, sharing: int = 1
) -> MemoryEstimate:
    """The peak of stage ``index`` on ``data``, whose first ``step`` was drawn; of ``vlm`` the shape is looked at.
    ``sharing``: processes that the weights are shared out among."""
    stage = recipe.stages[index]
    precision, shape = choose_precision(recipe.precision), shape_of(vlm)
    features = _count_features(shape, recipe, stage, data, step, precision)
    return combine(shape, stage, size_modules(vlm, stage), step.shape, features, precision, sharing)


@dataclass(frozen=True)
class FirstStep:
    """What the first step of a stage is made of: its ``samples``, or ``captions`` of a contrastive stage; the ``shape``
    of its largest micro-batch; its ``patches`` and ``images``."""

    shape: StepShape
    patches: int
    images: int
    samples: tuple[Sample, ...] = ()
    captions: tuple[str, ...] = ()


def draw_step(vlm: InspectableVLM, recipe: Recipe, index: int, data: StageData) -> FirstStep:
    """The first step as the run will draw it; ``vlm`` needs no weights. InputError where no row can be drawn."""
    stage = recipe.stages[index]
    tile = count_patches(vlm.config) if isinstance(vlm, VLM) else 0
    if stage.kind == "contrastive":
        pairs = stage.batch_rows * stage.accumulate
        captions = tuple(data.mixture.draw(n).caption for n in range(min(pairs, SHOWN_PAIRS)))
        longest = max(len(vlm.tokenizer(text)["input_ids"]) for text in captions)
        shape = StepShape(patches=pairs * tile, words=2 * pairs * longest)
        return FirstStep(shape, pairs * tile, pairs, captions=captions)
    samples = RowMaker(vlm, stage, data.mixture, stage_seed(recipe, index)).take(0).samples
    patches = tile if "vision_encoder" in stage.learning_rates else 0
    parts = list(split_rows(samples, stage.batch_rows, stage.batch_tokens, patches))
    precision = choose_precision(recipe.precision)
    shapes = [_measure(vlm, part, len(parts), stage, precision) for part in parts]
    largest = max(shapes, key=lambda shape: shape.positions)
    images = [image for sample in samples for image in sample.images]
    return FirstStep(largest, sum(count_patches_of(vlm, image) for image in images), len(images), samples)


def _measure(vlm: InspectableVLM, samples: Sequence[Sample], parts: int, stage: Stage, precision: str) -> StepShape:
    longest, apart = max(map(len, samples)), stage.packing == "document"
    each = [count_patches_of(vlm, image) for sample in samples for image in sample.images]
    positions, attended, encoded, pairs = sum(map(len, samples)), 0, max(each, default=0), 0
    lengths = measure_documents(samples, apart)
    doubles = precision == "bf16" and not torch.cuda.is_available()
    for members in group_documents(lengths):
        most = max(lengths[number] for number in members)
        attended += len(members) * most * (2 if doubles and most < SHORT else 1)
    if isinstance(vlm, VLM):  # tiles of several images go together
        encoded = min(sum(each), ENCODED * count_patches(vlm.config))
    elif needs_mask(vlm, samples, apart):
        positions = attended = len(samples) * longest
        pairs = len(samples) * longest**2
    labels = sum(int(sample.loss_mask.sum()) for sample in samples)
    return StepShape(positions, attended, labels, sum(each), encoded, parts, pairs=pairs)


def _count_features(
    shape: ModelShape, recipe: Recipe, stage: Stage, data: StageData, step: FirstStep, precision: str
) -> int:
    """What the feature cache will hold when the stage ends: no more than it may, than the steps show, and than the
    pictures make."""
    if stage.kind == "contrastive" or "vision_encoder" in stage.learning_rates or not step.images:
        return 0
    rows = max(1, len(step.samples))
    examples = sum(data.counts.values())
    drawn = [int(table.get("pictures") or 0) for table in stage.data]
    pictures = sum(drawn) if all(drawn) else examples * max(1, step.images // rows)
    patches = min(step.patches * stage.steps, pictures * step.patches // step.images)
    itemsize = 2 if precision == "bf16" else 4
    return min(recipe.cache_mib << 20, patches * shape.features * itemsize)


def combine(
    shape: ModelShape,
    stage: Stage,
    sizes: Sequence[ModuleSize],
    step: StepShape,
    features: int,
    precision: str,
    sharing: int = 1,
) -> MemoryEstimate:
    """The parts of one stage, and what they make together at the worst moment of a step."""
    whole = 4 * sum(size.parameters for size in sizes)
    trained = 4 * sum(size.trainable for size in sizes)
    # A frozen encoder stays whole in each process.
    apart = 4 * sum(size.parameters for size in sizes if size.module == "vision_encoder" and not size.trainable)
    weights, part = apart + (whole - apart) // sharing, trained // sharing
    activations = _count_activations(shape, stage, step, precision)
    activations += _cast(precision, sum(size.parameters for size in sizes if size.module == "MP" and size.trainable))
    # Whoever accumulates has all gradients while the last micro-batch is computed; else they take the place of what
    # is let go on the way back, but for the table of words, whose gradient comes first of all.
    table = 4 * shape.vocabulary * shape.width
    early = table if "decoder" in stage.learning_rates and not stage.lora_rank else 0
    step_peak = activations + part if step.parts > 1 else max(activations + min(early, part), part)
    program = PROGRAM + KERNELS[precision] + min(int(GAPS * activations), MOST_GAPS)
    program = 0 if torch.cuda.is_available() else program
    kept, moments = part, MOMENTS * part
    # The last thing that a stage does is to make a plain copy of the model and to write it.
    written = trained if shape.tuned else whole
    if sharing > 1:
        written = max(whole, (1 + MOMENTS) * trained)  # the state is put together first
    total = program + weights + kept + moments + features + max(step_peak, written)
    return MemoryEstimate(program, weights, kept, moments, part, activations, features, total)


def _count_activations(shape: ModelShape, stage: Stage, step: StepShape, precision: str) -> int:
    """What autograd keeps for the way back. Per position and block, in float32: what enters the norms and leaves
    them; in the precision of the products: what enters each matrix."""
    item = 2 if precision == "bf16" else 4
    found = 0
    if stage.kind != "contrastive" and "vision_encoder" not in stage.learning_rates:
        # Computed before anything of the decoder is kept, and let go.
        encoding = step.encoded * (8 * shape.encoder_width + 2 * item * shape.encoder_inner)
        projected = item * step.patches * shape.features if "MP" in stage.learning_rates else 0
        return max(encoding, projected + _count_decoder(shape, stage, step, precision))
    if "vision_encoder" in stage.learning_rates:
        width, inner, patches = shape.encoder_width, shape.encoder_inner, step.patches
        block = patches * (9 * width + item * (2 * inner + 6 * width))
        found += _count_blocks(stage, shape.encoder_blocks, block, 4 * patches * width)
        found += shape.encoder_blocks * _cast(precision, 4 * width * width + 2 * width * inner)
    if stage.kind == "contrastive":
        # The text tower is as wide whatever the model is: two layers of 128.
        return found + 2 * step.words * 128 * (9 + item * 14)
    return found + _count_decoder(shape, stage, step, precision)


def _count_decoder(shape: ModelShape, stage: Stage, step: StepShape, precision: str) -> int:
    item = 2 if precision == "bf16" else 4
    width, inner = shape.width, shape.inner
    inside = 4 * inner
    trains = "decoder" in stage.learning_rates
    if precision == "bf16":
        norms = 4 * (4 if trains and not stage.lora_rank else 2) * width
        entering = (5 if trains else 0) * width + inside - (0 if trains else inner) + 4 * shape.head_dim
    else:
        norms, entering = 4 * (6 if trains else 2) * width, inside - (0 if trains else inner)
    block = norms + 4 * shape.normed + item * (entering + 7 * stage.lora_rank)
    matrices = 2 * width * shape.queries + 2 * width * shape.keys + 3 * width * inner
    inside = step.positions * block + item * step.attended * 2 * (shape.queries + shape.keys)
    found = _count_blocks(stage, shape.blocks, inside, 4 * step.positions * width)
    found += shape.blocks * _cast(precision, matrices)
    # A mask is bool first, and then added to the scores in float32.
    return found + LOGIT_BYTES * step.labels * shape.vocabulary + 5 * step.pairs


def _count_blocks(stage: Stage, blocks: int, inside: int, entering: int) -> int:
    """All blocks' activations; what is computed again on the way back is there for one block at a time."""
    return blocks * entering + inside if stage.checkpointing else blocks * inside


def _cast(precision: str, weights: int) -> int:
    """Autocast makes a copy of the weights that it multiplies with, and keeps it for the way back."""
    return 2 * weights if precision == "bf16" else 0
