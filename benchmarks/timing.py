"""What the benchmarks share: a shape, runs in turn, ratios, peak memory.

Random weights: only shapes matter. Times are medians of alternating runs on this machine, quoted as ratios.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from model import VLMConfig
from model.checkpoint import EMBEDDED
from model.tokenizer import load_tokenizer

SHAPE_222M = {
    "vit_hidden_dim": 768,
    "vit_inter_dim": 3072,
    "vit_patch_size": 16,
    "vit_img_size": 224,
    "vit_n_heads": 12,
    "vit_n_blocks": 12,
    "lm_hidden_dim": 576,
    "lm_inter_dim": 1536,
    "lm_n_heads": 9,
    "lm_n_kv_heads": 3,
    "lm_n_blocks": 30,
    "mp_pixel_shuffle_factor": 2,
    "mp_image_token_length": 49,
    "max_img_size": 224,
    "resize_to_max_side_len": False,
}


def measure(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of each, run in turn so that a busy machine slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for function, found in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def report(name: str, ours: float, theirs: float, baseline: str) -> None:
    print(f"{name:58} {ours:8.3f} s   {baseline:24} {theirs:8.3f} s   ratio {ours / theirs:5.2f}", flush=True)


def embedded_tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(EMBEDDED, VLMConfig(**SHAPE_222M).vlm_extra_tokens)


def peak_mib() -> float:
    """Highest memory of this process since :func:`reset_peak`, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
