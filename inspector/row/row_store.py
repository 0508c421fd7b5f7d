"""Rows as models have read them, kept for the whole server, so that what comes after an answer reads nothing twice."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass

from inspector.bounds import Bounds
from inspector.row.embedded_row import EmbeddedRow, grow_row, read_row, thin_row
from inspector.row.feature_store import FEATURES, FeatureStore
from inspector.row.least_used import LeastUsedTable
from model import InspectableVLM, Row
from model.memory import release_when_short

Key = tuple[str, bool, bytes]
"""The model's fingerprint, whether packed samples are kept apart, and a digest of the row with its images."""


@dataclass(frozen=True)
class RowCounts:
    """``read`` rows were computed, whole or in part, ``found`` were known; ``rows`` are kept, ``nbytes`` together."""

    read: int
    found: int
    rows: int
    nbytes: int


class RowStore:
    """Read rows by model and content. For any number of threads; at most ``limit`` bytes (and one row in any case), the
    least used go first. What went is read again when it is asked for."""

    def __init__(self, features: FeatureStore, limit: int) -> None:
        self.features = features
        self._lock = threading.Lock()
        self.kept: LeastUsedTable[Key, EmbeddedRow] = LeastUsedTable(limit, lambda row: row.nbytes)
        self._read = self._found = 0

    def read(
        self,
        vlm: InspectableVLM,
        row: Row,
        document_mask: bool,
        before: EmbeddedRow | None = None,
        *,
        keep: bool = True,
    ) -> EmbeddedRow:
        """The row as ``vlm`` reads it: as it is kept, or on from ``before``, or anew. With ``keep`` it is kept then;
        not so a row that is only on the way to a longer one."""
        key = vlm.fingerprint, document_mask, _digest(row)
        with self._lock:
            if (known := self.kept.find(key)) is not None:
                self._found += 1
                return known
            self._read += 1
        features = [part for parts in self.features.encode_parts(vlm, row.images) for part in parts]
        if before is None:
            found = read_row(vlm, row, features, document_mask=document_mask)
        else:
            found = grow_row(vlm, before, row, features)
        if not keep:
            return found
        found = thin_row(vlm, found)
        with self._lock:
            return self.kept.keep(key, found)

    def counts(self) -> RowCounts:
        with self._lock:
            return RowCounts(self._read, self._found, len(self.kept), self.kept.nbytes)

    def clear(self) -> None:
        """Forgets every row, and the counts."""
        with self._lock:
            self.kept.clear()
            self._read = self._found = 0

    def release(self) -> None:
        """Lets go of every row; the counts stay."""
        with self._lock:
            self.kept.clear()


def _digest(row: Row) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    blocks = () if row.blocks is None else (row.blocks,)
    for values in (row.input_ids, row.attention_mask, row.segment_ids, row.position_ids, *blocks):
        found.update(values.contiguous().numpy().tobytes())
    for image in row.images:
        found.update(image.digest)
    return found.digest()


ROWS = RowStore(FEATURES, Bounds().rows_bytes)
"""The server's own."""
release_when_short(ROWS.release)
