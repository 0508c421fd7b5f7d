"""Errors of the self-checks of “Which image?” in float32, bfloat16 and float16, and what the three take on this CPU.

On the embedded model and on tiny random checkpoints of every other family that tests know. The tolerances of
:mod:`inspector.which_image.self_checks` are set by what this prints. Errors are in nats for each token that is scored,
since log p of an answer adds up as many roundings as the answer has tokens.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.moved_images import draw_prompts
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.feature_store import FEATURES
from inspector.row.prompt import Prompt, Turn
from inspector.row.row_store import ROWS
from inspector.which_image.image_effects import measure_dependence, measure_matrix
from inspector.which_image.self_checks import LIMITS, Check, run_checks
from model import InspectableVLM, load_vlm
from model.devices import DTYPES

PROMPTS = 5
TOKENS = (1, 12)
"""Longest answers: a word, and as long as the models say something."""


def draw_all(nanovlm: bool) -> Iterator[Prompt]:
    """One question, two questions turn by turn, and for nanoVLM packed samples."""
    for number, moved in zip(range(PROMPTS), draw_prompts(), strict=False):
        prompt = moved.prompt
        yield prompt
        if number % 4 == 0:
            turns = (*prompt.turns, Turn("What is in the last image?"))
            yield replace(prompt, turns=turns, layout="per-turn" if len(prompt.images) == 2 else "images-first")
            if nanovlm and len(prompt.images) == 2:
                yield replace(prompt, turns=turns, layout="packed", document_mask=True)


def check(vlm: InspectableVLM, prompt: Prompt, longest: int) -> tuple[int, tuple[Check, ...]]:
    """How many tokens are scored, and the checks of the last answer."""
    inspection = ask_and_inspect(vlm, prompt, GenerationSettings(longest))
    case = open_case(vlm, inspection, max_new_tokens=longest)
    checks = run_checks(case, measure_dependence(case), measure_matrix(case))
    first, stop = case.target.scored
    return stop - first, checks


def name_kind(check: Check) -> str:
    """The identity that is tested, without the number of the image."""
    return "".join("N" if letter.isdigit() else letter for letter in check.name)[:64]


def measure(source: str, dtype: str, nanovlm: bool) -> dict[str, list[float]]:
    """Errors per scored token by kind of check."""
    vlm = load_vlm(source, device="cpu", dtype=dtype)
    errors: dict[str, list[float]] = defaultdict(list)
    for prompt in draw_all(nanovlm):
        for longest in TOKENS:
            ROWS.clear()
            FEATURES.clear()
            try:
                count, checks = check(vlm, prompt, longest)
            except ValueError as error:  # an answer that ends at once, say
                print(f"    left out: {str(error)[:100]}")
                continue
            for one in checks:
                errors[name_kind(one)].append(one.value / max(1, count))
    return errors


def time_passes(dtype: str, repeats: int) -> str:
    """A prompt and its answer on the embedded model, the best of ``repeats``."""
    vlm = load_vlm("embedded", device="cpu", dtype=dtype)
    prompt = next(iter(draw_all(False)))
    best = float("inf")
    for _ in range(max(2, repeats)):
        ROWS.clear()
        FEATURES.clear()
        began = time.perf_counter()
        ask_and_inspect(vlm, prompt, GenerationSettings(12))
        best = min(best, time.perf_counter() - began)
    a, b = torch.randn(1024, 2048).to(DTYPES[dtype]), torch.randn(2048, 2048).to(DTYPES[dtype])
    product = float("inf")
    for _ in range(max(5, repeats)):
        began = time.perf_counter()
        torch.nn.functional.linear(a, b)
        product = min(product, time.perf_counter() - began)
    return (
        f"question on the embedded model {best * 1e3:7.1f} ms, product of 1,024 × 2,048 × 2,048 {product * 1e3:7.1f} ms"
    )


def main(repeats: int) -> None:
    from tests.tiny_checkpoints import BUILDERS, build, processors_without_video

    print(f"this CPU: {torch.backends.cpu.get_cpu_capability()}, AMX {torch.cpu._is_amx_tile_supported()}")
    for dtype in DTYPES:
        print(f"  {dtype:9} {time_passes(dtype, repeats)}")
    largest: dict[str, float] = dict.fromkeys(DTYPES, 0.0)
    with tempfile.TemporaryDirectory() as folder, processors_without_video():
        sources = {"embedded": "embedded"}
        for name in BUILDERS:
            place = Path(folder) / name.replace(" ", "-")
            place.mkdir()
            build(name, place)
            sources[name] = str(place)
        for name, source in sources.items():
            for dtype in DTYPES:
                errors = measure(source, dtype, name == "embedded")
                print(f"{name}, {dtype}: errors in nats per scored token")
                for kind, values in errors.items():
                    ordered = sorted(values)
                    median, most = ordered[len(ordered) // 2], ordered[-1]
                    print(f"  {kind:64} n {len(values):3}  median {median:.1e}  largest {most:.1e}", flush=True)
                    largest[dtype] = max(largest[dtype], most)
    for dtype, most in largest.items():
        limit = LIMITS[DTYPES[dtype]]
        print(
            f"{dtype}: largest {most:.1e}, allowed {limit:.1e} per token, {limit / max(most, 1e-12):.1f} times as much"
        )
