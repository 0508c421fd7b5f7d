"""What LLaVA and chat data have in common: JSON records in files, each checked once when the source is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.training.data.example import Example
from model.training.data.readers.files import Place, list_files, walk_records
from model.training.data.readers.options import Options
from model.training.data.readers.source import (
    ExampleSource,
    ProblemList,
    Record,
    RecordError,
    check_record,
    need_object,
    open_record,
)

KEYS = ("path", "split", "limit", "on_error", "images")

Parser = Callable[[Mapping[str, Any], Path], Record]
"""A record's JSON object and the pictures' folder → the record. RecordError if it can't be used."""


def read_records(options: Options, parse: Parser) -> ExampleSource:
    """Every record of the .json and .jsonl files that ``options`` name. Pictures lie in the folder ``images``, or
    beside the file that names them."""
    path, limit = options.path, options.count("limit")
    images_text = options.get("images", "")
    images = options.base_folder / images_text if images_text else None
    if images is not None and not images.is_dir():
        raise InputError(f"There is no folder “{images_text}” for the images; correct “images”.")
    problems = ProblemList(options.on_error)

    def make(place: Place, value: object) -> Record:
        return check_record(parse(need_object(value, "the record"), images or place.file.parent))

    def build(place: Place) -> Example:
        try:
            return open_record(make(place, place.read()), str(place))
        except RecordError as error:  # the files changed since they were read
            raise InputError(f"{place}: {error}; read the data again.") from error

    places: list[Place] = []
    for file in list_files(path, (".jsonl", ".json"), options.get("split", "")):
        for place, value in walk_records(file):
            try:
                if isinstance(value, RecordError):
                    raise value
                record = make(place, value)
            except RecordError as error:
                problems.skip(str(place), error)
                continue
            for note in record.notes:
                problems.note(str(place), note)
            places.append(place)
            if len(places) == limit:
                return ExampleSource(path.name, places, build, problems.close())
    return ExampleSource(path.name, places, build, problems.close())
