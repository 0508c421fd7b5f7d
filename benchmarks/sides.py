"""``python -m benchmarks sides``: attention from both sides at nanoVLM's 222M shape, a row of 4,096 tokens.

The *column* (who reads one token, in all layers and heads) is one pass of the row on its kept keys with something more
beside each value; it stands beside the plain pass over the same row, in turn. So does a *stretch* of 64 tokens. Memory
is the peak of one run beyond what is kept before it; all patterns, which nothing here makes, would take layers × heads
× tokens². Random weights: only shapes matter.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.scale import build, long_conversation
from benchmarks.timing import measure, peak_mib, report, reset_peak
from inspector.row.attention import read_attention, read_readers
from inspector.row.embedded_row import read_row, run_whole

TOKENS = 4096
KEY = 100
"""Near the row's beginning, so that nearly all of the row can read it."""
STRETCH = 64


def main(repeats: int) -> None:
    vlm = build()
    row = vlm.place(vlm.prepare(long_conversation(vlm, TOKENS), True))
    read = read_row(vlm, row, [])
    embeds, last = read.embeds, len(row) - 1
    patterns = vlm.n_layers * vlm.n_heads * len(row) ** 2 * 4 / 2**20
    print(
        f"{vlm.n_layers} layers × {vlm.n_heads} heads, {len(row):,} tokens; all patterns would be {patterns:,.0f} MiB"
    )

    def run_plain() -> object:
        return run_whole(vlm, row, embeds, False)

    ways: dict[str, Callable[[], object]] = {
        f"who reads token {KEY}": lambda: read_readers(vlm, read, KEY),
        f"a stretch of {STRETCH} tokens": lambda: read_attention(vlm, read, last, first=last - STRETCH + 1),
    }
    for what, way in ways.items():
        report(what, *measure(way, run_plain, max(1, repeats // 2)), "plain pass")
    for what, way in {"plain pass": run_plain, **ways}.items():
        reset_peak()
        before = peak_mib()
        way()
        print(f"{what}: {peak_mib() - before:.0f} MiB more at the peak", flush=True)
