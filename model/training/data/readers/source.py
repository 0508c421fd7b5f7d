"""What a reader hands out: examples that are made when they are taken, and what was wrong with the data."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

from model.chat import ROLES, Conversation, Message
from model.errors import InputError
from model.image import OpenedImage, open_image
from model.tokenizer import NO_LETTER, check_letters
from model.training.data.content import key_of, key_of_text
from model.training.data.example import Example

Stored = Path | bytes
"""A picture before it is opened: a file, or the bytes of one."""

SPECIAL_TEXT = re.compile(
    r"<\|[^|<>\s]+\|>|<(?:image|video|audio)>|<image[:_ ]+\d+>|<row_\d+_col_\d+>|<(?:bbox|ref-object|ImageHere)>"
)
"""Text that some model reads as a special token."""

BEHIND = {
    "user": "a question without an answer at the end is left out",
    "system": "a system prompt behind the last answer is left out",
}
LONGEST_MESSAGE = 400
"""Letters of what is said of a record."""

T = TypeVar("T")


def clean_text(text: str) -> str:
    """The text with a question mark for every letter that is none (:func:`model.tokenizer.check_letters`), which no
    page and partly no file can hold: such come from JSON and from file names that are not UTF-8."""
    return text if text.isprintable() else NO_LETTER.sub("?", text)


class RecordError(Exception):
    """A record can't be used. Its message is half a sentence that follows the record's place and a colon."""

    def __init__(self, message: str) -> None:
        # It may quote the record: no more of it than a sentence bears, and nothing that can't be written.
        super().__init__(clean_text(message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + "…"))


@dataclass(frozen=True)
class Problem:
    """What was found in the data. ``kind`` “skipped”: the record at ``where`` can't be used; “left out”: it isn't used,
    as the recipe wishes; “note”: it is used and ``sentence`` says what happened to it. Alike ones of the last two are
    one, with the first ``where`` and their ``count``."""

    where: str
    sentence: str
    kind: Literal["skipped", "left out", "note"]
    count: int = 1

    def __str__(self) -> str:
        more = f" (and {self.count - 1:,} more like it)" if self.count > 1 else ""
        return f"{self.where}: {self.sentence}{more}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class ProblemList:
    """Collects problems while a source is read. ``on_error``: “stop” makes :meth:`close` raise if a record can't be
    used, “skip” leaves it out."""

    def __init__(self, on_error: str) -> None:
        self.on_error = on_error
        self.read = 0
        """Records that were there, whatever became of them."""
        self.facts: list[Facts] = []
        """Of the records that can be used, in order."""
        self._digest = hashlib.blake2b(digest_size=16)
        self._skipped: list[Problem] = []
        self._notes: dict[str, Problem] = {}
        self._left: dict[str, Problem] = {}

    def keep(self, where: object, make: Callable[..., Record | None], *arguments: object) -> bool:
        """Whether the record at ``where``, which ``make`` reads from the ``arguments``, can be used; what is wrong with
        it, or is to be said of it, is kept here. ``where`` is only written out for that."""
        self.read += 1
        try:
            record = make(*arguments)
        except RecordError as error:
            self._skipped.append(Problem(str(where), str(error), "skipped"))
            return False
        if record is None:
            return False
        for note in record.notes:
            self.note(str(where), note)
        self.facts.append(read_facts(record))
        self._digest.update(describe_record(record))
        return True

    @property
    def digest(self) -> bytes:
        """The same for the same records alone: what they say, and their images' names and sizes."""
        return self._digest.digest()

    def leave(self, where: str, reason: str) -> None:
        """The record at ``where`` is left out, as the recipe wishes: no fault of the data."""
        found = self._left.get(reason)
        self._left[reason] = (
            Problem(where, reason, "left out") if found is None else replace(found, count=found.count + 1)
        )

    def note(self, where: str, sentence: str) -> None:
        found = self._notes.get(sentence)
        self._notes[sentence] = (
            Problem(where, sentence, "note") if found is None else replace(found, count=found.count + 1)
        )

    def close(self) -> tuple[Problem, ...]:
        """All problems, left-out records first. InputError with the first of these and their number under “stop”."""
        if self._skipped and self.on_error == "stop":
            others = len(self._skipped) - 1
            more = f" ({others:,} more record{'s' * (others > 1)} can't be used either)" if others else ""
            raise InputError(
                f'{self._skipped[0]}{more}; correct the data, or set on_error = "skip" to leave such records out.'
            )
        return (*self._skipped, *self._left.values(), *self._notes.values())


