"""Edits of a picture as page parts: the picture for the board, what came of the edits, and how one got there."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image

from inspector.experiments.image_edits import ChangedAnswer, EditStudy, list_hidden
from inspector.figures.charts import copied, show_command
from inspector.figures.colours import image_colour
from inspector.figures.payload import data_uri, file_uri
from inspector.images.full_size import read_preview
from inspector.row.ask import Inspection
from inspector.row.numbers import say_factor
from model import Box

ABOUT = (
    "Pixels: the image as uploaded is edited and goes through the image processor, the encoder and the language model "
    "anew, so every token of a tile may change; tokens: the image stays as it was encoded, and the image tokens whose "
    "cells the rectangle covers are hidden from everything behind them. An answer that stays can still have used what "
    "was taken away, for the same may be known from elsewhere; an edit is itself something to see, and a token may "
    "hold what stands elsewhere in its tile, so where patches leak into one another the two numbers differ."
)
SHOWN_PX, RAIL_PX = 320, 96
"""Longest side of a picture, of the answers' and of the edits' one after another."""
WAITING = (
    '<p class="vi-empty">Draw a rectangle and press Edit: the answer to the edited picture comes beside the old.</p>'
)


def board_payload(study: EditStudy | None) -> dict[str, Any]:
    """The board's data: the images as they are after all edits, by index; the others it has from the viewer."""
    return {
        "edited": {str(step.edit.image - 1): file_uri(step.facts.preview) for step in (study.steps if study else ())}
    }


def show_edits(study: EditStudy | None, inspection: Inspection, commands: Sequence[str] = ()) -> str:
    """The old answer, the one to the edited picture and the one with the tokens cut, and the edits one after another;
    ``commands`` repeat the first edit, the first two, … from a shell."""
    if study is None or not study.steps:
        return WAITING
    last = study.steps[-1]
    number = last.edit.image
    image = inspection.prompt.images[number - 1]
    own = [edit for edit in study.edits if edit.image == number]
    before, after = (_shrink(picture, SHOWN_PX) for picture in (image.preview, read_preview(last.facts)))
    hidden, left = list_hidden(inspection.row, own, number)
    # Cells of the tiles, and of the thumbnail where there is nothing else.
    tiled = any(not one.in_thumbnail for one in (*hidden, *left))
    cells = [one.box for one in hidden if not (tiled and one.in_thumbnail)]
    tokens = "token" if last.tokens == 1 else "tokens"
    cards = (
        _card(
            f"image {number}, as it was",
            _picture(before, image.size, [edit.rectangle for edit in own], ()),
            f"answer of turn {study.turn}",
            study.answer,
            f"log p {copied(study.logprob)} nats",
        ),
        _changed("the pixels edited", _picture(after, image.size, (), ()), last.pixels, study.answer),
        _changed(
            f"{last.tokens} {tokens} cut instead", _picture(before, image.size, (), cells), last.cut, study.answer
        ),
    )
    note = ""
    if study.greedy_answer != study.answer:
        note = (
            '<p class="vi-caption">The row\'s answer is not what the model itself says: to the unchanged row that is '
            f"“{escape(study.greedy_answer)}”, and whether the answer changes is told against it.</p>"
        )
    rail = "".join(_rail_card(study, n, commands[n] if commands else "") for n in range(len(study.steps)))
    return (
        f'<section class="wi-panel ed-result" style="--image:{image_colour(number - 1)}"><h3>Edited picture</h3>'
        f'<div class="ed-cards" aria-live="polite">{"".join(cards)}</div>'
        f'<p class="wi-lead">{escape(last.sentence)}</p>{note}'
        f'<ol class="ed-rail" tabindex="0" aria-label="edits, one on top of the other">{rail}</ol>'
        f"{show_command(commands[-1], opened=True) if commands else ''}</section>"
    )


def _shrink(picture: Image.Image, size: int) -> str:
    picture.thumbnail((size, size))
    return data_uri(picture)


def _card(title: str, picture: str, what: str, answer: str, number: str) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{picture}"
        f"<p><small>{what}</small><b>{escape(answer.strip()) or '(empty)'}</b><span>{number}</span></p></figure>"
    )


def _changed(title: str, picture: str, found: ChangedAnswer, old: str) -> str:
    what = "it changes" if found.flipped else "it stays"
    return _card(title, picture, what, found.answer, f"log p of “{escape(old)}” {_change(found)}")


def _change(found: ChangedAnswer) -> str:
    return f"{copied(found.change, sign=True)} nats, {say_factor(found.change)}"


def _picture(
    source: str, size: tuple[int, int], rectangles: Sequence[tuple[int, int, int, int]], cells: Sequence[Box]
) -> str:
    """``rectangles`` are outlined and ``cells`` covered, in the pixels of an image of ``size``."""
    width, height = size
    marks = "".join(
        f'<rect class="{part}" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>'
        for left, top, right, bottom in rectangles
        for part in ("ed-out", "ed-in")
    )
    paths = "".join(f"M{box.left:.1f} {box.top:.1f}H{box.right:.1f}V{box.bottom:.1f}H{box.left:.1f}Z" for box in cells)
    cover = f'<path class="ed-cut" d="{paths}"/>' if paths else ""
    return (
        f'<div class="ed-picture" style="--ratio:{width / height:.4f}"><img src="{source}" alt="">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{marks}{cover}</svg></div>'
    )


def _rail_card(study: EditStudy, n: int, command: str) -> str:
    step = study.steps[n]
    title = "click to copy the command that repeats the edits up to here"
    copy = f' data-copy="{escape(command, quote=True)}" tabindex="0" title="{title}"' if command else ""
    now = ' aria-current="step"' if n == len(study.steps) - 1 else ""
    return (
        f'<li{now}><img src="{_shrink(read_preview(step.facts), RAIL_PX)}" alt="">'
        f"<div><code{copy}>{escape(step.edit.text)}</code>"
        f"<span>pixels “{escape(step.pixels.answer)}” {copied(step.pixels.change, sign=True)}</span>"
        f"<span>tokens “{escape(step.cut.answer)}” {copied(step.cut.change, sign=True)}</span></div></li>"
    )
