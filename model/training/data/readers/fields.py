"""What the keys of a record name: images, videos, system prompts, tools, and what is to be learnt.

Data sets call these things by many names. A key that names one of them is read or its record refused: to pass it over
would train on something else than what the data say, without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from model.training.data.readers.pictures import is_base64_picture, is_picture_start
from model.training.data.readers.source import RecordError, clean_text, describe

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CARRIERS = _words("path paths file files filename filenames name names url urls uri uris data bytes base b list")
_IMAGES = _words("image images img imgs picture pictures pic pics photo photos")
_VIDEOS = _words("video videos audio audios clip clips speech sound sounds frame frames")
_SYSTEM, _PROMPTS = _words("system sys"), _words("prompt prompts message instruction instructions text content")
_TOOLS = _words("tool tools function functions plugin plugins")
_CALLS = _words("call calls choice definition definitions list schema schemas")
_LEARNT = _words(
    "weight weights loss train trained trainable training mask masks masked learn ignore ignored skip exclude"
)
_WEIGHED = _words(
    "sample example record row token tokens turn message scale on importance factor coefficient detail details no not "
    "dont assistant assistants completion answer response labels is from in"
)
_TURNED, _MASKS = _words("no not dont ignore ignored skip exclude"), _words("mask masks masked")
"""Words that turn what a key says of learning round, and those that may mean either."""
_QUIET = _words(
    "id ids idx index uid uuid key hash md sha source sources origin dataset datasets data split subset category "
    "categories domain type types kind task language lang license url link width height size sizes shape pixels title "
    "author created updated date time timestamp version model score scores rating ratings quality difficulty metadata "
    "meta info tag tags detail count num views"
)
"""What data say about themselves, which nobody misses."""
_KINDS = (
    ("picture", _IMAGES, _CARRIERS),
    ("video", _VIDEOS, _CARRIERS),
    ("system", _SYSTEM, _PROMPTS),
    ("tools", _TOOLS, _CALLS),
    ("learnt", _LEARNT, _WEIGHED),
)
"""A kind of key: it holds one of the first words, and nothing but these and the second ones."""
_HOLDERS = (str, bytes, list, tuple, Mapping)
"""Types of a value that may be an image, or hold some."""
_NOTHING = ("", "[]", "{}", "null", "None")
_SHOWN_KEYS = 6
_TALKS = frozenset(("messages", "conversations"))
_FILE_NAMES = ("file_name", "file_names", "filename", "filenames")
"""What ``datasets``' imagefolder calls its pictures."""
_NO_NAME = frozenset(("id", "ids", "hash", "sha", "md"))
_PICTURE_NAME = re.compile(
    r"\.(png|apng|jpe?g|jpe|jfif|webp|gif|bmp|dib|tiff?|avifs?|heic|heif|jxl|jp2|mpo|svg|ppm|tga)([?#].*)?$",
    re.IGNORECASE,
)
_VIDEO_NAME = re.compile(r"\.(mp4|m4v|mov|avi|mkv|webm|mpe?g|wav|mp3|flac|ogg|m4a)([?#].*)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Extras:
    """What an object says beside its own fields. ``pictures``: as they stand there, in order; ``trained``: whether it
    is to be learnt, None where nothing says so; ``unread``: the keys that nothing here reads."""

    pictures: tuple[object, ...] = ()
    system: str = ""
    trained: bool | None = None
    unread: tuple[str, ...] = ()


def read_extras(values: Mapping[str, Any], known: frozenset[str], what: str) -> Extras:
    """Goes through the keys of ``values`` that are not ``known``. RecordError, which calls the object ``what``, for one
    that names something which isn't read."""
    if values.keys() <= known:
        return _NO_EXTRAS
    further = _sort_keys(tuple(values), known)
    pictures: dict[str, object] = {}
    system = ""
    trained: dict[str, bool] = {}
    doubtful: list[str] = []
    unread: list[str] = []
    for key, kind in further:
        value = values[key]
        if _is_nothing(value) or (isinstance(value, str) and value.strip() in _NOTHING):
            continue
        if kind == "picture":
            if not isinstance(value, _HOLDERS):
                raise RecordError(f"“{key}” is {describe(value)}; it must be a file's name, bytes or a list of them")
            pictures[key] = value
        elif (kind == "video" and not _is_number(value)) or _looks_like(value, False):
            raise RecordError(f"{what} names a video or a sound in “{key}”; only images can be used")
        elif kind == "system":
            system = _join_system(system, key, value, what)
        elif kind == "tools":
            raise RecordError(f"{what} names tools in “{key}”; conversations with tools can't be used")
        elif kind == "learnt":
            if (weight := _read_weight(key, value, what)) is not None:
                trained[key] = weight
        elif kind == "label" and isinstance(value, bool) and known & _TALKS:  # whether the answer is a good one (KTO)
            trained[key] = value
        elif kind != "id" and _looks_like(value, True):
            doubtful.append(key)
        elif kind in ("other", "label"):
            unread.append(key)
    if len(set(trained.values())) > 1:
        raise RecordError(f"{what} says both that it is to be learnt and that it is not ({', '.join(trained)})")
    found = _join_pictures(pictures, what)
    for key in doubtful:
        if not found or (_words_of(key) & _IMAGES and not _is_known(values[key], found)):
            raise RecordError(f"{what} names an image in “{key}”, which is not read; call it “image” or “images”")
        if _kind_of(key) == "other":
            unread.append(key)
    return Extras(found, system, next(iter(trained.values()), None), tuple(unread))


def tell_unread(extras: Iterable[Extras]) -> tuple[str, ...]:
    """What is to be said of the keys that nothing reads: nothing, or one sentence."""
    keys = list(dict.fromkeys([key for found in extras if found.unread for key in found.unread]))
    if not keys:
        return ()
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return (f"nothing is read from {', '.join(clean_text(key[:40]) for key in keys[:_SHOWN_KEYS])}{more}",)


_NO_EXTRAS = Extras()


@lru_cache(maxsize=4096)
def _sort_keys(keys: tuple[Any, ...], known: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """Those of the keys that are not known, each with the kind that its words say: the records of a file have the same
    few sets of keys."""
    return tuple((key, _kind_of(key)) for key in keys if key not in known and isinstance(key, str))


def _kind_of(key: str) -> str:
    words = _words_of(key)
    if key.lower() in _FILE_NAMES:
        return "picture"
    kind = next((kind for kind, own, more in _KINDS if words & own and words <= own | more), "other")
    if kind != "other":
        return kind
    if words & _NO_NAME or not key.strip():  # a table's column without a name counts its rows
        return "id"
    return "label" if words == {"label"} else "quiet" if words and words <= _QUIET | _IMAGES else "other"


@lru_cache(maxsize=4096)
def _words_of(key: str) -> frozenset[str]:
    """“imagePath2” is an image and a path, “image_b64” an image and a b."""
    return frozenset(word.lower() for word in _WORD.findall(key) if not word.isdigit())


def _is_nothing(value: object) -> bool:
    return value is None or (not value and isinstance(value, (list, tuple, dict)))


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float)


def _looks_like(value: object, picture: bool) -> bool:
    """Whether a value is a picture's (else a video's) file name, address or bytes, or a list of such."""
    if isinstance(value, str):
        if "." not in value and len(value) < 40 and ":" not in value:
            return False
        name = value.strip()
        if picture and is_base64_picture(name):
            return True
        if "\n" in name or len(name) > 4096:
            return False
        pattern = _PICTURE_NAME if picture else _VIDEO_NAME
        kind = "data:image/" if picture else "data:video/"
        return bool(pattern.search(name) and " " not in name) or name[:11].lower() == kind
    if isinstance(value, bytes):
        return picture and is_picture_start(value[:16])
    if isinstance(value, Mapping):
        return any(_looks_like(part, picture) for part in value.values() if isinstance(part, str | bytes))
    return isinstance(value, list | tuple) and any(_looks_like(part, picture) for part in value)


def _is_known(value: object, pictures: Iterable[object]) -> bool:
    """Whether every file that ``value`` names is one of the ``pictures``, wherever it lies."""
    names = {_last_part(name) for name in _names(list(pictures))}
    return _names([value]) != [] and {_last_part(name) for name in _names([value])} <= names


def _names(values: Iterable[object]) -> list[str]:
    found: list[str] = []
    for value in values:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, Mapping):
            found += [part for part in value.values() if isinstance(part, str)]
        elif isinstance(value, list | tuple):
            found += _names(value)
    return found