class Draft(NamedTuple):
    """A message whose pictures are still closed. ``trained``: whether the data say that it is to be learnt, None where
    they say nothing."""

    role: str
    text: str
    images: tuple[Stored, ...] = ()
    family: str = ""
    trained: bool | None = None


@dataclass(frozen=True)
class Record:
    """One example before its pictures are opened, and what is to be said of it (:meth:`ProblemList.note`)."""

    drafts: tuple[Draft, ...]
    notes: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    """Bytes of each image, in order; known once the record was checked."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a record's images are known by (files by their paths), or what it asks if it has none, and how many
    questions it has."""

    content: tuple[str | bytes, ...]
    questions: int


def read_facts(record: Record) -> Facts:
    images = [image for draft in record.drafts for image in draft.images]
    content = tuple([str(image) if isinstance(image, Path) else key_of(image) for image in images])
    if not content:
        content = (key_of_text("\0".join([draft.text for draft in record.drafts if draft.role == "user"])),)
    return Facts(content, len([0 for draft in record.drafts if draft.role == "assistant"]))


def describe_record(record: Record) -> bytes:
    """Everything of a record that a run learns from, but for what its images' files hold: of these name and size."""
    parts: list[object] = []
    sizes = iter(record.sizes)
    for draft in record.drafts:
        parts += (draft.role, draft.text, draft.trained is not False)
        for image, size in zip(draft.images, sizes, strict=False) if draft.images else ():
            parts.append((image.name, size) if isinstance(image, Path) else key_of(image))
    return repr(parts).encode("utf-8", "backslashreplace")


def check_record(record: Record) -> Record:
    """The record as it will be trained on. RecordError if it has no answer to be learnt, an empty answer, an unknown
    role, a letter that is none, or a picture that is not with the user. Left out are an answer that stands before every
    question, and a question after the last answer: nothing can be learnt from either."""
    drafts, notes = list(record.drafts), list(record.notes)
    sizes: list[int] = []
    blank = False
    for number, draft in enumerate(drafts, start=1):
        if draft.role not in ROLES:
            raise RecordError(f"message {number} has the role {draft.role!r}; allowed are {', '.join(ROLES)}")
        if draft.images and draft.role != "user":
            raise RecordError(f"message {number} is the {draft.role}'s and has an image; only the user's can have one")
        if not draft.text or draft.text.isspace():
            if draft.role == "assistant":
                raise RecordError(f"the answer in message {number} is empty")
            blank = True
        try:
            check_letters(draft.text)
            if draft.family:
                check_letters(draft.family)
        except InputError as error:
            raise RecordError(f"message {number}: {str(error).rstrip('.')}") from error
        sizes += [_measure(image) for image in draft.images]
    answers = [draft for draft in drafts if draft.role == "assistant"]
    if not answers:
        raise RecordError("it has no answer, so there is nothing to learn from it")
    asked = next((number for number, draft in enumerate(drafts) if draft.role == "user"), None)
    if asked is None:
        raise RecordError("it has no question, only answers")
    if asked and (begun := [draft for draft in drafts[:asked] if draft.role != "assistant"]) != drafts[:asked]:
        drafts[:asked] = begun
        notes.append("an answer before the first question is left out")
    behind: set[str] = set()
    while drafts and drafts[-1].role != "assistant":
        behind.add(drafts.pop().role)
    notes += [sentence for role, sentence in BEHIND.items() if role in behind]
    if blank and any(draft.role == "user" and not draft.images and not draft.text.strip() for draft in drafts):
        notes.append("a question has neither text nor image")
    answers = [draft for draft in drafts if draft.role == "assistant"]
    told = {draft.trained for draft in answers}
    if told <= {False}:
        raise RecordError("none of its answers is to be learnt, so there is nothing to learn from it")
    if False in told:
        notes.append("answers that are not to be learnt (weight 0, loss or train false) are read and not trained on")
    if any(draft.trained and draft.role != "assistant" for draft in drafts):
        notes.append(
            "only answers are trained on, also where a question or a system prompt says that it is to be learnt"
        )
    if any("<" in draft.text and SPECIAL_TEXT.search(draft.text) for draft in drafts):
        notes.append("the text holds what some models read as a special token; here it stays plain text")
    return Record(tuple(drafts), tuple(notes), tuple(sizes))


