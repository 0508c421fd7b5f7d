"""The battery's result as a card of its checkpoint."""

from __future__ import annotations

from html import escape

from inspector.figures.charts import table
from inspector.ground_truth.run import SuiteProgress
from inspector.ground_truth.scores import GATE, Battery, CellResult, Score, Share

INTRODUCTION = (
    "Prompts are drawn whose relevant image is known, and every test above is tried on them: how often does it name "
    "the right image, and how often one where none is needed? In brackets Wilson's 95 % interval."
)
WAITING = "No battery has been run on this checkpoint yet; press “Run the battery”."
_MARKS = {True: "✓ reached", False: "✗ missed", None: "– too few items"}


def show_count(share: Share) -> str:
    """“0.98 [0.89, 1.00] of 48”."""
    if share.value is None or share.interval is None:
        return "–"
    low, high = share.interval
    return f"{share.value:.2f} <small>[{low:.2f}, {high:.2f}] of {share.total}</small>"


def show_progress(progress: SuiteProgress) -> str:
    """What is being tried, for the busy line."""
    return f"{progress.done} of {progress.total} items, {progress.cell} …" if progress.cell else ""


GROUPS = {
    "adjacent": "each image with its own question",
    "ordinal digit": "“in image 2”",
    "ordinal word": "“in the second image”",
    "ordinal from 0": "“in <image: 1>”, counted from 0",
    "last": "“in the last image”",
    "content": "named by what only it shows",
    "return": "a later turn asks back about an earlier image",
    "adjacent vs ordinal": "its own image, or the number that is named",
    "adjacent vs content": "its own image, or the one that shows what is named",
    "ordinal vs content": "the number that is named, or what only another shows",
    "packed": "packed samples",
    "packed, document mask": "packed samples that can't see one another",
    "guessed": "the answer that the model would guess anyway",
    "null": "the question holds its answer: no image is needed",
    "null, own sample": "the same, as a packed sample of its own",
}
"""What the groups of drawn prompts ask, in words; results keep the short names."""


def show_group(name: str) -> str:
    """In words, with the short name that the files have."""
    return f"{escape(GROUPS.get(name, name))} <small>{escape(name)}</small>"


def show_battery(battery: Battery | None, model: str = "") -> str:
    """Scores first, then cells; what could not be tried says why."""
    if battery is None:
        return f'<p class="vi-empty">{WAITING}</p>'
    state = "" if battery.finished else " The run is not finished: what was tried so far."
    head = (
        f'<p class="vi-caption">{escape(model)} · #{battery.fingerprint[:8]} · {battery.n_each} items a cell · seed '
        f"{battery.seed}.{state}</p>"
    )
    scores = table(("score", "found", "wanted", ""), [_score(score) for score in battery.scores], "Scores")
    tried = [cell for cell in battery.cells if cell.testable]
    cells = table(
        (
            "cell",
            "answered rightly",
            "right image named, taken away",
            "replaced",
            "most attended",
            "“the question selects it”",
            "recoloured: says the new colour",
            "another image exchanged: answer changes",
            "other orders: answer as predicted",
        ),
        [_cell(cell) for cell in tried],
        "Cells",
    )
    notes = "".join(f'<p class="vi-caption">{escape(note)}</p>' for note in battery.notes)
    return f'<div class="wi-battery">{head}{scores}{cells}{_conflicts(tried)}{_left_out(battery)}{notes}</div>'


def _score(score: Score) -> list[str]:
    name = score.name.replace("gives its twin's answer", "for a recoloured one gives the new colour")
    if score.limit is None:
        return [escape(name), show_count(score.share), "", ""]
    wanted = f"{'≥' if score.at_least else '≤'} {score.limit:g}"
    return [escape(name), show_count(score.share), wanted, _MARKS[score.ok]]


def _cell(cell: CellResult) -> list[str]:
    shares = (cell.right, cell.named, cell.exchanged, cell.attended, cell.selected, cell.twin, cell.others, cell.orders)
    return [show_group(cell.cell), *(show_count(share) for share in shares)]


def _conflicts(cells: list[CellResult]) -> str:
    rows = []
    for cell in cells:
        if cell.followed:
            told = ", ".join(f"{escape(name) or 'neither'} {show_count(share)}" for name, share in cell.followed)
            rows.append([show_group(cell.cell), told])
    return table(("two cues that point apart", "the answer follows"), rows, "Conflicts") if rows else ""


def _left_out(battery: Battery) -> str:
    rows = [[show_group(cell.cell), show_count(cell.gate)] for cell in battery.cells if not cell.testable]
    if not rows:
        return ""
    title = f"not testable on this model (below {GATE:g} without the other images)"
    return table((title, "answered rightly"), rows, "Not testable")
