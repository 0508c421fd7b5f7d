"""What LLaVA and chat data have in common: JSON records in files, each checked once when the source is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.training.data.readers.fields import Extras, tell_unread
from model.training.data.readers.files import Place, list_files, walk_records
from model.training.data.readers.options import Options
from model.training.data.readers.pictures import PictureFolder
from model.training.data.readers.source import (
    Draft,
    ProblemList,
    Record,
    RecordError,
    RecordSource,
    check_record,
    need_object,
)

KEYS = ("path", "split", "limit", "on_error", "images")

Parser = Callable[[Mapping[str, Any], PictureFolder], Record]
"""A record's JSON object and the pictures' folder → the record. RecordError if it can't be used."""


def open_folders(options: Options) -> Callable[[Path], PictureFolder]:
    """For a file of records, where its pictures lie: beside it, or in and below the folder “images”. InputError if
    there is no such folder."""
    text = options.get("images", "")
    root = options.base_folder / text if text else None
    if root is not None and not root.is_dir():
        raise InputError(f"There is no folder “{text}” for the images; correct “images”.")

    @lru_cache(maxsize=64)
    def open_folder(beside: Path) -> PictureFolder:
        return PictureFolder(beside, root)

    @lru_cache(maxsize=64)  # asked for every record, and a file's folder takes a while to name
    def folder_of(file: Path) -> PictureFolder:
        return open_folder(file.parent)

    return folder_of


def read_records(options: Options, parse: Parser) -> RecordSource:
    """Every record of the .json and .jsonl files that ``options`` name."""
    path, limit = options.path, options.count("limit")
    folder_of = open_folders(options)
    problems = ProblemList(options.on_error)

    def make(place: Place, value: object) -> Record:
        if isinstance(value, RecordError):
            raise value
        return check_record(parse(need_object(value, "the record"), folder_of(place.file)))

    def locate(place: Place) -> tuple[Record, str]:
        try:
            return make(place, place.read()), str(place)
        except RecordError as error:  # the files changed since they were read
            raise InputError(f"{place}: {error}; read the data again.") from error

    places: list[Place] = []
    records = (
        record
        for file in list_files(path, (".jsonl", ".json"), options.get("split", ""))
        for record in walk_records(file)
    )
    for place, value in records:
        if problems.keep(place, make, place, value):
            places.append(place)
        if limit and len(places) == limit:
            break
    return RecordSource(path.name, places, locate, problems)


def with_system(drafts: Sequence[Draft], extras: Extras, notes: Sequence[str], own: Sequence[Extras] = ()) -> Record:
    """The record with what its own keys say: a system prompt comes first. ``own``: what the keys of its messages say
    beside. RecordError if it is not to be learnt, or has another system prompt."""
    if extras.trained is False:
        raise RecordError("it is not to be learnt, as its own weight, loss or train says")
    notes = (*notes, *tell_unread((extras, *own)))
    if not extras.system:
        return Record(tuple(drafts), notes)
    systems = [draft.text.strip() for draft in drafts if draft.role == "system"]
    if systems and systems[0] != extras.system.strip():
        raise RecordError("it has two system prompts, beside its messages and among them; keep one")
    first = [] if systems else [Draft("system", extras.system)]
    return Record((*first, *drafts), notes)
