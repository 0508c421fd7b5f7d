"""What a run changed, as static HTML. Whatever a person or a model wrote is escaped."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from html import escape

import numpy as np
from PIL import Image

from inspector.figures.charts import copied, table
from inspector.figures.colours import image_colour
from inspector.figures.markup import badge, show_share
from inspector.figures.payload import data_uri
from inspector.figures.which_image import headline
from inspector.images.image_file import PromptImage
from inspector.row.numbers import say
from inspector.runs.before_after import Comparison, Grid, HeldOutComparison, Shares, Side

MAP_PX = 120
"""Longest side of a picture of attention."""
LISTED = 10
"""So many changed answers are written out."""
DIMMED = 0.25
"""How bright a picture stays where no attention goes."""


def show_comparison(comparison: Comparison | None, measured: HeldOutComparison | None, doing: str = "") -> str:
    """Answers side by side, differing words marked; what they rest on; attention; held-out accuracy. ``doing``: what
    is still being computed."""
    parts = []
    if comparison is not None:
        parts.append(_show_answers(comparison))
        if comparison.prompt.images:
            parts += [_show_rest(comparison), _show_maps(comparison)]
    if measured is not None:
        parts.append(_show_measured(measured))
    if doing:
        parts.append(f'<p class="vi-caption" role="status">{escape(doing)} …</p>')
    return f'<div class="tr-result">{"".join(parts)}</div>'


def _heads(comparison: Comparison) -> tuple[str, str]:
    """The columns' titles: each side names its weights."""
    return (
        f"before <code>{escape(comparison.before.fingerprint[:8])}</code>",
        f"after <code>{escape(comparison.after.fingerprint[:8])}</code>",
    )


# --- answers ---


def _show_answers(comparison: Comparison) -> str:
    before, after = comparison.before, comparison.after
    rows = []
    for n, turn in enumerate(comparison.prompt.turns):
        one, two = _mark(before.answers[n], after.answers[n])
        same = ' <span class="vi-note">no difference</span>' if before.answers[n] == after.answers[n] else ""
        rows.append([f"{escape(turn.user)}{same}", f"{one}{_odds(before, n)}", f"{two}{_odds(after, n)}"])
    return table(["this page's prompt", *_heads(comparison)], rows, "answers before and after")


def _odds(side: Side, turn: int) -> str:
    odds = side.probabilities[turn]
    return "" if odds != odds else f' <small title="probability of the whole answer">p = {odds:.3f}</small>'


def _mark(one: str, two: str) -> tuple[str, str]:
    """Both texts as HTML, with the words that differ marked."""
    words = [re.findall(r"\s+|[^\s]+", text) for text in (one, two)]
    left: list[str] = []
    right: list[str] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        for target, part in ((left, words[0][a:b]), (right, words[1][c:d])):
            text = escape("".join(part))
            target.append(text if kind == "equal" or not text else f"<mark>{text}</mark>")
    return "".join(left) or "(nothing)", "".join(right) or "(nothing)"


# --- what the last answer rests on ---


def _show_rest(comparison: Comparison) -> str:
    """Verdict and worth of each image, side by side; what changed is marked."""
    sides = (comparison.before, comparison.after)
    if all(side.rest is None and not side.no_rest for side in sides):
        return ""
    rests = [side.rest for side in sides if side.rest is not None]
    verdicts = [_verdict(side) for side in sides]
    if len({(rest.verdict.kind, rest.verdict.images) for rest in rests}) == 2:
        verdicts = [f"<mark>{verdict}</mark>" for verdict in verdicts]
    rows = [[_title("verdict"), *verdicts, ""], [_title("answer"), *map(_answer, sides), ""]]
    top = max((abs(value) for rest in rests for value in rest.dependence.shapley), default=0.0)
    for k in range(len(comparison.prompt.images)):
        change = ""
        if comparison.shifts:
            one, two = (rest.dependence.shapley[k] for rest in rests)
            change = copied(two - one, sign=True)
            change = f"<mark>{change}</mark>" if comparison.shifts[k] else change
        rows.append([badge(k), *(_worth(side, k, top) for side in sides), f"<td class=num>{change}</td>"])
    rows.append([_title("noise floor"), *map(_floor, sides), ""])
    sentences = "".join(
        f"<p>{name}: {escape(side.rest.verdict.sentence)}</p>"
        for name, side in zip(("Before", "After"), sides, strict=True)
        if side.rest
    )
    return (
        table(["rests on", *_heads(comparison), "change"], rows, "what the answer rests on")
        + "<p class='vi-caption'>What the last answer rests on: nats of log p of each model's own answer that each "
        "image is worth (Shapley value of taking images away). A change is marked where it exceeds 1 nat and both "
        "noise floors. A fall is a lower bound: a model may find another way.</p>"
        f"<details><summary>Both verdicts in full</summary>{sentences}</details>"
    )


