"""Files that people bring to train on: taken in within bounds, and told apart. No gradio here."""

from __future__ import annotations

import json
import secrets
import shutil
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from model import InputError

MAX_BYTES = 500 << 20
"""Of an archive, unpacked, or of a single file."""
MAX_FILES = 20_000
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".zip")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


@dataclass(frozen=True)
class Upload:
    """``folder`` holds everything of it; ``path`` is what a reader opens, ``source`` the reader's name in a recipe."""

    folder: Path
    path: Path
    source: str


def take_in(file: str | Path, root: Path) -> Upload:
    """Copies or unpacks ``file`` into a new folder of ``root``. InputError for anything that is no data set; nothing
    is left behind then."""
    file = Path(file)
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"“{file.name}” is no data set; upload {', '.join(SUFFIXES)} (a zip may hold pictures too).")
    folder = root / secrets.token_urlsafe(9)
    folder.mkdir(parents=True)
    try:
        if file.suffix.lower() == ".zip":
            _unpack(file, folder)
            path = _find_data(folder, file.name)
        else:
            if file.stat().st_size > MAX_BYTES:
                raise InputError(f"“{file.name}” is larger than {MAX_BYTES >> 20} MiB; upload less.")
            path = folder / file.name
            shutil.copyfile(file, path)
        return Upload(folder, path, guess_source(path, file.name))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(f"“{file.name}” can't be stored ({error.strerror}).") from error
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack(file: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > MAX_FILES:
                raise InputError(f"“{file.name}” holds {len(entries):,} files; at most {MAX_FILES:,} are unpacked.")
            if sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise InputError(f"“{file.name}” unpacks to more than {MAX_BYTES >> 20} MiB; upload less.")
            written = 0
            for entry in entries:
                name = PurePosixPath(entry.filename.replace("\\", "/"))
                if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
                    raise InputError(f"“{file.name}” has the entry “{entry.filename}”, which leaves the archive.")
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise InputError(f"“{file.name}” has the link “{entry.filename}”; put the file itself in.")
                if name.parts[0] == "__MACOSX" or name.name.startswith("."):
                    continue
                target = folder.joinpath(*name.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as out:
                    # The size that an entry claims may be a lie.
                    while chunk := source.read(1 << 20):
                        written += len(chunk)
                        if written > MAX_BYTES:
                            raise InputError(f"“{file.name}” unpacks to more than {MAX_BYTES >> 20} MiB; upload less.")
                        out.write(chunk)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"“{file.name}” is no readable zip archive ({error}).") from error


def _find_data(folder: Path, name: str) -> Path:
    """The one table in an unpacked archive, else its folder of pictures."""
    tables = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES[:-1] and path.is_file()]
    if len(tables) == 1:
        return tables[0]
    if len(tables) > 1:
        shown = ", ".join(path.name for path in tables[:4])
        raise InputError(f"“{name}” holds several tables ({shown}); keep one, beside its pictures.")
    pictures = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURES]
    if not pictures:
        raise InputError(f"“{name}” holds neither a table ({', '.join(SUFFIXES[:-1])}) nor pictures.")
    return pictures[0].parent


def guess_source(path: Path, name: str) -> str:
    """The reader for a file, by its ending and its first keys."""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".csv":
        return "captions"
    if suffix == ".parquet":
        return "rows"
    keys = _first_keys(path, name)
    for key, source in (("conversations", "llava"), ("messages", "chat"), ("texts", "rows"), ("caption", "captions")):
        if key in keys:
            return source
    raise InputError(
        f"“{name}” has rows with the keys {', '.join(sorted(keys)[:6]) or 'none'}; a row needs “conversations” "
        "(LLaVA), “messages” (chat), “texts” (the_cauldron) or “caption”."
    )


def _first_keys(path: Path, name: str) -> set[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read() if path.suffix.lower() == ".json" else next((line for line in file if line.strip()), "")
        value = json.loads(text or "null")
    except UnicodeDecodeError as error:
        raise InputError(f"“{name}” is no UTF-8 text (byte {error.start}).") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}" if path.suffix.lower() == ".json" else "its first row"
        raise InputError(f"“{name}” is no valid JSON in {where} ({error.msg}).") from error
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, dict):
        raise InputError(f"“{name}” holds no rows; each must be a JSON object.")
    return set(value)
