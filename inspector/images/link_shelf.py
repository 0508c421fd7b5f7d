"""Images that a link shows: kept under an id that can't be guessed, for so many days, within bounds."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from inspector.bounds import Bounds, format_bound
from inspector.files import open_cache, own_folder
from inspector.images.image_file import ImageFile
from model import InputError

FOLDER = "VLM_INSPECTOR_LINKS"
"""Environment variable: where they lie, also over a restart. Without it a private server keeps them until it ends, and
a public one keeps none."""
DAYS = "VLM_INSPECTOR_LINK_DAYS"
"""Environment variable: for how many days."""
MOST_DAYS = 3650
_NOTE = "note.json"
_ID = re.compile(r"[A-Za-z0-9_-]{24}")


def apply_days(bounds: Bounds) -> Bounds:
    """``bounds`` with the days that the server's owner set, if any. InputError for what is no number of days."""
    text = os.environ.get(DAYS, "").strip()
    if not text:
        return bounds
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= MOST_DAYS:  # nor is NaN
        raise InputError(
            f"{DAYS} is “{text[:40]}”; allowed are numbers above 0 and up to {MOST_DAYS} (0.5 is twelve hours). "
            f"Set one of these, or leave it out for {bounds.link_days:g} days."
        )
    return replace(bounds, link_days=days)


def open_shelf(bounds: Bounds, public: bool) -> LinkShelf:
    """The server's, where its environment says. InputError if that can't be written to."""
    named = os.environ.get(FOLDER)
    if not named:
        return LinkShelf(None if public else own_folder() / "links", bounds)
    try:
        Path(named).mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InputError(
            f"{FOLDER} names a folder that can't be made ({error.strerror}); name another, or none."
        ) from error
    return LinkShelf(Path(named), bounds)


class LinkShelf:
    """``root`` None keeps nothing. Each set of images is a folder of its own, called by its id, with the files under
    the names that they were uploaded by, and a note of who keeps it, since when and what it is."""

    def __init__(self, root: Path | None, bounds: Bounds) -> None:
        self.root, self.bounds = root, bounds
        self._lock = threading.Lock()

    @property
    def promise(self) -> str:
        """What is said beside the button."""
        if self.root is None:
            return "This server keeps no images for links: whoever opens one brings them along."
        days = format_bound(self.bounds.link_days, "day" if self.bounds.link_days == 1 else "days")
        ends = ", or until this server ends" if self.root.is_relative_to(own_folder()) else ""
        return f"Images that you brought are kept for {days}{ends}; whoever has the link sees them."

    def keep(self, images: Sequence[ImageFile], names: Sequence[str], owner: str) -> str:
        """The id of the images; the same as before for the same ones of the same ``owner``. "" where none are kept.
        InputError if they are more than is kept of one person, or can't be written."""
        if self.root is None or not images:
            return ""
        contents = hashlib.sha256(b"".join(image.digest for image in images)).hexdigest()
        # By its digest: nobody's address is written down for it.
        owner = hashlib.sha256(owner.encode()).hexdigest()
        with self._lock:
            self._sweep()
            for folder, note in self._list():
                if (note["owner"], note["contents"], note["names"]) == (owner, contents, list(names)):
                    os.utime(folder)
                    return folder.name
            data = [image.read_bytes() for image in images]
            size = sum(map(len, data))
            self._check_room(owner, size)
            folder = self.root / secrets.token_urlsafe(18)
            note = {"owner": owner, "contents": contents, "names": list(names), "bytes": size}
            try:
                folder.mkdir(parents=True, mode=0o700)
                for number, content in enumerate(data):
                    (folder / str(number)).write_bytes(content)
                (folder / _NOTE).write_text(json.dumps(note), encoding="utf-8")
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise InputError(
                    f"The images of the link can't be kept ({error.strerror}); tell the server's owner."
                ) from error
            return folder.name

    def take(self, name: str) -> list[Path]:
        """Copies of the images for the page that opens the link, where its own uploads lie. InputError for an id that
        names none, or none any more."""
        gone = InputError("The images of this link aren't kept here any more; add them again and press Ask.")
        if self.root is None or not _ID.fullmatch(name):
            raise gone
        with self._lock:
            self._sweep()
            found = next((note for folder, note in self._list() if folder.name == name), None)
            if found is None:
                raise gone
            copies = []
            try:
                for number, title in enumerate(found["names"]):
                    folder = open_cache() / secrets.token_urlsafe(24)
                    folder.mkdir(parents=True, mode=0o700)
                    copies.append(folder / title)
                    shutil.copyfile(self.root / name / str(number), copies[-1])
            except OSError as error:
                raise gone from error
            return copies

    def sweep(self) -> None:
        """Removes what is older than is promised."""
        with self._lock:
            self._sweep()

    def _sweep(self) -> None:
        oldest = time.time() - 86_400 * self.bounds.link_days
        for folder in self._folders():
            with suppress(FileNotFoundError):
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)

    def _check_room(self, owner: str, size: int) -> None:
        """Room for ``size`` bytes more: of one person there is a limit, and of all the oldest make way."""
        held = sorted(((folder.stat().st_mtime, folder, note) for folder, note in self._list()), key=lambda one: one[0])
        mine = sum(note["bytes"] for _, _, note in held if note["owner"] == owner)
        most = self.bounds.link_bytes_per_person
        if mine + size > most:
            raise InputError(
                f"Your links' images take {format_bound(mine, 'bytes')} of {format_bound(most, 'bytes')}, and these "
                f"need {format_bound(size, 'bytes')}; use smaller ones, or take them along as a zip (Command)."
            )
        total = size + sum(note["bytes"] for _, _, note in held)
        for count, (_, folder, note) in enumerate(held):
            if total <= self.bounds.link_bytes and len(held) - count < self.bounds.links:
                break
            shutil.rmtree(folder, ignore_errors=True)
            total -= note["bytes"]

    def _folders(self) -> list[Path]:
        if self.root is None or not self.root.is_dir():
            return []
        return [folder for folder in self.root.iterdir() if _ID.fullmatch(folder.name)]

    def _list(self) -> Iterator[tuple[Path, dict]]:
        for folder in self._folders():
            with suppress(OSError, ValueError):  # another server's that shares the folder is writing or removing it
                yield folder, json.loads((folder / _NOTE).read_text(encoding="utf-8"))
