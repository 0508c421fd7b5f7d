"""All layers × heads at once, as the widget's JSON: a number of each head, and a small map of each over the images."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from inspector.figures.colours import DEEPEST, HUE
from inspector.figures.markup import show_share
from inspector.row.attention import AttentionMap, ReaderMap
from inspector.row.token_table import find_grid
from model import Row

MAP_PIXELS = 280_000
"""Of all small maps together. Each is a byte before it is packed, and four characters stand for three bytes on the way
to the page: whatever is in them, they take less than 400 kB."""


@dataclass(frozen=True)
class CellFrame:
    """One rectangle of small squares: all tiles of an image, or its thumbnail. ``positions [row col cell]``: the image
    tokens under each square, the same one again where the rectangle doesn't divide."""

    image: int
    is_thumbnail: bool
    positions: np.ndarray


def lay_out_cells(row: Row) -> tuple[CellFrame, ...]:
    """The images in order, each followed by its thumbnail, one square for each image token."""
    frames = []
    for index, image in enumerate(row.images):
        cells = {}
        for tile in range(len(image.boxes)):
            grid = find_grid(row, index, tile)
            cells[tile] = np.array(grid.positions, dtype=int).reshape(grid.rows, grid.cols, 1)
        cut = [tile for tile in cells if image.place_of(tile) is not None]
        if cut:
            cols = image.grid[1]
            lines = [cut[at : at + cols] for at in range(0, len(cut), cols)]
            whole = np.concatenate([np.concatenate([cells[tile] for tile in line], axis=1) for line in lines])
            frames.append(CellFrame(index, False, whole))
        thumbnail = image.thumbnail_tile
        if thumbnail is not None:
            frames.append(CellFrame(index, True, cells[thumbnail]))
    return tuple(frame for frame in frames if frame.positions.size)


def merge_cells(frame: CellFrame, side: int) -> CellFrame:
    """With ``side`` × ``side`` cells in one square; what stands over the edge repeats the last row and column."""
    rows, cols, _ = frame.positions.shape
    padded = np.pad(frame.positions, ((0, -rows % side), (0, -cols % side), (0, 0)), mode="edge")
    high, wide = padded.shape[0] // side, padded.shape[1] // side
    merged = padded.reshape(high, side, wide, side).transpose(0, 2, 1, 3).reshape(high, wide, side * side)
    return CellFrame(frame.image, frame.is_thumbnail, merged)


def board_payload(
    row: Row, shown: AttentionMap | ReaderMap, *, layer: int | None, head: int | None, shared_scale: bool = True
) -> dict[str, Any]:
    """The board's data. ``layer`` and ``head`` are the chosen ones, None for the mean.

    ``measures``: a name, what its numbers are, the top of the scale and ``values [layer head]``. ``atlas``: a grey PNG
    with one line for each layer and head, on it the squares of all ``frames`` one behind the other, as parts of 255 of
    the line's largest, ``tops [layer head]``; a square over several cells shows the largest of them, which would vanish
    between its neighbours."""
    layers, heads = shown.pattern.shape[:2]
    return {
        "layers": layers,
        "heads": heads,
        "layer": layer,
        "head": head,
        "shared": shared_scale,
        "readers": isinstance(shown, ReaderMap),
        "measures": [
            {
                "name": name,
                "unit": unit,
                "about": about,
                "top": top if shared_scale else max(float(values.max()), 1e-6),
                "values": _encode_halves(values),
            }
            for name, unit, about, values, top in _list_measures(shown)
        ],
        **_draw_maps(row, shown.pattern.reshape(layers * heads, -1)),
    }


def show_head_table(attention: AttentionMap) -> str:
    """For a page without a script: every head's share of images, and the entropy of its pattern where it is pointed
    at, as a table of layers × heads."""
    heads = "".join(f"<th scope=col>{head}</th>" for head in range(attention.image_share.shape[1]))
    lines = "".join(
        f"<tr><th scope=row>{layer}</th>"
        + "".join(
            f'<td class="num" style="background:rgba({HUE},{DEEPEST * share:.3f})" title="layer {layer}, head {head}: '
            f'entropy {entropy:.2f} nats, sinks {show_share(sinks)}">{show_share(share)}</td>'
            for head, (share, entropy, sinks) in enumerate(
                zip(attention.image_share[layer], attention.entropy[layer], attention.sink_share[layer], strict=True)
            )
        )
        + "</tr>"
        for layer in range(len(attention.image_share))
    )
    return (
        '<section class="wi-panel"><h3>Layers × heads</h3><p>Share of its attention that each head gives to image '
        f"tokens in the row that chose the answer; mean {show_share(attention.mean_image_share)}. Attention tells what "
        'was mixed in, not what the answer needs.</p><div class="vi-scroll" tabindex="0" role="region" '
        'aria-label="image share by layer and head"><table class="vi-table"><thead><tr><th scope=col>layer</th>'
        f"{heads}</tr></thead><tbody>{lines}</tbody></table></div></section>"
    )


def _list_measures(shown: AttentionMap | ReaderMap) -> list[tuple[str, str, str, np.ndarray, float]]:
    """Name, unit, what it is, values, and the top of the scale that all prompts share."""
    if isinstance(shown, ReaderMap):
        about = "what a later token gives to the selected one, mean over all that can see it"
        return [("share received", "share", about, shown.received, max(float(shown.received.max()), 1e-6))]
    sinks = f"what goes to the {len(shown.sinks)} sinks named above" if shown.sinks else "no sink was found"
    return [
        ("image share", "share", "what goes to image tokens", shown.image_share, 1.0),
        ("entropy", "nats", "how spread the pattern is", shown.entropy, max(float(shown.entropy.max()), 1e-6)),
        ("entropy / max", "share", "of ln n, looking at all n alike", shown.entropy_of_max, 1.0),
        ("sink share", "share", sinks, shown.sink_share, 1.0),
    ]


def _draw_maps(row: Row, pattern: np.ndarray) -> dict[str, Any]:
    """``pattern [head pos]``, heads of all layers."""
    frames, side = lay_out_cells(row), 1
    while len(pattern) * sum(frame.positions[..., 0].size for frame in frames) > MAP_PIXELS:
        side += 1
        frames = tuple(merge_cells(frame, side) for frame in lay_out_cells(row))
    if not frames:
        return {"frames": [], "atlas": None, "tops": None}
    squares = np.concatenate(
        [pattern[:, frame.positions].max(axis=-1).reshape(len(pattern), -1) for frame in frames], axis=1
    )
    tops = squares.max(axis=1)
    parts = np.divide(squares, tops[:, None], out=np.zeros_like(squares), where=tops[:, None] > 0)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * parts).astype(np.uint8)).save(buffer, "PNG", compress_level=3)
    return {
        "frames": [
            {
                "image": frame.image,
                "thumbnail": frame.is_thumbnail,
                "rows": frame.positions.shape[0],
                "cols": frame.positions.shape[1],
            }
            for frame in frames
        ],
        "side": side,
        "atlas": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "tops": _encode_halves(tops),
    }


def _encode_halves(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f2").tobytes()).decode()
