"""What a VLM may be put together from on this server: image encoders and language models by name. No gradio here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inspector.runs.discretion import is_path
from model import InputError
from model.backbones import LANGUAGE, VISION
from model.families.checkpoint_files import CONFIG, read_object

EMBEDDED = "embedded"


@dataclass(frozen=True)
class PartShelf:
    """``vision`` and ``language``: where each part lies, by the name that people read. ``anything``: also hub ids and
    folders that a person writes."""

    vision: Mapping[str, str] = field(default_factory=lambda: {EMBEDDED: EMBEDDED})
    language: Mapping[str, str] = field(default_factory=lambda: {EMBEDDED: EMBEDDED})
    anything: bool = False

    def find_vision(self, name: str) -> str:
        """Where the image encoder lies. InputError for one that isn't offered."""
        return self._find(self.vision, name, "image encoder")

    def find_language(self, name: str) -> str:
        """As :meth:`find_vision`, of the language model."""
        return self._find(self.language, name, "language model")

    def _find(self, known: Mapping[str, str], name: str, what: str) -> str:
        if (source := known.get(name)) is not None:
            return source
        if self.anything and name.strip():
            return name.strip()
        raise InputError(f"The {what} “{name[:80]}” isn't offered on this server; choose one of {', '.join(known)}.")

    def name_of(self, source: str, of: str) -> str:
        """What a part of a recipe is called in the form; ``of`` is “vision” or “language”. InputError as above."""
        known = self.vision if of == "vision" else self.language
        name = next((name for name, own in known.items() if source in (own, name)), source)
        (self.find_vision if of == "vision" else self.find_language)(name)
        return name


def list_parts(sources: Sequence[str], allowed: frozenset[str] | None = frozenset()) -> PartShelf:
    """Of checkpoints that a server has, which can be parts: whole models of nanoVLM's format are both, others are told
    by their config.json, and names on the hub may be either. ``allowed``: hub ids that people may open, None for all of
    them and every folder. Whole models of other families are no parts and are left out."""
    vision, language = {EMBEDDED: EMBEDDED}, {EMBEDDED: EMBEDDED}
    for source in (*dict.fromkeys(sources), *sorted(allowed or ())):
        kind = _read_kind(source)
        name = Path(source).name if is_path(source) or Path(source).is_dir() else source
        if kind is None or kind in VISION:
            vision.setdefault(name, source)
        if kind is None or kind in LANGUAGE:
            language.setdefault(name, source)
    return PartShelf(vision, language, allowed is None)


def _read_kind(source: str) -> str | None:
    """The kind that config.json names; None for nanoVLM's own, and for what isn't here yet."""
    if source == EMBEDDED or not Path(source).is_dir():
        return None
    return read_object(Path(source) / CONFIG).get("model_type")
