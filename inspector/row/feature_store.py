"""What image encoders made of images, kept for the whole server: each different part of an image is encoded once."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inspector.bounds import Bounds
from inspector.row.least_used import LeastUsedTable
from model import InspectableVLM, ProcessedImage
from model.memory import refuse_shortage, release_when_short

Key = tuple[str, bytes]
"""The model's fingerprint and a digest of what its encoder reads."""


@dataclass(frozen=True)
class StoreCounts:
    """``encoded`` parts of images went through an encoder so far, ``found`` were known; ``parts`` are kept, ``nbytes``
    together."""

    encoded: int
    found: int
    parts: int
    nbytes: int


class FeatureStore:
    """Image features by model and pixels. For any number of threads; at most ``limit`` bytes, the least used go first.

    A part is what a family's encoder reads by itself: a tile, or a whole image. A picture that differs from another in
    one tile costs one tile.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self.kept: LeastUsedTable[Key, Tensor] = LeastUsedTable(limit, lambda part: part.nbytes)
        self._parts: OrderedDict[Key, tuple[Key, ...]] = OrderedDict()
        """The parts of whole images, so that an image that is known needn't be cut to be found."""
        self._encoded = self._found = 0

    def encode(self, vlm: InspectableVLM, images: Sequence[ProcessedImage]) -> tuple[Tensor, ...]:
        """``[token width]`` of each image, in the order of its image tokens, on the model's device."""
        return tuple(torch.cat(parts) for parts in self.encode_parts(vlm, images))

    def encode_parts(self, vlm: InspectableVLM, images: Sequence[ProcessedImage]) -> tuple[tuple[Tensor, ...], ...]:
        """``[token width]`` of each part of each image: what is kept itself, so that it is in memory once."""
        fingerprint = vlm.fingerprint
        return tuple(self._encode(vlm, fingerprint, image) for image in images)

    def _encode(self, vlm: InspectableVLM, fingerprint: str, image: ProcessedImage) -> tuple[Tensor, ...]:
        name = fingerprint, image.digest
        with self._lock:
            keys = self._parts.get(name)
            found = {key: part for key in keys or () if (part := self.kept.find(key)) is not None}
        if keys is None or len(found) < len(set(keys)):
            inputs = vlm.encoder_inputs(image)
            keys = tuple((fingerprint, _digest(one)) for one in inputs)
            with self._lock:
                found = {key: part for key in keys if (part := self.kept.find(key)) is not None}
            missing = {key: one for key, one in zip(keys, inputs, strict=True) if key not in found}
            if missing:
                with refuse_shortage():
                    found |= zip(missing, vlm.encode(list(missing.values())), strict=True)
            with self._lock:
                self._encoded += len(missing)
                for key in missing:
                    # Not a view of a whole batch, which would be kept with it.
                    found[key] = self.kept.keep(key, found[key].clone())
                self._parts[name] = keys
                while len(self._parts) > max(64, len(self.kept)):
                    self._parts.popitem(last=False)
        with self._lock:
            self._found += len(keys)
        return vlm.arrange_features(image, [found[key].to(vlm.device) for key in keys])

    def counts(self) -> StoreCounts:
        with self._lock:
            return StoreCounts(self._encoded, self._found - self._encoded, len(self.kept), self.kept.nbytes)

    def clear(self) -> None:
        """Forgets everything, counts included."""
        with self._lock:
            self.kept.clear()
            self._parts.clear()
            self._encoded = self._found = 0

    def release(self) -> None:
        """Lets go of all features; the counts stay."""
        with self._lock:
            self.kept.clear()
            self._parts.clear()


def _digest(part: Tensor) -> bytes:
    found = hashlib.blake2b(str(tuple(part.shape)).encode(), digest_size=16)
    found.update(part.contiguous().numpy().data)
    return found.digest()


FEATURES = FeatureStore(Bounds().features_bytes)
"""The server's own."""
release_when_short(FEATURES.release)
