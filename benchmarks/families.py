"""``python -m benchmarks families``: what looking into a model of transformers costs, against what transformers offers.

Two shapes of language models (SmolLM2-135M's and Llama-3.2-3B's), rows of 1,000 and 4,096 tokens, random weights: only
shapes matter. ``--layers``: so many of each shape's; 0 for as many as fit in memory beside eager attention's maps,
which is what the targets are for: with few layers the vocabulary takes most of a study, whose short passes need
it as whole ones do. Times are medians of turns on this machine; memory is the peak of a process of its own, its weights
included.

read-out     shares of attention of 1 and of 32 rows, beside the plain pass (SDPA, nothing looked at) and eager
             attention with ``output_attentions``, which is how the same numbers are had without this
token click  on a row that is kept, beside one step of decoding
which image  the whole study of one answer about three images, beside one hooked forward per intervention
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from PIL import Image
from torch import Tensor

from benchmarks.scale import decode_step
from benchmarks.timing import embedded_tokenizer, measure, peak_mib, reset_peak
from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.target import Case, image_keys, open_case
from inspector.row.ask import Inspection, attend, inspect
from inspector.row.embedded_row import see
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.image_effects import measure_dependence
from inspector.which_image.study import study_answer
from model import AttentionReader, Cut, OpenedImage, Tap
from model.families.llava import Llava
from model.families.transformers_text import ATTENTION

ROWS = (1, 32)
TOKENS = (1000, 4096)
GROUPS = 16
IMAGES = 3
_PATCH = 14
_SHARE = 0.8
"""Of the memory that is free, what the model and eager attention's maps may take."""


@dataclass(frozen=True)
class Shape:
    """Of a language model: ``settings`` of a LlamaConfig, ``layers`` of the whole."""

    name: str
    layers: int
    settings: dict[str, int]

    def fit(self, tokens: int, free: float) -> int:
        """How many layers can be run with eager attention and all its maps kept in ``free`` bytes of float32."""
        s = self.settings
        width, heads = s["hidden_size"], s["num_attention_heads"]
        kv = width * s["num_key_value_heads"] // heads
        weights = 2 * width * width + 2 * width * kv + 3 * width * s["intermediate_size"]
        maps = heads * tokens * tokens
        # One layer at work holds its scores, their exponentials and the result.
        return max(1, min(self.layers, int((_SHARE * free / 4 - 3 * maps) // (weights + maps))))


SHAPES = (
    Shape(
        "SmolLM2-135M",
        30,
        {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
    ),
    Shape(
        "Llama-3.2-3B",
        28,
        {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8},
    ),
)


def build_vlm(shape: Shape, layers: int, tokens: int) -> Llava:
    """A LLaVA with such a language model and an encoder of one small layer, whose three images and a short question are
    a row of about so many tokens."""
    side = int(((tokens - 60) / IMAGES) ** 0.5)
    tokenizer = embedded_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})

    def config(count: int) -> transformers.LlavaConfig:
        vision = transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=side * _PATCH,
            patch_size=_PATCH,
        )
        text = transformers.LlamaConfig(
            **cast(Any, shape.settings),
            num_hidden_layers=count,
            vocab_size=len(tokenizer),
            max_position_embeddings=2 * max(TOKENS),
            tie_word_embeddings=True,
        )
        return transformers.LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=True,
        )

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # What opening needs lies in a folder; the layers need not be written there and read again.
        transformers.LlavaForConditionalGeneration(config(1)).save_pretrained(folder)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
        edge = side * _PATCH
        settings = {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        opened = Llava(folder)
    model = transformers.LlavaForConditionalGeneration(config(layers)).eval().requires_grad_(False)
    return cast(Llava, opened._copy(model))


# --- a read-out against the plain pass and against eager attention ---


@dataclass
class Passes:
    """One row through the language model, in the ways that are compared. All give its last states."""

    vlm: Llava
    embeds: Tensor

    @property
    def _length(self) -> int:
        return self.embeds.shape[1]

    def read(self, rows: int) -> tuple[Tensor, Tensor]:
        """Ours, with shares ``[layer head row group]`` of the last ``rows`` rows."""
        groups = torch.arange(self._length) * GROUPS // self._length
        reader = AttentionReader(range(self._length - rows, self._length), groups, GROUPS)
        visible = torch.ones(self._length, self._length, dtype=torch.bool).tril()[None, None]
        hidden = self.vlm.decode(self.embeds, torch.arange(self._length)[None], visible, None, Tap(reader))
        return hidden, reader.reading.shares

    @torch.no_grad()
    def plain(self) -> Tensor:
        return self._run("sdpa").last_hidden_state

    @torch.no_grad()
    def eager(self) -> tuple[Tensor, Sequence[Tensor]]:
        found = self._run("eager", output_attentions=True)
        return found.last_hidden_state, found.attentions

    def _run(self, kind: str, **more: Any) -> Any:
        text = self.vlm.text
        text.config._attn_implementation = kind
        try:
            return text.model(inputs_embeds=self.embeds, use_cache=False, **more)
        finally:
            text.config._attn_implementation = ATTENTION

    def ways(self) -> dict[str, Callable[[], object]]:
        return {
            "plain SDPA": self.plain,
            **{f"read-out of {rows}": (lambda rows=rows: self.read(rows)) for rows in ROWS},
            "eager, all maps": self.eager,
        }


def open_passes(shape: Shape, layers: int, tokens: int) -> Passes:
    vlm = build_vlm(shape, layers, tokens)
    return Passes(vlm, torch.randn(1, tokens, shape.settings["hidden_size"]))


def check_shares(passes: Passes) -> None:
    """That the ways show the same: the states and the shares of the last rows."""
    rows, length = max(ROWS), passes.embeds.shape[1]
    hidden, shares = passes.read(rows)
    assert torch.equal(hidden, passes.read(1)[0]), "what is looked at changes the states"
    theirs, maps = passes.eager()
    torch.testing.assert_close(hidden, theirs, rtol=0, atol=1e-3)
    groups = torch.arange(length) * GROUPS // length
    expected = torch.zeros_like(shares)
    for layer, pattern in enumerate(maps):
        expected[layer].index_add_(-1, groups, pattern[0, :, -rows:])
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-4)


