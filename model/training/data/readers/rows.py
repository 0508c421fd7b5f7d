"""nanoVLM's rows, as in the_cauldron and FineVision: ``images`` and ``texts: [{"user": …, "assistant": …}, …]``.

They come from the hub, from parquet or JSONL (a file or a folder), or from a folder that ``save_to_disk`` wrote. The
library ``datasets`` reads all but JSONL; its pictures are kept as bytes until an example is taken. Ratings, one list
per kind and one entry per turn, leave out turns below a threshold, as in nanoVLM (``data/datasets.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.training.data.readers.captioned import CAPTION_COLUMNS
from model.training.data.readers.fields import Extras, read_extras
from model.training.data.readers.files import Place, list_files, walk_records
from model.training.data.readers.options import Options, check_keys, is_there
from model.training.data.readers.pictures import PictureFolder
from model.training.data.readers.places import MARK, check_tags, strip_marks
from model.training.data.readers.records import open_folders, with_system
from model.training.data.readers.source import (
    Draft,
    ProblemList,
    Record,
    RecordError,
    RecordSource,
    check_record,
    describe,
    need_field,
    need_list,
    need_object,
    need_text,
)

RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")
"""What FineVision rates each turn by, from 1 to 5, in columns ``<name>_ratings``."""
KEYS = (
    "path",
    "subset",
    "split",
    "revision",
    "streaming",
    "limit",
    "on_error",
    "token",
    "cache",
    "images",
    *(f"{name}_min_rating" for name in RATINGS),
)
ALL_RATED = "every turn is rated below the thresholds, so it is left out"
ALL_FIRST = "a row's images come before its first question, wherever its <image> marks stand, as in nanoVLM"
SOME_RATED = "turns rated below the thresholds are left out"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OWN = frozenset(("texts", "source", *(f"{name}_ratings" for name in RATINGS)))
"""Columns whose names say nothing of images and the like."""
_TURN = frozenset(("user", "assistant", "source"))


def read_rows(spec: Mapping[str, Any], base_folder: Path) -> RecordSource:
    """``path``: a .parquet or .jsonl file, a folder of them, a saved data set's folder, or a hub id
    (“HuggingFaceM4/the_cauldron”) with ``subset``, ``split`` and ``revision``; with ``streaming`` only the first
    ``limit`` examples are fetched. ``token``: the hub is asked with the token of whoever runs this; without it as
    nobody, so that what is named for a stranger is nothing that only the owner may read. ``cache``: the folder where
    ``datasets`` keeps its copy of parquet files (its own if left out). ``relevance_min_rating`` and the like (default
    1) filter turns."""
    check_keys(spec, KEYS)
    options = Options("rows", spec, base_folder)
    least = {name: options.get(f"{name}_min_rating", 1) for name in RATINGS}
    path = base_folder / options.path_text
    if not is_there(path) and _HUB_ID.fullmatch(options.path_text):
        return _read_hub(options, least)
    for key in ("subset", "revision", "streaming", "token"):
        if spec.get(key):
            raise InputError(f"“{options.path_text}” is on this machine; “{key}” is only for data from the hub.")
    path = options.path
    if path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _read_saved(path, options, least)
    files = list_files(path, (".parquet", ".jsonl"), options.get("split", ""))
    if {file.suffix.lower() for file in files} == {".jsonl"}:
        return _read_lines(path.name, files, options, least)
    if mixed := next((file for file in files if file.suffix.lower() == ".jsonl"), None):
        raise InputError(f"“{path.name}” holds parquet files and “{mixed.name}”; name one file, or part the two.")
    return _read_parquet(path, files, options, least)


def parse_row(row: Mapping[str, Any], least: Mapping[str, int], folder: PictureFolder) -> Record | None:
    """The record of one row; None if the ratings leave no turn. RecordError if the row is malformed."""
    if row.get("images") is not None:
        need_list(row["images"], "“images”")
    extras = read_extras(row, _OWN, "it")
    turns = need_field(row, "texts")
    if not turns:
        raise RecordError("“texts” is empty, so there is nothing to learn from it")
    ratings = {name: _ratings(row, name, len(turns)) for name in RATINGS}
    origin = row.get("source") if isinstance(row.get("source"), str) else ""
    # As in nanoVLM all pictures of the row come first, also when the turn that they came with is left out.
    pending = [folder.find(value) for value in extras.pictures]
    notes: list[str] = []
    drafts: list[Draft] = []
    owns: list[Extras] = []
    kept = 0
    for number, turn in enumerate(turns):
        entry = need_object(turn, f"texts[{number}]")
        question = need_text(entry.get("user"), f"texts[{number}].user")
        answer = need_text(entry.get("assistant"), f"texts[{number}].assistant")
        own = read_extras(entry, _TURN, f"texts[{number}]")
        rated = {name: values[number] for name, values in ratings.items() if values is not None}
        if any(value is not None and value < least[name] for name, value in rated.items()):
            continue
        family = entry.get("source") if isinstance(entry.get("source"), str) else origin
        owns.append(own)
        images = (*pending, *(folder.find(value) for value in own.pictures))
        pending = []
        check_tags(question)
        if MARK in question and (extras.pictures or own.pictures):
            if question.count(MARK) != len(images) or strip_marks(question) != question.replace(MARK, "").strip():
                notes = [ALL_FIRST]
            question = strip_marks(question)
        drafts += [Draft("system", own.system)] if own.system else []
        drafts += [
            Draft("user", question, images),
            Draft("assistant", answer, family=str(family or ""), trained=own.trained),
        ]
        kept += 1
    if not kept:
        return None
    notes += [SOME_RATED] if kept < len(turns) else []
    return check_record(with_system(drafts, extras, notes, owns))


def _ratings(row: Mapping[str, Any], name: str, turns: int) -> list[Any] | None:
    column = f"{name}_ratings"
    if row.get(column) is None:
        return None
    values = need_list(row[column], f"“{column}”")
    if len(values) != turns:
        raise RecordError(f"“{column}” has {len(values)} entries for {turns} turns")
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise RecordError(f"“{column}” holds {describe(value)}; a rating must be a number or missing")
    return values


class _Scan:
    """Goes through rows once and keeps the keys of those that can be used."""

    def __init__(self, options: Options, least: Mapping[str, int]) -> None:
        self.least, self.limit = least, options.count("limit")
        self.problems = ProblemList(options.on_error)

    def parse(self, row: object, folder: PictureFolder) -> Record | None:
        """RecordError if the row can't be used."""
        if isinstance(row, RecordError):
            raise row
        return parse_row(need_object(row, "the row"), self.least, folder)

    def keys(self, rows: Iterable[tuple[Any, str, Any, PictureFolder]]) -> list[Any]:
        """``rows`` are (key, place in words, row or RecordError, where its pictures lie)."""
        keys: list[Any] = []
        for key, where, row, folder in rows:
            if self.problems.keep(where, self._check, row, folder, where):
                keys.append(key)
            if self.limit and len(keys) == self.limit:
                break
        return keys

    def _check(self, row: object, folder: PictureFolder, where: str) -> Record | None:
        record = self.parse(row, folder)
        if record is None:
            self.problems.leave(where, ALL_RATED)
        return record

    def locate(self, row: object, folder: PictureFolder, where: str) -> tuple[Record, str]:
        """The record of a row that could be used. InputError if it can't any more."""
        try:
            record = self.parse(row, folder)
        except RecordError as error:
            raise InputError(f"{where}: {error}; read the data again, they have changed.") from error
        if record is None:
            raise InputError(f"{where}: {ALL_RATED}; read the data again, they have changed.")
        return record, where


