"""The Attention tab: shares of the selected token, and which layer and head the heat shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from inspector.figures.attention import plot_image_share, plot_images_by_layer, plot_kinds_by_layer
from inspector.figures.markup import badge, describe_token, show_info, show_share
from inspector.figures.payload import heat_payload
from inspector.row.ask import Inspection
from inspector.row.attention import AttentionMap
from inspector.widgets import Sight, answer_sight

MEAN = "mean"
EXPLAIN = (
    "Each share is softmax(q·k) of the selected token's row, recomputed beside the pass, so the answer is untouched. "
    "It tells what was mixed into this token at each layer, not what the answer depends on: "
    "only cutting edges can show that."
)

CONTROL_NAMES = ("layer", "head", "own_row", "exclude_sinks", "own_scale")


@dataclass(frozen=True)
class AttentionView:
    summary: gr.HTML
    layer: gr.Dropdown
    head: gr.Dropdown
    own_row: gr.Checkbox
    exclude_sinks: gr.Checkbox
    own_scale: gr.Checkbox
    sight: Sight
    share: gr.Plot
    images: gr.Plot
    kinds: gr.Plot

    @property
    def controls(self) -> list[Any]:
        """In the order of :data:`CONTROL_NAMES`."""
        return [self.layer, self.head, self.own_row, self.exclude_sinks, self.own_scale]

    @property
    def plots(self) -> list[Any]:
        """What :func:`draw` fills."""
        return [self.sight, self.share, self.images, self.kinds]


def build_attention() -> AttentionView:
    gr.HTML(
        '<div class="vi-panel-head"><p class="vi-caption">Where the model looked at the selected token, or while '
        f"choosing it.</p>{show_info('Attention', EXPLAIN)}</div>"
    )
    summary = gr.HTML('<p class="vi-empty">Ask first; then select any token.</p>', elem_id="attention-summary")
    with gr.Row():
        layer = gr.Dropdown([MEAN], value=MEAN, label="Heat: layer", min_width=110, elem_id="layer")
        head = gr.Dropdown([MEAN], value=MEAN, label="Heat: head", min_width=110, elem_id="head")
    with gr.Row():
        own_row = gr.Checkbox(
            False, label="an answer token's own row, not the row that chose it", min_width=220, elem_id="own-row"
        )
        exclude_sinks = gr.Checkbox(
            False, label="exclude sinks (rest scaled up to 1)", min_width=220, elem_id="exclude-sinks"
        )
        own_scale = gr.Checkbox(False, label="each map on its own scale", min_width=220, elem_id="own-scale")
    sight = Sight("heat")
    # Unseen until they are drawn: the label of an empty plot is one that screen readers may not be given.
    plot: dict[str, Any] = {"show_label": False, "min_width": 270, "visible": False}
    with gr.Row():
        share, images, kinds = (gr.Plot(label=label, **plot) for label in ("layer × head", "per image", "per kind"))
    return AttentionView(summary, layer, head, own_row, exclude_sinks, own_scale, sight, share, images, kinds)


def choices(attention: AttentionMap) -> tuple[Any, Any]:
    """Updates of the layer and head pickers for this model."""
    layers, heads = attention.pattern.shape[:2]
    return (
        gr.update(choices=[MEAN, *map(str, range(layers))]),
        gr.update(choices=[MEAN, *map(str, range(heads))]),
    )


def _picked(choice: str, count: int) -> int | None:
    return int(choice) if choice.isdigit() and int(choice) < count else None


def heat_of(attention: AttentionMap, selected: int, layer: str, head: str, own_scale: bool) -> dict[str, Any]:
    layers, heads = attention.pattern.shape[:2]
    return heat_payload(
        attention,
        selected=selected,
        layer=_picked(layer, layers),
        head=_picked(head, heads),
        shared_scale=not own_scale,
    )


def summarise(inspection: Inspection, attention: AttentionMap) -> str:
    """In words and numbers; the share that goes to images always comes first."""
    layers, heads = attention.pattern.shape[:2]
    table = inspection.table
    token = describe_token(table, attention.position)
    chose = attention.position + 1
    chosen = chose < len(table.ids) and table.trained[chose]
    whose = f"{token}, whose output chose {describe_token(table, chose)}," if chosen else token
    share = show_share(attention.mean_image_share)
    parts = [f"<p><b data-copy>{share}</b> of the attention of {whose} goes to image tokens"]
    parts.append(f" (mean over {layers} layers × {heads} heads).")
    each = attention.image_shares.mean(axis=0)
    if len(each) > 1:
        parts.append(
            " Of all its attention: "
            + ", ".join(f"{badge(i)} <span data-copy>{show_share(share)}</span>" for i, share in enumerate(each))
            + "."
        )
    parts.append("</p>")
    if attention.sinks:
        names = ", ".join(
            f"{describe_token(table, sink.position)} <span data-copy>{show_share(sink.share)}</span>"
            for sink in attention.sinks
        )
        state = "excluded, the rest scaled up to 1" if attention.excluded else "included"
        parts.append(f'<p class="vi-caption">Sinks ({state}): {names}.</p>')
    else:
        parts.append('<p class="vi-caption">No sink: no other token gets 10 % or more on average.</p>')
    if not chosen and chose < len(table.ids):
        parts.append(f'<p class="vi-caption">This position predicts {describe_token(table, chose)}.</p>')
    return "".join(parts)


def draw(attention: AttentionMap, own_scale: bool) -> list[Any]:
    """Values for :attr:`AttentionView.plots`."""
    plots = (
        plot_image_share(attention, shared_scale=not own_scale),
        plot_images_by_layer(attention, shared_scale=not own_scale),
        plot_kinds_by_layer(attention),
    )
    return [answer_sight(), *(gr.update(value=plot, visible=True) for plot in plots)]
