"""What the renderer hands on: ids, and what each of them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.image import Box, ProcessedImage

SpanKind = Literal["padding", "separator", "special", "role", "region", "image", "text", "answer"]

Role = Literal["system", "user", "assistant", "template"]
"""Whose turn a token belongs to; *template*: nobody's (a beginning of the row, a system turn that the chat template
writes by itself, padding, separators)."""


@dataclass(frozen=True)
class Span:
    """A half-open run of positions of one kind and ``role``.

    ``message``, ``image`` and ``tile`` count from 0 within the sample (``tile`` in the order of
    ``ProcessedImage.tiles``) and are None where they don't apply. ``ordinal`` text ``<image: k>`` is a span of kind
    ``region`` with an image and no tile: it is written by the renderer, not by a person.
    """

    kind: SpanKind
    start: int
    stop: int
    message: int | None = None
    image: int | None = None
    tile: int | None = None
    role: Role = "template"

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Sample:
    """One row before padding.

    ``input_ids [pos]`` int64; ``loss_mask [pos]`` bool, True where the token is trained on; ``spans`` cover every
    position exactly once, in order; ``images`` in the order of their tokens; ``attention_mask [pos]`` bool, False at
    packing separators; ``segment_ids [pos]`` int64, 0 for a single sample, the sample's number in a packed row (a
    separator belongs to the sample before it).
    """

    input_ids: Tensor
    loss_mask: Tensor
    spans: tuple[Span, ...]
    images: tuple[ProcessedImage, ...]
    attention_mask: Tensor
    segment_ids: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]


@dataclass(frozen=True)
class TokenGrid:
    """Image tokens of one tile, ``rows`` × ``cols`` of them row by row from position ``start`` on, over ``box`` (in the
    original's pixels) of image ``image``. ``image`` and ``tile`` count from 0; grids need not be square. ``between``:
    positions at the end of each row of cells that belong to no cell (a learned line break)."""

    image: int
    tile: int
    start: int
    rows: int
    cols: int
    box: Box
    is_thumbnail: bool
    between: int = 0

    @property
    def stop(self) -> int:
        """Behind the last cell, and what ends its row."""
        return self.start + self.rows * (self.cols + self.between)

    def position(self, row: int, col: int) -> int:
        """Where the token of cell (``row``, ``col``) stands. IndexError outside the grid."""
        self.cell_box(row, col)
        return self.start + row * (self.cols + self.between) + col

    @property
    def positions(self) -> tuple[int, ...]:
        """Of all cells, row by row."""
        return tuple(self.position(row, col) for row in range(self.rows) for col in range(self.cols))

    def find(self, position: int) -> tuple[int, int] | None:
        """(row, col) of the cell whose token stands at ``position``; None if none does."""
        if not self.start <= position < self.stop:
            return None
        row, col = divmod(position - self.start, self.cols + self.between)
        return (row, col) if col < self.cols else None

    def cell_box(self, row: int, col: int) -> Box:
        """What the token at ``row``, ``col`` covers, in the original's pixels. IndexError outside the grid. Attention
        inside the encoder lets a token know of its whole tile: the box is where its own patches lie."""
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise IndexError(f"Cell ({row}, {col}) is outside the {self.rows} × {self.cols} cells of a tile.")
        return self.box.part(self.rows, self.cols, row, col)


@dataclass(frozen=True)
class Row(Sample):
    """One prompt as the decoder reads it: a :class:`Sample` with what its model makes of the positions.

    ``position_ids [axes pos]`` int64 (one axis for plain rotary positions); ``grids``: a :class:`TokenGrid` for every
    rectangle of image tokens, in the order of the row. ``blocks [pos]`` int64: positions with the same number of 0 or
    more see one another, later ones too (images of some families); −1, and None for the whole row: the past alone.
    """

    position_ids: Tensor
    grids: tuple[TokenGrid, ...]
    blocks: Tensor | None = None

    def first_to_see(self, position: int) -> int:
        """The first position that sees what stands at ``position``: itself, or the first of its block. What changes
        there changes nothing before."""
        if self.blocks is None or not 0 <= position < len(self) or self.blocks[position] < 0:
            return position
        return int((self.blocks == self.blocks[position]).nonzero()[0])


def see(row: Row, document_mask: bool, start: int = 0, stop: int | None = None) -> Tensor:
    """``[query key]`` bool: which positions of the row those from ``start`` to ``stop`` see. Themselves, the past and
    all of their own block (see :class:`Row`), but no separator, and with the document mask nothing of another
    sample."""
    length = len(row)
    queries = torch.arange(start, length if stop is None else stop)
    visible = torch.arange(length)[None] <= queries[:, None]
    if row.blocks is not None:
        own = row.blocks[queries, None]
        visible |= (own == row.blocks[None]) & (own >= 0)
    visible &= row.attention_mask[None]
    if document_mask:
        visible &= row.segment_ids[queries, None] == row.segment_ids[None]
    visible[torch.arange(len(queries)), queries] = True
    return visible
