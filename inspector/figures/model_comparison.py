"""Two models' answers to one prompt side by side, as static HTML. Whatever a person or a model wrote is escaped."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
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
from inspector.which_image.model_comparison import AttentionGrid, Comparison, Side

MAP_PX = 120
"""Longest side of a picture of attention."""
DIMMED = 0.25
"""How bright a picture stays where no attention goes."""


def show_models(comparison: Comparison, names: tuple[str, str]) -> str:
    """Answers side by side, differing words marked; what they rest on; attention. ``names`` of the two models."""
    parts = [_show_answers(comparison, names)]
    if comparison.prompt.images:
        parts += [_show_rest(comparison, names), _show_maps(comparison, names)]
    return "".join(parts)


def _heads(comparison: Comparison, names: tuple[str, str]) -> list[str]:
    """The columns' titles: each side names its weights."""
    sides = (comparison.before, comparison.after)
    return [
        f"{escape(name)} <code>{escape(side.fingerprint[:8])}</code>" for name, side in zip(names, sides, strict=True)
    ]


# --- answers ---


def _show_answers(comparison: Comparison, names: tuple[str, str]) -> str:
    before, after = comparison.before, comparison.after
    rows = []
    for n, turn in enumerate(comparison.prompt.turns):
        one, two = mark_words(before.answers[n], after.answers[n])
        same = ' <span class="vi-note">no difference</span>' if before.answers[n] == after.answers[n] else ""
        rows.append([f"{escape(turn.user)}{same}", f"{one}{_odds(before, n)}", f"{two}{_odds(after, n)}"])
    return table(["this page's prompt", *_heads(comparison, names)], rows, " and ".join(names) + ": answers")


def _odds(side: Side, turn: int) -> str:
    odds = side.probabilities[turn]
    return "" if odds != odds else f' <small title="probability of the whole answer">p = {odds:.3f}</small>'


def mark_words(one: str, two: str) -> tuple[str, str]:
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


def _show_rest(comparison: Comparison, names: tuple[str, str]) -> str:
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
        f"<p>{escape(name)}: {escape(side.rest.verdict.sentence)}</p>"
        for name, side in zip(names, sides, strict=True)
        if side.rest
    )
    return (
        table(["rests on", *_heads(comparison, names), "change"], rows, "what the answer rests on")
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


def _show_maps(comparison: Comparison, names: tuple[str, str]) -> str:
    """Where the answer looked: per image the share, and the picture as bright as the attention of its image tokens."""
    before, after = comparison.before, comparison.after
    grids = [grid for side in (before, after) for image in side.image_maps for grid in image]
    top = max((float(grid.densities.max()) for grid in grids), default=0.0)
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
        table(["where it looked", *_heads(comparison, names), "change"], rows, " and ".join(names) + ": attention")
        + '<p class="vi-caption">Attention of the position that chose the answer\'s first token, mean over layers and '
        "heads: each image's share, and the picture as bright as its image tokens' share by area, one scale for all "
        "(thumbnail tokens aside). It tells where the model looked, not what the answer rests on.</p>"
    )


def _look(image: PromptImage, side: Side, index: int, top: float) -> str:
    share = show_share(side.image_shares[index])
    source = data_uri(light_up(image.preview, image.size, side.image_maps[index], top))
    alt = f"image {index + 1}, {share} of the attention"
    return f'<td><img class="wi-thumb" src="{source}" alt="{escape(alt, quote=True)}"> {share}</td>'


def light_up(picture: Image.Image, size: tuple[int, int], grids: Sequence[AttentionGrid], top: float) -> Image.Image:
    """The picture (of an image of ``size``, width and height), small, as bright as each part's density of attention is
    of ``top``; :data:`DIMMED` where that is 0. Where tiles overlap the brighter one counts."""
    small = picture.convert("RGB")
    scale = MAP_PX / max(small.size)
    small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
    lit: np.ndarray = np.zeros((small.height, small.width))
    across, down = small.width / size[0], small.height / size[1]
    for grid in grids:
        rows, cols = np.array(grid.shares).shape
        box = grid.box
        # The cell of every pixel, by the pixel's middle; outside the box there is none.
        y = np.floor(((np.arange(small.height) + 0.5) / down - box.top) / (box.bottom - box.top) * rows).astype(int)
        x = np.floor(((np.arange(small.width) + 0.5) / across - box.left) / (box.right - box.left) * cols).astype(int)
        inside = np.ix_((y >= 0) & (y < rows), (x >= 0) & (x < cols))
        cells = grid.densities[np.ix_(y[(y >= 0) & (y < rows)], x[(x >= 0) & (x < cols)])]
        lit[inside] = np.maximum(lit[inside], (cells / top if top else cells * 0).clip(0, 1))
    pixels = np.asarray(small) * (DIMMED + (1 - DIMMED) * lit[..., None])
    return Image.fromarray(np.rint(pixels).astype(np.uint8))