def _read_lines(name: str, files: Sequence[Path], options: Options, least: Mapping[str, int]) -> RecordSource:
    scan, folder_of = _Scan(options, least), open_folders(options)
    rows = ((place, str(place), value, folder_of(place.file)) for file in files for place, value in walk_records(file))
    keys = scan.keys(rows)

    def locate(place: Place) -> tuple[Record, str]:
        try:
            row = place.read()
        except RecordError as error:
            raise InputError(f"{place}: {error}; read the data again, they have changed.") from error
        return scan.locate(row, folder_of(place.file), str(place))

    return RecordSource(name, keys, locate, scan.problems)


def _read_parquet(path: Path, files: Sequence[Path], options: Options, least: Mapping[str, int]) -> RecordSource:
    import datasets
    import pyarrow
    import pyarrow.parquet

    # Files of one data set may differ in columns that nobody reads here; those that are alike are read together.
    groups: dict[str, list[tuple[Path, int]]] = {}
    for file in files:
        try:
            facts = pyarrow.parquet.ParquetFile(file)
            if facts.metadata.num_rows:  # the library fails on a file without any
                groups.setdefault(str(facts.schema_arrow.remove_metadata()), []).append((file, facts.metadata.num_rows))
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"“{file.name}” is no whole parquet file ({_first_line(error)}); get it again.") from error
    if not groups:
        raise InputError(f"“{path.name}” holds no row; choose other data.")
    parts: list[_Part] = []
    folder_of = open_folders(options)
    for group in groups.values():
        with _quiet(datasets), _explained(path.name):
            table = datasets.load_dataset(
                "parquet",
                data_files=[escape(str(file)) for file, _ in group],
                split="train",
                cache_dir=options.get("cache", "") or None,
            )
        first = 0
        for file, count in group:
            parts.append(_Part(table, first, count, file.name, folder_of(path / "-" if path.is_dir() else path)))
            first += count
    order = {file.name: number for number, file in enumerate(files)}
    return _read_table(path.name, sorted(parts, key=lambda part: order[part.name]), options, least)


