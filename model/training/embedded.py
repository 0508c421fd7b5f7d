"""Trains and measures the small model that ships with the repo, from nothing.

    python -m model.training.embedded --out RUN [--minutes 50] [--resume]
    python -m model.training.embedded evaluate FOLDER [--easy-limit N]

1. The image encoder learns, patch by patch, which colour, shape and size lies there and where the patch is.
2. It is frozen, the features of a pool of pictures are kept, and projector and decoder learn to answer: first which of
   several images is meant (clean prompts, several questions each), then everything else mixed in, easy-VQA too.

The wall clock sets the schedule: the learning rate falls on a cosine to the end of ``--minutes``. A checkpoint is
written every two minutes; ``--resume`` goes on from it, with a larger ``--minutes`` if wanted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

from model.chat import Conversation, Message
from model.checkpoint import load_vlm, save_vlm
from model.config import VLMConfig, region_tokens
from model.errors import InputError
from model.generate import generate_batch
from model.image import ProcessedImage, process_image
from model.packing import pack_samples
from model.sample import Sample
from model.training import scenes as sc
from model.training.easy_vqa import EasyPicture, read_easy_vqa
from model.training.examples import EXAMPLES, ExamplePrompt
from model.vlm import VLM

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EXTRA_TOKENS = {"image_token": "<|image|>", "global_image_token": "<|global_image|>", **region_tokens(3, 3)}

ENCODER_SHARE = 0.28
"""Part of the time that the encoder gets."""
ROUTING_SHARE = 0.6
"""Part of the decoder's time in which it sees mostly prompts of several images, two of them first, then more."""
CHECKPOINT_SECONDS = 120.0
TRAINING_RECORD = "training.json"

# More words than the tasks need, so that a person's own question is not cut into letters.
_COMMON_WORDS = """
    the a an of in on at is are was it its this that these those there here and or not no yes to from with
    without for by as be do does did have has had can you i we they he she how many much what which who when
    where why image images picture pictures photo shape shapes color colour colors colours circle circles
    rectangle rectangles triangle triangles square big small large tiny left right top bottom middle center
    above below between same different first second third fourth fifth last all any each every one two three
    four five six zero list describe tell me show count number name answer question please system user
    assistant red green blue black gray grey teal brown yellow white orange purple pink background contain
    contains present side
"""


def embedded_config(base_vocab_size: int) -> VLMConfig:
    """The shape of the embedded model: 64-px tiles of 16 image tokens, at most 3 × 3 of them; about 2.7 M weights."""
    return VLMConfig(
        vit_hidden_dim=128, vit_inter_dim=512, vit_patch_size=8, vit_img_size=64, vit_n_heads=4, vit_n_blocks=4,
        vit_model_type="trained from nothing",
        lm_hidden_dim=192, lm_inter_dim=512, lm_re_base=10000, lm_max_position_embeddings=4096, lm_max_length=4096,
        lm_base_vocab_size=base_vocab_size, extra_token_amount=len(EXTRA_TOKENS),
        lm_vocab_size=base_vocab_size + len(EXTRA_TOKENS), lm_n_heads=4, lm_n_kv_heads=2, lm_n_blocks=4,
        lm_model_type="trained from nothing", lm_tokenizer="embedded",
        mp_pixel_shuffle_factor=2, mp_image_token_length=16, max_img_size=192, resize_to_max_side_len=False,
        vlm_extra_tokens=EXTRA_TOKENS, vlm_load_backbone_weights=False,
    )  # fmt: skip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the words of the tasks: every one of them is a single piece with and without a space before
    it, digits stand alone, and all 256 bytes are there, so any text can be written. Ids 0 to 2 are SPECIAL_TOKENS."""
    rng = np.random.default_rng(0)
    words = set(_COMMON_WORDS.split())
    for _ in range(3000):
        scene = sc.random_scene(rng, sc.CANVAS_SIZES[int(rng.integers(len(sc.CANVAS_SIZES)))])
        group = sc.different_scenes(rng, int(rng.integers(2, sc.MAX_IMAGES + 1)))
        for question, answer, _ in (*sc.scene_turns(rng, scene, 4), *sc.multi_image_turns(rng, group, 4)):
            words.update("".join(c if c.isalpha() else " " for c in f"{question} {answer}").split())
    for picture in read_easy_vqa("train")[:500]:
        for question, answer, _ in picture.turns:
            words.update([*question.rstrip("?").split(), answer])
    lines = [form for word in sorted(words) for form in (word, " " + word, word.capitalize())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL_TOKENS[2], pad_token=SPECIAL_TOKENS[2],
        bos_token=SPECIAL_TOKENS[1], unk_token=SPECIAL_TOKENS[0], clean_up_tokenization_spaces=False,
        extra_special_tokens=dict(EXTRA_TOKENS),
    )  # fmt: skip


def new_vlm(seed: int) -> VLM:
    """The untrained model. Embeddings have standard deviation 1, as large as the image features; the last norm is
    scaled down so that the tied head's logits don't begin far too large."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    vlm = VLM(embedded_config(len(tokenizer) - len(EXTRA_TOKENS)), tokenizer)
    width = vlm.config.lm_hidden_dim
    with torch.no_grad():
        vlm.decoder.norm.weight.fill_(0.25 * width**-0.5)
        vlm.vision_encoder.patch_embedding.position_embedding.normal_(std=0.3)
        nn.init.normal_(vlm.MP.proj.weight, std=vlm.MP.proj.in_features**-0.5)
    return vlm


