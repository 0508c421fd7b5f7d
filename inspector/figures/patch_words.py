"""Words on patches as a page part: each image with a word on each of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from inspector.experiments.patch_words import CellWords, PatchWords
from inspector.figures.markup import badge, visible
from inspector.figures.payload import data_uri
from inspector.images.image_file import PromptImage
from model import TokenGrid

READINGS = {"nearest words": "nearest", "logit lens": "lens"}
"""As the page calls them, and the field of :class:`inspector.experiments.patch_words.CellWords`."""
ABOUT = (
    "The logit lens puts the state of an image token at this layer through the last norm and the head, what the model "
    "would say there if it stopped here; nearest words are those of known sentences whose states at the same layer are "
    "most alike by cosine, and as only words of those sentences can come up there is always a nearest one, right or "
    "not. Neither shows that the model uses what is read, nor what a state holds that no word names; and it holds what "
    "its token took from others, not only what its own pixels show."
)
SHOWN_PX = 480
"""Longest side of the picture behind the words."""


def show_patch_words(found: PatchWords, images: Sequence[PromptImage], reading: str) -> str:
    """``images``: the prompt's. ``reading``: a value of :data:`READINGS`. A cell is a link to its token and
    tells all words of both readings."""
    grids = list(dict.fromkeys(cell.grid for cell in found.cells))
    figures = "".join(
        _show_grid(grid, [cell for cell in found.cells if cell.grid == grid], images[grid.image], reading)
        for grid in grids
    )
    return f'<div class="pw-grids">{figures}</div>'


def show_all_words(found: PatchWords, images: Sequence[PromptImage]) -> str:
    """Both readings, one below the other, with what they are: a panel that stands for itself."""
    parts = "".join(f"<h4>{name}</h4>{show_patch_words(found, images, field)}" for name, field in READINGS.items())
    where = f"Behind layer {found.layer} of 0 to {found.n_layers - 1}, {escape(found.stream)}."
    about = f'<p class="vi-caption">{where} {escape(ABOUT)}</p>'
    return f'<section class="wi-panel"><h3>Words on patches</h3>{about}{parts}</section>'


def _show_grid(grid: TokenGrid, cells: Sequence[CellWords], image: PromptImage, reading: str) -> str:
    box = grid.box
    # A preview may be smaller than the original, in whose pixels the box is.
    across, down = (shown / whole for shown, whole in zip(image.preview.size, image.size, strict=True))
    corners = (box.left * across, box.top * down, box.right * across, box.bottom * down)
    crop = image.preview.convert("RGB").crop(tuple(map(round, corners)))  # type: ignore[arg-type]
    crop.thumbnail((SHOWN_PX, SHOWN_PX))
    body = "".join(_show_cell(cell, reading) for cell in cells)
    what = "thumbnail" if grid.is_thumbnail else f"tile {grid.tile + 1}"
    size = f"{box.right - box.left:.0f}×{box.bottom - box.top:.0f} px from {box.left:.0f}, {box.top:.0f}"
    return (
        f"<figure><figcaption>{badge(grid.image)} {what} <small>{size}</small></figcaption>"
        f'<div class="vi-scroll" tabindex="0" role="region" aria-label="words on image {grid.image + 1}, {what}">'
        f'<div class="pw-cells" style="grid-template-columns:repeat({grid.cols},minmax(64px,1fr));'
        f"aspect-ratio:{box.right - box.left:.0f}/{box.bottom - box.top:.0f};"
        f'background-image:url({data_uri(crop)})">{body}</div></div></figure>'
    )


def _show_cell(cell: CellWords, reading: str) -> str:
    def say(name: str, field: str) -> str:
        return f"{name}: " + ", ".join(f"{visible(one.text)} {one.value:.2f}" for one in getattr(cell, field))

    title = f"token {cell.position}, row {cell.row}, column {cell.col}\n" + "\n".join(
        say(name, field) for name, field in READINGS.items()
    )
    first = getattr(cell, reading)[0]
    title = escape(title, quote=True)
    return (
        f'<button type="button" class="pw-cell" data-vlm-position="{cell.position}" title="{title}">'
        f"<span>{escape(visible(first.text.strip() or first.text))}</span><small>{first.value:.2f}</small></button>"
    )


def show_found(facts: dict[str, Any], n_cells: int) -> str:
    """Where a word appears first, of :func:`inspector.experiments.patch_words.describe_found`."""
    parts = []
    for name, key in (("nearest words", "nearest"), ("logit lens", "logit_lens")):
        layer, cells = facts[key]["first_layer"], facts[key]["cells"]
        where = "nowhere" if layer is None else f"first at layer {layer}, there on {cells[layer]} of {n_cells} cells"
        parts.append(f"{name}: {where} (cells by layer: {', '.join(map(str, cells))})")
    word = escape(facts["word"])
    return f'<p class="vi-caption">“{word}” among the five words of a cell, by {"; by ".join(parts)}.</p>'
