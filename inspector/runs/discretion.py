"""What leaves this server about a run, and what does not: no path of this machine, nothing of a person's uploads that
was to be deleted. No gradio here.

Inside a run's folder paths stay as they are, for whoever goes on with the run needs them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from inspector.runs.processes import RUN_FOLDER
from model.training.recipe import Recipe
from model.training.runs import MODEL, without_answers

RUNS = "VLM_INSPECTOR_RUNS"
"""Environment variable: where this server keeps runs."""
UPLOADS, DATA = "uploads", "data"
OWN_PLACES = ("cache", "images", "endpoint", "endpoint_model", "endpoint_key_variable")
"""Keys of a data table that say something about this machine and nothing about the data."""

NOWHERE = Path("/nonexistent")
_ROOT = "/·"
_QUOTED = re.compile(
    r"([“\"'‘`(])(?:file://)?(?:/|~/|[A-Za-z]:[\\/])([^”\"'’`)\n]*[/\\])?([^”\"'’`)\n/\\]*)(?=[”\"'’`)])"
)
_BARE = re.compile(r"(?:file://|(?<![\w/.]))~?/((?:[\w.@+~=·%-]+/)+)([\w.@+~=·%-]*)")
_WINDOWS = re.compile(r"\b[A-Za-z]:\\((?:[\w.@+~=-]+\\)*)([\w.@+~=-]*)")


def hide_paths(text: str) -> str:
    """The text with the last part alone of every path from a root: a file's or a folder's own name. Addresses of the
    net, names such as owner/name and paths that begin nowhere stay."""
    for place in _own_places():
        text = text.replace(place + "/", _ROOT + "/").replace(place, _ROOT + "/" + Path(place).name)
    text = _QUOTED.sub(_keep_quoted, text)
    for pattern in (_BARE, _WINDOWS):
        text = pattern.sub(lambda found: _last(found[1], found[2]), text)
    return text.replace(_ROOT + "/", "").replace("·/", "")


def hide_all_paths(value: Any) -> Any:
    """:func:`hide_paths` in every text of plain values."""
    if isinstance(value, str):
        return hide_paths(value)
    if isinstance(value, Mapping):
        return {key: hide_all_paths(part) for key, part in value.items()}
    return [hide_all_paths(part) for part in value] if isinstance(value, list | tuple) else value


def _keep_quoted(found: re.Match[str]) -> str:
    quote, folders, name = found.groups()
    if not folders and not found[0].startswith(f"{quote}~"):
        return found[0]  # one name behind a stroke, such as “/ask”: no place
    return quote + _last(folders, name)


def _last(folders: str | None, name: str) -> str:
    return name or re.split(r"[/\\]", (folders or "").rstrip("/\\"))[-1]


@cache
def _own_places() -> tuple[str, ...]:
    """Folders of this machine that messages name, the longest first; their names may hold blanks."""
    places = {Path(__file__).parents[2], Path(sys.prefix), Path(tempfile.gettempdir()), Path.home(), Path.cwd()}
    if runs := os.environ.get(RUNS):
        places.add(Path(runs))
    found = {str(path) for place in places for path in (place, place.resolve())}
    return tuple(sorted((place for place in found if place.count("/") > 1), key=len, reverse=True))


def is_path(text: str) -> bool:
    """Whether the text names a place from a root, on any system."""
    return text.startswith("~") or PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()


def share_recipe(recipe: Recipe, uploads: Path, base: str) -> str:
    """The recipe as TOML for whoever takes the run away: data are named as they lay in the upload, in the folder
    ``uploads``, and other files by their names, so that it can be read again beside them. ``base``: see
    :func:`name_base`."""

    def shared(tables: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
        return tuple(
            {
                key: name_data(value, uploads) if isinstance(value, str) and is_path(value) else value
                for key, value in table.items()
                if key not in OWN_PLACES
            }
            for table in tables
        )

    stages = tuple(
        dataclasses.replace(stage, data=shared(stage.data), held_out=shared(stage.held_out)) for stage in recipe.stages
    )
    parts = recipe.parts
    if parts is not None:
        named = {name: getattr(parts, name) for name in ("vision", "language")}
        named = {name: name_data(source, NOWHERE) if is_path(source) else source for name, source in named.items()}
        parts = dataclasses.replace(parts, **named)
    # From no folder: what is named now lies beside the recipe, wherever that will be.
    return dataclasses.replace(recipe, base=base, parts=parts, stages=stages, folder=NOWHERE).to_toml()


def name_data(path: str, uploads: Path) -> str:
    """A file of an upload by its place in it, any other by its name."""
    for root in {uploads, uploads.resolve()}:
        if Path(path).is_relative_to(root):
            parts = Path(path).relative_to(root).parts[1:]  # without the upload's own folder
            parts = parts[1:] if len(parts) > 1 and parts[0] == DATA else parts
            return "/".join(parts) or "."
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def name_base(base: str, fingerprint: str | None) -> str:
    """What a run began from: a folder by its name, another run's model by its weights, for a run's id is a secret."""
    if Path(base).parts[-2:] == (RUN_FOLDER, MODEL):
        return f"run #{fingerprint[:8]}" if fingerprint else "run"
    return Path(base).name if is_path(base) or Path(base).is_dir() else base


def has_uploads(recipe: Recipe) -> bool:
    """Whether a run learns from files, which somebody brought."""
    tables = [table for stage in recipe.stages for table in (*stage.data, *stage.held_out)]
    return any(is_path(str(table.get("path", ""))) for table in tables)


def share_metrics(text: str, uploads: bool) -> str:
    """What a run said, line by line; ``uploads``: without the texts of held-out answers, which are the data's. Lines
    that a crash cut off are left out."""
    lines = []
    for line in text.split("\n"):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            event = without_answers(event) if uploads else event
            lines.append(json.dumps(_share(event), ensure_ascii=False))
    # Half a character, which a damaged line may hold, can't be written down.
    return "".join(line + "\n" for line in lines).encode("utf-8", "replace").decode()


def share_config(text: str) -> str:
    """A JSON file about a model without the places that its makers loaded it from. ValueError if it is no JSON
    object."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    kept = {
        key: name_data(value, NOWHERE) if isinstance(value, str) and is_path(value) else value
        for key, value in values.items()
    }
    return text if kept == values else json.dumps(kept, indent=4, ensure_ascii=False)


def _share(value: Any) -> Any:
    if isinstance(value, Mapping):
        # Answers are texts of the data and of the model: what looks like a path there is none of ours.
        return {_share(key): entry if key == "answers" else _share(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_share(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return name_data(value, NOWHERE) if is_path(value) and "\n" not in value and Path(value).name else hide_paths(value)