# --- stage 1: the encoder ---


class PatchHeads(nn.Module):
    """Linear read-outs of each patch during stage 1: colour, shape and size (0 is the background), row, column."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.sizes = (1 + len(sc.COLOUR_NAMES), 1 + len(sc.SHAPE_NAMES), 3, side, side)
        self.heads = nn.Linear(width, sum(self.sizes))

    def loss(self, patches: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
        """``patches [tile patch d]``, ``labels [tile patch head]`` int64, −100 to ignore. The summed loss, and the
        accuracy of each head on what is no background."""
        total = patches.new_zeros(())
        accuracies = []
        for index, logits in enumerate(self.heads(patches).float().split(self.sizes, dim=-1)):
            target = labels[..., index]
            # A shape matters more than the background around it, which is most of the picture.
            weight = torch.where((target > 0) | (index > 2), 1.0, 0.25) * (0.1 if index > 2 else 1.0)
            losses = F.cross_entropy(logits.transpose(1, 2), target, reduction="none", ignore_index=-100)
            known = target != -100
            total = total + (losses * weight).sum() / (known * weight).sum().clamp(min=1)
            shown = known & ((target > 0) | (index > 2))
            accuracies.append(float((logits.argmax(-1) == target)[shown].float().mean()))
        return total, accuracies


def _patch_labels(pixels: np.ndarray, attributes: np.ndarray, tile: int, patch: int) -> np.ndarray:
    """``pixels [height width]`` shape indices (0 background), ``attributes [index 3]`` the classes of each index;
    to ``[tile patch 5]``. A patch that a shape covers only a little of is ignored."""
    rows, cols, side = pixels.shape[0] // tile, pixels.shape[1] // tile, tile // patch
    cells = pixels.reshape(rows, side, patch, cols, side, patch)
    cells = cells.transpose(0, 3, 1, 4, 2, 5).reshape(rows * cols, side * side, patch * patch)
    covered = np.stack([(cells == index).sum(-1) for index in range(len(attributes))], axis=-1)
    best = covered[..., 1:].argmax(-1) + 1
    amount = np.take_along_axis(covered, best[..., None], -1)[..., 0]
    labels = np.where((amount > 0)[..., None], attributes[best], 0)
    labels[(amount > 0) & (amount < 0.12 * patch * patch)] = -100
    row, col = np.divmod(np.arange(side * side), side)
    place = np.broadcast_to(np.stack([row, col], -1), (*labels.shape[:2], 2))
    return np.concatenate([labels, place], -1)


def _attributes(shapes: tuple[sc.Shape, ...]) -> np.ndarray:
    values = [(0, 0, 0)]
    for shape in shapes:
        colour, kind = sc.COLOUR_NAMES.index(shape.colour), sc.SHAPE_NAMES.index(shape.kind)
        values.append((1 + colour, 1 + kind, 1 + (shape.size == "large")))
    return np.array(values)


def _easy_attributes(picture: EasyPicture) -> tuple[int, int] | None:
    """Colour and kind classes of a training picture's one shape, where its questions tell both."""
    colour = kind = None
    for question, answer, _ in picture.turns:
        words = question.rstrip("?").split()
        if answer in sc.COLOUR_NAMES:
            colour = answer
            kind = next((word for word in words if word in sc.SHAPE_NAMES), kind)
        elif answer in sc.SHAPE_NAMES:
            kind = answer
            colour = next((word for word in words if word in sc.COLOUR_NAMES), colour)
    if colour is None or kind is None:
        return None
    return 1 + sc.COLOUR_NAMES.index(colour), 1 + sc.SHAPE_NAMES.index(kind)


