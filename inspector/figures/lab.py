"""The lab as HTML: what can be hidden, to be clicked, and what came of the cuts."""

from __future__ import annotations

import json
from html import escape

from inspector.figures.charts import copied, show_command, table
from inspector.figures.colours import image_colour
from inspector.figures.markup import badge
from inspector.figures.payload import data_uri
from inspector.interventions.knockout import EXPLANATION, Lab
from inspector.row.ask import Inspection
from inspector.row.layout import ImageBlock, RowStructure

BOARD_PX = 160
"""Longest side of a picture on the board."""


def show_board(inspection: Inspection, structure: RowStructure) -> str:
    """Pictures with their tiles, and the other runs of the row, each a button that names what it hides."""
    pictures = "".join(_picture(inspection, image) for image in structure.images)
    runs = []
    for question in structure.questions:
        runs.append(_run(f"question {question.number}", _shorten(question.text)))
        if question.answer[0] < question.answer[1]:
            runs.append(_run(f"answer {question.number}", _shorten(question.answer_text)))
    if structure.separators:
        runs.append(_run("separators", f"{len(structure.separators)} masked"))
    if structure.marks:
        runs.append(_run("template", "the chat template's tokens"))
    return (
        f'<div class="wi-board"><div class="wi-board-pictures">{pictures}</div>'
        f'<div class="wi-board-runs">{"".join(runs)}</div></div>'
    )


def _picture(inspection: Inspection, image: ImageBlock) -> str:
    opened, processed = inspection.prompt.images[image.number - 1], inspection.row.images[image.number - 1]
    small = opened.preview
    small.thumbnail((BOARD_PX, BOARD_PX))
    width, height = opened.size
    whole = f"image {image.number}"
    tiles = []
    for tile, box in zip(image.tiles, processed.boxes, strict=True):
        if len(image.tiles) == 1 or tile.name == "thumbnail":
            continue
        across, down = (box.right - box.left) / width, (box.bottom - box.top) / height
        place = (
            f"left:{100 * box.left / width:.2f}%;top:{100 * box.top / height:.2f}%;"
            f"width:{100 * across:.2f}%;height:{100 * down:.2f}%"
        )
        tiles.append(_tile(f"{whole} tile {tile.name}", tile.name, whole, place))
    if not tiles:
        tiles = [_tile(whole, "whole image", whole, "inset:0")]
    parts = [_part(whole, "whole image", whole)] if len(image.tiles) > 1 else []
    if any(tile.name == "thumbnail" for tile in image.tiles):
        parts.append(_part(f"{whole} tile thumbnail", "thumbnail", whole))
    if image.marks:
        parts.append(_part(f"{whole} marks", "region marks", whole))
    if image.ordinal is not None:
        parts.append(_part(f"{whole} ordinal", image.ordinal_text.strip(), whole))
    return (
        f'<figure style="--image:{image_colour(image.number - 1)}">'
        f"<figcaption>{badge(image.number - 1)} {whole}"
        f'<button type="button" class="wi-choice wi-snip" data-snip="{whole}" aria-pressed="false" '
        f'aria-label="cut, {whole}" title="hides {whole} from everything behind it; once more shows it again">'
        '<span aria-hidden="true">✂</span> cut</button></figcaption>'
        f'<div class="wi-board-picture"><img src="{data_uri(small)}" alt="">{"".join(tiles)}</div>'
        f'<div class="wi-board-parts">{"".join(parts)}</div></figure>'
    )


def _tile(thing: str, label: str, whole: str, place: str) -> str:
    return _button(
        thing, f'<span class="wi-hidden">{escape(label)}</span>', "wi-tile", style=place, name=f"{label}, {whole}"
    )


def _part(thing: str, label: str, whole: str) -> str:
    return _button(thing, escape(label), name=f"{label}, {whole}")


def _button(thing: str, label: str, css: str = "wi-choice", *, style: str = "", name: str = "") -> str:
    """``label`` is HTML; ``name`` is what a screen reader says, with the label's words in it."""
    look = f' style="{style}"' if style else ""
    said = f' aria-label="{escape(name, quote=True)}"' if name else ""
    return (
        f'<button type="button" class="{css}"{look}{said} data-thing="{escape(thing, quote=True)}" '
        f'title="{escape(thing, quote=True)}" aria-pressed="false">{label}</button>'
    )


def _run(thing: str, text: str) -> str:
    return _button(thing, f"{escape(thing)} <small>{escape(text)}</small>")


def _shorten(text: str, limit: int = 32) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def show_lab(lab: Lab | None, command: str = "") -> str:
    """The old answer and the new one, every step between them, and the command that repeats it."""
    if lab is None or not lab.cuts:
        return (
            '<p class="vi-empty">Press ✂ at an image: everything behind it is read without it, and the new answer '
            "stands here beside the old.</p>"
        )
    last = lab.trials[-1]
    # The board's scissors show which whole images are cut.
    cuts = escape(json.dumps([cut.text for cut in lab.cuts]), quote=True)
    what = "changes" if lab.flipped else "stays"
    own = ""
    if lab.greedy_answer != lab.answer:
        own = (
            '<p class="vi-caption">The row\'s answer is not what the model itself says: without any cut that is '
            f"“{escape(lab.greedy_answer)}”, and whether the answer changes is told against it.</p>"
        )
    rows = [
        [
            "as it was",
            f"“{escape(lab.trials[0].answer)}”",
            copied(lab.trials[0].probability, 3),
            copied(lab.trials[0].logprob),
            "",
        ]
    ]
    for cut, trial, before in zip(lab.cuts, lab.trials[1:], lab.trials, strict=False):
        rows.append(
            [
                f"<code>{escape(cut.text)}</code>",
                f"“{escape(trial.answer)}”",
                copied(trial.probability, 3),
                copied(trial.logprob),
                copied(trial.logprob - before.logprob, sign=True),
            ]
        )
    steps = table(
        ["cuts, one after another", "answer", "p", f"log p of “{escape(lab.answer)}”", "change, nats"],
        rows,
        "answers with one cut, two, and so on",
        marked=[len(rows) - 1],
    )
    return (
        f'<div class="wi-lab-answers" aria-live="polite" data-cuts="{cuts}"><p><small>answer of turn {lab.turn}</small>'
        f'<b>{escape(lab.answer)}</b></p><span aria-hidden="true">→</span>'
        f"<p><small>without these edges it {what}</small>"
        f"<b>{escape(last.answer)}</b></p><p><small>log p of the old answer</small>"
        f"<b>{copied(lab.change, sign=True)} nats</b></p></div>{own}{steps}"
        f"{show_command(command, opened=True)}"
        f"<details class=wi-explain><summary>Explain this</summary><p>{escape(EXPLANATION)}</p></details>"
    )
