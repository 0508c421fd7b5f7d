"""Numbers as HTML: bars, heat tables, curves, small pictures. No script draws them, so page and report share them.

Bars and tables are HTML, for text must stay readable at any width; curves are SVG. What a caller passes as a label is
HTML; :func:`html.escape` is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from inspector.figures.colours import IMAGE_COLOURS, image_colour, ink_on
from inspector.figures.markup import badge
from inspector.figures.payload import data_uri
from inspector.row.numbers import say

Colour = tuple[float, float, float]

_DIVERGING: tuple[Colour, Colour] = ((33, 102, 172), (178, 24, 43))
_SEQUENTIAL: tuple[Colour, ...] = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Five stops of viridis."""


def copied(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """The number as an element that a click copies, with all its digits."""
    return f'<span data-copy="{value:.6g}">{say(value, digits, sign=sign)}</span>'


def show_command(command: str, *, opened: bool = False) -> str:
    """A shell's line that does the same again, folded unless ``opened``; a click copies it."""
    copy = f'data-copy="{escape(command, quote=True)}" tabindex="0" title="click to copy"'
    return (
        f"<details class=wi-explain{' open' if opened else ''}><summary>The same from a shell</summary>"
        f"<pre class=wi-command {copy}>{escape(command)}</pre></details>"
    )


def thumbnail(picture: Image.Image, alt: str, size: int = 96) -> str:
    """A small picture inside the page."""
    small = picture.convert("RGB")
    small.thumbnail((size, size))
    return f'<img class="wi-thumb" src="{data_uri(small)}" alt="{escape(alt, quote=True)}">'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str, *, marked: Sequence[int] = ()) -> str:
    """A table in a frame that scrolls by itself; the first cell of a row names it. ``marked`` rows stand out. A cell
    that begins with ``<td`` or ``<th`` stays as it is."""
    titles = "".join(f"<th scope=col>{cell}</th>" if cell else "<td></td>" for cell in head)
    body = "".join(
        f"<tr{' class=wi-marked' if n in marked else ''}>"
        + "".join(_cell(cell, first=column == 0) for column, cell in enumerate(row))
        + "</tr>"
        for n, row in enumerate(rows)
    )
    return (
        f'<div class="vi-scroll" tabindex="0" role="region" aria-label="{escape(label, quote=True)}">'
        f'<table class="vi-table wi-table"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(cell: str, *, first: bool) -> str:
    if cell.startswith(("<td", "<th")):
        return cell
    return f"<th scope=row>{cell}</th>" if first else f"<td>{cell}</td>"


# --- bars ---


@dataclass(frozen=True)
class Bar:
    """One image's bar; ``image`` counts from 1. ``tick`` is a second value, drawn as a mark; ``error`` a standard
    error; ``text`` stands beside the bar. ``value`` None: there is nothing to draw, ``text`` says why."""

    image: int
    value: float | None
    text: str
    tick: float | None = None
    error: float | None = None


def bars(rows: Sequence[Bar], *, noise: float | None = None, label: str) -> str:
    """Horizontal bars from 0, one scale for all; ``noise`` is drawn as a line on both sides of 0."""
    values = [value for row in rows for value in (row.value, row.tick) if value is not None]
    values += [row.value + sign * row.error for row in rows if row.value is not None and row.error for sign in (-1, 1)]
    low, high = min([0.0, *values]), max([0.0, *values])
    if noise is not None:
        high, low = max(high, noise), min(low, -noise) if low < 0 else low
    width = (high - low) or 1.0

    def at(value: float) -> float:
        return 100 * (value - low) / width

    return (
        f'<div class="wi-bars" role="group" aria-label="{escape(label, quote=True)}">'
        + "".join(_draw_bar(row, at, low, noise) for row in rows)
        + "</div>"
    )


def _draw_bar(row: Bar, at: object, low: float, noise: float | None) -> str:
    assert callable(at)
    index = row.image - 1
    marks = [f'<i class="wi-zero" style="left:{at(0.0):.2f}%"></i>']
    if noise is not None and noise > 0:
        for line in (noise, -noise):
            if line >= low:
                marks.append(f'<i class="wi-noise" style="left:{at(line):.2f}%"></i>')
    if row.value is not None:
        start, stop = sorted((at(0.0), at(row.value)))
        pattern = " wi-again" if index >= len(IMAGE_COLOURS) else ""
        marks.append(f'<b class="wi-fill{pattern}" style="left:{start:.2f}%;width:{stop - start:.2f}%"></b>')
        if row.error:
            start, stop = at(row.value - row.error), at(row.value + row.error)
            marks.append(f'<i class="wi-error" style="left:{start:.2f}%;width:{stop - start:.2f}%"></i>')
    if row.tick is not None:
        marks.append(f'<i class="wi-tick" style="left:{at(row.tick):.2f}%"></i>')
    return (
        f'<div class="wi-bar" style="--image:{image_colour(index)}">{badge(index)}'
        f'<span class="wi-track" aria-hidden="true">{"".join(marks)}</span>'
        f'<span class="wi-value">{row.text}</span></div>'
    )


# --- heat ---


def _diverging(value: float, top: float) -> tuple[str, str]:
    """Class and style of a cell about 0: blue below, the page's ground at 0, red above."""
    share = max(-1.0, min(1.0, value / top)) if top > 0 else 0.0
    hue = _DIVERGING[0] if share < 0 else _DIVERGING[1]
    # On a light ground; on a dark one white ink reads on every shade.
    strong = ink_on(_hex(_mix((247, 247, 247), hue, abs(share)))) == "#fff"
    css = "wi-diverging wi-strong" if strong else "wi-diverging"
    return css, f"--heat:rgb({hue[0]:.0f} {hue[1]:.0f} {hue[2]:.0f});--share:{100 * abs(share):.1f}%"


def _sequential(value: float, top: float) -> tuple[str, str]:
    """Class and style of a cell from dark (0) to bright (``top``), viridis."""
    share = max(0.0, min(1.0, value / top)) if top > 0 else 0.0
    place = share * (len(_SEQUENTIAL) - 1)
    lower = min(int(place), len(_SEQUENTIAL) - 2)
    colour = _hex(_mix(_SEQUENTIAL[lower], _SEQUENTIAL[lower + 1], place - lower))
    return "", f"background:{colour};color:{ink_on(colour)}"


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    return tuple(a + (b - a) * share for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{round(part):02x}" for part in colour)


@dataclass(frozen=True)
class HeatRow:
    """A row of a heat table. A cell is its value, or None where there is none: it is hatched, and ``why`` tells."""

    name: str
    cells: tuple[float | None, ...]
    why: str = "out of reach"


def heat_table(
    head: Sequence[str],
    rows: Sequence[HeatRow],
    label: str,
    *,
    digits: int = 2,
    top: float | None = None,
    shares: bool = False,
) -> str:
    """Values as coloured cells with their numbers; ``head`` names the first column and the others. Diverging about 0,
    or with ``shares`` viridis from 0 up. ``top``: the value at the end of the scale (default: the largest)."""
    values = [abs(cell) for row in rows for cell in row.cells if cell is not None]
    top = max(values, default=0.0) if top is None else top
    drawn = [
        [row.name, *(heat_cell(cell, top, row.why, digits=digits, shares=shares) for cell in row.cells)] for row in rows
    ]
    return table(head, drawn, label)


def heat_cell(
    value: float | None,
    top: float,
    why: str = "out of reach",
    *,
    digits: int = 2,
    shares: bool = False,
    low: float = 0.0,
) -> str:
    """One cell of a table, coloured; hatched if there is no value. ``low``: where viridis begins."""
    if value is None:
        return f'<td class="wi-cell wi-none" title="{escape(why, quote=True)}">–</td>'
    css, style = _sequential(value - low, top - low) if shares else _diverging(value, top)
    return f'<td class="wi-cell {css}" style="{style}">{copied(value, digits)}</td>'


# --- curves ---


@dataclass(frozen=True)
class Line:
    """A curve: one ``ys`` for each x; None leaves a gap. ``dashed`` tells it apart without colour."""

    name: str
    ys: tuple[float | None, ...]
    colour: str
    dashed: bool = False


def curves(
    xs: Sequence[float],
    lines: Sequence[Line],
    *,
    x_name: str,
    y_name: str,
    label: str,
    band: Sequence[tuple[float, float]] = (),
) -> str:
    """Lines over whole numbers, numbers at the ends of both axes, a legend below. ``band``: (lowest, highest) at each
    x, drawn in grey behind them."""
    width, height, left, bottom, top = 360, 190, 56, 40, 10
    ys = [*(y for line in lines for y in line.ys if y is not None), *(y for edges in band for y in edges)]
    if not ys or not xs:
        return '<p class="vi-empty">There is nothing to draw.</p>'
    low, high = min([0.0, *ys]), max([0.0, *ys])
    span, first, last = (high - low) or 1.0, min(xs), max(xs)
    reach = (last - first) or 1.0

    def x_at(x: float) -> float:
        return left + (width - left - 10) * (x - first) / reach

    def y_at(y: float) -> float:
        return top + (height - top - bottom) * (1 - (y - low) / span)

    parts = []
    for y in sorted({low, 0.0, high}):
        css = "wi-axis" if y == 0 else "wi-grid"
        parts.append(f'<line class="{css}" x1="{left}" x2="{width - 10}" y1="{y_at(y):.1f}" y2="{y_at(y):.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y_at(y) + 4:.1f}" text-anchor="end">{say(y)}</text>')
    for x, anchor in ((first, "start"), (last, "end")):
        parts.append(f'<text x="{x_at(x):.1f}" y="{height - 22}" text-anchor="{anchor}">{say(x, 0)}</text>')
    middle = (left + width - 10) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 4}" text-anchor="middle">{escape(x_name)}</text>')
    if band:
        edge = [(x, low_y) for x, (low_y, _) in zip(xs, band, strict=True)]
        edge += [(x, high_y) for x, (_, high_y) in zip(xs, band, strict=True)][::-1]
        points = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in edge)
        parts.append(f'<polygon class="wi-band" points="{points}"/>')
    for line in lines:
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        for run in _runs(xs, line.ys):
            points = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in run)
            parts.append(f'<polyline class="wi-line" points="{points}" stroke="{line.colour}"{dash}/>')
            if len(run) <= 24:
                parts += [f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{line.colour}"/>' for x, y in run]
    legend = "".join(
        f'<li><i class="wi-key{" wi-dashed" if line.dashed else ""}" style="--image:{line.colour}"></i>{line.name}</li>'
        for line in lines
    )
    return (
        f'<figure class="wi-curve"><figcaption>{escape(y_name)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(parts)}</svg>"
        f'<ul class="wi-legend">{legend}</ul></figure>'
    )


def _runs(xs: Sequence[float], ys: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if y is None:
            found.append([])
        else:
            found[-1].append((x, y))
    return [run for run in found if run]
