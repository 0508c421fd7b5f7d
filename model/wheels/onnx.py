"""Reading the weights of an ONNX file: its initializers, and which of them each matrix product takes.

An ONNX file is one protobuf message (onnx/onnx.proto). Of protobuf no more is needed than that a message is a row of
fields, each a number and a value, so the few fields that matter are read here; nothing of the graph is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.errors import InputError

_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_INPUT, _OUTPUT, _OPERATOR = 1, 2, 4  # of NodeProto
_DIMS, _KIND, _NAME, _RAW = 1, 2, 8, 9  # of TensorProto
_FLOAT = 1


@dataclass(frozen=True)
class OnnxWeights:
    """``tensors``: the float32 initializers by name. ``products``: for the output of each MatMul whose second input is
    an initializer, that one's name; exporters keep the module's path in the output and lose it in the weight."""

    tensors: dict[str, np.ndarray]
    products: dict[str, str]


def read_onnx(path: Path) -> OnnxWeights:
    """InputError for a file that is none or is cut off."""
    tensors: dict[str, np.ndarray] = {}
    products: dict[str, str] = {}
    try:
        graphs = [part for number, part in _fields(memoryview(path.read_bytes())) if number == _GRAPH]
        for number, part in (field for graph in graphs for field in _fields(_message(graph))):
            if number == _INITIALIZER:
                found = _read_tensor(_message(part))
                if found is not None:
                    tensors[found[0]] = found[1]
            elif number == _NODE:
                texts: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _OPERATOR: []}
                for key, value in _fields(_message(part)):
                    if key in texts:
                        texts[key].append(str(_message(value), "utf-8"))
                if texts[_OPERATOR] == ["MatMul"]:
                    products[texts[_OUTPUT][0]] = texts[_INPUT][1]
    except (ValueError, IndexError) as error:
        raise InputError(f"{path.name} is no whole ONNX file ({error}); fetch it again.") from error
    if not tensors:
        raise InputError(f"{path.name} holds no weights; fetch it again.")
    return OnnxWeights(tensors, {output: name for output, name in products.items() if name in tensors})


def _read_tensor(message: memoryview) -> tuple[str, np.ndarray] | None:
    """Name and numbers; None for what isn't float32."""
    name, kind, dims, raw = "", 0, [], memoryview(b"")
    for key, value in _fields(message):
        if key == _DIMS:
            # One by one or packed: both are allowed.
            dims += [value] if isinstance(value, int) else _numbers(value)
        elif key == _KIND and isinstance(value, int):
            kind = value
        elif key == _NAME:
            name = str(_message(value), "utf-8")
        elif key == _RAW:
            raw = _message(value)
    return (name, np.frombuffer(raw, "<f4").reshape(dims)) if kind == _FLOAT else None


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message is due")
    return value


def _numbers(data: memoryview) -> list[int]:
    found, place = [], 0
    while place < len(data):
        value, place = _varint(data, place)
        found.append(value)
    return found


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; the eighth says that more come."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("a number without an end")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field of a message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of kind {wire}")
        if place + size > len(data):
            raise ValueError("a field is cut off")
        yield number, data[place : place + size]
        place += size
