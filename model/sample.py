"""What the renderer hands on: ids, and what each of them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from model.image import ProcessedImage

SpanKind = Literal["padding", "separator", "special", "role", "region", "image", "text", "answer"]


@dataclass(frozen=True)
class Span:
    """A half-open run of positions of one kind.

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
