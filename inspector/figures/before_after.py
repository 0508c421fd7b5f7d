"""What a run changed, as static HTML. Whatever a person or a model wrote is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from inspector.figures.charts import table
from inspector.figures.model_comparison import mark_words, show_models
from inspector.figures.payload import data_uri
from inspector.row.numbers import say
from inspector.runs.before_after import HeldOutComparison, Shares
from inspector.which_image.model_comparison import Comparison
from model.training.events import Answered

LISTED = 12
"""So many changed answers are shown."""


NOTHING_HELD_OUT = (
    "None of the run's data are held out as questions, so nothing can be asked here that the run never saw; what it "
    "changed on this page's prompt stands below."
)


def show_comparison(
    comparison: Comparison | None, measured: HeldOutComparison | None, doing: str = "", *, over: bool = False
) -> str:
    """What the run was for, in a line; changed answers with their images; this page's prompt to both. ``doing``: what
    is still being computed; ``over``: nothing is, so what is missing is said."""
    parts = []
    if measured is not None:
        parts.append(_show_measured(measured))
    elif over:
        parts.append(f'<p class="vi-caption">{NOTHING_HELD_OUT}</p>')
    if comparison is not None:
        told = show_models(comparison, ("before", "after"))
        parts.append(
            f"<details{'' if measured else ' open'}><summary>This page's prompt to both</summary>{told}</details>"
        )
    if doing:
        parts.append(f'<p class="vi-caption" role="status">{escape(doing)} …</p>')
    return f'<div class="tr-result">{"".join(parts)}</div>'


def _show_measured(measured: HeldOutComparison) -> str:
    """The headline; cards of what changed, each with its images; then shares by group and, folded, by kind."""
    name, (one, two, count) = measured.headline
    changed = [
        (before, after, measured.pictures[n] if measured.pictures else ())
        for n, (before, after) in enumerate(measured.answers)
        if before.answered.strip() != after.answered.strip()
    ]
    # What was learnt first, then what was lost.
    changed.sort(key=lambda card: (not card[1].right, card[0].right))
    cards = "".join(_show_card(*card) for card in changed[:LISTED])
    more = f'<p class="vi-caption">… and {len(changed) - LISTED} more.</p>' if len(changed) > LISTED else ""
    said = (
        f"{len(changed):,} of {len(measured.answers):,} held-out answers changed; no run trained on these images."
        if changed
        else f"All {len(measured.answers):,} held-out answers stayed the same."
    )
    kinds = len(measured.families)
    folded = (
        f"<details><summary>By kind of question ({kinds})</summary>"
        f"{_show_shares(measured.families, 'accuracy by kind of question')}</details>"
        if kinds > 1
        else ""
    )
    groups = _show_shares(measured.groups, "accuracy before and after") if len(measured.groups) > 1 else ""
    return (
        f'<p class="ba-headline">{escape(name)}: {one:.0%} → {two:.0%} of {count:,}</p>'
        f'<p class="vi-caption">{said} Right is what is right to the letter, asked greedily.</p>'
        f'<div class="ba-cards">{cards}</div>{more}{groups}{folded}'
    )


def _show_card(before: Answered, after: Answered, pictures: Sequence[Image.Image]) -> str:
    images = "".join(
        f'<img src="{data_uri(picture)}" alt="image {n + 1} of the question">' for n, picture in enumerate(pictures)
    )
    one, two = mark_words(before.answered, after.answered)
    return (
        f'<div class="ba-card"><div class="ba-images">{images}</div><p>{escape(before.question)}</p>'
        f"<p>before: {_judge(one, before.right)}</p><p>after: <b>{_judge(two, after.right)}</b></p>"
        + ("" if after.right else f"<p>right would be: {escape(after.expected)}</p>")
        + "</div>"
    )


def _judge(answer: str, right: bool) -> str:
    return f'<span class="{"tr-right" if right else "tr-wrong"}">{"✓" if right else "✗"} {answer}</span>'


def _show_shares(shares: Mapping[str, Shares], label: str) -> str:
    rows = []
    for name, (one, two, count) in shares.items():
        change = f"{say(100 * (two - one), 0, sign=True)} points"
        change = f"<mark>{change}</mark>" if one != two else change
        right = (f"{share:.0%} ({round(share * count):,})" for share in (one, two))
        cells = (*right, change, f"{count:,}")
        rows.append([escape(name), *(f"<td class=num>{cell}</td>" for cell in cells)])
    return table(["held-out questions", "before", "after", "change", "asked"], rows, label)
