"""Further tests as HTML: where, which cue, other orders, heads, regions, layouts. Page and report share it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from inspector.analysis import addresses, cues, layouts, permutations, routes
from inspector.figures.charts import HeatRow, Line, copied, curves, heat_cell, heat_table, number, table, thumbnail
from inspector.figures.colours import image_colour
from inspector.figures.markup import badge
from inspector.figures.which_image import PanelText, say_with_code, show_panel
from model import OpenedImage

TEXTS: dict[str, PanelText] = {
    "where": PanelText("Where it goes through", "closing one way after another", routes.EXPLANATION),
    "cues": PanelText(
        "Which cue leads to the image", "changing one cue after another", f"{cues.EXPLANATION} {addresses.EXPLANATION}"
    ),
    "permutations": PanelText(
        "The same images in another order", "asking again in another order", permutations.EXPLANATION
    ),
    "layouts": PanelText(
        "The same prompt, written otherwise", "writing the row in another layout", layouts.EXPLANATION
    ),
}


def show_routes(found: routes.Routes) -> str:
    """Image × window of layers for each edge set, all on one scale."""
    top = max((abs(effect) for route in found.routes for effect in (*route.effects, route.whole)), default=0.0)
    lead = f'<p class="wi-lead">{escape(found.sentence)}</p>' if found.sentence else (
        f'<p class="wi-lead">{len(found.routes)} of {found.planned} ways closed so far.</p>')  # fmt: skip
    tables = []
    for edges in dict.fromkeys(route.edges for route in found.routes):
        own = [route for route in found.routes if route.edges == edges]
        for windows in dict.fromkeys(route.windows for route in own):
            rows = [
                HeatRow(badge(route.image - 1) if route.image else "all", (*route.effects, route.whole))
                for route in own
                if route.windows == windows
            ]
            head = [escape(edges), *(_window(window) for window in windows), "all layers"]
            tables.append(heat_table(head, rows, f"effect of cutting {edges} by layers", top=top))
    return show_panel(
        "where",
        f'{lead}<div class="wi-tables">{"".join(tables)}</div><p class="vi-caption">Fall of log p of the answer with '
        f"these edges cut in these layers, nats; one scale for all. Noise floor {copied(found.noise_floor)}.</p>",
        TEXTS["where"],
    )


def _window(layers: routes.Layers) -> str:
    start, stop = layers
    return f"layer {start}" if stop - start == 1 else f"{start}–{stop - 1}"


def show_permutations(tried: Sequence[permutations.Permuted], images: Sequence[OpenedImage]) -> str:
    """One card for each order: the pictures as they stood, the answer that was predicted and the one that came."""
    summary = permutations.summarise_orders(tried).sentence if tried else ""
    cards = "".join(_order_card(one, images) for one in tried)
    return show_panel(
        "permutations",
        f'<p class="wi-lead">{escape(summary)}</p><ul class="wi-cards">{cards}</ul>',
        TEXTS["permutations"],
    )


def _order_card(one: permutations.Permuted, images: Sequence[OpenedImage]) -> str:
    pictures = "".join(
        f"<span>{badge(number - 1)}{thumbnail(images[number - 1].pixels, f'image {number}', 56)}</span>"
        for number in one.order
    )
    mark = {True: "✓", False: "✗", None: ""}[one.right]
    css = {True: "wi-right", False: "wi-wrong", None: ""}[one.right]
    predicted = "the prompt's own order" if one.is_own_order else (
        f"Predicted: “{escape(one.predicted)}”" if one.predicted is not None else "No prediction")  # fmt: skip
    return (
        f'<li class="{css}"><div class="wi-pictures">{pictures}</div><p>{predicted}. Said: '
        f"<b>“{escape(one.answer)}”</b> "
        f'{mark} <small>p {copied(one.probability, 3)}</small></p><p class="vi-caption">{escape(one.why)}</p></li>'
    )


def show_cues(
    found: Sequence[cues.Cue], told: str, curves_: Sequence[addresses.AddressCurve], address: str = ""
) -> str:
    """One row for each cue, then where the pointer travels. ``told`` and ``address``: what it comes to, in words."""
    rows = []
    for cue in found:
        change = say_with_code(cue.change[:1].upper() + cue.change[1:])
        if cue.not_done:
            rows.append([change, f'<td colspan=4 class="wi-aside">not done: {say_with_code(cue.not_done)}</td>'])
            continue
        said = ", ".join(f"“{escape(answer)}”" for answer in cue.answers)
        share = "no effect to share out" if cue.share_before is None else (
            f"{number(cue.share_before)} → {'–' if cue.share_after is None else number(cue.share_after)}")  # fmt: skip
        moved = heat_cell(cue.moved, 1.0, "no share to compare") if cue.share_before is not None else ""
        rows.append([change, copied(cue.fall or 0.0), said, f"<td>{share}</td>", moved])
    image = next((cue.image for cue in found if cue.image), None)
    whose = f"share of {badge(image - 1)}" if image else "share"
    body = f'<p class="wi-lead">{say_with_code(told)}</p>' if told else ""
    if rows:
        body += table(
            ["what was changed", "log p falls by", "then says", whose, "moved by"], rows, "cues, one at a time"
        )
    for curve in curves_:
        body += _address_curve(curve)
    if address:
        body += f'<p class="wi-lead">{escape(address)}</p>'
    return show_panel("cues", body, TEXTS["cues"])


def _address_curve(curve: addresses.AddressCurve) -> str:
    if curve.not_done:
        return f'<p class="vi-caption">{escape(curve.not_done)}</p>'
    lines = [
        Line(f"“{escape(curve.source_answer)}”, answer of the question put in", curve.source_logprobs,
             _image_line(curve.source_image)),
        Line(f"“{escape(curve.target_answer)}”, answer of the prompt's own question", curve.target_logprobs,
             _image_line(curve.target_image), dashed=True),
    ]  # fmt: skip
    where = "all rows of the question" if curve.rows == "question" else "the row that chooses the answer alone"
    drawn = curves(
        list(range(len(curve.source_logprobs))), lines, x_name="states put in before layer (last: after all)",
        y_name=f"States of {where}: log p, nats", label=curve.sentence,
    )  # fmt: skip
    return f'{drawn}<p class="vi-caption">{escape(curve.sentence)}</p>'


def _image_line(image: int | None) -> str:
    return image_colour(image - 1) if image else "#7F63B8"


def show_layouts(cells: Sequence[layouts.LayoutCell]) -> str:
    """One row for each way to write the prompt; for each turn its answer and the image that costs most."""
    turns = max((len(cell.answers) for cell in cells), default=0)
    rows = []
    for cell in cells:
        if cell.not_done:
            aside = f'<td colspan={turns + 2} class="wi-aside">{say_with_code(cell.not_done)}</td>'
            rows.append([say_with_code(cell.name), aside])
            continue
        answers = []
        for answer, probability, leader in zip(cell.answers, cell.probabilities, cell.leaders or (None,) * turns,
                                               strict=False):  # fmt: skip
            sure = "" if probability is None else f" <small>p {number(probability)}</small>"
            answers.append(f"“{escape(answer)}”{sure} {badge(leader - 1) if leader else '<small>no image</small>'}")
        leak = "" if cell.leakage is None else copied(cell.leakage)
        rows.append([say_with_code(cell.name), copied(cell.length, 0), *answers, leak])
    head = ["written as", "positions", *(f"turn {n + 1}" for n in range(turns)), "leakage"]
    told = " ".join(layouts.tell_layouts(cells)) if cells else ""
    return show_panel(
        "layouts",
        f'<p class="wi-lead">{say_with_code(told)}</p>{table(head, rows, "layouts side by side")}'
        '<p class="vi-caption">Beside each answer the image whose removal costs most, if it costs 1 nat or more. '
        "Leakage: share of the effects that is of images another turn brought.</p>",
        TEXTS["layouts"],
    )