def _measure(image: Stored) -> int:
    """Bytes of an image. RecordError if its file is not there."""
    if isinstance(image, bytes):
        return len(image)
    try:
        found = os.stat(image)
    except (OSError, ValueError):
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise RecordError(f"the image “{image.name}” is not there")
    return found.st_size


def open_record(record: Record, where: str) -> Example:
    """The example with its pictures. InputError that begins with ``where`` if one can't be opened."""
    messages = tuple(
        Message(
            draft.role,
            draft.text,
            tuple(open_stored(image, where) for image in draft.images),
            trained=draft.trained is not False,
        )
        for draft in record.drafts
    )
    families = tuple(draft.family for draft in record.drafts if draft.role == "assistant")
    return Example(Conversation(messages), families if any(families) else (), where)


def open_stored(image: Stored, where: str) -> OpenedImage:
    """The picture; InputError that begins with ``where`` if it can't be opened."""
    try:
        return open_image(image)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


class ExampleSource(Sequence[Example]):
    """Examples of one data set. ``keys`` say where each lies and ``build`` makes it from its key, so pictures are
    opened only when an example is taken; InputError then if one is damaged. ``problems`` were found on reading, of
    ``read`` records in all."""

    def __init__(
        self,
        name: str,
        keys: Sequence[T],
        build: Callable[[T], Example],
        problems: tuple[Problem, ...] = (),
        read: int | None = None,
    ) -> None:
        self.name = clean_text(name)
        self.problems = problems
        self.read = len(keys) if read is None else read
        self._keys: Sequence[Any] = keys
        self._build: Callable[[Any], Example] = build

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._build(key) for key in self._keys[index]]
        return self._build(self._keys[index])


class RecordSource(ExampleSource):
    """Examples from records: ``locate`` reads a record and its place from its key. Which pictures a record names is
    known without opening them. ``stops``: one that can't be opened is to end a run, not to be passed over."""

    def __init__(
        self, name: str, keys: Sequence[T], locate: Callable[[T], tuple[Record, str]], problems: ProblemList
    ) -> None:
        super().__init__(name, keys, lambda key: open_record(*locate(key)), problems.close(), problems.read)
        self.stops = problems.on_error == "stop"
        self.digest = problems.digest
        self._facts = problems.facts

    def content(self, number: int) -> tuple[str | bytes, ...]:
        """See :class:`model.training.data.splits.Known`."""
        return self._facts[number].content

    def count_questions(self, number: int) -> int:
        """Answers of example ``number``."""
        return self._facts[number].questions


def need_text(value: object, what: str) -> str:
    """``value`` if it is text; RecordError that names ``what`` if not."""
    if not isinstance(value, str):
        raise RecordError(f"{what} is {describe(value)}; it must be text")
    return value


def need_list(value: object, what: str) -> list[Any]:
    """``value`` if it is a list; RecordError that names ``what`` if not."""
    if not isinstance(value, list):
        raise RecordError(f"{what} is {describe(value)}; it must be a list")
    return value


def need_field(values: Mapping[str, Any], key: str) -> list[Any]:
    """The list that a record can't do without. RecordError if it is none, or isn't there."""
    if key not in values:
        raise RecordError(f"it has no “{key}”; it has {list_keys(values)}")
    return need_list(values[key], f"“{key}”")


def list_keys(values: Mapping[Any, Any]) -> str:
    """The first names of an object's fields."""
    return ", ".join(f"“{str(key)[:40]}”" for key in list(values)[:6]) or "nothing"


def need_object(value: object, what: str) -> Mapping[str, Any]:
    """``value`` if it is a JSON object; RecordError that names ``what`` if not."""
    if not isinstance(value, dict | Mapping):  # the first is told at once
        raise RecordError(f"{what} is {describe(value)}; it must be an object with named fields")
    return value


def describe(value: object) -> str:
    """A value's kind in a person's words."""
    if value is None:
        return "missing"
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "text"),
        (bytes, "bytes"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), f"a {type(value).__name__}")
