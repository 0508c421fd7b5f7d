"""What a decoding process answers, as plain bytes: it has read a stranger's file with code that can be overrun, so
nothing that it says is loaded as Python's own objects are, which could bring code of their own.

An answer is a line of JSON, then the raw bytes of arrays and files that it names by number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from PIL import Image

from inspector.images.full_size import Facts
from model.picture import Header

MAX_PARTS = 64
"""Of one answer: an image and its facts are two."""
MAX_BYTES = 2 << 30
"""Of one part: all pixels of the largest image that is opened are an eighth of that."""
KINDS = {"facts": Facts, "header": Header}


def send_answer(connection: Connection, answer: Any) -> None:
    """``answer``: nothing but numbers, text, bytes, tuples, arrays of bytes, pictures in RGB, and the classes above.
    TypeError for anything else."""
    parts: list[bytes] = []
    head = json.dumps(_write(answer, parts)).encode()
    connection.send_bytes(head)
    connection.send_bytes(str(len(parts)).encode())
    for part in parts:
        connection.send_bytes(part)


def receive_answer(connection: Connection) -> Any:
    """The same value; lists are tuples. EOFError where the other side has ended, OSError or ValueError for an answer
    that is none."""
    head = json.loads(connection.recv_bytes(MAX_BYTES))
    count = int(connection.recv_bytes(20))
    if not 0 <= count <= MAX_PARTS:
        raise ValueError(f"an answer of {count} parts")
    return _read(head, [connection.recv_bytes(MAX_BYTES) for _ in range(count)])


def _write(value: Any, parts: list[bytes]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_write(one, parts) for one in value]
    if isinstance(value, bytes):
        return {"bytes": _add(value, parts)}
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return {"array": _add(value.tobytes(), parts), "shape": value.shape}
    if isinstance(value, Image.Image) and value.mode == "RGB":
        return {"picture": _add(value.tobytes(), parts), "size": value.size}
    for name, kind in KINDS.items():
        if isinstance(value, kind):
            return {name: {key: _write(held, parts) for key, held in vars(value).items()}}
    raise TypeError(f"an answer can't hold a {type(value).__name__}")


def _add(part: bytes, parts: list[bytes]) -> int:
    parts.append(part)
    return len(parts) - 1


def _read(value: Any, parts: Sequence[bytes]) -> Any:
    if isinstance(value, list):
        return tuple(_read(one, parts) for one in value)
    if not isinstance(value, dict):
        return value
    if "bytes" in value:
        return parts[value["bytes"]]
    if "array" in value:
        # A copy: what lies over received bytes can't be written to.
        return np.frombuffer(parts[value["array"]], np.uint8).reshape(value["shape"]).copy()
    if "picture" in value:
        return Image.frombytes("RGB", tuple(value["size"]), parts[value["picture"]])
    ((name, fields),) = value.items()
    return KINDS[name](**{key: _read(held, parts) for key, held in fields.items()})
