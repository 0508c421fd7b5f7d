"""Files that people bring to train on: taken in within bounds, told apart, and swept. No gradio here.

Each upload is a folder ``ROOT/NAME`` with ``owner.json`` (whose it is, since when) and ``data``, which holds what was
brought. Nothing of it is parsed here: that is the business of ``python -m inspector.intake``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspector.bounds import Bounds, format_bound, private_bounds
from inspector.intake import quote
from inspector.intake.parsers import ParserPool, Reading
from model import InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".zip")
OWNER, DATA, INCOMING = "owner.json", "data", "incoming"


@dataclass(frozen=True)
class Upload:
    """``folder`` holds everything of it; ``path`` is what a reader opens, ``source`` the reader's name in a recipe."""

    folder: Path
    path: Path
    source: str

    @property
    def is_alone(self) -> bool:
        """Whether one file is all that came."""
        return sum(1 for _ in (self.folder / DATA).iterdir()) == 1 and self.path.is_file()

    @property
    def images(self) -> Path:
        """Where the images that came with it are looked for."""
        return self.folder / DATA


@dataclass(frozen=True)
class UploadShelf:
    """Where this server keeps uploads. ``used`` names the folders that runs need: they stay."""

    root: Path
    pool: ParserPool
    used: Callable[[], Collection[str]] = field(default=lambda: ())

    @property
    def bounds(self) -> Bounds:
        return self.pool.bounds

    def begin(
        self, file: str | Path, owner: str, *, page: tuple[str, ...] = (), replaced: Upload | None = None
    ) -> Intake:
        """Begins to take in ``file`` for ``owner``. ``replaced``: an older upload, removed once the new one is there if
        no run needs it. InputError if it is no data set by its name, or more than is kept."""
        file = Path(file)
        if file.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{quote(file.name)} is no data set; upload {', '.join(SUFFIXES)} (a zip may hold pictures too)."
            )
        try:
            facts = file.stat()
        except (OSError, ValueError) as error:
            raise InputError(f"{quote(file.name)} isn't here any more; choose the file again.") from error
        if not stat.S_ISREG(facts.st_mode):
            raise InputError(f"{quote(file.name)} is no file; choose another.")
        old = replaced.folder.name if replaced is not None else ""
        left = self._count_left(owner, old, quote(file.name), facts.st_size)
        folder = self.root.resolve() / secrets.token_urlsafe(9)
        try:
            (folder / DATA).mkdir(parents=True)
            (folder / OWNER).write_text(json.dumps({"owner": owner, "since": time.time()}), encoding="utf-8")
            archive = file.suffix.lower() == ".zip"
            place = folder / INCOMING if archive else folder / DATA / _plain_name(file.name)
            _take_file(file.resolve(), place)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(f"{quote(file.name)} can't be stored ({error.strerror}); try again later.") from error
        task = {
            "file": str(place),
            "name": file.name,
            "folder": str(folder / DATA),
            "bytes": left,
            "files": self.bounds.unpacked_files,
        }
        reading = self.pool.open("inspector.intake", task, file.name, page=page)
        return Intake(self, folder, reading, owner, old)

    def remove(self, upload: Any) -> None:
        """Removes ``upload``, if it is one and no run needs it."""
        if isinstance(upload, Upload) and upload.folder.name not in self.used():
            shutil.rmtree(upload.folder, ignore_errors=True)

    def _count_left(self, owner: str, replaced: str, shown: str, size: int) -> int:
        """How many bytes ``owner`` may still bring, unpacked. InputError if that is less than ``size``."""
        bounds, used = self.bounds, self.used()
        mine = everybody = 0
        for folder in _list_folders(self.root):
            if folder.name == replaced and replaced not in used:
                continue
            held = measure(folder)
            everybody += held
            mine += held if _read_owner(folder) == owner else 0
        for held, most, whose in (
            (mine, bounds.upload_bytes_per_person, "Your uploads"),
            (everybody, bounds.upload_bytes, "All uploads on this server"),
        ):
            if held + size > most:
                raise InputError(
                    f"{whose} take {_say_size(held)} of {format_bound(most, 'bytes')}, and {shown} needs "
                    f"{_say_size(size)}; upload less, or wait until older ones are swept."
                )
        return min(bounds.unpacked_bytes, bounds.upload_bytes_per_person - mine, bounds.upload_bytes - everybody)


class Intake:
    """One upload that is being taken in: looked at until it is there, closed whatever comes."""

    def __init__(self, shelf: UploadShelf, folder: Path, reading: Reading, owner: str, replaced: str) -> None:
        self.folder = folder
        self._shelf, self._reading, self._owner, self._replaced = shelf, reading, owner, replaced
        self._kept = False

    def look(self) -> Upload | None:
        """The upload, or None as long as it isn't there. InputError with one sentence if it is refused; nothing is left
        of it then."""
        found = self._reading.look()
        if found is None:
            return None
        (self.folder / INCOMING).unlink(missing_ok=True)
        upload = Upload(self.folder, self.folder / DATA / found["path"], found["source"])
        if self._replaced and self._replaced not in self._shelf.used():
            shutil.rmtree(self._shelf.root / self._replaced, ignore_errors=True)
        self._kept = True
        return upload

    def wait(self) -> Upload:
        """:meth:`look` until the upload is there, for programs."""
        try:
            while (upload := self.look()) is None:
                time.sleep(0.02)
            return upload
        finally:
            self.close()

    def close(self) -> None:
        """Ends what is going on; an upload that isn't there by now leaves nothing."""
        self._reading.close()
        if not self._kept:
            shutil.rmtree(self.folder, ignore_errors=True)


def take_in(file: str | Path, root: Path, owner: str = "local", bounds: Bounds | None = None) -> Upload:
    """Takes ``file`` into a new folder of ``root`` and waits for it. InputError for anything that is no data set;
    nothing is left behind then."""
    return UploadShelf(root, ParserPool(bounds or private_bounds())).begin(file, owner).wait()


def sweep_uploads(root: Path, used: Collection[str], older_than: float) -> None:
    """Removes the uploads in ``root`` that came more than ``older_than`` seconds ago and whose folders' names are not
    among the ``used``."""
    oldest = time.time() - older_than
    for folder in _list_folders(root):
        if folder.name not in used and _read_time(folder) < oldest:
            shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path) -> int:
    """Bytes of the files in ``folder``; what vanishes meanwhile counts nothing."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def _list_folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []


def _read_note(folder: Path) -> dict[str, Any]:
    """Whose an upload is; nothing where nobody noted it, or it is being removed."""
    try:
        note = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _read_owner(folder: Path) -> str:
    return str(_read_note(folder).get("owner", ""))


def _read_time(folder: Path) -> float:
    since = _read_note(folder).get("since")
    if isinstance(since, int | float):
        return since
    try:
        return folder.stat().st_mtime
    except OSError:
        return time.time()


def _take_file(file: Path, place: Path) -> None:
    """The same file under another name, which stays when the first is removed; a copy where that can't be."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _plain_name(name: str) -> str:
    """A name that is no pattern, no address and no markup to anything that reads it later."""
    stem, dot, ending = name.rpartition(".")
    return re.sub(r"[^\w ().+-]", "_", stem)[:80] + dot + ending.lower()


def _say_size(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
