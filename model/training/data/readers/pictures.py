"""The pictures that a record names: files in the data's folder, base64, data: URIs, objects that hold one of these."""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from model.training.data.readers.source import RecordError, Stored, clean_text, describe, list_keys

NAME_BYTES = 255
"""Of one part of a file's path, on every usual file system."""
PATH_BYTES = 2000
PICTURE_ENDINGS = frozenset(
    (
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".avifs",
    )
)
"""Those of the formats that :func:`model.open_image` opens."""
OTHER_ENDINGS = frozenset(
    f".{ending}"
    for ending in re.findall(
        r"\w+", "heic heif jxl jp2 j2k svg ico ppm pgm pbm tga dib psd pcx raw dng cr2 nef arw eps pdf"
    )
)
"""Pictures of kinds that are not opened: a folder that holds some is told so."""

_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def is_picture_start(data: bytes) -> bool:
    """Whether a file that begins so is a picture of a format that is opened; 12 bytes are enough."""
    riff = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return data.startswith(_STARTS) or riff or data[4:12] in (b"ftypavif", b"ftypavis")


def is_base64_picture(text: str) -> bool:
    """Whether the text is base64 that begins as a picture does. No file is called so."""
    start = text[:100].strip()[:40].replace("-", "+").replace("_", "/") if len(text) >= 40 else ""
    try:
        return len(start) == 40 and is_picture_start(base64.b64decode(start, validate=True))
    except (binascii.Error, ValueError):
        return False


@dataclass(frozen=True)
class PictureFolder:
    """Where the pictures of records lie: in ``beside``, the folder of the file that names them (None: nowhere, only
    their bytes are taken), else anywhere below ``root``, where there is one. Nothing else of the machine is read."""

    beside: Path | None
    root: Path | None = None

    def find(self, value: object) -> Stored:
        """A picture by its file's name, as bytes, base64 or a data: URI, or an object with one of these. RecordError if
        it is none of them."""
        if isinstance(value, bytes):
            if not value:
                raise RecordError("an image is empty (0 bytes)")
            return value
        if isinstance(value, Mapping):
            return self._find_in_object(value)
        if not isinstance(value, str):
            raise RecordError(f"an image is {describe(value)}; it must be a file's name, bytes or a data: URI")
        if value[:5].lower() == "data:":
            head, comma, body = value.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise RecordError("an image's data: URI is not of the form data:image/png;base64,…")
            return _decode(body, "an image's data: URI")
        if is_base64_picture(value):
            return _decode(value, "an image in base64")
        if self.beside is None:
            raise RecordError("an image is a file's name without its bytes; data from the hub must hold the bytes")
        return self._find_file(value)

    def _find_in_object(self, value: Mapping[object, object]) -> Stored:
        for key in ("bytes", "base64", "b64", "data", "b64_json"):
            held = value.get(key)
            if isinstance(held, bytes) and held:
                return held
            if isinstance(held, str) and held:
                return self.find(held) if held[:5].lower() == "data:" else _decode(held, f"“{key}” of an image")
        for key in ("path", "url", "image", "file_name", "image_url", "source"):
            held = value.get(key)
            if held is not None and held != "":
                return self.find(held)
        raise RecordError(f"an image is an object with {list_keys(value)}; it must have “bytes”, “path” or “url”")

    def _find_file(self, name: str) -> Path:
        inside = _check_name(name)
        beside, root = self.beside, self.root
        assert beside is not None
        if root is None:
            return _spell(beside, _check_inside(inside, name))
        # A table in a folder of its own may name pictures beside that folder: that is still the data's.
        below = os.path.normpath(f"{self._depth}/{inside}")
        for candidate in (below, inside) if below != inside else (inside,):
            if not _leaves(candidate) and (found := _spell(root, candidate)).is_file():
                return found
        return self._search(_check_inside(inside, name)) or root / inside

    @cached_property
    def _depth(self) -> str:
        """From ``root`` to the table's own folder; "." where that lies elsewhere."""
        assert self.beside is not None
        assert self.root is not None
        return self.beside.relative_to(self.root).as_posix() if self.beside.is_relative_to(self.root) else "."

    def _search(self, inside: str) -> Path | None:
        """The one file below ``root`` whose path ends most alike. RecordError if several do."""
        wanted = tuple(reversed(_compose(inside).split("/")))
        ranked: dict[int, list[Path]] = defaultdict(list)
        for parts, path in self._listed.get(wanted[0], ()):
            alike = next(
                (n for n, (one, two) in enumerate(zip(parts, wanted, strict=False)) if one != two), len(wanted)
            )
            ranked[min(alike, len(parts))].append(path)
        if not ranked:
            return None
        best = ranked[max(ranked)]
        if len(best) > 1:
            raise RecordError(
                f"the image “{inside}” is not beside the data, and {len(best)} files in other folders are called so; "
                "name it with its folder"
            )
        return best[0]

    @cached_property
    def _listed(self) -> Mapping[str, list[tuple[tuple[str, ...], Path]]]:
        """Every file below ``root`` by its name: the parts of its path, last first, and itself."""
        found: dict[str, list[tuple[tuple[str, ...], Path]]] = defaultdict(list)
        root = self.root
        assert root is not None
        for place, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                path = Path(place, name)
                parts = tuple(reversed(_compose(path.relative_to(root).as_posix()).split("/")))
                found[parts[0]].append((parts, path))
        return found


_DRIVE = re.compile(r"[A-Za-z]:")


def _decode(text: str, what: str) -> bytes:
    plain = re.sub(r"\s+", "", text).replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError(f"{what} holds characters that are not base64, or is cut off") from error
    if not data:
        raise RecordError(f"{what} is empty")
    return data


def _check_name(name: str) -> str:
    """``name`` with slashes and without detours. RecordError if no file of the data can be called so: data from
    elsewhere must not read what else is on the machine. Links inside the folder are followed, as data sets are often
    laid out with them."""
    if not name.strip() or "\0" in name or clean_text(name) != name:
        raise RecordError(f"the image's name {name!r} is no file name")
    # A letter has four bytes at most.
    if len(name) > NAME_BYTES // 4 and any(
        len(part.encode("utf-8")) > most
        for most, parts in ((PATH_BYTES, (name,)), (NAME_BYTES, re.split(r"[/\\]", name)))
        for part in parts
    ):
        raise RecordError(f"the image's name has {len(name):,} letters; no file can have it")
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        raise RecordError(f"the image “{name}” has an absolute path; it must be relative to the data's folder")
    if "://" in name:
        raise RecordError(f"the image “{name}” is an address; nothing is fetched, save it in the data's folder")
    return os.path.normpath(name.replace("\\", "/"))


def _check_inside(inside: str, name: str) -> str:
    if _leaves(inside):
        raise RecordError(f"the image “{name}” lies outside the data's folder; move it there")
    return inside


def _leaves(inside: str) -> bool:
    return inside == ".." or inside.startswith("../")


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _spell(folder: Path, inside: str) -> Path:
    """The file with its name as the file system has it: an accent may be a letter's own or follow it, and the same name
    is written in both ways by different systems."""
    path = folder / inside
    if inside.isascii() or path.exists():
        return path
    for part in PurePosixPath(inside).parts:
        spellings = (part, _compose(part), unicodedata.normalize("NFD", part))
        folder = next((folder / spelling for spelling in spellings if (folder / spelling).exists()), folder / part)
    return folder
