"""Pictures with captions, as questions whose answer is the caption.

A folder of pairs (``a.png`` and ``a.txt``), one with ``metadata.jsonl``, ``metadata.csv`` or ``metadata.parquet`` in it
or in its folders, as in ``datasets``' imagefolder (``file_name``, ``text``), or a file of that kind anywhere.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.training.data.captions import Endpoint, QuestionCache, choose_phrasing, write_questions
from model.training.data.readers.fields import read_extras, tell_unread
from model.training.data.readers.files import read_text, walk_files, walk_records
from model.training.data.readers.options import Options, check_keys
from model.training.data.readers.pictures import OTHER_ENDINGS, PICTURE_ENDINGS, PictureFolder
from model.training.data.readers.records import open_folders
from model.training.data.readers.source import (
    Draft,
    ProblemList,
    Record,
    RecordError,
    RecordSource,
    Stored,
    check_record,
    clean_text,
    need_object,
    need_text,
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
    "images",
)
IMAGE_COLUMNS = ("file_name", "image", "image_path", "path", "filename", "image_name")
CAPTION_COLUMNS = ("text", "caption", "description", "comment")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
DELIMITERS = "\t;|"
_DELIMITER_LINE = re.compile(r"sep=([,;|\t])\r?\n")
"""With this line spreadsheets tell one another how cells are parted."""
TALKS = {"conversations": "llava", "messages": "chat", "texts": "rows"}
"""What conversations are called, and which source reads them."""


@dataclass(frozen=True)
class _Pair:
    image: Stored
    caption: str
    where: str
    name: str
    notes: tuple[str, ...] = ()


def read_captions(spec: Mapping[str, Any], base_folder: Path) -> RecordSource:
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

    def check(found: _Pair | RecordError) -> Record:
        if isinstance(found, RecordError):
            raise found
        return check_record(_record(found, "question"))

    for where, found in _walk_pairs(path, options, problems):
        if problems.keep(where, check, found) and isinstance(found, _Pair):
            pairs.append(found)
        if limit and len(pairs) == limit:
            break
    problems.close()  # nobody is asked for questions about data that will be refused
    questions = _questions(pairs, path, options)

    def locate(number: int) -> tuple[Record, str]:
        return _record(pairs[number], questions[number]), pairs[number].where

    return RecordSource(path.name, range(len(pairs)), locate, problems)


def _record(pair: _Pair, question: str) -> Record:
    drafts = Draft("user", question, (pair.image,)), Draft("assistant", pair.caption, family="caption")
    return Record(drafts, pair.notes)


def _questions(pairs: list[_Pair], path: Path, options: Options) -> list[str]:
    question, url = options.get("question", ""), options.get("endpoint", "")
    if question and url:
        raise InputError("A source of captions has a question and an endpoint; leave out one of them.")
    if not url:
        for key in ("endpoint_model", "endpoint_key_variable", "endpoint_timeout_s"):
            if key in options.values:
                raise InputError(f"{key} is set and endpoint is not; name the server's address in endpoint.")
        seed = options.seed
        return [question or choose_phrasing(pair.name, seed) for pair in pairs]
    endpoint = Endpoint(
        url,
        options.get("endpoint_model", ""),
        options.get("endpoint_key_variable", ""),
        options.number("endpoint_timeout_s", 60.0, 0.1, 3600.0),
    )
    beside = path / "questions.jsonl" if path.is_dir() else path.with_name(path.name + ".questions.jsonl")
    return write_questions(endpoint, [pair.caption for pair in pairs], QuestionCache(beside))


def _walk_pairs(path: Path, options: Options, problems: ProblemList) -> Iterator[tuple[str, _Pair | RecordError]]:
    """Every pair with its place, or what is wrong with it."""
    if not path.is_dir():
        yield from _walk_table(path, options)
        return
    files = walk_files(path)
    tables = [file for file in files if file.name.lower() in METADATA]
    folders = [table.parent for table in tables]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        both = (table.name for table in tables if table.parent == twice)
        names = " and ".join(sorted(both, key=lambda name: METADATA.index(name.lower())))
        raise InputError(f"“{twice.name}” has {names}; delete one, or name it as the path.")
    if not tables:
        yield from _walk_folder(path, files, problems)
        return
    named: set[Stored] = set()
    for table in tables:
        for where, found in _walk_table(table, options):
            named |= {found.image} if isinstance(found, _Pair) else set()
            yield where, found
    for file in files:
        if file.suffix.lower() in PICTURE_ENDINGS and file not in named:
            problems.note(clean_text(str(file.relative_to(path))), "a picture that no row names is left out")


def _walk_table(path: Path, options: Options) -> Iterator[tuple[str, _Pair | RecordError]]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows = _walk_csv(path)
    elif suffix in (".jsonl", ".json"):
        rows = ((str(place), value) for place, value in walk_records(path))
    elif suffix == ".parquet":
        rows = _walk_parquet(path)
    else:
        raise InputError(
            f"“{path.name}” can't be read as captions; allowed are a folder, .csv, .tsv, .jsonl, .json and .parquet."
        )
    folder = open_folders(options)(path)
    for where, row in rows:
        try:
            if isinstance(row, RecordError):
                raise row
            yield where, _read_pair(need_object(row, "the record"), options, folder, where)
        except RecordError as error:
            yield where, error


def _read_pair(entry: Mapping[str, Any], options: Options, folder: PictureFolder, where: str) -> _Pair:
    talk = next((key for key in TALKS if isinstance(entry.get(key), list)), None)
    if talk is not None:
        raise RecordError(f"it holds “{talk}”, a conversation and no caption; read it with source = “{TALKS[talk]}”")
    image = _field(entry, options.get("image_column", ""), IMAGE_COLUMNS, "image")
    caption = _field(entry, options.get("caption_column", ""), CAPTION_COLUMNS, "caption")
    extras = read_extras(entry, frozenset((image, caption)), "it")
    if extras.pictures and list(extras.pictures) != [entry[image]]:
        raise RecordError(f"it names other images beside “{image}”; a caption belongs to one image")
    if extras.system or extras.trained is False:
        what = "has a system prompt, which a caption can't have" if extras.system else "is not to be learnt, as it says"
        raise RecordError(f"it {what}")
    value = entry[image]
    if not isinstance(value, str | bytes | Mapping):
        need_text(value, f"“{image}”")
    name = Path(value).name if isinstance(value, str) and len(value) < 1000 else where
    text = need_text(entry[caption], f"“{caption}”").strip()
    return _Pair(folder.find(value), text, where, name, tell_unread((extras,)))


def _field(entry: Mapping[str, Any], chosen: str, usual: tuple[str, ...], what: str) -> str:
    """The column's name. RecordError if there is none."""
    column = chosen or next((name for name in usual if name in entry), "")
    if column not in entry:
        names = ", ".join(str(name) for name in list(entry)[:8] if name is not None)
        raise RecordError(
            f"it has no column “{chosen}”, it has {names}"
            if chosen
            else f"it has no {what} column; the usual names are {', '.join(usual)}, it has {names} (set {what}_column)"
        )
    return column