def encoder_pool(config: VLMConfig, n_scenes: int, seed: int) -> tuple[Tensor, Tensor]:
    """``tiles [tile 3 h w]`` uint8 and ``labels [tile patch 5]`` int16 of drawn scenes and easy-VQA's training
    pictures. The thumbnail of a large scene has the labels of its shrunken map."""
    rng = np.random.default_rng(seed)
    tile, patch = config.tile_px, config.patch_px
    tiles: list[Tensor] = []
    labels: list[np.ndarray] = []
    for index in range(n_scenes):
        # A quarter is larger than a tile and gives several.
        large = index % 4 == 3
        canvas = sc.CANVAS_SIZES[1 + index // 4 % (len(sc.CANVAS_SIZES) - 1)] if large else sc.SINGLE_TILE
        scene = sc.random_scene(rng, canvas)
        processed = process_image(sc.draw(scene), config)
        pixels, attributes = sc.label_map(scene), _attributes(scene.shapes)
        if processed.has_thumbnail:
            across = ((np.arange(tile) + 0.5) * canvas[0] / tile).astype(int)
            down = ((np.arange(tile) + 0.5) * canvas[1] / tile).astype(int)
            small = _patch_labels(pixels[np.ix_(down, across)], attributes, tile, patch)
            # Size can't be told from a thumbnail without knowing the canvas.
            small[..., 2] = np.where(small[..., 2] > 0, -100, small[..., 2])
            labels.append(small)
        labels.append(_patch_labels(pixels, attributes, tile, patch))
        tiles.append((processed.tiles * 255).round().to(torch.uint8))
    for picture in read_easy_vqa("train"):
        known = _easy_attributes(picture)
        if known is None:
            continue
        image = picture.open()
        array = np.asarray(image).astype(int)
        colour = np.array(sc.COLOURS[sc.COLOUR_NAMES[known[0] - 1]])
        pixels = (np.abs(array - colour).sum(-1) < 60).astype(np.uint8)
        labels.append(_patch_labels(pixels, np.array([(0, 0, 0), (*known, -100)]), tile, patch))
        tiles.append((process_image(image, config).tiles * 255).round().to(torch.uint8))
    return torch.cat(tiles), torch.from_numpy(np.concatenate(labels).astype(np.int16))


# --- stage 2: the decoder ---


class CachedEncoder(nn.Module):
    """Stands in for the frozen encoder: takes row numbers where the encoder takes pixels, gives the kept features.

    So renderer, collator, model and loss run unchanged; see :meth:`FeaturePool.add`.
    """

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, tiles: Tensor) -> Tensor:
        return self.features[tiles.flatten().long()].float()


@dataclass(frozen=True)
class PooledScene:
    """A drawn scene and its picture, whose ``tiles [tile 1 1 1]`` hold row numbers of the kept features."""

    scene: sc.Scene
    image: ProcessedImage


