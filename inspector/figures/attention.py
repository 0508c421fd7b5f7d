"""Attention shares as plotly figures. Shares are absolute (of 1) unless a title says otherwise."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from inspector.figures.colours import IMAGE_COLOURS, KIND_COLOURS, KIND_PATTERNS, image_colour
from inspector.row.attention import AttentionMap, ReaderMap

HEIGHT_PX = 340
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up")
"""Of an image's points, beside its colour."""
_TOOLS = ["zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale", "resetScale"]
_MARGIN = {"l": 44, "r": 8, "t": 36, "b": 40}


def _style(figure: go.Figure, title: str, height: int) -> go.Figure:
    # Grey text and grid on no background read on the light and the dark page alike.
    figure.update_layout(
        title={"text": title, "font": {"size": 14}, "x": 0.01},
        height=height,
        margin=_MARGIN,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#7b8190", "size": 12},
        legend={"orientation": "h", "y": -0.3, "yanchor": "top", "traceorder": "normal"},
        # A finger on a plot scrolls the page, and the one tool that is left, saving a picture, doesn't hide the title.
        dragmode=False,
        hoverlabel={"bgcolor": "#1e293b", "bordercolor": "#94a3b8", "font": {"color": "#ffffff"}},
        modebar={"remove": _TOOLS, "bgcolor": "rgba(0,0,0,0)", "color": "#7b8190", "activecolor": "#7b8190"},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.2)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.2)", zeroline=False)
    return figure


def plot_images_by_layer(attention: AttentionMap, *, shared_scale: bool = True) -> go.Figure:
    """One line per image: its share in each layer, mean over heads."""
    layers, images = attention.image_shares.shape
    figure = go.Figure()
    for image in range(images):
        figure.add_scatter(
            x=list(range(layers)),
            y=attention.image_shares[:, image],
            name=f"image {image + 1}",
            mode="lines+markers",
            marker={"symbol": SYMBOLS[image % len(SYMBOLS)], "size": 8},
            line={"color": image_colour(image), "dash": "solid" if image < len(IMAGE_COLOURS) else "dash"},
            hovertemplate=f"image {image + 1}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(title="layer", dtick=1 if layers <= 16 else None)
    figure.update_yaxes(title="share", range=[0, 1] if shared_scale else None, rangemode="tozero")
    return _style(figure, "Share per image", HEIGHT_PX)


def plot_kinds_by_layer(attention: AttentionMap) -> go.Figure:
    """Stacked bars per layer: all shares, by kind of span and by image, mean over heads. Each bar adds up to 1."""
    layers, images = attention.image_shares.shape
    figure = go.Figure()

    def stack(name: str, shares: np.ndarray, colour: str, pattern: str) -> None:
        figure.add_bar(
            x=list(range(layers)),
            y=shares,
            name=name,
            marker={"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern, "size": 6, "solidity": 0.25}},
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
        )

    for index, kind in enumerate(attention.kinds):
        # What has no share at all, as an answer that comes after the token, would only fill the legend.
        if not attention.kind_shares[:, index].any():
            continue
        if kind != "image":
            stack(kind, attention.kind_shares[:, index], KIND_COLOURS[kind], KIND_PATTERNS.get(kind, ""))
            continue
        for image in range(images):
            again = "\\" if image >= len(IMAGE_COLOURS) else ""
            stack(f"image {image + 1}", attention.image_shares[:, image], image_colour(image), again)
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="layer", dtick=1 if layers <= 16 else None)
    figure.update_yaxes(title="share", range=[0, 1])
    return _style(figure, "Share per kind of token", HEIGHT_PX)


def plot_readers_by_layer(readers: ReaderMap, *, shared_scale: bool = True) -> go.Figure:
    """One line per kind of reader and per image: what it gives to the selected token, mean over heads and readers."""
    figure = go.Figure()
    for index, kind in enumerate(readers.kinds):
        image = int(kind.removeprefix("image ")) - 1 if kind.startswith("image ") else None
        figure.add_scatter(
            x=list(range(len(readers.pattern))),
            y=readers.received_kinds[:, index],
            name=kind,
            mode="lines+markers",
            marker={"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8},
            line={"color": KIND_COLOURS[kind] if image is None else image_colour(image)},
            hovertemplate=f"{kind}, layer %{{x}}: %{{y:.5f}}<extra></extra>",
        )
    layers = len(readers.pattern)
    figure.update_xaxes(title="layer", dtick=1 if layers <= 16 else None)
    top = max(float(readers.received_kinds.max(initial=0)), 1e-6)
    figure.update_yaxes(title="share", range=[0, 1.05 * top] if shared_scale else None, rangemode="tozero")
    return _style(figure, "Share that later tokens give it", HEIGHT_PX)
