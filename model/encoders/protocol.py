"""What an analysis of images and texts in one space may ask of an encoder."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from model.image import ImagePlan, OpenedImage, ProcessedImage
from model.picture import Box, ImageGeometry

LossKind = Literal["infonce", "sigmoid"]


class ImageReader(Protocol):
    """Who cuts images for a model: a VLM, or an encoder by itself."""

    @property
    def image_key(self) -> Hashable:
        """Equal for two readers that make the same of every image."""
        ...

    @property
    def geometry(self) -> ImageGeometry: ...
    def plan_image(self, size: tuple[int, int]) -> ImagePlan: ...
    def process_image(self, image: OpenedImage) -> ProcessedImage: ...
    def cut_image(
        self, pictures: Sequence[np.ndarray], original_size: tuple[int, int], notes: tuple[str, ...] = ()
    ) -> ProcessedImage: ...


@dataclass(frozen=True)
class PatchGrid:
    """Patches ``start … start + rows · cols`` of an image, row by row, over ``box`` of the original."""

    rows: int
    cols: int
    box: Box
    start: int = 0


@dataclass(frozen=True)
class EncodedImage:
    """``embedding [width]``, of length 1, in the space of the texts; None without a text tower. ``patches [patch d]``,
    each of length 1: in the same space if there is one, else in the encoder's own. ``grids``: where they lie."""

    embedding: Tensor | None
    patches: Tensor
    grids: tuple[PatchGrid, ...]


class ImageTextEncoder(Protocol):
    """``scale`` multiplies cosines, ``bias`` is added to that; the ``patch_…`` ones are for patches. ``about_patches``
    says in a sentence what the vectors of patches are; ``width`` of the shared space, 0 without a text tower;
    ``missing`` which parts there aren't, empty if all are there.
    ``n_layers`` and ``n_heads`` of the image encoder."""

    name: str
    loss_kind: LossKind
    about_patches: str
    missing: str
    width: int
    n_layers: int
    n_heads: int

    @property
    def fingerprint(self) -> str: ...

    @property
    def reader(self) -> ImageReader: ...

    @property
    def has_text(self) -> bool: ...

    @property
    def scale(self) -> float: ...

    @property
    def bias(self) -> float: ...

    @property
    def patch_scale(self) -> float: ...

    def encode_image(self, image: ProcessedImage) -> EncodedImage: ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors ``[text width]``. InputError without a text tower."""
        ...

    def read_attention(self, image: ProcessedImage, patch: int) -> Tensor:
        """``[layer head patch]``: where each head of the encoder looks from ``patch``; what goes to a class token is
        left out."""
        ...

    def watch(self, before_block: Callable[[], None]) -> None:
        """Has ``before_block`` called before every block."""
        ...
