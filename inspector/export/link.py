"""What an address of the page names, so that whoever opens it sees the same again.

Small things stand in it as they are; images under an id, see :mod:`inspector.images.link_shelf`. A name that opens a
single person's model is never written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import Any
from urllib.parse import urlencode

from inspector.bounds import Bounds
from inspector.row.ask import GenerationSettings
from inspector.row.prompt import LAYOUTS
from model import InputError

LONGEST = 6000
"""Characters of an address that every browser, server and mail program takes."""
SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")


@dataclass(frozen=True)
class ViewLink:
    """``example``: the name of the one whose images these are, ``images``: the id of others. ``turns``: questions with
    the answers that a person gave. ``first`` and ``token`` are the selected stretch's ends. What is None or empty is
    left to the page."""

    model: str = ""
    example: str = ""
    images: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    layout: str = "images-first"
    document_mask: bool = False
    settings: GenerationSettings | None = None
    tab: str = ""
    first: int | None = None
    token: int | None = None
    layer: str = ""
    head: str = ""

    @property
    def has_prompt(self) -> bool:
        return bool(self.turns)

    def write(self) -> str:
        """The address from its “?” on. InputError if it is too long."""
        usual = ViewLink()
        pairs = [
            (name, str(value))
            for name in ("model", "example", "images", "layout", "tab", "first", "token", "layer", "head")
            if (value := getattr(self, name)) != getattr(usual, name)
        ]
        pairs += [("mask", "1")] if self.document_mask else []
        for number, (question, answer) in enumerate(self.turns, start=1):
            pairs += [(f"ask{number}", question), *([(f"answer{number}", answer)] if answer else [])]
        if self.settings is not None:
            pairs += [(name, f"{getattr(self.settings, name):g}") for name in SETTINGS]
        written = f"?{urlencode(pairs)}"
        if len(written) > LONGEST:
            raise InputError(
                f"This prompt makes a link of {len(written):,} characters, and at most {LONGEST:,} get through "
                "everywhere; take it along as a zip (Command), or ask shorter questions."
            )
        return written


def read_link(values: Mapping[str, str], bounds: Bounds) -> ViewLink:
    """What an address names; ``values`` by their names. InputError for what no link of ours has, or is beyond the
    server's ``bounds``."""
    texts = {field.name: values[field.name] for field in fields(ViewLink) if field.name in _TEXTS & set(values)}
    if (layout := texts.get("layout", LAYOUTS[0])) not in LAYOUTS:
        raise InputError(f"The link asks for the layout “{layout[:40]}”; there are {', '.join(LAYOUTS)}.")
    numbered = takewhile(lambda number: f"ask{number}" in values, range(1, bounds.turns + 1))
    turns = tuple((values[f"ask{number}"], values.get(f"answer{number}", "")) for number in numbered)
    numbers = {name: _read_whole(name, values[name]) for name in ("first", "token") if name in values}
    settings = None
    if all(name in values for name in SETTINGS):
        asked: dict[str, Any] = {name: _read_number(name, values[name]) for name in SETTINGS}
        settings = GenerationSettings(**asked, bounds=bounds)
    return ViewLink(**texts, turns=turns, document_mask=values.get("mask") == "1", settings=settings, **numbers)  # type: ignore[arg-type]


_TEXTS = {"model", "example", "images", "layout", "tab", "layer", "head"}


def _read_whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InputError(f"The link has “{text[:40]}” for “{name}”; it takes a whole number.")
    return int(text)


def _read_number(name: str, text: str) -> int | float:
    try:
        number = float(text[:40])
    except ValueError:
        raise InputError(f"The link has “{text[:40]}” for “{name}”; it takes a number.") from None
    return int(number) if number.is_integer() else number
