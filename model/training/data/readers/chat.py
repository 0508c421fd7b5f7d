"""Chat JSONL: ``{"messages": [{"role": "user", "content": "…" or [{"type": "text", "text": "…"}, …]}, …]}``.

Pictures are parts of a content list: ``{"type": "image", "image": …}`` (or ``path``), ``{"type": "image_url",
"image_url": {"url": "data:…"}}``, or ``{"type": "image"}`` for the next of the record's own ``images`` list. A file's
name and a data: URI are understood; nothing is fetched from the net.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.training.data.readers.files import find_picture
from model.training.data.readers.llava import MOVED
from model.training.data.readers.options import Options, check_keys
from model.training.data.readers.records import KEYS, read_records
from model.training.data.readers.source import (
    Draft,
    ExampleSource,
    Record,
    RecordError,
    Stored,
    need_list,
    need_object,
    need_text,
)


def read_chat(spec: Mapping[str, Any], base_folder: Path) -> ExampleSource:
    """A .jsonl file (or .json list, or a folder of them) of conversations."""
    check_keys(spec, KEYS)
    return read_records(Options("chat", spec, base_folder), parse_chat)


def parse_chat(value: Mapping[str, Any], folder: Path) -> Record:
    """The record of one JSON object. RecordError if it is malformed."""
    messages = need_list(value.get("messages"), "“messages”")
    listed = [] if value.get("images") is None else need_list(value["images"], "“images”")
    waiting = iter(listed)
    drafts: list[Draft] = []
    notes: list[str] = []
    for number, message in enumerate(messages, start=1):
        entry = need_object(message, f"message {number}")
        role = need_text(entry.get("role"), f"the role of message {number}")
        content = entry.get("content")
        if isinstance(content, str):
            drafts.append(Draft(role, content))
            continue
        texts: list[str] = []
        images: list[Stored] = []
        for part in need_list(content, f"the content of message {number}"):
            part = need_object(part, f"a part of message {number}")
            kind = part.get("type")
            if kind == "text":
                texts.append(need_text(part.get("text"), f"a text part of message {number}"))
            elif kind in ("image", "image_url"):
                if any(text.strip() for text in texts):
                    notes.append(MOVED)
                images.append(_picture(part, folder, waiting))
            else:
                raise RecordError(
                    f"message {number} has a part of the type {kind!r}; allowed are text, image and image_url"
                )
        drafts.append(Draft(role, "\n".join(texts), tuple(images)))
    unused = len(list(waiting))
    if unused:
        raise RecordError(f"{unused} of its {len(listed)} “images” belong to no image part of a message")
    return Record(tuple(drafts), tuple(dict.fromkeys(notes)))


def _picture(part: Mapping[str, Any], folder: Path, waiting: Iterator[object]) -> Stored:
    value = next((part[key] for key in ("image_url", "image", "path", "url") if part.get(key) is not None), None)
    if isinstance(value, Mapping):
        value = value.get("url")
    if value is None:
        value = next(waiting, None)
        if value is None:
            raise RecordError("an image part names no image, and the record's “images” list has none left")
    return find_picture(folder, value)
