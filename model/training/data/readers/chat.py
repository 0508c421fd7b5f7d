"""Chat JSONL: ``{"messages": [{"role": "user", "content": "…" or [{"type": "text", "text": "…"}, …]}, …]}``.

Pictures are parts of a content list: ``{"type": "image", "image": …}`` (or ``path``), ``{"type": "image_url",
"image_url": {"url": "data:…"}}``, or ``{"type": "image"}`` for the next of the record's own ``images`` list; or
``<image>`` in a user's text stands for the next of that list. A file's name, base64 and a data: URI are understood;
nothing is fetched from the net.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.training.data.readers.fields import Extras, read_extras
from model.training.data.readers.options import Options, check_keys
from model.training.data.readers.pictures import PictureFolder
from model.training.data.readers.places import MARK, UNPLACED, Places, check_filled, find_foreign_mark
from model.training.data.readers.records import KEYS, read_records, with_system
from model.training.data.readers.source import (
    Draft,
    Record,
    RecordError,
    RecordSource,
    Stored,
    describe,
    list_keys,
    need_field,
    need_list,
    need_object,
    need_text,
)

_TEXTS, _IMAGES = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")
_NAMES = ("image_url", "image", "path", "url", "source", "data", "base64")
_OWN, _MESSAGE = frozenset(("messages",)), frozenset(("role", "content"))
_TEXT_PART, _IMAGE_PART = frozenset(("type", "text")), frozenset(("type", *_NAMES))
_WRITTEN_PARTS = re.compile(r"\s*\[\s*\{\s*['\"]type['\"]\s*:")
_ROLES = {"developer": "system", "model": "assistant"}
"""What OpenAI and Gemini call them."""


def read_chat(spec: Mapping[str, Any], base_folder: Path) -> RecordSource:
    """A .jsonl file (or .json list, or a folder of them) of conversations."""
    check_keys(spec, KEYS)
    return read_records(Options("chat", spec, base_folder), parse_chat)


def parse_chat(value: Mapping[str, Any], folder: PictureFolder) -> Record:
    """The record of one JSON object. RecordError if it is malformed."""
    messages = need_field(value, "messages")
    if value.get("images") is not None:
        need_list(value["images"], "“images”")
    extras = read_extras(value, _OWN, "it")
    places = Places(extras.pictures, folder)
    drafts: list[Draft] = []
    owns: list[Extras] = []
    parts = 0
    for number, message in enumerate(messages, start=1):
        entry = need_object(message, f"message {number}")
        role = need_text(entry.get("role"), f"the role of message {number}")
        role = _ROLES.get(role, role)
        own = read_extras(entry, _MESSAGE, f"message {number}")
        owns.append(own)
        places.add(own.pictures)
        content = entry.get("content")
        if isinstance(content, str):
            if _WRITTEN_PARTS.match(content):
                raise RecordError(f"the content of message {number} is a list of parts as text; write it as a list")
            text, images = _read_text(content, role, places)
        elif isinstance(content, list):
            text, images, found = _read_parts(content, role, number, folder, places, owns)
            parts += found
        else:
            raise RecordError(
                f"the content of message {number} is {describe(content)}; it must be text or a list of parts"
            )
        if own.pictures and not images:
            images = tuple(places.take_next() for _ in own.pictures)
        drafts += [Draft("system", own.system)] if own.system else []
        drafts.append(Draft(role, text, images, trained=own.trained))
    check_filled((draft.text for draft in drafts), value.get("objects"))
    if places.left and not places.marks and not parts:
        if foreign := find_foreign_mark(draft.text for draft in drafts):
            raise RecordError(f"its text has {foreign}, which stands for no image here; write {MARK} in its place")
        first = next((n for n, draft in enumerate(drafts) if draft.role == "user"), None)
        if first is not None:
            drafts[first] = drafts[first]._replace(images=(*places.take_all(), *drafts[first].images))
            places.notes.append(UNPLACED)
    if places.left:
        raise RecordError(f"{places.left} of its {places.count} “images” belong to no image part of a message")
    return with_system(drafts, extras, places.notes, owns)


def _read_text(text: str, role: str, places: Places) -> tuple[str, tuple[Stored, ...]]:
    return places.take_marks(text, strict=False) if role == "user" else (text, ())


def _read_parts(
    content: list[Any], role: str, number: int, folder: PictureFolder, places: Places, owns: list[Extras]
) -> tuple[str, tuple[Stored, ...], int]:
    """The text, the images and how many image parts there are; what further keys of parts say is added to ``owns``."""
    texts: list[str] = []
    images: list[Stored] = []
    parts = 0
    for part in content:
        part = need_object(part, f"a part of message {number}")
        kind = part.get("type", next((key for key in (*_IMAGES, "text") if part.get(key) is not None), None))
        if kind not in (*_TEXTS, *_IMAGES):
            told = f"of the type {kind!r}" if kind is not None else f"with {list_keys(part)} and no type"
            raise RecordError(f"message {number} has a part {told}; allowed are text, image and image_url")
        own = read_extras(part, _TEXT_PART if kind in _TEXTS else _IMAGE_PART, f"a part of message {number}")
        owns.append(own)
        if own.pictures or own.system or own.trained is False:
            raise RecordError(f"a part of message {number} has {list_keys(part)}; write each as a part of its own")
        if kind in _TEXTS:
            text, marked = _read_text(need_text(part.get("text"), f"a text part of message {number}"), role, places)
            texts.append(text)
            images += marked
        else:
            if any(text.strip() for text in texts):
                places.note_moved()
            images.append(_picture(part, folder, places))
            parts += 1
    return "\n".join(text for text in texts if text), tuple(images), parts


def _picture(part: Mapping[str, Any], folder: PictureFolder, places: Places) -> Stored:
    values = [part[key] for key in _NAMES if part.get(key) is not None]
    if any(value != values[0] for value in values[1:]):
        raise RecordError(f"an image part names an image in {list_keys(part)}; keep one of them")
    return folder.find(values[0]) if values else places.take_next()
