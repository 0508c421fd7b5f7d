"""Results as the widgets' JSON: run-length coded and small, so that a row of thousands of tokens loads at once."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from inspector.images.full_size import encode_picture
from inspector.images.image_file import ImageFile, PromptImage
from inspector.row.ask import Inspection
from inspector.row.attention import AttentionMap, ReaderMap
from inspector.row.token_table import find_grid, tile_name
from model import Box, InputError, InspectableVLM, ProcessedImage

THUMBNAIL_PX = 96
LARGE_PX = 1 << 14
"""Sides of a picture that every model shrinks."""


def strip_payload(inspection: Inspection, key: str) -> dict[str, Any]:
    """The token strip's data."""
    table = inspection.table
    spans = [
        {
            "kind": span.kind,
            "start": span.start,
            "stop": span.stop,
            "message": span.message,
            "image": span.image,
            "tile": span.tile,
            "segment": table.segments[span.start],
            "title": title,
        }
        for span, title in zip(table.spans, table.titles, strict=True)
    ]
    # What predicts an image token or a marker was never trained to, so its loss would only be noise on the page.
    shown = [
        loss if table.spans[table.span_index[position]].kind in ("text", "answer", "special", "role") else None
        for position, loss in enumerate(table.losses)
    ]
    return {
        "key": key,
        "n": len(table.ids),
        "ids": _run_lengths(table.ids),
        "texts": {str(token_id): text for token_id, text in table.texts.items()},
        "spans": spans,
        "trained": _ranges(table.trained),
        "masked": _ranges(not seen for seen in table.attended),
        "loss": _sparse(shown),
    }


def _run_lengths(ids: Iterable[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for token_id in ids:
        if runs and runs[-1][0] == token_id:
            runs[-1][1] += 1
        else:
            runs.append([token_id, 1])
    return runs


def _ranges(flags: Iterable[bool]) -> list[list[int]]:
    found: list[list[int]] = []
    for position, flag in enumerate(flags):
        if not flag:
            continue
        if found and found[-1][1] == position:
            found[-1][1] += 1
        else:
            found.append([position, position + 1])
    return found


def _sparse(values: Iterable[float | None]) -> list[list[Any]]:
    found: list[list[Any]] = []
    for position, value in enumerate(values):
        if value is None:
            continue
        if found and found[-1][0] + len(found[-1][1]) == position:
            found[-1][1].append(round(value, 3))
        else:
            found.append([position, [round(value, 3)]])
    return found


def viewer_payload(vlm: InspectableVLM, inspection: Inspection, names: Sequence[str], key: str) -> dict[str, Any]:
    """The image viewer's data; ``names`` are the files' names in the order of the prompt's images."""
    images, limit = [], say_limit(vlm)
    for index, (opened, processed) in enumerate(zip(inspection.prompt.images, inspection.row.images, strict=True)):
        rows, cols = processed.grid
        thumbnail = processed.thumbnail_tile
        tiles = []
        for tile, box in enumerate(processed.boxes):
            row, col = processed.place_of(tile) or (None, None)
            grid = find_grid(inspection.row, index, tile)
            tiles.append(
                {
                    "name": tile_name(inspection.row, index, tile),
                    "row": row,
                    "col": col,
                    "start": grid.start,
                    # Rows and columns of image tokens, and from the first of one row to the first of the next.
                    "cells": [grid.rows, grid.cols, grid.cols + grid.between],
                    "box": _sides(box),
                }
            )
        images.append(
            {
                "index": index,
                "name": names[index] if index < len(names) else f"image {index + 1}",
                "notes": list(processed.notes),
                "original": preview_uri(opened),  # small; boxes stay in real pixels
                "resized": data_uri(Image.fromarray(processed.resized.numpy())),
                "thumbnail": None if thumbnail is None else data_uri(_thumbnail_picture(processed, thumbnail)),
                "original_size": list(processed.original_size),
                "resized_size": list(processed.resized_size),
                "grid": [rows, cols],
                "tile_px": [processed.resized_size[0] // cols, processed.resized_size[1] // rows],
                "patch_px": vlm.patch_px,
                # What of the original the model gets at all, in its pixels; null for all of it.
                "seen": None if processed.seen is None else _sides(processed.seen),
                "tiles": tiles,
                "limit": limit,
            }
        )
    return {"key": key, "images": images}


def say_limit(vlm: InspectableVLM) -> str:
    """Into how many tiles a picture can be cut at the most; nothing where the model has no tiles or no limit."""
    try:
        rows, cols = vlm.plan_image((LARGE_PX, LARGE_PX)).grid
    except InputError:
        return ""
    if rows * cols == 1:
        return ""
    return f"at most {rows}×{cols} here"


def _sides(box: Box) -> list[float]:
    return [round(side, 1) for side in (box.left, box.top, box.right, box.bottom)]


def thumbnail_uri(image: PromptImage) -> str:
    """A picture small enough for a list."""
    picture = image.preview
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    return data_uri(picture)


def preview_uri(image: PromptImage) -> str:
    """An image's preview for the browser."""
    return file_uri(image.facts.preview) if isinstance(image, ImageFile) else data_uri(image.preview)


def _thumbnail_picture(image: ProcessedImage, tile: int) -> Image.Image:
    if image.thumbnail is not None:
        return Image.fromarray(image.thumbnail.numpy())
    pixels = image.tiles[tile].numpy().transpose(1, 2, 0)
    return Image.fromarray(np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8))


def data_uri(picture: Image.Image) -> str:
    """Small pictures exactly, as PNG; large ones as JPEG."""
    return file_uri(encode_picture(picture))


def file_uri(data: bytes) -> str:
    """Of a PNG's or JPEG's bytes."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def heat_payload(
    attention: AttentionMap | ReaderMap,
    *,
    selected: int | None = None,
    layer: int | None = None,
    head: int | None = None,
    shared_scale: bool = True,
) -> dict[str, Any]:
    """The heat of one row of attention (or the mean of several) over all positions, or of what each position gives to
    one token; ``selected`` is the token that the page marks (the row's
    own unless given: for a token of an answer the row before it is read, whose output chose it).

    The shared scale's top is the largest share of a position that is no sink (of readers: that isn't read itself) in
    any map of the same sort (all layers alike, all heads alike, or all single heads), so that picking another layer or
    head changes the picture and not the scale; else the map's own largest. All images are on one scale in any case."""
    values = attention.heat(layer, head)
    usual = np.ones(values.shape, dtype=bool)
    usual[list(attention.hidden_from_scale)] = False
    averaged = tuple(axis for axis, one in enumerate((layer, head)) if one is None)
    alike = attention.pattern.mean(axis=averaged) if shared_scale else values
    top = float(alike[..., usual].max()) if usual.any() else 1.0
    return {
        "from": attention.position,
        "first": attention.first,
        "readers": isinstance(attention, ReaderMap),
        "selected": attention.position if selected is None else selected,
        "label": name_maps(layer, head),
        "max": max(top, 1e-6),
        # Both scales can come to the same number; what else follows the heat must still see that the choice was made.
        "shared": shared_scale,
        "values": base64.b64encode(values.astype("<f2").tobytes()).decode(),
    }


def name_maps(layer: int | None, head: int | None) -> str:
    """Which layers and heads are shown."""
    if layer is None and head is None:
        return "mean over layers and heads"
    names = (
        "mean over layers" if layer is None else f"layer {layer}",
        "mean over heads" if head is None else f"head {head}",
    )
    return ", ".join(names)
