"""Chat JSONL: ``{"messages": [{"role": "user", "content": "…" or [{"type": "text", "text": "…"}, …]}, …]}``.

Pictures are parts of a content list: ``{"type": "image", "image": …}`` (or ``path``), ``{"type": "image_url",
"image_url": {"url": "data:…"}}``, or ``{"type": "image"}`` for the next of the record's own ``images`` list; or
``<image>`` in a user's text stands for the next of that list. A file's name, base64 and a data: URI are understood;
nothing is fetched from the net.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.training.data.readers.fields import read_extras
from model.training.data.readers.options import Options, check_keys
from model.training.data.readers.pictures import PictureFolder
from model.training.data.readers.places import UNPLACED, Places
from model.training.data.readers.records import KEYS, read_records, with_system
from model.training.data.readers.source import (
    Draft,
    Record,
    RecordError,
    RecordSource,
    Stored,
    need_list,
    need_object,
    need_text,
)

_TEXTS, _IMAGES = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")
_OWN, _MESSAGE = frozenset(("messages",)), frozenset(("role", "content"))


def read_chat(spec: Mapping[str, Any], base_folder: Path) -> RecordSource:
    """A .jsonl file (or .json list, or a folder of them) of conversations."""
    check_keys(spec, KEYS)
    return read_records(Options("chat", spec, base_folder), parse_chat)


def parse_chat(value: Mapping[str, Any], folder: PictureFolder) -> Record:
    """The record of one JSON object. RecordError if it is malformed."""
    messages = need_list(value.get("messages"), "“messages”")
    if value.get("images") is not None:
        need_list(value["images"], "“images”")
    extras = read_extras(value, _OWN, "it")
    places = Places(extras.pictures, folder)
    drafts: list[Draft] = []
    parts = 0
    for number, message in enumerate(messages, start=1):
        entry = need_object(message, f"message {number}")
        role = need_text(entry.get("role"), f"the role of message {number}")
        own = read_extras(entry, _MESSAGE, f"message {number}")
        places.add(own.pictures)
        content = entry.get("content")
        if isinstance(content, str):
            text, images = _read_text(content, role, places)
        else:
            text, images, found = _read_parts(
                need_list(content, f"the content of message {number}"), role, number, folder, places
            )
            parts += found
        if own.pictures and not images:
            images = tuple(places.take_next() for _ in own.pictures)
        drafts += [Draft("system", own.system)] if own.system else []
        drafts.append(Draft(role, text, images, trained=own.trained))
    if places.left and not places.marks and not parts:
        first = next((n for n, draft in enumerate(drafts) if draft.role == "user"), None)
        if first is not None:
            drafts[first] = drafts[first]._replace(images=(*places.take_all(), *drafts[first].images))
            places.notes.append(UNPLACED)
    if places.left:
        raise RecordError(f"{places.left} of its {places.count} “images” belong to no image part of a message")
    return with_system(drafts, extras, places.notes)


def _read_text(text: str, role: str, places: Places) -> tuple[str, tuple[Stored, ...]]:
    return places.take_marks(text, strict=False) if role == "user" else (text, ())


def _read_parts(
    content: list[Any], role: str, number: int, folder: PictureFolder, places: Places
) -> tuple[str, tuple[Stored, ...], int]:
    """The text, the images and how many image parts there are."""
    texts: list[str] = []
    images: list[Stored] = []
    parts = 0
    for part in content:
        part = need_object(part, f"a part of message {number}")
        kind = part.get("type", "image" if "image" in part else "text" if "text" in part else None)
        if kind in _TEXTS:
            text, marked = _read_text(need_text(part.get("text"), f"a text part of message {number}"), role, places)
            texts.append(text)
            images += marked
        elif kind in _IMAGES:
            if any(text.strip() for text in texts):
                places.note_moved()
            images.append(_picture(part, folder, places))
            parts += 1
        else:
            raise RecordError(
                f"message {number} has a part of the type {kind!r}; allowed are text, image and image_url"
            )
    return "\n".join(text for text in texts if text), tuple(images), parts


def _picture(part: Mapping[str, Any], folder: PictureFolder, places: Places) -> Stored:
    keys = ("image_url", "image", "path", "url", "source", "data", "base64")
    value = next((part[key] for key in keys if part.get(key) is not None), None)
    return places.take_next() if value is None else folder.find(value)