def _read_saved(path: Path, options: Options, least: Mapping[str, int]) -> RecordSource:
    import datasets

    with _explained(path.name):
        table = datasets.load_from_disk(str(path))
    split = options.get("split", "")
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            what = f"no split “{split}”" if split else "several splits and none is chosen"
            raise InputError(f"“{path.name}” has {what}; set split to {' or '.join(table)}.")
        table = table[split]
    elif split:
        raise InputError(f"“{path.name}” has no splits; leave out split = “{split}”.")
    return _read_table(path.name, [_Part(table, 0, len(table), path.name, PictureFolder(path))], options, least)


def _read_hub(options: Options, least: Mapping[str, int]) -> RecordSource:
    import datasets

    name, subset = options.path_text, options.get("subset", "")
    split, streaming = options.get("split", "") or "train", options.get("streaming", False)
    full = f"{name} {subset}".strip() + f" {split}"
    if streaming and not options.count("limit"):
        raise InputError("streaming needs a limit, the number of examples to fetch; set one, or leave out streaming.")
    # None is the token of the environment or of a file; False is none at all.
    token = None if options.get("token", False) else False
    with _explained(full):
        table = datasets.load_dataset(
            name,
            subset or None,
            split=split,
            revision=options.get("revision", "") or None,
            streaming=streaming,
            token=token,
        )
    nowhere = PictureFolder(None)  # a path in data from elsewhere must not open a file of this machine
    if not streaming:
        return _read_table(full, [_Part(table, 0, len(table), full, nowhere)], options, least)
    scan = _Scan(options, least)
    fetched: dict[int, Any] = {}
    table = _as_bytes(table)

    def rows() -> Iterator[tuple[int, str, Any, PictureFolder]]:
        for number, row in enumerate(table):
            fetched[number] = row
            yield number, f"{full} row {number + 1}", row, nowhere

    with _explained(full):
        keys = scan.keys(rows())
    kept = {number: fetched[number] for number in keys}
    return RecordSource(
        full, keys, lambda number: scan.locate(kept[number], nowhere, f"{full} row {number + 1}"), scan.problems
    )


@dataclass(frozen=True)
class _Part:
    """``count`` rows of a table of ``datasets``, from row ``first`` on: those of the file ``name``."""

    table: Any
    first: int
    count: int
    name: str
    folder: PictureFolder


def _read_table(name: str, parts: Sequence[_Part], options: Options, least: Mapping[str, int]) -> RecordSource:
    names = list(dict.fromkeys(column for part in parts for column in part.table.column_names))
    if not any("texts" in part.table.column_names for part in parts):
        captions = "; read it as captions" if set(CAPTION_COLUMNS) & set(names) else ""
        raise InputError(f"“{name}” has the columns {', '.join(names)}; rows need “texts” (and “images”){captions}.")
    # Pictures are kept as they are stored, and columns of numbers and labels stay where they are.
    tables = {id(part.table): _as_bytes(part.table) for part in parts}
    scan = _Scan(options, least)

    def rows() -> Iterator[tuple[tuple[_Part, int], str, Any, PictureFolder]]:
        for part in parts:
            chosen = range(part.first, part.first + part.count)
            for number, row in enumerate(tables[id(part.table)].select(chosen)):
                yield (part, number), f"{part.name} row {number + 1}", row, part.folder

    with _explained(name):
        keys = scan.keys(rows())

    def locate(key: tuple[_Part, int]) -> tuple[Record, str]:
        part, number = key
        with _explained(name):
            row = tables[id(part.table)][part.first + number]
        return scan.locate(row, part.folder, f"{part.name} row {number + 1}")

    return RecordSource(name, keys, locate, scan.problems)


def _as_bytes(table: Any) -> Any:
    """The table with its pictures, and whatever else would be decoded, as stored: :func:`model.open_image` opens them
    like any other."""
    import datasets

    for name, feature in (table.features or {}).items():
        if hasattr(feature, "decode"):
            table = table.cast_column(name, type(feature)(decode=False))
        elif isinstance(feature, datasets.List | datasets.LargeList) and hasattr(feature.feature, "decode"):
            table = table.cast_column(name, type(feature)(type(feature.feature)(decode=False)))
    return table


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Whatever ``datasets`` says, as one sentence: its formats, file systems and the net fail in their own ways."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The data “{name}” can't be read ({type(error).__name__}: {_first_line(error)}); check the name, the "
            "subset and the split, and that the data are whole and can be reached."
        ) from error


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No progress bar while local files are converted: it would stand between the lines of a program's output."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")[:200]
