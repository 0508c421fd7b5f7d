"""Data from files and from the hub as examples: one module per format, and the table of them.

:func:`read_source` opens what a recipe's data table names. Keys that every format of files knows: ``path`` (from the
recipe's folder if relative), ``split`` (a file that begins so, or a folder of that name), ``limit`` (at most so many
examples, 0: all) and ``on_error`` (“stop” at a record that can't be used, or “skip” it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.training.data.readers.captioned import read_captions
from model.training.data.readers.chat import read_chat
from model.training.data.readers.easy import read_easy
from model.training.data.readers.llava import read_llava
from model.training.data.readers.rows import read_rows
from model.training.data.readers.source import ExampleSource, Problem
from model.training.synthetic.easy_vqa import EasySet

Reader = Callable[[Mapping[str, Any], Path], ExampleSource | EasySet]

READERS: dict[str, Reader] = {
    "rows": read_rows,
    "llava": read_llava,
    "chat": read_chat,
    "captions": read_captions,
    "easy-vqa": read_easy,
}
"""Every format by the name that recipes use. A further one is one more entry."""

__all__ = ["READERS", "ExampleSource", "Problem", "Reader", "read_source"]


def read_source(spec: Mapping[str, Any], *, base_folder: Path) -> ExampleSource | EasySet:
    """Opens the data that ``spec`` names; relative paths start at ``base_folder``. Pictures stay closed.

    InputError for an unknown source or key, data that can't be read, no usable example, and with on_error “stop” for
    the first record that can't be used.
    """
    name = spec.get("source")
    reader = READERS.get(name) if isinstance(name, str) else None
    if reader is None:
        raise InputError(f"There is no data source {name!r}; allowed are {', '.join(READERS)}.")
    source = reader(spec, base_folder)
    if not len(source):
        first = f" (the first: {source.problems[0]})" if source.problems else ""
        raise InputError(f"“{source.name}” holds no example that can be used{first}.")
    return source
