"""What a run changed, as static HTML. Whatever a person or a model wrote is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from inspector.figures.charts import table
from inspector.figures.model_comparison import mark_words, show_models
from inspector.row.numbers import say
from inspector.runs.before_after import HeldOutComparison, Shares
from inspector.which_image.model_comparison import Comparison

LISTED = 10
"""So many changed answers are written out."""


NOTHING_HELD_OUT = (
    "None of the run's data are held out as questions, so nothing can be asked here that the run never saw; what it "
    "changed on this page's prompt stands above."
)


def show_comparison(
    comparison: Comparison | None, measured: HeldOutComparison | None, doing: str = "", *, over: bool = False
) -> str:
    """Answers side by side, differing words marked; what they rest on; attention; held-out accuracy. ``doing``: what
    is still being computed; ``over``: nothing is, so what is missing is said."""
    parts = []
    if comparison is not None:
        parts.append(show_models(comparison, ("before", "after")))
    if measured is not None:
        parts.append(_show_measured(measured))
    elif over:
        parts.append(f'<p class="vi-caption">{NOTHING_HELD_OUT}</p>')
    if doing:
        parts.append(f'<p class="vi-caption" role="status">{escape(doing)} …</p>')
    return f'<div class="tr-result">{"".join(parts)}</div>'


def _show_measured(measured: HeldOutComparison) -> str:
    """Groups first, the families behind them folded; then which answers changed."""
    changed = [(a, b) for a, b in measured.answers if a.answered.strip() != b.answered.strip()]
    rows = []
    for before, after in changed[:LISTED]:
        rows.append([escape(before.question), *mark_words(before.answered, after.answered), escape(before.expected)])
    more = f'<p class="vi-caption">… and {len(changed) - LISTED} more.</p>' if len(changed) > LISTED else ""
    differing = (
        f"<details open><summary>{len(changed)} of {len(measured.answers)} answers changed</summary>"
        f"{table(['held-out question', 'before', 'after', 'expected'], rows, 'changed answers')}{more}</details>"
        if changed
        else f'<p class="vi-caption">All {len(measured.answers)} answers stayed the same.</p>'
    )
    kinds = len(measured.families)
    folded = (
        f"<details><summary>By kind of question ({kinds})</summary>"
        f"{_show_shares(measured.families, 'accuracy by kind of question')}</details>"
        if kinds > 1
        else ""
    )
    return (
        _show_shares(measured.groups, "accuracy before and after")
        + '<p class="vi-caption">Share of right answers, to the letter: the same held-out questions to both, '
        f"greedy.</p>{folded}{differing}"
    )


def _show_shares(shares: Mapping[str, Shares], label: str) -> str:
    rows = []
    for name, (one, two, count) in shares.items():
        change = f"{say(100 * (two - one), 0, sign=True)} points"
        cells = (f"{one:.0%}", f"{two:.0%}", f"<mark>{change}</mark>" if one != two else change, f"{count:,}")
        rows.append([escape(name), *(f"<td class=num>{cell}</td>" for cell in cells)])
    return table(["held-out questions", "before", "after", "change", "asked"], rows, label)