def _walk_parquet(file: Path) -> Iterator[tuple[str, Mapping[str, Any] | RecordError]]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=64)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"{file.name} row {number}", row) for number, row in enumerate(rows, start=1))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"“{file.name}” is no whole parquet file ({str(error)[:200]}); get it again.") from error


def _walk_csv(file: Path) -> Iterator[tuple[str, Mapping[str, Any] | RecordError]]:
    """Rows by the header's names. The place is the line on which a row begins: a quoted caption may span several."""
    text = read_text(file)
    named = _DELIMITER_LINE.match(text)
    delimiter = named[1] if named else "\t" if file.suffix.lower() == ".tsv" else _find_delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    if named:
        next(reader)
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


def _find_delimiter(text: str) -> str:
    """A comma, or where the first line has none another mark that tables are written with."""
    head = text.lstrip().partition("\n")[0]
    return "," if "," in head else next((mark for mark in DELIMITERS if mark in head), ",")


def _walk_folder(
    folder: Path, files: Sequence[Path], problems: ProblemList
) -> Iterator[tuple[str, _Pair | RecordError]]:
    """Pictures and the .txt files of the same name, sorted by name, in sub-folders too. What is neither is told."""
    pictures = [file for file in files if file.suffix.lower() in PICTURE_ENDINGS]
    captions = {file for file in files if file.suffix.lower() == ".txt"}
    if not pictures:
        raise InputError(
            f"The folder “{folder.name}” holds no picture ({', '.join(sorted(PICTURE_ENDINGS))}); choose another."
        )
    for file in files:
        if (ending := file.suffix.lower()) not in PICTURE_ENDINGS and ending != ".txt":
            what = "picture" if ending in OTHER_ENDINGS else "file"
            where = clean_text(str(file.relative_to(folder)))
            problems.note(where, f"a {what} of a kind that isn't read ({clean_text(file.suffix[:20]) or 'no ending'})")
    taken: dict[Path, Path] = {}
    for picture in pictures:
        where = clean_text(str(picture.relative_to(folder)))
        text = next((text for text in _captions_of(picture) if text in captions), None)
        if text is None:
            yield where, RecordError(f"its caption “{picture.with_suffix('.txt').name}” is not there")
            continue
        if text in taken:
            yield where, RecordError(f"its caption “{text.name}” is that of “{taken[text].name}” already")
            continue
        taken[text] = picture
        try:
            yield where, _Pair(picture, read_text(text).strip(), where, picture.name)
        except InputError as error:
            yield where, RecordError(str(error).rstrip("."))
    for text in sorted(captions - taken.keys()):
        problems.note(clean_text(str(text.relative_to(folder))), "a .txt without a picture of its name is left out")


def _captions_of(picture: Path) -> list[Path]:
    """What the caption's file may be called: some systems write an accent apart from its letter."""
    text = picture.with_suffix(".txt")
    names = dict.fromkeys((text.name, *(unicodedata.normalize(form, text.name) for form in ("NFC", "NFD"))))
    return [text.with_name(name) for name in (*names, f"{picture.stem}.TXT")]
