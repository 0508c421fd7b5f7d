"""What a lesson's sentences are made of: a model and one prompt that it was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from inspector.row.ask import Inspection, attend, training_batch
from inspector.row.attention import AttentionMap
from inspector.row.layout import RowStructure, read_structure
from inspector.row.row_store import ROWS
from model import Batch, InspectableVLM


@dataclass(frozen=True)
class ShownPrompt:
    """Nothing is computed before a lesson asks for it."""

    vlm: InspectableVLM
    inspection: Inspection

    @cached_property
    def structure(self) -> RowStructure:
        return read_structure(
            self.inspection.row,
            document_mask=self.inspection.prompt.document_mask,
            decode=self.vlm.decode_text,
            numbers_images=self.vlm.numbers_images,
        )

    @cached_property
    def kinds(self) -> Counter[str]:
        """Positions of the row by kind of span."""
        found: Counter[str] = Counter()
        for span in self.inspection.row.spans:
            found[span.kind] += len(span)
        return found

    @cached_property
    def padded(self) -> Batch:
        """A sample of each turn, side by side."""
        return training_batch(self.vlm, self.inspection, "padded")[0]

    @cached_property
    def embeds(self) -> Tensor:
        """``[pos width]``: what entered the language model."""
        return ROWS.read(self.vlm, self.inspection.row, self.inspection.prompt.keeps_samples_apart).embeds

    @cached_property
    def attention(self) -> AttentionMap:
        """Of the position that chose the answer's first token."""
        return attend(self.vlm, self.inspection, self.inspection.row_that_chose(self.inspection.first_answer_position))

    @cached_property
    def parts(self) -> dict[str, int]:
        return self.vlm.count_parts()

    @property
    def images(self) -> int:
        return len(self.inspection.row.images)

    def token(self, token_id: int) -> str:
        """As it is written in sentences."""
        return f"“{self.vlm.token_text(token_id)}”".replace("\n", "⏎")

    def is_image(self) -> Tensor:
        """``[pos]`` bool."""
        return torch.as_tensor(self.inspection.row.input_ids == self.vlm.image_token_id)


def count_of(count: int, one: str, many: str = "") -> str:
    """“1 tile”, “1,234 tiles”."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def list_of(items: Sequence[str]) -> str:
    """“a, b and c”."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else "none"


def size_of(size: tuple[int, int]) -> str:
    """(width, height) in pixels: “64 × 48 px”."""
    return f"{size[0]:,} × {size[1]:,} px"
