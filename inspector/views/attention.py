"""The Attention tab: shares of the selected token, and which layer and head the heat shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from inspector.figures.attention import plot_images_by_layer, plot_kinds_by_layer, plot_readers_by_layer
from inspector.figures.head_board import board_payload
from inspector.figures.markup import badge, describe_token, show_info, show_share
from inspector.figures.payload import heat_payload
from inspector.figures.readers import name_tokens, tell_readers
from inspector.row.ask import Inspection
from inspector.row.attention import AttentionMap, ReaderMap, mean_of
from inspector.widgets import HeadBoard, Sight, answer_sight, encode

MEAN = "mean"
EXPLAIN = (
    "Each share is softmax(q·k) of the selected token's row, recomputed beside the pass, so the answer is untouched. "
    "It tells what was mixed into this token at each layer, not what the answer depends on: "
    "only cutting edges can show that. The other side is one pass over the row: how much of each later token's "
    "attention goes to the selected one."
)

READS, READERS = "what it looks at", "which later tokens look at it"
"""The two sides of attention, as the page calls them."""
CONTROL_NAMES = ("layer", "head", "own_row", "exclude_sinks", "own_scale")


@dataclass(frozen=True)
class AttentionView:
    summary: gr.HTML
    layer: gr.Dropdown
    head: gr.Dropdown
    own_row: gr.Checkbox
    exclude_sinks: gr.Checkbox
    own_scale: gr.Checkbox
    side: gr.Radio
    first: gr.Number
    last: gr.Number
    look: gr.Button
    sight: Sight
    board: HeadBoard
    plots_sight: Sight
    images: gr.Plot
    kinds: gr.Plot

    @property
    def controls(self) -> list[Any]:
        """In the order of :data:`CONTROL_NAMES`."""
        return [self.layer, self.head, self.own_row, self.exclude_sinks, self.own_scale]

    @property
    def looking(self) -> list[Any]:
        """What looking at a token takes: the controls, and the side."""
        return [*self.controls, self.side]

    @property
    def stretch(self) -> list[Any]:
        return [self.first, self.last]

    @property
    def fresh(self) -> list[Any]:
        """What :func:`begin` fills."""
        return [self.side, *self.stretch]

    @property
    def maps(self) -> list[Any]:
        """What :func:`draw_maps` fills."""
        return [self.sight, self.board]

    @property
    def plots(self) -> list[Any]:
        """What :func:`draw_plots` fills."""
        return [self.plots_sight, self.images, self.kinds]


def begin(selected: int) -> list[Any]:
    """Values for :attr:`AttentionView.fresh` when something new was asked."""
    return [READS, selected, selected]


def build_attention() -> AttentionView:
    gr.HTML(
        '<div class="vi-panel-head"><p class="vi-caption">Where the model looked at the selected token, or while '
        f"choosing it.</p>{show_info('Attention', EXPLAIN)}</div>"
    )
    summary = gr.HTML('<p class="vi-empty">Ask first; then select any token.</p>', elem_id="attention-summary")
    sight = Sight("heat", "maps")
    board = HeadBoard(elem_id="head-board")
    with gr.Row():
        layer = gr.Dropdown([MEAN], value=MEAN, label="Heat: layer", min_width=110, elem_id="layer")
        head = gr.Dropdown([MEAN], value=MEAN, label="Heat: head", min_width=110, elem_id="head")
        own_row = gr.Checkbox(
            False, label="what an answer token read, not the step that chose it", min_width=180, elem_id="own-row"
        )
        exclude_sinks = gr.Checkbox(
            False, label="exclude sinks (rest scaled up to 1)", min_width=160, elem_id="exclude-sinks"
        )
        own_scale = gr.Checkbox(False, label="each map on its own scale", min_width=160, elem_id="own-scale")
    with gr.Row():
        side = gr.Radio([READS, READERS], value=READS, label="Side", min_width=280, elem_id="attention-side")
        # How long the row is is known with the first answer, so that is checked when it is read.
        first = gr.Number(None, label="From token", precision=0, minimum=0, min_width=90, elem_id="stretch-first")
        last = gr.Number(None, label="to token (mean)", precision=0, minimum=0, min_width=90, elem_id="stretch-last")
        look = gr.Button("Look", size="sm", min_width=64, scale=0, elem_id="stretch-look")
    plots_sight = Sight("heat")
    # Unseen until they are drawn: the label of an empty plot is one that screen readers may not be given.
    plot: dict[str, Any] = {"show_label": False, "min_width": 270, "visible": False}
    with gr.Row():
        images, kinds = (gr.Plot(label=label, **plot) for label in ("per image", "per kind"))
    controls = (layer, head, own_row, exclude_sinks, own_scale)
    return AttentionView(summary, *controls, side, first, last, look, sight, board, plots_sight, images, kinds)


def choices(attention: AttentionMap) -> tuple[Any, Any]:
    """Updates of the layer and head pickers for this model."""
    layers, heads = attention.pattern.shape[:2]
    return (
        gr.update(choices=[MEAN, *map(str, range(layers))]),
        gr.update(choices=[MEAN, *map(str, range(heads))]),
    )


def _picked(choice: str, count: int) -> int | None:
    return int(choice) if choice.isdigit() and int(choice) < count else None


def heat_of(
    attention: AttentionMap | ReaderMap, selected: int, layer: str, head: str, own_scale: bool
) -> dict[str, Any]:
    layers, heads = attention.pattern.shape[:2]
    return heat_payload(
        attention,
        selected=selected,
        layer=_picked(layer, layers),
        head=_picked(head, heads),
        shared_scale=not own_scale,
    )


def summarise(inspection: Inspection, attention: AttentionMap | ReaderMap, layer: str = MEAN, head: str = MEAN) -> str:
    """In words and numbers, of the layer and head that are shown."""
    layers, heads = attention.pattern.shape[:2]
    chosen = _picked(layer, layers), _picked(head, heads)
    where = f"mean over {layers} layers × {heads} heads"
    if chosen != (None, None):
        names = zip(("layer", "head"), chosen, (layers, heads), strict=True)
        where = ", ".join(f"{name} {one}" if one is not None else f"mean over {n} {name}s" for name, one, n in names)
    if isinstance(attention, ReaderMap):
        return tell_readers(inspection.table, attention, *chosen, where)
    return _summarise_reads(inspection, attention, chosen, where)


def _summarise_reads(
    inspection: Inspection, attention: AttentionMap, chosen: tuple[int | None, int | None], where: str
) -> str:
    """The share that goes to images always comes first."""
    table = inspection.table
    token, chose = attention.position, attention.position + 1
    stretch = attention.first < token
    by_output = not stretch and chose < len(table.ids) and table.trained[chose]
    whose = name_tokens(table, attention.first, token)
    if by_output:
        whose += f", whose output chose {describe_token(table, chose)},"
    each = attention.share_images(inspection.row, *chosen)
    parts = [f"<p><b data-copy>{show_share(sum(each))}</b> of the attention of {whose} goes to image tokens ({where})."]
    if len(each) > 1:
        parts.append(
            " Of all its attention: "
            + ", ".join(f"{badge(i)} <span data-copy>{show_share(share)}</span>" for i, share in enumerate(each))
            + "."
        )
    entropy, of_max = (mean_of(values, *chosen) for values in (attention.entropy, attention.entropy_of_max))
    parts.append(
        f" Its entropy is <span data-copy>{entropy:.2f}</span> nats, {show_share(of_max)} of that of looking at "
        "everything alike."
    )
    parts.append("</p>")
    if attention.sinks:
        names = ", ".join(
            f"{describe_token(table, sink.position)} <span data-copy>{show_share(sink.share)}</span>"
            for sink in attention.sinks
        )
        state = "excluded, the rest scaled up to 1" if attention.excluded else "included"
        parts.append(f'<p class="vi-caption">Sinks ({state}), mean over all layers and heads: {names}.</p>')
    else:
        parts.append('<p class="vi-caption">No sink: no other token gets 10 % or more on average.</p>')
    if not by_output and not stretch and chose < len(table.ids):
        parts.append(f'<p class="vi-caption">This position predicts {describe_token(table, chose)}.</p>')
    return "".join(parts)


def draw_maps(
    inspection: Inspection,
    attention: AttentionMap | ReaderMap,
    layer: str,
    head: str,
    own_scale: bool,
    along: bool = False,
) -> list[Any]:
    """Values for :attr:`AttentionView.maps`; ``along``: with the heat of the same attention."""
    layers, heads = attention.pattern.shape[:2]
    board = board_payload(
        inspection.row,
        attention,
        layer=_picked(layer, layers),
        head=_picked(head, heads),
        shared_scale=not own_scale,
    )
    return [answer_sight(along), gr.update(data=encode(board))]


def draw_plots(attention: AttentionMap | ReaderMap, own_scale: bool) -> list[Any]:
    """Values for :attr:`AttentionView.plots`."""
    if isinstance(attention, ReaderMap):
        plot = plot_readers_by_layer(attention, shared_scale=not own_scale)
        return [answer_sight(), gr.update(value=plot, visible=True), gr.update(visible=False)]
    plots = plot_images_by_layer(attention, shared_scale=not own_scale), plot_kinds_by_layer(attention)
    return [answer_sight(), *(gr.update(value=plot, visible=True) for plot in plots)]
