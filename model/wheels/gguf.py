"""Reading GGUF, llama.cpp's file of weights: a header of named values, a table of tensors, then their numbers.

The layout is that of the format's specification (ggml/docs/gguf.md, version 3). Of the kinds of numbers those are
known that a small model's file has; each block of 32 weights is taken back to float32 as the format defines it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import InputError

_BLOCK = 32
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""struct's letter for each kind of value that is a number."""
_TEXT, _LIST = 8, 9
_MOST = 1 << 24
"""Letters of a text and members of a list, at most: more is a damaged file."""


@dataclass(frozen=True)
class GGUF:
    """``values``: the header. ``tensors``: float32, shaped as PyTorch has them (rows first)."""

    values: dict[str, Any]
    tensors: dict[str, np.ndarray]


def read_gguf(path: Path) -> GGUF:
    """InputError for a file that is none, is cut off, or holds numbers of a kind that isn't known here."""
    data = path.read_bytes()
    try:
        return _read(data)
    except (struct.error, UnicodeDecodeError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path.name} is no whole GGUF file ({error}); fetch it again.") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def number(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self.data, self.place)
        self.place += struct.calcsize(f"<{letter}")
        return value

    def length(self) -> int:
        value = int(self.number("Q"))
        if value > _MOST:
            raise ValueError(f"a length of {value:,}")
        return value

    def text(self) -> str:
        length = self.length()
        start, self.place = self.place, self.place + length
        if self.place > len(self.data):
            raise ValueError("a text is cut off")
        return self.data[start : self.place].decode()

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            member = self.number("I")
            return [self.value(member) for _ in range(self.length())]
        return self.number(_NUMBERS[kind])


def _read(data: bytes) -> GGUF:
    reader = _Reader(data)
    if data[:4] != b"GGUF":
        raise ValueError("it begins otherwise")
    reader.place = 4
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3 are read")
    n_tensors, n_values = reader.length(), reader.length()
    values = {reader.text(): reader.value(reader.number("I")) for _ in range(n_values)}
    table = []
    for _ in range(n_tensors):
        name = reader.text()
        shape = [int(reader.number("Q")) for _ in range(reader.number("I"))]
        table.append((name, shape[::-1], int(reader.number("I")), int(reader.number("Q"))))
    step = int(values.get("general.alignment", 32))
    start = -(-reader.place // step) * step
    return GGUF(values, {name: _unpack(data, start + offset, shape, kind) for name, shape, kind, offset in table})


def _unpack(data: bytes, start: int, shape: list[int], kind: int) -> np.ndarray:
    if kind not in _KINDS:
        raise ValueError(f"numbers of kind {kind}; {', '.join(map(str, _KINDS))} are read")
    layout, restore = _KINDS[kind]
    count = int(np.prod(shape, dtype=np.int64))
    per_item = 1 if layout.names is None else _BLOCK
    if count % per_item:
        raise ValueError(f"a tensor of {count:,} numbers in blocks of {per_item}")
    found = np.frombuffer(data, layout, count // per_item, start)
    return np.ascontiguousarray(restore(found).reshape(shape), dtype=np.float32)


def _restore_q4_1(blocks: np.ndarray) -> np.ndarray:
    """scale · q + least; the first 16 weights are the low halves of the bytes, the other 16 the high ones."""
    packed = blocks["packed"]
    quants = np.concatenate((packed & 15, packed >> 4), axis=1).astype(np.float32)
    return blocks["scale"].astype(np.float32)[:, None] * quants + blocks["least"].astype(np.float32)[:, None]


def _restore_q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks["scale"].astype(np.float32)[:, None] * blocks["quants"].astype(np.float32)


def _keep(numbers: np.ndarray) -> np.ndarray:
    return numbers


_KINDS: dict[int, tuple[np.dtype[Any], Callable[[np.ndarray], np.ndarray]]] = {
    0: (np.dtype("<f4"), _keep),
    1: (np.dtype("<f2"), _keep),
    3: (np.dtype([("scale", "<f2"), ("least", "<f2"), ("packed", "u1", 16)]), _restore_q4_1),
    8: (np.dtype([("scale", "<f2"), ("quants", "i1", 32)]), _restore_q8_0),
}
"""How each kind of numbers lies in the file, and how it becomes float: F32, F16, Q4_1, Q8_0."""
