"""Several samples in one row, as nanoVLM trains."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from model.sample import Sample, Span


def pack_samples(samples: Sequence[Sample], pad_token_id: int, separate_last: bool = True) -> Sample:
    """All samples in one row, each followed by one separator: a padding token that nobody attends to and that is not
    trained on. Nothing else keeps the samples apart: positions run on, and unless a document mask is asked for, every
    sample sees those before it. Images and messages are counted on through the row.

    ``separate_last=False`` leaves out the last separator, for a row whose end the model is to continue.
    """
    ids, losses, masks, segments = [], [], [], []
    spans: list[Span] = []
    images: list = []
    offset = message_offset = 0
    for segment, sample in enumerate(samples):
        ids.append(sample.input_ids)
        losses.append(sample.loss_mask)
        masks.append(sample.attention_mask)
        spans += [
            replace(
                span,
                start=span.start + offset,
                stop=span.stop + offset,
                message=None if span.message is None else span.message + message_offset,
                image=None if span.image is None else span.image + len(images),
            )
            for span in sample.spans
        ]
        length = len(sample)
        offset += length
        message_offset += 1 + max((span.message for span in sample.spans if span.message is not None), default=-1)
        images += sample.images
        if separate_last or segment < len(samples) - 1:
            ids.append(torch.tensor([pad_token_id]))
            losses.append(torch.tensor([False]))
            masks.append(torch.tensor([False]))
            spans.append(Span("separator", offset, offset + 1))
            length += 1
            offset += 1
        segments.append(torch.full((length,), segment))
    empty = torch.zeros(0, dtype=torch.long)
    return Sample(
        input_ids=torch.cat([*ids, empty]),
        loss_mask=torch.cat([*losses, empty.bool()]),
        spans=tuple(spans),
        images=tuple(images),
        attention_mask=torch.cat([*masks, empty.bool()]),
        segment_ids=torch.cat([*segments, empty]),
    )


def plan_packs(
    lengths: Sequence[int],
    image_counts: Sequence[int],
    row_length: int,
    *,
    max_images: int | None = None,
    spare_rows: int = 5,
    seed: int | None = None,
) -> list[list[int]]:
    """Which samples share a row: lists of indices, by nanoVLM's balanced greedy knapsack.

    ``lengths`` in tokens, separator included. The longest sample goes first, each into the least loaded row where it
    fits; ``spare_rows`` extra rows are opened at the start, which keeps small buffers far from full (upstream's
    choice, its ``delta``). ``seed`` shuffles the rows, None leaves them in order. ValueError if a sample is longer
    than a row. Source: nanoVLM ``data/advanced_datasets.py``.
    """
    if too_long := [length for length in lengths if length > row_length]:
        raise ValueError(f"A sample of {max(too_long)} tokens does not fit a row of {row_length}; drop it first.")
    rows = -(-sum(lengths) // row_length) + spare_rows
    loads, images = [0] * rows, [0] * rows
    packs: list[list[int]] = [[] for _ in range(rows)]
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        for row in sorted(range(len(loads)), key=loads.__getitem__):
            fits_images = max_images is None or images[row] + image_counts[index] <= max_images
            if loads[row] + lengths[index] <= row_length and fits_images:
                break
        else:
            row = len(loads)
            loads.append(0)
            images.append(0)
            packs.append([])
        packs[row].append(index)
        loads[row] += lengths[index]
        images[row] += image_counts[index]
    if seed is not None:
        random.Random(seed).shuffle(packs)
    return [pack for pack in packs if pack]
