"""Attention shares as plotly figures. Shares are absolute (of 1) unless a title says otherwise."""

from __future__ import annotations

import plotly.graph_objects as go

from inspector.analysis.attention import AttentionMap
from inspector.figures.colours import IMAGE_COLOURS, KIND_COLOURS, image_colour

_MARGIN = {"l": 52, "r": 12, "t": 40, "b": 44}


def _style(figure: go.Figure, title: str, height: int) -> go.Figure:
    # Grey text and grid on no background read on the light and the dark page alike.
    figure.update_layout(
        title={"text": title, "font": {"size": 14}, "x": 0.01},
        height=height,
        margin=_MARGIN,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#7b8190", "size": 12},
        legend={"orientation": "h", "y": -0.25},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.2)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.2)", zeroline=False)
    return figure


def plot_image_share(attention: AttentionMap, *, shared_scale: bool = True) -> go.Figure:
    """Layer × head: how much of the head's attention goes to image tokens. The shared scale runs from 0 to 1."""
    layers, heads = attention.image_share.shape
    figure = go.Figure(
        go.Heatmap(
            z=attention.image_share,
            x=[str(head) for head in range(heads)],
            y=[str(layer) for layer in range(layers)],
            zmin=0,
            zmax=1 if shared_scale else None,
            colorscale="Viridis",
            colorbar={"title": {"text": "share"}, "thickness": 12},
            hovertemplate="layer %{y}, head %{x}<br>share to images %{z:.4f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="head", type="category")
    figure.update_yaxes(title="layer", type="category", autorange="reversed")
    return _style(figure, "Share that goes to image tokens", 300)


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
            line={"color": image_colour(image), "dash": "solid" if image < len(IMAGE_COLOURS) else "dash"},
            hovertemplate=f"image {image + 1}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(title="layer", dtick=1 if layers <= 16 else None)
    figure.update_yaxes(title="share", range=[0, 1] if shared_scale else None, rangemode="tozero")
    return _style(figure, "Share per image", 300)


def plot_kinds_by_layer(attention: AttentionMap) -> go.Figure:
    """Stacked bars per layer: all shares, by kind of span, mean over heads. Each bar adds up to 1."""
    layers = attention.kind_shares.shape[0]
    figure = go.Figure()
    for index, kind in enumerate(attention.kinds):
        figure.add_bar(
            x=list(range(layers)),
            y=attention.kind_shares[:, index],
            name=kind,
            marker={"color": KIND_COLOURS[kind]},
            hovertemplate=f"{kind}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="layer", dtick=1 if layers <= 16 else None)
    figure.update_yaxes(title="share", range=[0, 1])
    return _style(figure, "Share per kind of token", 300)