def _last_part(name: str) -> str:
    return re.split(r"[/\\]", name)[-1]


def _join_pictures(pictures: Mapping[str, object], what: str) -> tuple[object, ...]:
    """Of one key, of keys that say the same, or of “image1”, “image2” and so on by their numbers."""
    if not pictures:
        return ()
    lists = {key: tuple(value) if isinstance(value, (list, tuple)) else (value,) for key, value in pictures.items()}
    if len(lists) <= 1 or len({repr(part) for part in lists.values()}) == 1:
        return next(iter(lists.values()), ())
    numbers = {key: [int(part) for part in _WORD.findall(key) if part.isdigit()] for key in lists}
    if all(len(found) == 1 for found in numbers.values()):
        return tuple(part for key in sorted(lists, key=lambda key: numbers[key]) for part in lists[key])
    names = " and ".join(f"“{key}”" for key in lists)
    raise RecordError(f"{what} names images in {names}; keep one of them")


def _join_system(before: str, key: str, value: object, what: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"“{key}” of {what} is {describe(value)}; a system prompt must be text")
    if before and value.strip() and value.strip() != before.strip():
        raise RecordError(f"{what} has two system prompts (the other is in “{key}”); keep one")
    return before or value if value.strip() else before


def _read_weight(key: str, value: object, what: str) -> bool | None:
    """Whether an object with this weight, loss or train is to be learnt: all or nothing, as other trainers have it.
    None where it says nothing, as “ignore” does with false."""
    if isinstance(value, str):  # a table of text has no other values
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower(), value)
    words = _words_of(key)
    if words & _TURNED and not words & _MASKS and _is_number(value) and value in (0, 1):
        return False if value else None
    if not _is_number(value) or value not in (0, 1) or words & _MASKS:
        raise RecordError(
            f"{what} has “{key}” ({str(value)[:40]}), which can't be followed here; read are “weight” 0 or 1, “loss” "
            "and “train” true or false"
        )
    return bool(value)
