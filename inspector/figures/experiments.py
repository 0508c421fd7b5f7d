"""Further tests as HTML: where, which cue, other orders, heads, regions, layouts. Page and report share it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from inspector.experiments import (
    binding_patching,
    heads,
    image_order,
    occlusion,
    pathways,
    prompt_layouts,
    reference_cues,
)
from inspector.figures.charts import HeatRow, Line, copied, curves, heat_cell, heat_table, table, thumbnail
from inspector.figures.colours import image_colour
from inspector.figures.markup import badge
from inspector.figures.payload import data_uri
from inspector.figures.which_image import PanelText, say_with_code, show_panel
from inspector.images.image_file import PromptImage
from inspector.row.numbers import say

TEXTS: dict[str, PanelText] = {
    "where": PanelText("Where it goes through", "closing one way after another", pathways.EXPLANATION),
    "cues": PanelText(
        "Which cue leads to the image",
        "changing one cue after another",
        f"{reference_cues.EXPLANATION} {binding_patching.EXPLANATION}",
    ),
    "heads": PanelText("Heads that follow the question", "testing heads against random heads", heads.EXPLANATION),
    "regions": PanelText("Which part of the image", "hiding one part after another", occlusion.EXPLANATION),
    "permutations": PanelText(
        "The same images in another order", "asking again in another order", image_order.EXPLANATION
    ),
    "layouts": PanelText(
        "The same prompt, written otherwise", "writing the row in another layout", prompt_layouts.EXPLANATION
    ),
}


def show_routes(found: pathways.Routes) -> str:
    """Image × window of layers for each edge set, all on one scale."""
    top = max((abs(effect) for route in found.routes for effect in (*route.effects, route.whole)), default=0.0)
    lead = (
        f'<p class="wi-lead">{escape(found.sentence)}</p>'
        if found.sentence
        else (f'<p class="wi-lead">{len(found.routes)} of {found.planned} ways closed so far.</p>')
    )
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


def _window(layers: pathways.Layers) -> str:
    start, stop = layers
    return f"layer {start}" if stop - start == 1 else f"{start}–{stop - 1}"


def show_permutations(tried: Sequence[image_order.Permuted], images: Sequence[PromptImage]) -> str:
    """One card for each order: the pictures as they stood, the answer that was predicted and the one that came."""
    summary = image_order.summarise_orders(tried).sentence if tried else ""
    cards = "".join(_order_card(one, images) for one in tried)
    return show_panel(
        "permutations",
        f'<p class="wi-lead">{escape(summary)}</p><ul class="wi-cards">{cards}</ul>',
        TEXTS["permutations"],
    )


def _order_card(one: image_order.Permuted, images: Sequence[PromptImage]) -> str:
    pictures = "".join(
        f"<span>{badge(number - 1)}{thumbnail(images[number - 1].preview, f'image {number}', 56)}</span>"
        for number in one.order
    )
    mark = {True: "✓", False: "✗", None: ""}[one.right]
    css = {True: "wi-right", False: "wi-wrong", None: ""}[one.right]
    predicted = (
        "the prompt's own order"
        if one.is_own_order
        else (f"Predicted: “{escape(one.predicted)}”" if one.predicted is not None else "No prediction")
    )
    return (
        f'<li class="{css}"><div class="wi-pictures">{pictures}</div><p>{predicted}. Said: '
        f"<b>“{escape(one.answer)}”</b> "
        f'{mark} <small>p {copied(one.probability, 3)}</small></p><p class="vi-caption">{escape(one.why)}</p></li>'
    )


def show_cues(
    found: Sequence[reference_cues.Cue], told: str, curves_: Sequence[binding_patching.AddressCurve], address: str = ""
) -> str:
    """One row for each cue, then where the pointer travels. ``told`` and ``address``: what it comes to, in words."""
    rows = []
    for cue in found:
        change = say_with_code(cue.change[:1].upper() + cue.change[1:])
        if cue.not_done:
            rows.append([change, f'<td colspan=4 class="wi-aside">not done: {say_with_code(cue.not_done)}</td>'])
            continue
        said = ", ".join(f"“{escape(answer)}”" for answer in cue.answers)
        share = (
            "no effect to share out"
            if cue.share_before is None
            else (f"{say(cue.share_before)} → {'–' if cue.share_after is None else say(cue.share_after)}")
        )
        moved = heat_cell(cue.moved, 1.0, "no share to compare") if cue.share_before is not None else ""
        rows.append([change, copied(cue.fall or 0.0), said, f'<td class="wi-steady">{share}</td>', moved])
    image = next((cue.image for cue in found if cue.image), None)
    whose = f"share of {badge(image - 1)}" if image else "share"
    body = f'<p class="wi-lead">{say_with_code(told)}</p>' if told else ""
    if rows:
        body += table(
            ["what was changed", "log p falls by", "then says", whose, "moved by"], rows, "cues, one at a time"
        )
    body += f'<div class="wi-curves">{"".join(_address_curve(curve) for curve in curves_)}</div>'
    if address:
        body += f'<p class="wi-lead">{escape(address)}</p>'
    return show_panel("cues", body, TEXTS["cues"])


def _address_curve(curve: binding_patching.AddressCurve) -> str:
    if curve.not_done:
        return f'<p class="vi-caption">{escape(curve.not_done)}</p>'
    lines = [
        Line(
            f"“{escape(curve.source_answer)}”, answer of the question put in",
            curve.source_logprobs,
            _image_line(curve.source_image),
        ),
        Line(
            f"“{escape(curve.target_answer)}”, answer of the prompt's own question",
            curve.target_logprobs,
            _image_line(curve.target_image),
            dashed=True,
        ),
    ]
    where = "all rows of the question" if curve.rows == "question" else "the row that chooses the answer alone"
    drawn = curves(
        list(range(len(curve.source_logprobs))),
        lines,
        x_name="states put in before layer (last: after all)",
        y_name=f"States of {where}: log p, nats",
        label=curve.sentence,
    )
    return f'<div>{drawn}<p class="vi-caption">{escape(curve.sentence)}</p></div>'


def _image_line(image: int | None) -> str:
    return image_colour(image - 1) if image else "#7F63B8"


def show_layouts(cells: Sequence[prompt_layouts.LayoutCell]) -> str:
    """One row for each way to write the prompt; for each turn its answer and the image that costs most."""
    turns = max((len(cell.answers) for cell in cells), default=0)
    rows = []
    for cell in cells:
        if cell.not_done:
            aside = f'<td colspan={turns + 2} class="wi-aside">{say_with_code(cell.not_done)}</td>'
            rows.append([say_with_code(cell.name), aside])
            continue
        answers = []
        for answer, probability, leader in zip(
            cell.answers, cell.probabilities, cell.leaders or (None,) * turns, strict=False
        ):
            sure = "" if probability is None else f" <small>p {say(probability)}</small>"
            answers.append(f"“{escape(answer)}”{sure} {badge(leader - 1) if leader else '<small>no image</small>'}")
        leak = "" if cell.leakage is None else copied(cell.leakage)
        rows.append([say_with_code(cell.name), copied(cell.length, 0), *answers, leak])
    head = ["written as", "positions", *(f"turn {n + 1}" for n in range(turns)), "leakage"]
    told = " ".join(prompt_layouts.tell_layouts(cells)) if cells else ""
    return show_panel(
        "layouts",
        f'<p class="wi-lead">{say_with_code(told)}</p>{table(head, rows, "layouts side by side")}'
        '<p class="vi-caption">Beside each answer the image whose removal costs most, if it costs 1 nat or more. '
        "Leakage: share of the effects that is of images another turn brought.</p>",
        TEXTS["layouts"],
    )


def show_heads(found: heads.Heads) -> str:
    """What the test of the heads came to; their scores only if they passed it."""
    body = f'<p class="wi-lead">{escape(found.sentence or "Scores are there; the test is running.")}</p>'
    if found.shown and found.scores is not None:
        count = len(found.scores[0])
        rows = [HeatRow(f"layer {n}", row) for n, row in enumerate(found.scores)]
        body += heat_table(["score", *(f"head {n}" for n in range(count))], rows, "score of each head")
        body += (
            '<p class="vi-caption">Share of the image asked about, less its share when another is asked about; mean '
            "over the images.</p>"
        )
    if found.shown and found.steered:
        marks = {True: "✓ follows", False: "✗ does not", None: ""}
        steered = [
            [
                f"{badge(one.image - 1)} alone",
                f"“{escape(one.answer)}”",
                "–" if one.predicted is None else f"“{escape(one.predicted)}”",
                marks[one.followed],
            ]
            for one in found.steered
        ]
        body += table(
            ["these heads see", "the model says", "asked about it, it says", ""], steered, "steering the heads"
        )
    return show_panel("heads", body, TEXTS["heads"])


def show_regions(found: occlusion.Regions, images: Sequence[PromptImage]) -> str:
    """Heat on the picture of both maps, each with its deletion curve against random orders; effects of whole tiles."""
    body = f'<p class="wi-lead">{escape(found.sentence)}</p>'
    done, readings = found.readings
    if done < readings:
        body += f'<p class="vi-caption">{done} of {readings} readings so far.</p>'
    for region_map in (found.pixels, found.tokens):
        if region_map is not None:
            heat = _pixel_heat(found, region_map, images[found.image - 1])
            body += f'<div class="wi-curves"><div>{heat}</div><div>{_deletion(found.image, region_map)}</div></div>'
    if len(found.tiles) > 1:
        rows = [HeatRow(escape(tile.name), (tile.effect,)) for tile in found.tiles]
        body += heat_table(["tile hidden", "fall of log p, nats"], rows, "effect of each tile")
    return show_panel("regions", body, TEXTS["regions"])


_DONE = {"painted over": "Painted over in the picture", "hidden": "Tokens hidden from the rest of the row"}


def _pixel_heat(found: occlusion.Regions, region_map: occlusion.RegionMap, image: PromptImage) -> str:
    picture = image.preview
    width, height = image.size
    picture.thumbnail((420, 420))
    # Below the noise floor nothing is to look like a finding.
    top = max([found.noise_floor, *(abs(region.effect) for region in region_map.regions)]) or 1.0
    cells = []
    for region in region_map.regions:
        box, share = region.box, abs(region.effect) / top
        colour = "120,0,20" if region.effect > 0 else "20,60,140"
        place = (
            f"left:{100 * box.left / width:.2f}%;top:{100 * box.top / height:.2f}%;"
            f"width:{100 * (box.right - box.left) / width:.2f}%;"
            f"height:{100 * (box.bottom - box.top) / height:.2f}%"
        )
        css = " class=wi-top" if region is region_map.top and region.effect > 0 else ""
        cells.append(
            f'<i{css} style="{place};background:rgba({colour},{0.85 * share:.2f})" '
            f'title="without it {say(region.loss)} nats less, alone {say(region.gain)} more"></i>'
        )
    done = _DONE[region_map.how]
    label = f"image {found.image}, {done.lower()}: darker where a part matters more"
    return (
        f'<div class="wi-heat" role="img" aria-label="{label}"><img src="{data_uri(picture)}" alt="">'
        f'{"".join(cells)}</div><p class="vi-caption">{badge(found.image - 1)} {done}. Dark red: log p falls without '
        f"this part or rises with it alone, the mean of both {say(top)} nats at the darkest (framed: the most); "
        "blue: the other way.</p>"
    )


def _deletion(image: int, found: occlusion.RegionMap) -> str:
    if found.strongest_first is None or found.weakest_first is None:
        return ""
    lines = [
        Line("strongest first", found.strongest_first.logprobs, image_colour(image - 1)),
        Line("weakest first", found.weakest_first.logprobs, image_colour(image - 1), dashed=True),
    ]
    band = found.band
    if band:
        lines.append(
            Line(
                f"{len(found.random)} random orders: mean, and from lowest to highest",
                tuple(mean for _, mean, _ in band),
                "#808794",
            )
        )
    return curves(
        found.strongest_first.counts,
        lines,
        x_name=f"regions {found.how}",
        y_name="Deletion curve: log p of the answer, nats",
        label=f"log p of the answer while more and more regions are {found.how}",
        band=[(low, high) for low, _, high in band],
    )
