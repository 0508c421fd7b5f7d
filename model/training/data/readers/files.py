"""Text files of records, read with the place of every one, and files inside a data set's folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.training.data.readers.source import RecordError, clean_text

_BLANKS = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Place:
    """A record in a file: ``number`` counts from 1, lines in JSONL and records in JSON. It is read again from byte
    ``offset``, ``size`` bytes of it (0: a line)."""

    file: Path
    number: int
    line: int
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        name = clean_text(self.file.name)
        if self.file.suffix.lower() == ".json":
            return f"{name} record {self.number} (line {self.line})"
        return f"{name} line {self.line}"

    def read(self) -> Any:
        """The record's JSON value. RecordError if it is none (any more)."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size) if self.size else file.readline()
        except OSError as error:
            raise RecordError(f"the file can't be read any more ({error.strerror})") from error
        return parse_line(data)


def walk_records(file: Path) -> Iterator[tuple[Place, Any | RecordError]]:
    """Every record of a .jsonl or .json file with its place: the value, or what is wrong with it. InputError if the
    file can't be read, is empty, or is no list of records."""
    found = False
    walk = _walk_json if file.suffix.lower() == ".json" else _walk_lines
    for item in walk(file):
        found = True
        yield item
    if not found:
        raise InputError(f"“{file.name}” holds no record; check that it is the right file.")


def _walk_lines(file: Path) -> Iterator[tuple[Place, Any | RecordError]]:
    offset = 0
    check_start(file)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            start, offset = offset, offset + len(line)
            if not line.strip(b" \t\r\n\xef\xbb\xbf"):
                continue
            place = Place(file, number, number, start)
            try:
                value = parse_line(line)
            except RecordError as error:
                yield place, error
            else:
                yield place, value


def _walk_json(file: Path) -> Iterator[tuple[Place, Any | RecordError]]:
    """A JSON list, item by item: so the place of a fault is known, and what comes before it can be used."""
    text = read_text(file)
    decoder = json.JSONDecoder()
    at = _skip_blanks(text, 0)
    if text[at : at + 1] != "[":
        raise InputError(f"“{file.name}” does not begin with “[”; it must be a JSON list of records (or use .jsonl).")
    at, line, number, counted = _skip_blanks(text, at + 1), 1, 0, 0
    offset = _mark_size(file)
    while text[at : at + 1] != "]":
        number += 1
        line, offset, counted = line + text.count("\n", counted, at), offset + _size(text, counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield (
                Place(file, number, line, offset),
                RecordError(f"it is cut off or no valid JSON ({_reason(error)}), and nothing after it is read"),
            )
            return
        place = Place(file, number, line, offset, _size(text, counted, at))
        if value is None:
            yield place, RecordError("it is null; it must be an object with named fields")
        else:
            yield place, value
        at = _skip_blanks(text, at)
        if text[at : at + 1] == ",":
            at = _skip_blanks(text, at + 1)
        elif text[at : at + 1] != "]":
            cut = "the file ends" if at >= len(text) else f"“{text[at]}” comes"
            yield place, RecordError(f"{cut} after it where a comma or “]” is due, and nothing after it is read")
            return
    if (end := _skip_blanks(text, at + 1)) < len(text):
        place = Place(file, number + 1, text.count("\n", 0, end) + 1)
        yield place, RecordError("it stands behind the end of the list, where nothing is read")


def _skip_blanks(text: str, at: int) -> int:
    return _BLANKS.match(text, at).end()  # type: ignore[union-attr]


def _size(text: str, start: int, stop: int) -> int:
    return stop - start if text.isascii() else len(text[start:stop].encode("utf-8"))


def _mark_size(file: Path) -> int:
    """Bytes of the mark that some programs write before UTF-8."""
    with file.open("rb") as stream:
        return 3 if stream.read(3) == b"\xef\xbb\xbf" else 0


def parse_line(line: bytes) -> Any:
    """The JSON value of a line. RecordError if it is cut off, no JSON, or not UTF-8."""
    try:
        return json.loads(line.decode("utf-8-sig").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise RecordError(f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"it is cut off or no valid JSON ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.lower().removesuffix(' at')} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def check_start(file: Path) -> None:
    """InputError if the file can't be read, is empty, or is UTF-16 or UTF-32."""
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise InputError(f"“{file.name}” can't be read ({error.strerror}); choose another file.") from error
    if not start:
        raise InputError(f"“{file.name}” is empty (0 bytes); choose another file.")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
        raise InputError(f"“{file.name}” is UTF-16 or UTF-32 text; save it as UTF-8.")


def read_text(file: Path) -> str:
    """The file's text without a byte-order mark. InputError with the line of the first byte that is not UTF-8."""
    check_start(file)
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"“{file.name}” line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8."
        ) from error


def is_hidden(file: Path, folder: Path) -> bool:
    """Whether a name on the way from ``folder`` to the file begins with a dot, or it is what macOS puts into archives:
    copies of editors, notes of file systems. None of it is data."""
    return any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(folder).parts)


def walk_files(folder: Path) -> list[Path]:
    """The files in ``folder`` and below it that are not hidden, sorted."""
    return sorted(file for file in folder.rglob("*") if not is_hidden(file, folder) and file.is_file())


def list_files(path: Path, endings: tuple[str, ...], split: str = "") -> list[Path]:
    """``path`` itself, or the files in the folder ``path`` that end so, sorted; with ``split`` those whose name
    begins with it or that lie in a folder of that name. InputError if there is none."""
    if path.is_file():
        if path.suffix.lower() not in endings:
            raise InputError(f"“{path.name}” can't be read as data; allowed are {', '.join(endings)}.")
        return [path]
    files = [file for file in walk_files(path) if file.suffix.lower() in endings]
    if not files:
        raise InputError(f"The folder “{path.name}” holds no {' or '.join(endings)} file; choose another folder.")
    if not split:
        return files
    chosen = [file for file in files if _is_split(file.relative_to(path), split)]
    if not chosen:
        names = ", ".join(str(file.relative_to(path)) for file in files[:5])
        raise InputError(
            f"No file in “{path.name}” belongs to the split “{split}” (there are {names}); "
            "a split's files begin with its name or lie in a folder of that name."
        )
    return chosen


def _is_split(file: Path, split: str) -> bool:
    following = file.name[len(split) : len(split) + 1]
    return split in file.parts[:-1] or (file.name.startswith(split) and not following.isalnum())
