"""The row, position by position, with everything that is known of each token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Box, InspectableVLM, Row, Sample, Span, TokenGrid
from model.generate import check_logits
from model.lint import Finding as Finding
from model.lint import lint_batch as lint_batch


@dataclass(frozen=True)
class Cell:
    """The place of an image token: ``image`` and ``tile`` count from 0, ``row`` and ``col`` are within the tile,
    ``box`` is in the original image's pixels."""

    image: int
    tile: int
    tile_name: str
    row: int
    col: int
    box: Box


@dataclass(frozen=True)
class TokenTable:
    """Columns of one row of a batch; padding of the batch is not in it.

    ``ids``, ``texts`` (one per different id), ``trained`` (has a label), ``attended`` (attention mask), ``segments``
    all have one entry per position. ``losses`` are nats, at the position of the token that was predicted (by the
    position before it); None where nothing predicts it or predicting it means nothing (after a separator).
    """

    ids: tuple[int, ...]
    texts: dict[int, str]
    trained: tuple[bool, ...]
    attended: tuple[bool, ...]
    segments: tuple[int, ...]
    losses: tuple[float | None, ...]
    spans: tuple[Span, ...]
    titles: tuple[str, ...]

    @cached_property
    def span_index(self) -> tuple[int, ...]:
        """Which span each position is in."""
        return tuple(index for index, span in enumerate(self.spans) for _ in range(len(span)))

    def text(self, position: int) -> str:
        return self.texts[self.ids[position]]

    def to_json(self) -> dict[str, Any]:
        """Rows as ``inspect --json`` prints them."""
        return {
            "length": len(self.ids),
            "tokens": [
                {
                    "position": position,
                    "id": token_id,
                    "text": self.texts[token_id],
                    "kind": self.spans[self.span_index[position]].kind,
                    "label": token_id if self.trained[position] else -100,
                    "attention_mask": int(self.attended[position]),
                    "segment": self.segments[position],
                    "loss": self.losses[position],
                }
                for position, token_id in enumerate(self.ids)
            ],
            "spans": [asdict(span) | {"title": title} for span, title in zip(self.spans, self.titles, strict=True)],
        }


def tabulate_tokens(vlm: InspectableVLM, sample: Sample, losses: Tensor | None = None) -> TokenTable:
    """``losses [pos]``: see :func:`token_losses`."""
    ids = tuple(sample.input_ids.tolist())
    texts = {token_id: vlm.token_text(token_id) for token_id in sorted(set(ids))}
    values: tuple[float | None, ...] = (None,) * len(ids)
    if losses is not None:
        values = tuple(None if value != value else value for value in losses.tolist())
    return TokenTable(
        ids=ids,
        texts=texts,
        trained=tuple(sample.loss_mask.tolist()),
        attended=tuple(sample.attention_mask.tolist()),
        segments=tuple(sample.segment_ids.tolist()),
        losses=values,
        spans=sample.spans,
        titles=tuple(span_title(sample, span) for span in sample.spans),
    )


LOGITS_ROWS = 256
"""So many positions at a time meet the vocabulary, which bounds the memory."""


def token_losses(vlm: InspectableVLM, hidden: Tensor, sample: Sample, known: Tensor | None = None) -> Tensor:
    """−log p of each token given those before it, nats, ``[pos]`` from the last states ``hidden [pos width]``. NaN for
    the first token, for separators, for tokens right after one, and for ids that the vocabulary lacks (image embeddings
    of the oldest checkpoints). ``known``: the first of them, which are not computed again. InputError if the model's
    output is no number."""
    ids = sample.input_ids
    losses = torch.full((len(ids),), torch.nan)
    fitting = torch.zeros(len(ids), dtype=torch.bool)
    first = 0 if known is None or not len(known) else len(known) - 1
    for start in range(first, len(ids), LOGITS_ROWS):
        logits = vlm.logits(hidden[start : start + LOGITS_ROWS])
        check_logits(logits)
        targets = ids[start + 1 : start + LOGITS_ROWS + 1]
        fits = targets < logits.shape[-1]
        found = F.cross_entropy(logits[: len(targets)].cpu(), targets.where(fits, 0), reduction="none")
        losses[start + 1 : start + 1 + len(targets)] = found
        fitting[start + 1 : start + 1 + len(targets)] = fits
    losses[~fitting | ~sample.attention_mask] = torch.nan
    losses[1:][~sample.attention_mask[:-1]] = torch.nan
    if known is not None:
        losses[: len(known)] = known
    return losses


def tile_name(sample: Sample, image: int, tile: int) -> str:
    """“thumbnail” or “r1c2”, counted from 1 like the tile markers."""
    place = sample.images[image].place_of(tile)
    return "thumbnail" if place is None else f"r{place[0] + 1}c{place[1] + 1}"


def span_title(sample: Sample, span: Span) -> str:
    """What a span is, in words; images and messages counted from 1."""
    if span.kind in ("image", "region") and span.image is not None:
        where = f"image {span.image + 1}"
        if span.tile is None:
            return f"number of {where} (counted from 0)"
        what = "" if span.kind == "image" else "marker of "
        return f"{what}{where} · tile {tile_name(sample, span.image, span.tile)}"
    if span.kind == "separator":
        before = int(sample.segment_ids[span.start]) + 1
        return f"separator after sample {before}"
    names = {
        "special": "special token",
        "role": "written by the chat template",
        "text": "text",
        "answer": "answer",
        "padding": "padding",
    }
    turn = "" if span.message is None else f" · message {span.message + 1}"
    return names[span.kind] + turn


def locate_cell(row: Row, position: int) -> Cell | None:
    """Where on its image the token at ``position`` lies; None if it is no image token."""
    if not 0 <= position < len(row):
        raise IndexError(f"Position {position} is outside the {len(row)} positions of the row.")
    for grid in row.grids:
        if (cell := grid.find(position)) is not None:
            at, col = cell
            name = tile_name(row, grid.image, grid.tile)
            return Cell(grid.image, grid.tile, name, at, col, grid.cell_box(at, col))
    return None


def position_of_cell(row: Row, image: int, tile: int, at: int, col: int) -> int:
    """The inverse of :func:`locate_cell`; ``at`` is the cell's row. IndexError if there is no such cell."""
    return find_grid(row, image, tile).position(at, col)


def find_grid(row: Row, image: int, tile: int) -> TokenGrid:
    """IndexError if the row has no such tile; both count from 0."""
    for grid in row.grids:
        if (grid.image, grid.tile) == (image, tile):
            return grid
    raise IndexError(f"The row has no tile {tile} of image {image}.")
