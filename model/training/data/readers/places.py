"""Where a record's images belong: at ``<image>`` marks in what people say, as LLaVA, LLaMA-Factory and ms-swift write
it, or at parts of a message."""

from __future__ import annotations

import re
from collections.abc import Iterable

from model.training.data.readers.pictures import OTHER_ENDINGS, PICTURE_ENDINGS, PictureFolder
from model.training.data.readers.source import RecordError, Stored

MARK = "<image>"
MOVED = "an image in the middle or at the end of its message is moved to the message's front"
UNPLACED = "images that no <image> mark and no part places come before the first question"
_TAG = re.compile(r"<img>\s*([^<>\n]{1,2000}?)\s*</img>")
_MEDIA = re.compile(r"<(video|audio)>")
_FOREIGN = re.compile(
    r"<\|?(?:start_of_image|image(?:_?\d+|_pad|_placeholder|here|_soft_token)?|img_context|vision_start)\|?>|\[img\]",
    re.IGNORECASE,
)
"""Marks of an image that other models' data have."""
_FILLED = re.compile(r"<(ref-object|bbox)>")
"""Places that ms-swift fills from “objects”."""


class Places:
    """Hands a record's images, in order, to the places that ask for them. ``notes`` says what happened."""

    def __init__(self, pictures: Iterable[object], folder: PictureFolder) -> None:
        self._folder = folder
        self._waiting = [folder.find(value) for value in pictures]
        self.count = len(self._waiting)
        self.marks = 0
        self.notes: list[str] = []

    @property
    def left(self) -> int:
        """Images that no place has asked for yet."""
        return len(self._waiting)

    def add(self, own: Iterable[object]) -> None:
        """Images of a message's own, which come before those of the record that wait."""
        found = [self._folder.find(value) for value in own]
        self.count += len(found)
        self._waiting[:0] = found

    def take_next(self) -> Stored:
        """The next image. RecordError if there is none left."""
        if not self._waiting:
            raise RecordError("an image part names no image, and the record's “images” list has none left")
        return self._waiting.pop(0)

    def take_marks(self, text: str, strict: bool = True) -> tuple[str, tuple[Stored, ...]]:
        """The text without its marks, and their images. Without ``strict``, marks of a record that has no image are
        text. RecordError for an image that is named in the text itself."""
        check_tags(text)
        marks = text.count(MARK)
        self.marks += marks
        if not marks or (not self.count and not strict):
            return text, ()
        if text.rpartition(MARK)[0].replace(MARK, "").strip():
            self.note_moved()
        taken = tuple(self._waiting[:marks])
        del self._waiting[:marks]
        if len(taken) < marks and not strict:
            raise RecordError(f"it has more {MARK} marks than images ({self.count}); each mark needs one")
        return strip_marks(text), taken

    def take_all(self) -> tuple[Stored, ...]:
        """Every image that is left."""
        taken, self._waiting = tuple(self._waiting), []
        return taken

    def note_moved(self) -> None:
        if MOVED not in self.notes:
            self.notes.append(MOVED)


def check_tags(text: str) -> None:
    """RecordError for ``<img>a.png</img>``, as Qwen-VL writes an image into the text, and for the mark of a video or a
    sound with which a message begins."""
    if "<" not in text:
        return
    for found in _TAG.finditer(text):
        if found[1].lower().endswith((*PICTURE_ENDINGS, *OTHER_ENDINGS)) or "://" in found[1]:
            raise RecordError(
                f"its text names the image “{found[1][:100]}” in <img> tags; name it in “image” and write {MARK} there"
            )
    media = _MEDIA.match(text.lstrip())
    if media:
        raise RecordError(f"its text begins with {media[0]}; only images can be used")


def find_foreign_mark(texts: Iterable[str]) -> str:
    """The first mark in the texts that stands for an image elsewhere and for nothing here; empty if there is none."""
    marks = (found[0] for text in texts if "<" in text or "[" in text for found in _FOREIGN.finditer(text))
    return next((mark for mark in marks if mark != MARK), "")


def check_filled(texts: Iterable[str], objects: object) -> None:
    """RecordError for texts with places that are to be filled from a record's ``objects``."""
    found = (
        next((found for text in texts if "<" in text and (found := _FILLED.search(text))), None) if objects else None
    )
    if found:
        raise RecordError(
            f"its text has {found[0]} where what “objects” holds belongs, which is not filled in here; write it there"
        )


def strip_marks(text: str) -> str:
    """The text without its marks: a mark takes the blanks around it along, and leaves a line break between texts."""
    parts = text.split(MARK)
    parts = [parts[0].rstrip(), *(part.strip() for part in parts[1:-1]), parts[-1].lstrip()]
    return "\n".join(part for part in parts if part)