def _title(text: str) -> str:
    return f'<th scope=row style="white-space:nowrap">{text}</th>'


def _verdict(side: Side) -> str:
    if side.rest is None:
        return escape(side.no_rest) or "…"
    return headline(side.rest.verdict)


def _answer(side: Side) -> str:
    if side.rest is None:
        return "–" if side.no_rest else "…"
    answer = f"“{escape(side.rest.dependence.answer)}”" if side.rest.dependence.answer else "(nothing)"
    return f"{answer} <small>p = {copied(side.rest.dependence.probability, 3)} per token</small>"


def _floor(side: Side) -> str:
    return f"<td class=num>{_answer(side) if side.rest is None else copied(side.rest.dependence.noise_floor)}</td>"


def _worth(side: Side, image: int, top: float) -> str:
    if side.rest is None:
        return f"<td class=num>{_answer(side)}</td>"
    value = side.rest.dependence.shapley[image]
    if value <= 0 or not top:
        return f"<td class=num>{copied(value)}</td>"
    return (
        f'<td class=num>{copied(value)}<span class="tr-bar" style="width:{100 * value / top:.1f}%"><i '
        f'style="width:100%;background:{image_colour(image)}"></i></span></td>'
    )


# --- attention ---


def _show_maps(comparison: Comparison) -> str:
    """Where the answer looked: per image the share, and the picture as bright as the attention of its image tokens."""
    before, after = comparison.before, comparison.after
    cells = [share for side in (before, after) for grid in side.image_maps for row in grid for share in row]
    top = max(cells, default=0.0)
    rows = []
    for k, image in enumerate(comparison.prompt.images):
        one, two = before.image_shares[k], after.image_shares[k]
        rows.append(
            [
                badge(k),
                _look(image, before, k, top),
                _look(image, after, k, top),
                f"<td class=num>{say(100 * (two - one), sign=True)} points</td>",
            ]
        )
    return (
        table(["where it looked", *_heads(comparison), "change"], rows, "attention before and after")
        + '<p class="vi-caption">Attention of the position that chose the answer\'s first token, mean over layers and '
        "heads: each image's share, and the picture as bright as its image tokens, one scale for all (thumbnail tokens "
        "aside). It tells where the model looked, not what the answer rests on.</p>"
    )


def _look(image: PromptImage, side: Side, index: int, top: float) -> str:
    share = show_share(side.image_shares[index])
    source = data_uri(light_up(image.preview, side.image_maps[index], top))
    alt = f"image {index + 1}, {share} of the attention"
    return f'<td><img class="wi-thumb" src="{source}" alt="{escape(alt, quote=True)}"> {share}</td>'


def light_up(picture: Image.Image, shares: Grid, top: float) -> Image.Image:
    """The picture, small, as bright as each part's share of ``top``; :data:`DIMMED` where that is 0."""
    small = picture.convert("RGB")
    scale = MAP_PX / max(small.size)
    small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
    values = np.asarray(shares) / top if top else np.zeros_like(np.asarray(shares))
    cells = Image.fromarray(np.rint(255 * values.clip(0, 1)).astype(np.uint8))
    lit = np.asarray(cells.resize(small.size, Image.Resampling.NEAREST))[..., None] / 255
    pixels = np.asarray(small) * (DIMMED + (1 - DIMMED) * lit)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


# --- held-out questions ---


def _show_measured(measured: HeldOutComparison) -> str:
    """Groups first, the families behind them folded; then which answers changed."""
    changed = [(a, b) for a, b in measured.answers if a.answered.strip() != b.answered.strip()]
    rows = []
    for before, after in changed[:LISTED]:
        rows.append([escape(before.question), *_mark(before.answered, after.answered), escape(before.expected)])
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