def measure_times(passes: Passes, repeats: int) -> dict[str, float]:
    """Median seconds of each way, in turn so that a busy machine slows all."""
    times: dict[str, list[float]] = {name: [] for name in passes.ways()}
    for _ in range(repeats + 1):
        for name, way in passes.ways().items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def _send_peak(shape: Shape, layers: int, tokens: int, way: str, threads: int, end: Connection) -> None:
    torch.set_num_threads(threads)
    passes = open_passes(shape, layers, tokens)
    run = passes.ways()[way]
    reset_peak()
    run()
    end.send(peak_mib())


def measure_peak(shape: Shape, layers: int, tokens: int, way: str) -> float:
    """MiB, of a process of its own: what other passes leave behind would be counted against this one."""
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(shape, layers, tokens, way, torch.get_num_threads(), there))
    process.start()
    there.close()
    try:
        return float(here.recv())
    except EOFError:
        raise SystemExit(f"The process that measured “{way}” ended early; there may be too little memory.") from None
    finally:
        process.join()


# --- which image against one forward per intervention ---


def ask_example(vlm: Llava) -> Inspection:
    """Three images and a question about one, answered: random weights would not stop. There is hardly any text before
    the images, so that a draw of the noise floor costs a whole row: the worst case."""
    edge = vlm.geometry.lay_out((64, 64)).resized_size
    images = tuple(OpenedImage(Image.effect_noise(edge, 40 + n).convert("RGB")) for n in range(IMAGES))
    return inspect(vlm, Prompt(images, (Turn("In image 2, what colour is the shape?", "red"),)))


@torch.no_grad()
def run_forward(case: Case, *cuts: Cut) -> Tensor:
    """One whole pass of the row with edges cut, its image features kept."""
    row, vlm = case.prefix_cache.row, case.vlm
    tap = Tap(cuts=cuts) if cuts else None
    states = vlm.decode(
        case.prefix_cache.embeds[None], row.position_ids, see(row, False)[None, None], vlm.new_cache(len(row)), tap
    )
    return vlm.logits(states[0, -8:])


def measure_study(vlm: Llava, repeats: int) -> str:
    inspection = ask_example(vlm)

    def open_fresh() -> Case:
        return open_case(vlm, inspection, max_new_tokens=3)

    case = open_fresh()
    image = case.structure.images[0]
    cut = Cut(range(image.stop, len(inspection.row)), image_keys(image))
    hooked, prefill = _time(lambda: run_forward(case, cut), repeats), _time(lambda: run_forward(case), repeats)
    # Every set of images is taken away, and text for each draw of the noise.
    count = 2 ** len(case.reachable) + measure_dependence(case, ImageAblations(case)).noise_draws
    mine = _time(lambda: measure_dependence(fresh := open_fresh(), ImageAblations(fresh)), repeats)
    began = time.perf_counter()
    for _ in study_answer(vlm, inspection, max_new_tokens=3):
        pass
    whole = time.perf_counter() - began
    return (
        f"  which image: {count} interventions {mine:.2f} s, one forward each {count * hooked:.2f} s: "
        f"{count * hooked / mine:.1f} × faster; all steps {whole:.2f} s = {whole / prefill:.1f} prefills of "
        f"{len(inspection.row):,} tokens"
    )


def measure_click(vlm: Llava, repeats: int) -> str:
    """A click on a token of a kept row, in turn with a step of decoding behind as long a row."""
    inspection = ask_example(vlm)
    length = len(inspection.row)
    positions = cycle(range(length - 1, length // 2, -7))
    ours, step = measure(lambda: attend(vlm, inspection, next(positions)), decode_step(vlm, length), repeats)
    return f"  one token click {ours:.3f} s = {ours / step:.2f} decode steps behind {length:,} tokens"


def _time(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


# --- the whole ---


def free_bytes() -> float:
    """Memory that is free, as the system estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return float(line.split()[1]) * 1024
    raise SystemExit("This system doesn't say how much memory is free; give --layers.")


def compare(shape: Shape, tokens: int, layers: int, repeats: int) -> None:
    passes = open_passes(shape, layers, tokens)
    print(f"{shape.name}'s shape, {layers} of {shape.layers} layers, {tokens:,} tokens, float32", flush=True)
    check_shares(passes)
    times = measure_times(passes, repeats)
    study = f"{measure_click(passes.vlm, 8)}\n{measure_study(passes.vlm, repeats)}"
    del passes
    peaks = {way: measure_peak(shape, layers, tokens, way) for way in times}
    plain = "plain SDPA"
    for way, seconds in times.items():
        print(
            f"  {way:16} {seconds:8.3f} s = {seconds / times[plain]:5.2f} × the plain pass   peak "
            f"{peaks[way]:8,.0f} MiB = {peaks[way] / peaks[plain]:5.3f} ×",
            flush=True,
        )
    print(study, flush=True)


def main(repeats: int, layers: int = 2, tokens: Sequence[int] = TOKENS) -> None:
    transformers.utils.logging.set_verbosity_error()
    for shape in SHAPES:
        for length in tokens:
            count = min(layers, shape.layers) if layers else shape.fit(length, free_bytes())
            compare(shape, length, count, max(1, repeats // 2))