class FeaturePool:
    """Pictures for stage 2: one-shape tiles by colour, busy tiles, large scenes by canvas, easy-VQA's training set."""

    def __init__(self, vlm: VLM, n_single: int, n_busy: int, n_large: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._config = vlm.config
        self._pixels: list[Tensor] = []
        self._count = 0
        self.by_colour: dict[str, list[PooledScene]] = {}
        for index in range(n_single):
            colour = sc.COLOUR_NAMES[index % len(sc.COLOUR_NAMES)]
            self.by_colour.setdefault(colour, []).append(self._scene(sc.random_scene(rng, n_shapes=1, colour=colour)))
        self.busy = [self._scene(sc.random_scene(rng, n_shapes=1 + index % 3)) for index in range(n_busy)]
        self.large: dict[tuple[int, int], list[PooledScene]] = {}
        for index in range(n_large):
            canvas = sc.CANVAS_SIZES[1 + index % (len(sc.CANVAS_SIZES) - 1)]
            self.large.setdefault(canvas, []).append(self._scene(sc.random_scene(rng, canvas)))
        self.easy = [(picture.turns, self.add(process_image(picture.open(), vlm.config)))
                     for picture in read_easy_vqa("train")]  # fmt: skip
        pixels = torch.cat(self._pixels)
        self._pixels.clear()
        with torch.inference_mode(), _fast_kernels():
            features = [vlm.vision_encoder(part.float() / 255).to(torch.bfloat16) for part in pixels.split(256)]
        self.features = torch.cat(features).clone()

    def _scene(self, scene: sc.Scene) -> PooledScene:
        return PooledScene(scene, self.add(process_image(sc.draw(scene), self._config)))

    def add(self, image: ProcessedImage) -> ProcessedImage:
        """Keeps the pixels and returns the same image with row numbers in their place."""
        n_tiles = len(image.tiles)
        self._pixels.append((image.tiles * 255).round().to(torch.uint8))
        rows = torch.arange(self._count, self._count + n_tiles, dtype=torch.float64).view(-1, 1, 1, 1)
        self._count += n_tiles
        return replace(image, tiles=rows)

    def different(self, rng: np.random.Generator, n_images: int) -> list[PooledScene]:
        """Tiles of one shape each; all colours differ, but in one of twelve groups all are the same."""
        colours = rng.permutation(sc.COLOUR_NAMES)[:n_images]
        if rng.random() < 1 / 12:
            colours[:] = colours[0]
        groups = [self.by_colour[str(colour)] for colour in colours]
        return [group[int(rng.integers(len(group)))] for group in groups]


def _any(rng: np.random.Generator, items: list) -> object:
    return items[int(rng.integers(len(items)))]


class PromptMaker:
    """Draws rendered training prompts, one kind and about one length to a batch."""

    def __init__(self, vlm: VLM, pool: FeaturePool) -> None:
        self.vlm = vlm
        self.pool = pool

    def batch(self, rng: np.random.Generator, progress: float, size: int = 64) -> tuple[str, list[Sample]]:
        """``progress`` of stage 2, 0 to 1. Returns the kind's name and the samples."""
        routing = progress < ROUTING_SHARE
        if routing:
            weights = {"several": 0.8, "easy": 0.1, "busy": 0.1}
        else:
            weights = {"several": 0.3, "easy": 0.2, "busy": 0.18, "large": 0.16, "per-turn": 0.1, "packed": 0.06}
        kind = str(rng.choice(list(weights), p=list(weights.values())))
        n_images = int(rng.choice([2, 3, 4, 5], p=[0.2, 0.3, 0.25, 0.25]))
        if routing:
            # Two images can be told apart within minutes, five from nothing in no time that was tried.
            most = min(sc.MAX_IMAGES, 2 + int(4 * progress / ROUTING_SHARE))
            n_images = int(rng.integers(2, most + 1))
        if kind == "large":
            canvases = list(self.pool.large)
            canvas = canvases[int(rng.integers(len(canvases)))]
            # A step over the largest scenes would cost as much as four others.
            size = size // 2 if canvas[0] * canvas[1] > 4 * 64 * 64 else size
            return kind, [self._scene(rng, _any(rng, self.pool.large[canvas]), 4) for _ in range(size)]
        if kind == "busy":
            return kind, [self._scene(rng, _any(rng, self.pool.busy), 4) for _ in range(size)]
        if kind == "easy":
            return kind, [self._easy(rng, 4) for _ in range(size)]
        if kind == "several":
            return kind, [self._several(rng, n_images, routing) for _ in range(size)]
        if kind == "per-turn":
            return kind, [self._per_turn(rng, min(n_images, 4)) for _ in range(size)]
        packed = []
        for _ in range(size):
            parts = [self._easy(rng, 1) if rng.random() < 0.5 else self._single(rng) for _ in range(min(n_images, 4))]
            packed.append(pack_samples(parts, self.vlm.pad_token_id))
        return kind, packed

    def _render(self, example: sc.Example) -> Sample:
        return self.vlm.prepare(example.conversation)

    def _scene(self, rng: np.random.Generator, pooled: object, n_turns: int) -> Sample:
        assert isinstance(pooled, PooledScene)
        turns = sc.scene_turns(rng, pooled.scene, n_turns)
        return self._render(sc.conversation((pooled.image,), turns, rng))

    def _single(self, rng: np.random.Generator) -> Sample:
        return self._scene(rng, self.pool.different(rng, 1)[0], 1)

    def _easy(self, rng: np.random.Generator, n_turns: int) -> Sample:
        turns, image = self.pool.easy[int(rng.integers(len(self.pool.easy)))]
        chosen = [turns[int(index)] for index in rng.permutation(len(turns))[:n_turns]]
        return self._render(sc.conversation((image,), chosen, rng))

    def _several(self, rng: np.random.Generator, n_images: int, dense: bool) -> Sample:
        group = self.pool.different(rng, n_images)
        scenes = [pooled.scene for pooled in group]
        if dense:
            # Every image asked about, in any order, then all in order: the quickest way to learn which is meant.
            turns = [(sc.ask_colour_by_index if rng.random() < 0.6 else sc.ask_shape_by_index)(rng, scenes, int(index))
                     for index in rng.permutation(n_images)[:4]]  # fmt: skip
            turns.append(sc.ask_list(rng, scenes))
        else:
            turns = sc.multi_image_turns(rng, scenes, 4)
        return self._render(sc.conversation(tuple(pooled.image for pooled in group), turns, rng))

    def _per_turn(self, rng: np.random.Generator, n_images: int) -> Sample:
        group = self.pool.different(rng, n_images)
        turns = [sc.scene_turns(rng, pooled.scene, int(rng.integers(1, 3))) for pooled in group]
        if rng.random() < 0.3:
            index = int(rng.integers(n_images))
            turns[-1] = [*turns[-1], sc.ask_colour_by_index(rng, [pooled.scene for pooled in group], index)]
        return self._render(sc.conversation_per_turn(tuple(pooled.image for pooled in group), turns, rng))


# --- the run ---


@contextmanager
def _fast_kernels() -> Iterator[None]:
    """bfloat16 products, and attention written out: the fused kernel's backward is slower on a processor."""
    with ExitStack() as stack:
        contexts: list[AbstractContextManager] = [
            torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel([SDPBackend.MATH])
        ]  # fmt: skip
        for context in contexts:
            stack.enter_context(context)
        yield


def _cosine(progress: float, step: int, peak: float, warm_up: int = 60) -> float:
    return peak * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class TrainingRun:
    """One run in ``out``: ``state.pt`` to go on from, ``metrics.jsonl``, and a loadable checkpoint in ``out/model``."""

    def __init__(self, out: Path, minutes: float, seed: int, resume: bool, threads: int) -> None:
        self.out, self.seconds, self.seed = out, minutes * 60, seed
        self.threads = threads
        out.mkdir(parents=True, exist_ok=True)
        self.vlm = new_vlm(seed)
        config = self.vlm.config
        self.heads = PatchHeads(config.vit_hidden_dim, config.tile_px // config.patch_px)
        self.stage, self.step, self.elapsed = "encoder", 0, 0.0
        self._optimizer_state: dict | None = None
        state_path = out / "state.pt"
        if resume:
            if not state_path.is_file():
                raise InputError(f"{out} has no state.pt to resume from; leave out --resume.")
            state = torch.load(state_path, weights_only=True)
            self.vlm.load_state_dict(state["vlm"])
            self.heads.load_state_dict(state["heads"])
            self.stage, self.step, self.elapsed = state["stage"], state["step"], state["elapsed"]
            self._optimizer_state = state["optimizer"]
        elif state_path.exists():
            raise InputError(f"{out} holds a run already; add --resume to go on with it, or choose another folder.")
        # Kept, so that resuming with more minutes stretches the decoder's schedule and nothing else.
        self.encoder_seconds = self.seconds * ENCODER_SHARE
        self.decoder_start = self.encoder_seconds
        if resume and self.stage == "decoder":
            self.decoder_start = min(float(state.get("decoder_start", self.encoder_seconds)), self.elapsed)
        self._last_tick = self._last_save = time.monotonic()

    def run(self) -> VLM:
        self._tick()
        if self.stage == "encoder":
            self._train_encoder()
            self.stage, self.step, self._optimizer_state = "decoder", 0, None
            self.decoder_start = self.elapsed
            self._save(None)
        self._train_decoder()
        return self.vlm

    def _tick(self) -> None:
        now = time.monotonic()
        self.elapsed += now - self._last_tick
        self._last_tick = now

    def _log(self, **values: object) -> None:
        line = {"stage": self.stage, "step": self.step, "seconds": round(self.elapsed, 1), **values}
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self, optimizer: torch.optim.Optimizer | None, encoder: nn.Module | None = None) -> None:
        """``encoder`` is the real one while the cached one stands in for it."""
        standing_in = self.vlm.vision_encoder
        if encoder is not None:
            self.vlm.vision_encoder = encoder  # type: ignore[assignment]
        try:
            state = {"vlm": self.vlm.state_dict(), "heads": self.heads.state_dict(), "stage": self.stage,
                     "step": self.step, "elapsed": self.elapsed, "decoder_start": self.decoder_start,
                     "optimizer": None if optimizer is None else optimizer.state_dict()}  # fmt: skip
            staging = self.out / "state.pt.new"
            torch.save(state, staging)
            os.replace(staging, self.out / "state.pt")
            save_vlm(self.vlm, self.out / "model")
            record = {"minutes": round(self.elapsed / 60, 1), "decoder_steps": self.step, "seed": self.seed,
                      "threads": self.threads, "processor": _processor(), "torch": torch.__version__,
                      "finished": self.elapsed >= self.seconds}  # fmt: skip
            (self.out / "model" / TRAINING_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        finally:
            self.vlm.vision_encoder = standing_in
        self._last_save = time.monotonic()

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
        groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.03},
                  {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]  # fmt: skip
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
        return optimizer

    def _update(self, optimizer: torch.optim.AdamW, loss: Tensor, parameters: list[nn.Parameter], rate: float) -> None:
        if not bool(torch.isfinite(loss)):
            raise RuntimeError(f"The loss became {loss.item()} at step {self.step} of stage {self.stage}.")
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        self.step += 1

    def _train_encoder(self) -> None:
        config = self.vlm.config
        tiles, labels = encoder_pool(config, 16000, self.seed + 1)
        self._tick()
        self._log(tiles=len(tiles))
        encoder = self.vlm.vision_encoder
        parameters = [*encoder.parameters(), *self.heads.parameters()]
        optimizer = self._optimizer(parameters)
        while self.elapsed < self.encoder_seconds:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
            rows = torch.randint(len(tiles), (128,), generator=generator)
            with _fast_kernels():
                patches = encoder(tiles[rows].float() / 255)
                loss, accuracies = self.heads.loss(patches, labels[rows].long())
            self._update(optimizer, loss, parameters, _cosine(self.elapsed / self.encoder_seconds, self.step, 1.5e-3))
            self._tick()
            if self.step % 25 == 0:
                self._log(loss=round(loss.item(), 4), accuracy=[round(value, 4) for value in accuracies])
            if time.monotonic() - self._last_save > CHECKPOINT_SECONDS:
                self._save(optimizer)

    def _train_decoder(self) -> None:
        encoder = self.vlm.vision_encoder.eval().requires_grad_(False)
        pool = FeaturePool(self.vlm, n_single=8000, n_busy=5000, n_large=2400, seed=self.seed + 2)
        self._tick()
        self._log(tiles=len(pool.features))
        maker = PromptMaker(self.vlm, pool)
        self.vlm.vision_encoder = CachedEncoder(pool.features)  # type: ignore[assignment]
        parameters = [*self.vlm.MP.parameters(), *self.vlm.decoder.parameters()]
        optimizer = self._optimizer(parameters)
        start = self.decoder_start
        while self.elapsed < self.seconds:
            progress = max(0.0, (self.elapsed - start) / (self.seconds - start))
            rng = np.random.default_rng((self.seed, self.step))
            kind, samples = maker.batch(rng, progress)
            batch = self.vlm.collate(samples)
            with _fast_kernels():
                loss = self.vlm.loss(batch)
            self._update(optimizer, loss, parameters, _cosine(progress, self.step, 1.5e-3))
            self._tick()
            if self.step % 10 == 0:
                self._log(kind=kind, loss=round(loss.item(), 4), width=batch.input_ids.shape[1])
            if time.monotonic() - self._last_save > CHECKPOINT_SECONDS:
                self._save(optimizer, encoder)
        self.vlm.vision_encoder = encoder
        self._save(optimizer)
        self._log(done=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# --- measuring ---


@dataclass(frozen=True)
class Probe:
    """A prompt that ends where the model is to answer, and the one right answer."""

    family: str
    sample: Sample
    answer: str


@dataclass(frozen=True)
class FamilyScore:
    """``accuracy`` by greedy exact match over ``questions``; ``commonest`` is what always giving the family's
    commonest answer would reach."""

    family: str
    questions: int
    accuracy: float
    commonest: float


def _probe(vlm: VLM, images: tuple, turn: sc.Turn, family: str | None = None) -> Probe:
    conversation = Conversation((Message("user", turn[0], images),))
    return Probe(family or turn[2], vlm.prepare(conversation, add_generation_prompt=True), turn[1])


def _easy_probes(vlm: VLM, limit: int | None) -> Iterator[Probe]:
    # Strided, so that a part of the test set has all kinds of pictures.
    pictures = read_easy_vqa("test")
    for picture in pictures[:: max(1, len(pictures) // limit) if limit else 1]:
        image = vlm.process_image(picture.open())
        for turn in picture.turns:
            yield _probe(vlm, (image,), turn)


def _scene_probes(vlm: VLM, n_each: int, seed: int) -> Iterator[Probe]:
    rng = np.random.default_rng(seed)
    askers: tuple[Callable[[np.random.Generator, sc.Scene], sc.Turn | None], ...] = (
        sc.ask_colour, sc.ask_shape, sc.ask_count, sc.ask_yes_no, sc.ask_position, sc.ask_caption
    )  # fmt: skip
    for asker in askers:
        for place in ("one tile", "several tiles"):
            found = 0
            while found < n_each:
                canvas = sc.SINGLE_TILE
                if place == "several tiles":
                    canvas = sc.CANVAS_SIZES[1 + found % (len(sc.CANVAS_SIZES) - 1)]
                scene = sc.random_scene(rng, canvas)
                turn = asker(rng, scene)
                if turn is not None:
                    found += 1
                    yield _probe(vlm, (sc.draw(scene),), turn, f"{turn[2]}, {place}")


def _several_probes(vlm: VLM, n_each: int, seed: int) -> Iterator[Probe]:
    rng = np.random.default_rng(seed)
    for n_images in range(2, sc.MAX_IMAGES + 1):
        for kind in ("colour", "shape", "which", "same", "list"):
            for index in range(n_each):
                group = sc.different_scenes(rng, n_images, same_colour=kind == "same" and index % 2 == 0)
                where = int(rng.integers(n_images))
                turn: sc.Turn | None
                if kind == "colour":
                    turn = sc.ask_colour_by_index(rng, group, where)
                elif kind == "shape":
                    turn = sc.ask_shape_by_index(rng, group, where)
                elif kind == "which":
                    turn = sc.ask_which(rng, group)
                else:
                    turn = sc.ask_same_colour(rng, group) if kind == "same" else sc.ask_list(rng, group)
                assert turn is not None
                yield _probe(vlm, tuple(sc.draw(scene) for scene in group), turn, f"{turn[2]}, {n_images} images")


def answers(vlm: VLM, samples: list[Sample], max_new_tokens: int = 24) -> list[str]:
    """Greedy answers, in order; rows of about one length share a batch."""
    found: dict[int, str] = {}
    order = sorted(range(len(samples)), key=lambda index: len(samples[index]))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        steps = [ids for ids, _ in generate_batch(
            vlm, vlm.collate([samples[row] for row in rows]), max_new_tokens=max_new_tokens
        )]  # fmt: skip
        for row, ids in zip(rows, torch.stack(steps, dim=1).tolist(), strict=True):
            stop = ids.index(vlm.eos_token_id) if vlm.eos_token_id in ids else len(ids)
            found[row] = str(vlm.tokenizer.decode(ids[:stop]))
    return [found[index] for index in range(len(samples))]


def measure(vlm: VLM, easy_limit: int | None = None, n_each: int = 100, seed: int = 90_001) -> list[FamilyScore]:
    """Scores per question family: easy-VQA's test split (``easy_limit`` pictures of it, all if None) and freshly
    drawn scenes."""
    probes = [*_easy_probes(vlm, easy_limit), *_scene_probes(vlm, n_each, seed), *_several_probes(vlm, n_each, seed)]
    right: defaultdict[str, list[bool]] = defaultdict(list)
    golds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for probe, answer in zip(probes, answers(vlm, [probe.sample for probe in probes]), strict=True):
        families = [probe.family, "easy-VQA, all"] if probe.family.startswith("easy-VQA") else [probe.family]
        for family in families:
            right[family].append(answer == probe.answer)
            golds[family][probe.answer] += 1
    return [
        FamilyScore(
            family, len(hits), sum(hits) / len(hits), golds[family].most_common(1)[0][1] / len(hits)
        )
        for family, hits in right.items()
    ]  # fmt: skip


def example_answers(vlm: VLM, example: ExamplePrompt) -> tuple[str, ...]:
    """What the model answers to each turn of an app's example, earlier turns answered by itself."""
    images = example.draw_images()
    given: list[str] = []
    for turn, question in enumerate(example.turns):
        if example.layout == "packed":
            parts = [vlm.prepare(Conversation((Message("user", example.turns[i], (images[i],)),)), True)
                     if i == turn else
                     vlm.prepare(Conversation((Message("user", example.turns[i], (images[i],)),
                                               Message("assistant", given[i]))))
                     for i in range(turn + 1)]  # fmt: skip
            sample = pack_samples(parts, vlm.pad_token_id, separate_last=False)
        else:
            messages: list[Message] = []
            for i in range(turn + 1):
                own = (images[i],) if example.layout == "per-turn" else images if i == 0 else ()
                messages.append(Message("user", example.turns[i] if i < turn else question, own))
                if i < turn:
                    messages.append(Message("assistant", given[i]))
            sample = vlm.prepare(Conversation(tuple(messages)), add_generation_prompt=True)
        given.append(answers(vlm, [sample])[0])
    return tuple(given)


def card(
    vlm: VLM, scores: list[FamilyScore], examples: list[tuple[ExamplePrompt, tuple[str, ...]]], record: dict
) -> str:
    """The model card, in Markdown."""
    weights = sum(parameter.numel() for parameter in vlm.parameters())
    lines = [
        "# The embedded model",
        "",
        (
            f"A vision-language model of {weights / 1e6:.2f} million weights in nanoVLM's format, trained from nothing so "
            "that the app has something real to open up. It knows coloured circles, rectangles and triangles, in English "
            "questions of a few fixed forms, and nothing else."
        ),
        "",
        "## How it was made",
        "",
        "```",
        f"python -m model.training.embedded --out RUN --minutes {record.get('minutes', 50):.0f}",
        "python -m model.training.embedded evaluate RUN/model",
        "```",
        "",
        (
            "Data: the training split of the pip package `easy-vqa` (4,000 pictures), and scenes that "
            "`model/training/scenes.py` draws: 1 to 3 shapes on 64 × 64 up to 192 × 192 pixels, and up to 5 pictures in "
            "one prompt, all at once, one per turn, or packed."
        ),
        "",
        (
            f"The image encoder learned for {ENCODER_SHARE:.0%} of the time to tell colour, shape, size and place of "
            "every patch; then it was frozen, and projector and decoder learned to answer (loss on the answers only), the "
            f"first {ROUTING_SHARE:.0%} of their time mostly on prompts of several images."
        ),
        "",
    ]
    if record:
        lines += [
            (
                f"This run: {record['minutes']} minutes of wall-clock time, {record['decoder_steps']:,} decoder steps, "
                f"{record['threads']} threads on {record['processor']}, torch {record['torch']}, seed {record['seed']}"
                f"{'' if record['finished'] else ', stopped before its time was up'}."
            ),
            "",
        ]
    if record.get("notes"):
        lines += [str(record["notes"]), ""]
    lines += [
        "## How well it answers",
        "",
        (
            "Greedy answers that equal the right one to the letter. easy-VQA: its official test split, no picture of "
            "which was trained on; the rest: freshly drawn scenes. Beside it, what always giving the family's commonest "
            "answer would reach."
        ),
        "",
        "| questions | asked | right | commonest answer |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {score.family} | {score.questions:,} | {score.accuracy:.3f} | {score.commonest:.3f} |"
            for score in scores
        ),
        "",
        "The app's examples:",
        "",
        "| example | expected | answered |",
        "| --- | --- | --- |",
        *(f"| {example.title} | {', '.join(example.expected)} | {', '.join(given)} |" for example, given in examples),
        "",
        "## Limits",
        "",
        "- Photographs, other shapes and colours, and other questions get an answer too, and it means nothing.",
        "- At most 3 × 3 tiles of 64 px (larger pictures are shrunk to 192 px), 3 shapes to a picture, 5 pictures.",
        "- Questions by index were trained with pictures of one shape each.",
        "- One seed, one run: differences of a point or two between families say little.",
        "",
    ]
    return "\n".join(lines)


def evaluate(folder: Path, easy_limit: int | None) -> bool:
    """Prints the table, writes ``README.md`` into ``folder``; True if all of the app's examples are right."""
    vlm = load_vlm(folder)
    scores = measure(vlm, easy_limit)
    for score in scores:
        _say(f"{score.family:32} {score.questions:6,} {score.accuracy:.3f}  commonest {score.commonest:.3f}")
    examples = [(example, example_answers(vlm, example)) for example in EXAMPLES]
    for example, given in examples:
        _say(f"{'right' if given == example.expected else 'WRONG'}  {example.name}: {', '.join(given)}")
    path = folder / TRAINING_RECORD
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    (folder / "README.md").write_text(card(vlm, scores, examples, record), encoding="utf-8")
    return all(given == example.expected for example, given in examples)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m model.training.embedded", description=(__doc__ or "").splitlines()[0]
    )
    measuring = arguments[:1] == ["evaluate"]
    if measuring:
        parser.add_argument("folder", type=Path, help="checkpoint to measure; its README.md is written")
        parser.add_argument("--easy-limit", type=int, help="number of easy-VQA test pictures, default all")
    else:
        parser.add_argument("--out", type=Path, required=True, help="folder of the run")
        parser.add_argument("--minutes", type=float, default=50.0, help="wall-clock time in all")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments[1:] if measuring else arguments)
    torch.set_num_threads(options.threads)
    try:
        if measuring:
            return 0 if evaluate(options.folder, options.easy_limit) else 1
        TrainingRun(options.out, options.minutes, options.seed, options.resume, options.threads).run()
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    _say(f"done: {options.out / 'model'}; measure it with `evaluate {options.out / 'model'}`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
