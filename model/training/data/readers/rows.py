"""nanoVLM's rows, as in the_cauldron and FineVision: ``images`` and ``texts: [{"user": …, "assistant": …}, …]``.

They come from the hub, from parquet or JSONL (a file or a folder), or from a folder that ``save_to_disk`` wrote. The
library ``datasets`` reads all but JSONL; its pictures are kept as bytes until an example is taken. Ratings, one list
per kind and one entry per turn, leave out turns below a threshold, as in nanoVLM (``data/datasets.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, cast

from model.errors import InputError
from model.training.data.example import Example
from model.training.data.readers.files import Place, find_picture, list_files, walk_records
from model.training.data.readers.options import Options, check_keys, is_there
from model.training.data.readers.source import (
    Draft,
    ExampleSource,
    ProblemList,
    Record,
    RecordError,
    Stored,
    check_record,
    describe,
    need_list,
    need_object,
    need_text,
    open_record,
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
    *(f"{name}_min_rating" for name in RATINGS),
)
ALL_RATED = "every turn is rated below the thresholds, so it is left out"
SOME_RATED = "turns rated below the thresholds are left out"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_RATING_COLUMNS = tuple(f"{name}_ratings" for name in RATINGS)
_COLUMNS = ("images", "texts", "source", *_RATING_COLUMNS)


def read_rows(spec: Mapping[str, Any], base_folder: Path) -> ExampleSource:
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


def parse_row(row: Mapping[str, Any], least: Mapping[str, int], folder: Path | None) -> Record | None:
    """The record of one row; None if the ratings leave no turn. Pictures of ``folder`` may be named by their files;
    None: only their bytes are taken. RecordError if the row is malformed."""
    images = row.get("images")
    pictures = [_picture(image, folder) for image in ([] if images is None else need_list(images, "“images”"))]
    turns = need_list(row.get("texts"), "“texts”")
    if not turns:
        raise RecordError("“texts” is empty, so there is nothing to learn from it")
    ratings = {name: _ratings(row, name, len(turns)) for name in RATINGS}
    origin = row.get("source") if isinstance(row.get("source"), str) else ""
    drafts: list[Draft] = []
    kept = 0
    for number, turn in enumerate(turns):
        entry = need_object(turn, f"texts[{number}]")
        question = need_text(entry.get("user"), f"texts[{number}].user")
        answer = need_text(entry.get("assistant"), f"texts[{number}].assistant")
        rated = {name: values[number] for name, values in ratings.items() if values is not None}
        if any(value is not None and value < least[name] for name, value in rated.items()):
            continue
        family = entry.get("source") if isinstance(entry.get("source"), str) else origin
        # As in nanoVLM all pictures come first, also when the turn that they came with is left out.
        drafts += [
            Draft("user", question, () if kept else tuple(pictures)),
            Draft("assistant", answer, family=str(family or "")),
        ]
        kept += 1
    if not kept:
        return None
    return check_record(Record(tuple(drafts), (SOME_RATED,) if kept < len(turns) else ()))


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


def _picture(image: object, folder: Path | None) -> Stored:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Mapping):
        if isinstance(image.get("bytes"), bytes) and image["bytes"]:
            return cast(bytes, image["bytes"])
        image = image.get("path")
    if isinstance(image, str):
        if folder is None and image[:5].lower() != "data:":
            raise RecordError("an image is a file's name without its bytes; data from the hub must hold the bytes")
        return find_picture(folder or Path(), image)
    raise RecordError(f"an image is {describe(image)}; it must be bytes or a file's name")


class _Scan:
    """Goes through rows once and keeps the keys of those that can be used."""

    def __init__(self, options: Options, least: Mapping[str, int]) -> None:
        self.least, self.limit = least, options.count("limit")
        self.problems = ProblemList(options.on_error)

    def keys(self, rows: Iterable[tuple[Any, str, Any]], folder: Path | None) -> list[Any]:
        """``rows`` are (key, place in words, row or RecordError)."""
        keys: list[Any] = []
        for key, where, row in rows:
            try:
                if isinstance(row, RecordError):
                    raise row
                beside = key.file.parent if isinstance(key, Place) else folder
                record = parse_row(need_object(row, "the row"), self.least, beside)
            except RecordError as error:
                self.problems.skip(where, error)
                continue
            if record is None:
                self.problems.note(where, ALL_RATED)
                continue
            for note in record.notes:
                self.problems.note(where, note)
            keys.append(key)
            if len(keys) == self.limit:
                break
        return keys


def _build(row: object, least: Mapping[str, int], folder: Path | None, where: str) -> Example:
    try:
        record = parse_row(need_object(row, "the row"), least, folder)
    except RecordError as error:
        raise InputError(f"{where}: {error}.") from error
    if record is None:
        raise InputError(f"{where}: {ALL_RATED}; read the data again, they have changed.")
    return open_record(record, where)


def _read_lines(name: str, files: Sequence[Path], options: Options, least: Mapping[str, int]) -> ExampleSource:
    scan = _Scan(options, least)
    rows = ((place, str(place), value) for file in files for place, value in walk_records(file))
    keys = scan.keys(rows, None)

    def build(place: Place) -> Example:
        try:
            row = place.read()
        except RecordError as error:
            raise InputError(f"{place}: {error}; read the data again, they have changed.") from error
        return _build(row, least, place.file.parent, str(place))

    return ExampleSource(name, keys, build, scan.problems.close())


def _read_parquet(path: Path, files: Sequence[Path], options: Options, least: Mapping[str, int]) -> ExampleSource:
    import datasets
    import pyarrow
    import pyarrow.parquet

    ends: list[tuple[int, str]] = []  # (number of rows up to and with this file, its name)
    for file in files:
        try:
            count = pyarrow.parquet.read_metadata(file).num_rows
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"“{file.name}” is no whole parquet file ({_first_line(error)}); get it again.") from error
        ends.append(((ends[-1][0] if ends else 0) + count, file.name))
    with _quiet(datasets), _explained(path.name):
        table = datasets.load_dataset(
            "parquet",
            data_files=[escape(str(file)) for file in files],
            split="train",
            cache_dir=options.get("cache", "") or None,
        )

    def where(row: int) -> str:
        before = 0
        for end, name in ends:
            if row < end:
                return f"{name} row {row - before + 1}"
            before = end
        raise IndexError(row)

    folder = path if path.is_dir() else path.parent
    return _read_table(path.name, table, where, folder, options, least)


def _read_saved(path: Path, options: Options, least: Mapping[str, int]) -> ExampleSource:
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
    return _read_table(path.name, table, lambda row: f"{path.name} row {row + 1}", path, options, least)


def _read_hub(options: Options, least: Mapping[str, int]) -> ExampleSource:
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
    if not streaming:
        return _read_table(full, table, lambda row: f"{full} row {row + 1}", None, options, least)
    scan = _Scan(options, least)
    fetched: dict[int, Any] = {}
    table = _as_bytes(table)

    def rows() -> Iterator[tuple[int, str, Any]]:
        for number, row in enumerate(table):
            fetched[number] = row
            yield number, f"{full} row {number + 1}", row

    with _explained(full):
        keys = scan.keys(rows(), None)
    kept = {number: fetched[number] for number in keys}
    return ExampleSource(
        full, keys, lambda number: _build(kept[number], least, None, f"{full} row {number + 1}"), scan.problems.close()
    )


def _read_table(
    name: str, table: Any, where: Any, folder: Path | None, options: Options, least: Mapping[str, int]
) -> ExampleSource:
    """A table of ``datasets``; ``where`` tells the place of a row's number."""
    if "texts" not in table.column_names:
        raise InputError(f"“{name}” has the columns {', '.join(table.column_names)}; rows need “texts” (and “images”).")
    table = _as_bytes(table.select_columns([column for column in _COLUMNS if column in table.column_names]))
    # Bytes of pictures are the bulk of such a table; they are read when an example is taken, not to check its text.
    stored = any(_is_stored(table.features[column]) for column in table.column_names if column == "images")
    checked = table.remove_columns(["images"]) if stored else table
    scan = _Scan(options, least)
    with _explained(name):
        keys = scan.keys(((number, where(number), row) for number, row in enumerate(checked)), folder)

    def build(number: int) -> Example:
        with _explained(name):
            row = table[number]
        return _build(row, least, folder, where(number))

    return ExampleSource(name, keys, build, scan.problems.close())


def _is_stored(feature: Any) -> bool:
    """Whether a column is a list of pictures with their bytes."""
    import datasets

    if not isinstance(feature, datasets.List | datasets.LargeList):
        return False
    item = feature.feature
    return isinstance(item, datasets.Image) or (isinstance(item, Mapping) and "bytes" in item)


def _as_bytes(table: Any) -> Any:
    """The table with its pictures as stored, so that :func:`model.open_image` opens them like any other."""
    import datasets

    features = table.features or {}
    picture = datasets.Image(decode=False)
    for name, feature in features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, picture)
        elif isinstance(feature, datasets.List | datasets.LargeList) and isinstance(feature.feature, datasets.Image):
            table = table.cast_column(name, type(feature)(picture))
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
