"""What an image is known by, whatever it is called: its bytes."""

from __future__ import annotations

import hashlib
import os

TEXT = b"text"
"""What the key of a question begins with: data without an image are known by what is asked."""


def key_of(data: bytes) -> bytes:
    """The key of an image's bytes: their hash, and their number, by which most are told apart already."""
    return hashlib.blake2b(data, digest_size=16).digest() + len(data).to_bytes(8, "big")


def key_of_text(text: str) -> bytes:
    return TEXT + hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file; 0 if there is none (any more)."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
