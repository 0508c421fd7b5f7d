"""The row, position by position, with everything that is known of each token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import VLM, Box, Sample, Span
from model.image import cell_box
from model.lint import Finding as Finding
from model.lint import lint_batch as lint_batch
from model.tokenizer import token_text


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


def tabulate_tokens(vlm: VLM, sample: Sample, losses: Tensor | None = None) -> TokenTable:
    """``losses [pos]``: see :func:`token_losses`."""
    ids = tuple(sample.input_ids.tolist())
    image_token = vlm.config.image_token or "<image>"
    texts = {
        token_id: image_token if token_id == vlm.image_token_id else token_text(vlm.tokenizer, token_id)
        for token_id in sorted(set(ids))
    }
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


def token_losses(logits: Tensor, sample: Sample) -> Tensor:
    """−log p of each token given those before it, nats, ``[pos]`` from ``logits [pos vocab]``. NaN for the first
    token, for separators, for tokens right after one, and for ids that the vocabulary lacks (image embeddings of the
    oldest checkpoints)."""
    ids = sample.input_ids
    known = ids < logits.shape[-1]
    losses = torch.full((len(ids),), torch.nan)
    losses[1:] = F.cross_entropy(logits[:-1].float().cpu(), ids[1:].where(known[1:], 0), reduction="none")
    losses[~known | ~sample.attention_mask] = torch.nan
    losses[1:][~sample.attention_mask[:-1]] = torch.nan
    return losses


def tile_name(sample: Sample, image: int, tile: int) -> str:
    """“thumbnail” or “r1c2”, counted from 1 like the tile markers."""
    processed = sample.images[image]
    if processed.has_thumbnail and tile == 0:
        return "thumbnail"
    row, col = divmod(tile - processed.has_thumbnail, processed.grid[1])
    return f"r{row + 1}c{col + 1}"


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


def locate_cell(vlm: VLM, sample: Sample, position: int) -> Cell | None:
    """Where on its image the token at ``position`` lies; None if it is no image token."""
    for span in sample.spans:
        if span.start <= position < span.stop:
            if span.kind != "image" or span.image is None or span.tile is None:
                return None
            cells = vlm.config.cells_per_side
            row, col = divmod(position - span.start, cells)
            box = cell_box(sample.images[span.image], span.tile, row, col, cells)
            return Cell(span.image, span.tile, tile_name(sample, span.image, span.tile), row, col, box)
    raise IndexError(f"Position {position} is outside the {len(sample)} positions of the row.")


def position_of_cell(vlm: VLM, sample: Sample, image: int, tile: int, row: int, col: int) -> int:
    """The inverse of :func:`locate_cell`. IndexError if there is no such cell."""
    cells = vlm.config.cells_per_side
    if not (0 <= row < cells and 0 <= col < cells):
        raise IndexError(f"Cell ({row}, {col}) is outside the {cells} × {cells} cells of a tile.")
    for span in sample.spans:
        if span.kind == "image" and (span.image, span.tile) == (image, tile):
            return span.start + row * cells + col
    raise IndexError(f"The row has no tile {tile} of image {image}.")
