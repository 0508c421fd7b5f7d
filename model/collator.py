"""Samples side by side in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.errors import InputError
from model.sample import Row, Sample

IGNORE_LABEL = -100
"""The label of a position that is not trained on; the value that PyTorch's cross-entropy skips."""

PADDING_SEGMENT = -1


@dataclass(frozen=True)
class Batch:
    """What the model takes.

    ``input_ids``, ``labels``, ``position_ids``, ``segment_ids`` int64 and ``attention_mask`` bool, all
    ``[batch pos]``; ``labels`` are not shifted: ``labels[b, t]`` is ``input_ids[b, t]`` where it is trained on, else
    −100. Rotary positions of several axes are ``position_ids [axes batch pos]``, as transformers takes them.
    ``tiles [total_tile 3 height width]`` in the order of their image tokens, row by row of the batch, with zeros
    to the right and below those that are smaller (never so in nanoVLM);
    ``tile_owner [total_tile]`` is the row of each. ``document_mask``: samples packed in one row can't see each other.
    ``features [total_tile patch vit_hidden_dim]``, where given, are what a frozen image encoder made of the tiles
    before, so that it need not run again. ``blank``: rows without an image have one of nothing go through encoder and
    projector, for the sake of other processes' rows, which have some.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    tiles: Tensor
    tile_owner: Tensor
    document_mask: bool = False
    features: Tensor | None = None
    blank: bool = False

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def shift_labels(labels: Tensor) -> Tensor:
    """``[batch pos]``: what each position must predict, of ``labels [batch pos]``: the one place where these are
    shifted. InputError if there is none."""
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_LABEL)
    if not bool((targets != IGNORE_LABEL).any()):
        raise InputError("No position of the batch has a label, so there is nothing to learn; check the loss mask.")
    return targets


def _stack_tiles(tiles: Sequence[Tensor]) -> Tensor:
    """``[total_tile 3 height width]`` of each image's ``[tile 3 height width]``."""
    if not tiles:
        return torch.zeros(0, 3, 0, 0)
    height, width = (max(image.shape[axis] for image in tiles) for axis in (2, 3))
    return torch.cat([F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2])) for image in tiles])


def collate(
    samples: Sequence[Sample], *, pad_token_id: int, max_length: int | None = None, document_mask: bool = False
) -> Batch:
    """Pads on the left, so that the last token of every row is the last of its sample.

    To exactly ``max_length`` if given (longer samples are dropped, as upstream does), else to the longest. Positions
    count from 0 at the first column, padding included: rotary positions are relative, so this shifts nothing. Those of
    rows that have several axes stand behind their padding likewise.
    """
    kept = [sample for sample in samples if max_length is None or len(sample) <= max_length]
    width = max((len(sample) for sample in kept), default=0) if max_length is None else max_length
    shape = (len(kept), width)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    labels = torch.full(shape, IGNORE_LABEL, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    segment_ids = torch.full(shape, PADDING_SEGMENT, dtype=torch.long)
    for row, sample in enumerate(kept):
        start = width - len(sample)
        input_ids[row, start:] = sample.input_ids
        labels[row, start:] = sample.input_ids.masked_fill(~sample.loss_mask, IGNORE_LABEL)
        attention_mask[row, start:] = sample.attention_mask
        segment_ids[row, start:] = sample.segment_ids
    position_ids = torch.arange(width).expand(shape)
    axes = max((len(sample.position_ids) for sample in kept if isinstance(sample, Row)), default=1)
    if axes > 1:
        position_ids = position_ids.expand(axes, *shape).clone()
        for row, sample in enumerate(kept):
            if not isinstance(sample, Row):
                raise ValueError("A sample without its rotary positions can't stand beside one that has several axes.")
            start = width - len(sample)
            position_ids[:, row, start:] = sample.position_ids + start
    tiles = [image.tiles for sample in kept for image in sample.images]
    owners = [row for row, sample in enumerate(kept) for image in sample.images for _ in image.boxes]
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        position_ids=position_ids,
        segment_ids=segment_ids,
        tiles=_stack_tiles(tiles),
        tile_owner=torch.tensor(owners, dtype=torch.long),
        document_mask=document_mask,
    )
