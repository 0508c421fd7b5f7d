"""LLaVA's JSON: ``{"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat …?"}, …]}``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.training.data.readers.fields import Extras, read_extras
from model.training.data.readers.options import Options, check_keys
from model.training.data.readers.pictures import PictureFolder
from model.training.data.readers.places import MARK, Places, check_filled, find_foreign_mark
from model.training.data.readers.records import KEYS, read_records, with_system
from model.training.data.readers.source import (
    Draft,
    Record,
    RecordError,
    RecordSource,
    Stored,
    need_field,
    need_object,
    need_text,
)

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_OWN, _TURN, _MESSAGE = frozenset(("conversations",)), frozenset(("from", "value")), frozenset(("role", "content"))


def read_llava(spec: Mapping[str, Any], base_folder: Path) -> RecordSource:
    """A .json list or .jsonl lines. Pictures belong to the human messages with their ``<image>`` marks, in order."""
    check_keys(spec, KEYS)
    return read_records(Options("llava", spec, base_folder), parse_llava)


def parse_llava(value: Mapping[str, Any], folder: PictureFolder) -> Record:
    """The record of one JSON object. RecordError if it is malformed or marks and pictures differ in number."""
    turns = need_field(value, "conversations")
    extras = read_extras(value, _OWN, "it")
    places = Places(extras.pictures, folder)
    drafts: list[Draft] = []
    owns: list[Extras] = []
    for number, turn in enumerate(turns, start=1):
        entry = need_object(turn, f"turn {number}")
        # Some write the turns as a chat's messages.
        who, said, known = ("role", "content", _MESSAGE) if "role" in entry else ("from", "value", _TURN)
        sender = entry.get(who)
        role = _ROLES.get(sender) if isinstance(sender, str) else None
        if role is None:
            raise RecordError(f"turn {number} is from {sender!r}; allowed are human, gpt and system")
        text = need_text(entry.get(said), f"“{said}” of turn {number}")
        own = read_extras(entry, known, f"turn {number}")
        owns.append(own)
        images: tuple[Stored, ...] = ()
        if role == "user":
            if own.pictures:
                places.add(own.pictures)
            text, images = places.take_marks(text)
        elif own.pictures:
            raise RecordError(f"turn {number} is from {sender} and has an image; only the human's can have one")
        drafts += [Draft("system", own.system)] if own.system else []
        drafts.append(Draft(role, text, images, trained=own.trained))
    if places.marks != places.count:
        foreign = find_foreign_mark(draft.text for draft in drafts)
        raise RecordError(
            f"it has {_count(places.count, 'image')} and {_count(places.marks, f'{MARK} mark')}"
            f"{f' ({foreign} is none here)' if foreign else ''}; each image needs exactly one mark in a human turn"
        )
    check_filled((draft.text for draft in drafts), value.get("objects"))
    return with_system(drafts, extras, places.notes, owns)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
