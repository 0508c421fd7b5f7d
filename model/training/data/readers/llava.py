"""LLaVA's JSON: ``{"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat …?"}, …]}``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.training.data.readers.files import find_picture
from model.training.data.readers.options import Options, check_keys
from model.training.data.readers.records import KEYS, read_records
from model.training.data.readers.source import (
    Draft,
    ExampleSource,
    Record,
    RecordError,
    describe,
    need_list,
    need_object,
    need_text,
)

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
MOVED = "an image in the middle or at the end of its message is moved to the message's front"


def read_llava(spec: Mapping[str, Any], base_folder: Path) -> ExampleSource:
    """A .json list or .jsonl lines. Pictures belong to the human messages with their ``<image>`` marks, in order."""
    check_keys(spec, KEYS)
    return read_records(Options("llava", spec, base_folder), parse_llava)


def parse_llava(value: Mapping[str, Any], folder: Path) -> Record:
    """The record of one JSON object. RecordError if it is malformed or marks and pictures differ in number."""
    turns = need_list(value.get("conversations"), "“conversations”")
    images = value.get("image", value.get("images"))
    if images is None:
        images = []
    elif isinstance(images, str):
        images = [images]
    elif not isinstance(images, list):
        raise RecordError(f"“image” is {describe(images)}; it must be a file's name or a list of them")
    pictures = [find_picture(folder, name) for name in images]
    drafts: list[Draft] = []
    notes: list[str] = []
    used = 0
    for number, turn in enumerate(turns, start=1):
        entry = need_object(turn, f"turn {number}")
        sender = entry.get("from")
        role = _ROLES.get(sender) if isinstance(sender, str) else None
        if role is None:
            raise RecordError(f"turn {number} is from {sender!r}; allowed are human, gpt and system")
        text = need_text(entry.get("value"), f"“value” of turn {number}")
        if role != "user":
            drafts.append(Draft(role, text))
            continue
        marks = text.count("<image>")
        if marks and text.rpartition("<image>")[0].replace("<image>", "").strip():
            notes.append(MOVED)
        text = _take_marks(text)
        drafts.append(Draft(role, text, tuple(pictures[used : used + marks])))
        used += marks
    if used != len(pictures):
        raise RecordError(
            f"it has {_count(len(pictures), 'image')} and {_count(used, '<image> mark')}; "
            "each image needs exactly one mark in a human turn"
        )
    return Record(tuple(drafts), tuple(dict.fromkeys(notes)))


def _take_marks(text: str) -> str:
    """The text without its marks: a mark takes the blanks around it along, and leaves a line break between texts."""
    parts = text.split("<image>")
    if len(parts) == 1:
        return text
    parts = [parts[0].rstrip(), *(part.strip() for part in parts[1:-1]), parts[-1].lstrip()]
    return "\n".join(part for part in parts if part)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
