"""What a file of data is, told by its ending and its first bytes; nothing is read whole."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from inspector.intake import Refusal, quote

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""What ``datasets``' imagefolder calls the table of a folder; each folder may have its own."""
PICTURES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".avifs"),
)
"""As :data:`model.training.data.readers.pictures.PICTURE_ENDINGS`; that module can't be imported here."""
KEYS = (("conversations", "llava"), ("messages", "chat"), ("texts", "rows"), ("caption", "captions"))
CAPTION_KEYS = (("text", "description"), ("file_name", "image", "image_path", "path", "filename"))
"""A caption's names and its image's: a row with one of each is a caption, too."""
PREFIX = 1 << 16
LONGEST = 1 << 22
"""Bytes of a first row that are looked at for its keys: pictures may stand in a row before them."""
NESTING = 100
_BLANK = " \t\r\n"
_TOKEN = re.compile(r'[ \t\r\n]*(?:("[^"\\]*(?:\\.[^"\\]*)*")|([\[\]{},:])|([^\s\[\]{},:"]+))', re.DOTALL)
_PACKED = ((b"\x1f\x8b", "gzip"), (b"PK\3\4", "zip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"PAR1", "parquet"))


def find_table(folder: Path, name: str) -> Path:
    """The one table in an unpacked archive, else the folder of its pictures."""
    files = sorted(Path(place, file) for place, _, files in os.walk(folder) for file in files)
    if inner := next((path for path in files if path.suffix.lower() in ARCHIVES), None):
        raise Refusal(
            f"{quote(name)} holds the archive {quote(inner.name)}; put the files that are in it in its place."
        )
    tables = [path for path in files if path.suffix.lower() in TABLES]
    if len(tables) == 1:
        return tables[0]
    if tables and all(path.name.lower() in METADATA for path in tables):
        return Path(os.path.commonpath([path.parent for path in tables]))
    if tables:
        listed = ", ".join(quote(path.name)[1:-1] for path in tables[:4])
        raise Refusal(f"{quote(name)} holds several tables ({listed}); keep one, beside its pictures.")
    pictures = [path.parent for path in files if path.suffix.lower() in PICTURES]
    if not pictures:
        raise Refusal(f"{quote(name)} holds neither a table ({', '.join(TABLES)}) nor pictures; put one in.")
    return Path(os.path.commonpath(pictures))


def guess_source(path: Path, name: str) -> str:
    """The reader for a table or a folder of pictures. Refusal if it is neither empty nor what its ending says."""
    if path.is_dir():
        return "captions"
    shown, suffix = quote(name), path.suffix.lower()
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(max(0, path.stat().st_size - 4))
        end = file.read(4)
    if not start:
        raise Refusal(f"{shown} is empty (0 bytes); choose another file.")
    if suffix == ".parquet":
        if end == b"PARE" or start[:4] == b"PARE":
            raise Refusal(f"{shown} is an encrypted parquet file; write it without encryption.")
        if start[:4] != b"PAR1" or end != b"PAR1" or path.stat().st_size < 12:
            raise Refusal(f"{shown} is no whole parquet file; get it again.")
        return "rows"
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or start[:4] == b"\0\0\xfe\xff":
        raise Refusal(f"{shown} is UTF-16 or UTF-32 text; save it as UTF-8.")
    for mark, kind in _PACKED:
        if start.startswith(mark):
            raise Refusal(f"{shown} is a {kind} file and not what its ending says; unpack it first, or rename it.")
    if suffix in (".csv", ".tsv"):
        next(_read_starts(path, shown))
        return "captions"
    keys = _first_keys(path, shown, suffix == ".json")
    if source := _name_source(keys):
        return source
    listed = ", ".join(quote(key)[1:-1] for key in keys[:6]) or "none"
    raise Refusal(
        f"{shown} has rows with the keys {listed}; a row needs “conversations” (LLaVA), “messages” (chat), “texts” "
        "(the_cauldron), “caption”, or “file_name” and “text” (imagefolder)."
    )


def _name_source(keys: Sequence[str]) -> str | None:
    """The reader of rows with these keys."""
    known = next((source for key, source in KEYS if key in keys), None)
    paired = all(any(key in keys for key in names) for names in CAPTION_KEYS)
    return known or ("captions" if paired else None)


def _read_starts(path: Path, shown: str) -> Iterator[tuple[str, bool]]:
    """The file's first text, and whether that is all: first a little, then as much as is looked at."""
    for size in (PREFIX, LONGEST):
        with path.open("rb") as file:
            data = file.read(size)
        whole = len(data) < size
        if b"\0" in data:
            raise Refusal(f"{shown} holds zero bytes, so it is no UTF-8 text; save it as UTF-8.")
        try:
            yield codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=whole), whole
        except UnicodeDecodeError as error:
            raise Refusal(f"{shown} is no UTF-8 text (byte {error.start}); save it as UTF-8.") from error
        if whole:
            return


def _first_keys(path: Path, shown: str, is_list: bool) -> list[str]:
    """The names in the first row, as far as they are looked at."""
    keys: list[str] = []
    where = "its first row"
    for text, whole in _read_starts(path, shown):
        row = text.lstrip(_BLANK)
        if is_list and row:
            if row[0] != "[":
                raise Refusal(f"{shown} does not begin with “[”; it must be a JSON list of records (or use .jsonl).")
            row = row[1:].lstrip(_BLANK)
        elif not is_list:
            row, newline, _ = row.partition("\n")
            whole = whole or bool(newline)
            if row.startswith("["):
                raise Refusal(f"{shown} holds a list where a row is due; a list of records must end in .json.")
        if (row and row[0] != "{") or (not row and whole):
            raise Refusal(f"{shown} holds no rows; each must be a JSON object.")
        keys, ended = _scan_object(row, shown)
        if ended:
            return keys
        if whole:
            one = "" if is_list else "each record must stand on one line of a .jsonl; else "
            raise Refusal(f"{shown} is no valid JSON in {where} (it is cut off); {one}get it again.")
        if _name_source(keys):
            return keys
    raise Refusal(
        f"{shown} has a first row of more than {LONGEST >> 20} MiB; make rows smaller, or name “messages” and the like "
        "before their pictures."
    )


def _scan_object(text: str, shown: str) -> tuple[list[str], bool]:
    """The keys of the JSON object that ``text`` begins with, and whether it ends in it. Values are skipped: a value may
    be nested or long beyond what a parser bears."""
    keys: list[str] = []
    at, depth, due = 0, 0, ""
    while match := _TOKEN.match(text, at):
        at = match.end()
        string, mark, _ = match.groups()
        if due == ":" and mark != ":":
            break
        if due == "key" and string is None and mark != "}":
            break
        if due == "key" and string is not None:
            try:
                keys.append(str(json.loads(string, strict=False)))
            except ValueError:
                break
            due = ":"
            continue
        due = "key" if depth == 1 and mark == "," else ""
        if mark in ("{", "["):
            depth += 1
            due = "key" if depth == 1 else ""
            if depth > NESTING:
                raise Refusal(f"{shown} is nested too deeply in its first row; at most {NESTING} levels are read.")
        elif mark in ("}", "]"):
            depth -= 1
            if depth == 0:
                return keys, True
    else:
        return keys, False
    raise Refusal(f"{shown} is no valid JSON in its first row (a key is no text, or “:” is missing); correct it.")
