"""``python -m benchmarks scale``: what an answer and everything that comes after it cost at nanoVLM's 222M shape.

Three images of five tiles, images first, about 790 tokens, random weights: only shapes matter. Units are the parts that
nothing can do without, measured in the same run: the encoder on fifteen tiles, one pass of the language model over the
row (a *prefill*), one step of decoding behind it. Beside the times stands what was counted: parts of images that went
through the encoder, and positions that went through the language model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from PIL import Image

from benchmarks.timing import SHAPE_222M, embedded_tokenizer, measure, peak_mib, reset_peak
from inspector.experiments.image_edits import run_edits
from inspector.export.experiments import EXPERIMENTS
from inspector.interventions.continuations import Continuation
from inspector.interventions.prefix_cache import PrefixCache
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, Inspection, ask_and_inspect, attend
from inspector.row.feature_store import FEATURES
from inspector.row.prompt import Prompt, Turn, prepare_row
from inspector.row.row_store import ROWS
from inspector.which_image.study import study_answer
from model import VLM, Conversation, InspectableVLM, Message, OpenedImage, VLMConfig, load_vlm
from model.language import LanguageModel

CLICKS = 20
TOKENS = 16
"""Of the answer: random weights would not stop."""


@dataclass
class Counted:
    """Positions that went through the language model, and passes."""

    positions: int = 0
    passes: int = 0
    parts: int = 0


@contextmanager
def counting() -> Iterator[Counted]:
    """Counts while it is open."""
    counted, forward, before = Counted(), LanguageModel.forward, FEATURES.counts().encoded

    def watched(self: LanguageModel, embeds: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
        counted.positions += embeds.shape[0] * embeds.shape[1]
        counted.passes += 1
        return forward(self, embeds, *rest, **named)  # type: ignore[arg-type]

    LanguageModel.forward = watched  # type: ignore[method-assign, assignment]
    try:
        yield counted
    finally:
        LanguageModel.forward = forward  # type: ignore[method-assign]
        counted.parts = FEATURES.counts().encoded - before


@dataclass
class Unit:
    """Seconds of the encoder on all tiles, of a prefill, and of a decode step; the row's positions."""

    vision: float
    prefill: float
    step: float
    length: int


def build(max_positions: int = 8192) -> VLM:
    torch.manual_seed(0)
    shape = {**SHAPE_222M, "max_img_size": 448, "lm_max_position_embeddings": max_positions}
    config = VLMConfig(**shape, lm_chat_template=load_vlm("embedded").config.lm_chat_template)
    return VLM(config, embedded_tokenizer()).eval()


def draw_prompt() -> Prompt:
    images = tuple(OpenedImage(Image.effect_noise((448, 448), 40 + n).convert("RGB")) for n in range(3))
    return Prompt(images, (Turn("In image 2, what colour is the shape?"),))


