"""Further tests as HTML: where, which cue, other orders, heads, regions, layouts. Page and report share it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from inspector.analysis import permutations, routes
from inspector.figures.charts import HeatRow, copied, heat_table, thumbnail
from inspector.figures.markup import badge
from inspector.figures.which_image import PanelText, show_panel
from model import OpenedImage

TEXTS: dict[str, PanelText] = {
    "where": PanelText("Where it goes through", "closing one way after another", routes.EXPLANATION),
    "permutations": PanelText("The same images in another order", "asking again in another order",
                              permutations.EXPLANATION),
}  # fmt: skip


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
