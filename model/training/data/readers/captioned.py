"""Pictures with captions, as questions whose answer is the caption.

A folder of pairs (``a.png`` and ``a.txt``), a folder with ``metadata.jsonl`` or ``metadata.csv`` as in ``datasets``'
imagefolder (``file_name``, ``text``), or a CSV or JSONL file of that kind anywhere.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.training.data.captions import Endpoint, QuestionCache, choose_phrasing, write_questions
from model.training.data.example import Example
from model.training.data.readers.files import PICTURE_ENDINGS, read_text, resolve_inside, walk_records
from model.training.data.readers.options import Options, check_keys
from model.training.data.readers.source import (
    Draft,
    ExampleSource,
    ProblemList,
    Record,
    RecordError,
    check_record,
    clean_text,
    need_object,
    need_text,
    open_record,
)

KEYS = (
    "path",
    "split",
    "limit",
    "on_error",
    "seed",
    "question",
    "image_column",
    "caption_column",
    "endpoint",
    "endpoint_model",
    "endpoint_key_variable",
    "endpoint_timeout_s",
)
IMAGE_COLUMNS = ("file_name", "image", "image_path", "path", "filename")
CAPTION_COLUMNS = ("text", "caption", "description")
METADATA = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class _Pair:
    image: Path
    caption: str
    where: str


def read_captions(spec: Mapping[str, Any], base_folder: Path) -> ExampleSource:
    """One example per picture. The question is ``question`` if given, else one of
    :data:`model.training.data.captions.PHRASINGS` chosen by ``seed`` and the picture's name, else written by the model
    ``endpoint_model`` at ``endpoint`` (all at once, when the source is opened)."""
    check_keys(spec, KEYS)
    options = Options("captions", spec, base_folder)
    path, limit = options.path, options.count("limit")
    split = options.get("split", "")
    if split:
        if not (path / split).is_dir():
            raise InputError(f"“{path.name}” has no folder for the split “{split}”; correct split, or leave it out.")
        path = path / split
    problems = ProblemList(options.on_error)
    pairs: list[_Pair] = []
    for where, found in _walk_pairs(path, options):
        try:
            if isinstance(found, RecordError):
                raise found
            record = check_record(_record(found, "question"))
        except RecordError as error:
            problems.skip(where, error)
            continue
        for note in record.notes:
            problems.note(where, note)
        pairs.append(found)
        if len(pairs) == limit:
            break
    closed = problems.close()
    questions = _questions(pairs, path, options)

    def build(number: int) -> Example:
        return open_record(_record(pairs[number], questions[number]), pairs[number].where)

    return ExampleSource(path.name, range(len(pairs)), build, closed)


def _record(pair: _Pair, question: str) -> Record:
    return Record((Draft("user", question, (pair.image,)), Draft("assistant", pair.caption, family="caption")))


def _questions(pairs: list[_Pair], path: Path, options: Options) -> list[str]:
    question, url = options.get("question", ""), options.get("endpoint", "")
    if question and url:
        raise InputError("A source of captions has a question and an endpoint; leave out one of them.")
    if not url:
        for key in ("endpoint_model", "endpoint_key_variable", "endpoint_timeout_s"):
            if key in options.values:
                raise InputError(f"{key} is set and endpoint is not; name the server's address in endpoint.")
        seed = options.seed
        return [question or choose_phrasing(pair.image.name, seed) for pair in pairs]
    endpoint = Endpoint(
        url,
        options.get("endpoint_model", ""),
        options.get("endpoint_key_variable", ""),
        options.number("endpoint_timeout_s", 60.0, 0.1, 3600.0),
    )
    beside = path / "questions.jsonl" if path.is_dir() else path.with_name(path.name + ".questions.jsonl")
    return write_questions(endpoint, [pair.caption for pair in pairs], QuestionCache(beside))


def _walk_pairs(path: Path, options: Options) -> Iterator[tuple[str, _Pair | RecordError]]:
    """Every pair with its place, or what is wrong with it."""
    if path.is_dir():
        metadata = [path / name for name in METADATA if (path / name).is_file()]
        if len(metadata) > 1:
            raise InputError(f"“{path.name}” has metadata.jsonl and metadata.csv; delete one, or name it as the path.")
        if not metadata:
            yield from _walk_folder(path)
            return
        path = metadata[0]
    if path.suffix.lower() == ".csv":
        rows = _walk_csv(path)
    elif path.suffix.lower() in (".jsonl", ".json"):
        rows = ((str(place), value) for place, value in walk_records(path))
    else:
        raise InputError(f"“{path.name}” can't be read as captions; allowed are a folder, .csv, .jsonl and .json.")
    for where, row in rows:
        try:
            if isinstance(row, RecordError):
                raise row
            entry = need_object(row, "the record")
            name = _field(entry, options.get("image_column", ""), IMAGE_COLUMNS, "image")
            caption = _field(entry, options.get("caption_column", ""), CAPTION_COLUMNS, "caption")
            yield where, _Pair(resolve_inside(path.parent, name), caption.strip(), where)
        except RecordError as error:
            yield where, error


def _field(entry: Mapping[str, Any], chosen: str, usual: tuple[str, ...], what: str) -> str:
    column = chosen or next((name for name in usual if name in entry), "")
    if column not in entry:
        names = ", ".join(str(name) for name in list(entry)[:8] if name is not None)
        raise RecordError(
            f"it has no column “{chosen}”, it has {names}"
            if chosen
            else f"it has no {what} column; the usual names are {', '.join(usual)}, it has {names} (set {what}_column)"
        )
    return need_text(entry[column], f"“{column}”")


def _walk_csv(file: Path) -> Iterator[tuple[str, Mapping[str, Any] | RecordError]]:
    """Rows by the header's names. The place is the line on which a row begins: a quoted caption may span several."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        where = f"{file.name} line {reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield where, RecordError(f"it is no valid CSV ({error}), and nothing after it is read")
            return
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [cell.strip() for cell in row]
            if len(set(header)) < len(header):
                raise InputError(f"{where}: two columns share a name ({', '.join(header)}); give each its own.")
            continue
        if len(row) != len(header):
            yield where, RecordError(f"it has {len(row)} cells and the header names {len(header)}")
            continue
        yield where, dict(zip(header, row, strict=True))
    if header is None:
        raise InputError(f"“{file.name}” holds no line; its first line must name the columns.")


def _walk_folder(folder: Path) -> Iterator[tuple[str, _Pair | RecordError]]:
    """Pictures and the .txt files of the same name, sorted by name, in sub-folders too."""
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_ENDINGS and file.is_file())
    if not pictures:
        raise InputError(
            f"The folder “{folder.name}” holds no picture ({', '.join(sorted(PICTURE_ENDINGS))}); choose another."
        )
    for picture in pictures:
        where = clean_text(str(picture.relative_to(folder)))
        text = picture.with_suffix(".txt")
        if not text.is_file():
            yield where, RecordError(f"its caption “{text.name}” is not there")
            continue
        try:
            yield where, _Pair(picture, read_text(text).strip(), where)
        except InputError as error:
            yield where, RecordError(str(error).rstrip("."))