def _time(function: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


@torch.inference_mode()
def measure_units(vlm: VLM, prompt: Prompt) -> Unit:
    row = prepare_row(vlm, prompt, answering=0)
    tiles = [part for image in row.images for part in vlm.encoder_inputs(image)]
    vision = _time(lambda: vlm.encode(tiles))
    embeds = vlm.embed(vlm.collate([row]))
    visible = torch.ones(len(row), len(row), dtype=torch.bool).tril()[None, None]
    prefill = _time(lambda: vlm.decode(embeds, row.position_ids, visible))
    return Unit(vision, prefill, _time(decode_step(vlm, len(row)), 9), len(row))


def decode_step(vlm: InspectableVLM, length: int) -> Callable[[], object]:
    """One token behind ``length`` kept positions, with its logits."""
    cache = vlm.new_cache(length + 1)
    cache.keys.zero_()
    cache.values.zero_()
    embeds, seen = vlm.embed_ids(torch.tensor([5]))[None], torch.ones(1, 1, 1, length + 1, dtype=torch.bool)

    def step() -> None:
        cache.length = length
        vlm.logits(vlm.decode(embeds, torch.tensor([[length]]), seen, cache))

    return step


def _report(what: str, seconds: float, unit: Unit, counted: Counted) -> None:
    rows = counted.positions / unit.length
    print(
        f"{what:46} {seconds:8.2f} s = {seconds / unit.prefill:6.2f} prefills {counted.parts:4} parts encoded "
        f"{counted.positions:8,} positions = {rows:6.2f} rows in {counted.passes:4} passes",
        flush=True,
    )


@dataclass
class Stopwatch:
    began: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        now, before = time.perf_counter(), self.began
        self.began = now
        return now - before


def main(_: int) -> None:
    vlm, prompt = build(), draw_prompt()
    print(f"{vlm.n_parameters / 1e6:.0f} M weights, {vlm.n_layers} layers × {vlm.n_heads} heads")
    unit = measure_units(vlm, prompt)
    print(
        f"{unit.length} tokens; encoder {unit.vision:.2f} s, prefill {unit.prefill:.2f} s, decode step "
        f"{unit.step * 1000:.0f} ms"
    )
    FEATURES.clear()
    ROWS.clear()
    vlm.renderer.eos_token_id = -1  # it answers as long as it may
    watch = Stopwatch()
    with counting() as counted:
        inspection = ask_and_inspect(vlm, prompt, GenerationSettings(max_new_tokens=TOKENS))
    seconds = watch.lap()
    _report(f"Ask, {TOKENS} tokens, with the table of tokens", seconds, unit, counted)
    print(
        f"{'':46} = encoder + prefill + {TOKENS} steps × "
        f"{seconds / (unit.vision + unit.prefill + TOKENS * unit.step):.2f}"
    )
    _click(vlm, inspection, unit)
    _edit(vlm, inspection, unit)
    _study(vlm, inspection, unit)
    _run_experiments(vlm, inspection, unit)
    counts, rows = FEATURES.counts(), ROWS.counts()
    print(
        f"kept: {counts.parts} parts of images {counts.nbytes / 1e6:.1f} MB, {rows.rows} rows "
        f"{rows.nbytes / 1e6:.1f} MB; encoded {counts.encoded}, found again {counts.found}"
    )
    _decode_long()


def _click(vlm: VLM, inspection: Inspection, unit: Unit) -> None:
    """In turn with decode steps, so that a busy machine slows both."""
    positions = iter(range(unit.length - 1, 0, -30))
    step = decode_step(vlm, unit.length)
    with counting() as counted:
        ours, theirs = measure(lambda: attend(vlm, inspection, next(positions)), step, CLICKS)
    print(
        f"{f'one token click (median of {CLICKS})':46} {ours:8.2f} s = {ours / theirs:6.2f} decode steps "
        f"{counted.parts:4} parts encoded",
        flush=True,
    )


def _edit(vlm: VLM, inspection: Inspection, unit: Unit) -> None:
    """Of the first image, behind which everything is read again, and of the last."""
    for image in (1, 3):
        watch = Stopwatch()
        with counting() as counted:
            run_edits(open_case(vlm, inspection, max_new_tokens=TOKENS), [f"image {image}: blur 112,112,336,336"])
        _report(f"image {image} edited, and its tokens cut", watch.lap(), unit, counted)


def _study(vlm: VLM, inspection: Inspection, unit: Unit) -> None:
    watch, whole = Stopwatch(), Counted()
    seconds = 0.0
    steps = study_answer(vlm, inspection, max_new_tokens=TOKENS)
    while True:
        with counting() as counted:
            found = next(steps, None)
        if found is None:
            break
        took = watch.lap()
        seconds += took
        for name in vars(whole):
            setattr(whole, name, getattr(whole, name) + getattr(counted, name))
        _report(f"  which image: {found.step}", took, unit, counted)
    _report("which image, all steps", seconds, unit, whole)


def _run_experiments(vlm: VLM, inspection: Inspection, unit: Unit) -> None:
    *_, found = study_answer(vlm, inspection, max_new_tokens=TOKENS)
    watch = Stopwatch()
    for one in EXPERIMENTS:
        watch.lap()
        with counting() as counted:
            for _ in one.run(open_case(vlm, inspection, max_new_tokens=TOKENS), found):
                pass
        _report(f"  experiment: {one.key}", watch.lap(), unit, counted)


def _decode_long(length: int = 4096, tokens: int = 64) -> None:
    """An answer of an intervention behind a long row: positions computed, and memory taken beyond what is kept."""
    vlm = build()
    vlm.renderer.eos_token_id = -1
    row = vlm.place(vlm.prepare(long_conversation(vlm, length), True))
    read = ROWS.read(vlm, row, False)
    cache = PrefixCache(vlm, read)
    open_ended = Continuation(len(row) - 8, cache.ids[-8:], (len(row), len(row)))
    cache.run([open_ended])
    reset_peak()
    before, watch = peak_mib(), Stopwatch()
    with counting() as counted:
        cache.answer([open_ended], tokens)
    print(
        f"{tokens} tokens behind a row of {len(row):,}: {counted.positions} positions, {watch.lap():.2f} s, "
        f"{peak_mib() - before:.0f} MiB more at the peak (keys and values of the row "
        f"{read.cache.nbytes / 2**20:.0f} MiB)"
    )


def long_conversation(vlm: VLM, length: int) -> Conversation:
    word = " red"
    text = word * length
    while len(vlm.prepare(Conversation((Message("user", text),)), True)) > length:
        text = text[: -len(word) * 16]
    return Conversation((Message("user", text),))
