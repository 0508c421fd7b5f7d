"""The keys of a data table that readers understand, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from model.errors import InputError
from model.ranges import MAX_SEED, Range
from model.values import name_value

T = TypeVar("T")

OnError = Literal["stop", "skip"]
MAX_COUNT = 10_000_000
"""Of examples, of pictures and of whatever else a table counts."""
MAX_TURNS = 1_000


@dataclass(frozen=True)
class Options:
    """Typed access to one data table."""

    source: str
    values: Mapping[str, Any]
    base_folder: Path

    def get(self, key: str, default: T) -> T:
        """The value of ``key``, of the default's type. InputError if it has another."""
        value = self.values.get(key, default)
        kind = type(default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
            raise InputError(f"{key} of the source “{self.source}” is {name_value(value)}; it must be {names[kind]}.")
        return kind(value)  # type: ignore[call-arg]

    def count(self, key: str, default: int = 0, least: int = 0, most: int = MAX_COUNT) -> int:
        """A whole number from ``least`` to ``most``."""
        value = self.get(key, default)
        if not (allowed := Range(least, most)).holds(value):
            raise InputError(f"{key} of the source “{self.source}” {allowed.refuse(value)}.")
        return value

    def number(self, key: str, default: float, least: float, most: float) -> float:
        """A number from ``least`` to ``most``."""
        value = self.values.get(key, default)
        if not (allowed := Range(least, most, whole=False)).holds(value):
            raise InputError(f"{key} of the source “{self.source}” {allowed.refuse(value)}.")
        return float(value)

    @property
    def seed(self) -> int:
        return self.count("seed", most=MAX_SEED)

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        """One of ``allowed``."""
        value = self.get(key, default)
        if value not in allowed:
            names = ", ".join(allowed)
            raise InputError(f"{key} of the source “{self.source}” is “{value[:60]}”; allowed are {names}.")
        return value

    @property
    def on_error(self) -> str:
        return self.choice("on_error", ("stop", "skip"), "stop")

    @property
    def path_text(self) -> str:
        text = self.get("path", "")
        if not text:
            raise InputError(f"The source “{self.source}” needs a path; name the file or folder of its data.")
        return text

    @property
    def path(self) -> Path:
        """What ``path`` names, from the recipe's folder if it is relative. InputError if there is nothing."""
        path = self.base_folder / self.path_text
        if not is_there(path):
            raise InputError(f"There is no file or folder “{self.path_text[-200:]}”; correct the path of the data.")
        return path


def is_there(path: Path) -> bool:
    """Whether there is something of this name; what can be no name (a zero byte, thousands of letters) is nowhere."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def check_keys(values: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """InputError that names unknown keys and the allowed ones."""
    unknown = sorted(set(values) - set(allowed) - {"source"})
    if unknown:
        names = ", ".join(f"“{key[:40]}”" for key in unknown[:6])
        raise InputError(
            f"The source “{values.get('source')}” does not know {names}; its keys are {', '.join(allowed)}."
        )
