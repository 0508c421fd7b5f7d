"""Zip archives of strangers: unpacked within bounds, or refused with one sentence."""

from __future__ import annotations

import errno
import lzma
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from inspector.intake import Refusal, quote

DEPTH = 16
"""Folders in one another. Removing a tree is recursive, and each level holds a file open."""
NAME_BYTES = 255
"""Of one name, on every usual file system."""
_CHUNK = 1 << 20
_STORING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ENAMETOOLONG)


def unpack(file: Path, name: str, folder: Path, most_bytes: int, most_files: int) -> None:
    """Unpacks ``file``, which the person calls ``name``, into the empty ``folder``. Refusal for an archive that is
    damaged, larger, or holds anything but plain files with plain names; what was written until then stays."""
    shown = quote(name)
    try:
        _check_directory(file, shown, most_files)
        with zipfile.ZipFile(file) as archive:
            _unpack_entries(archive, shown, folder, most_bytes, most_files)
    except Refusal:
        raise
    except UnicodeDecodeError as error:
        raise Refusal(f"{shown} has an entry whose name is not UTF-8; rename it and make the archive anew.") from error
    except (zipfile.BadZipFile, struct.error, OSError, OverflowError, RuntimeError, ValueError) as error:
        raise Refusal(f"{shown} is no readable zip archive ({_reason(error)}); make it anew.") from error


def _check_directory(file: Path, shown: str, most_files: int) -> None:
    """Refuses by the archive's own count, before anything is made of its entries: each would take a kilobyte."""
    with file.open("rb") as source:
        size = source.seek(0, os.SEEK_END)
        source.seek(max(0, size - (1 << 16) - 98))
        tail = source.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise Refusal(f"{shown} is no readable zip archive (it has no end); make it anew.")
    count, length = struct.unpack_from("<HL", tail, at + 10)
    if at >= 76 and tail[at - 20 : at - 16] == b"PK\6\7" and tail[at - 76 : at - 72] == b"PK\6\6":
        count, length = struct.unpack_from("<QQ", tail, at - 76 + 32)
    # Folders are entries too. The count may be a lie, the length can't be: it is what is read.
    if count > 2 * most_files or length > 2 * most_files * 1024:
        raise Refusal(
            f"{shown} holds {max(count, length // 1024):,} entries; at most {most_files:,} files are unpacked."
        )


def _unpack_entries(archive: zipfile.ZipFile, shown: str, folder: Path, most_bytes: int, most_files: int) -> None:
    entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
    if len(entries) > most_files:
        raise Refusal(f"{shown} holds {len(entries):,} files; at most {most_files:,} are unpacked.")
    if sum(entry.file_size for entry in entries) > most_bytes:
        raise Refusal(_too_large(shown, most_bytes))
    if sum(entry.compress_size for entry in entries) > os.fstat(archive.fp.fileno()).st_size:  # type: ignore[union-attr]
        raise Refusal(f"{shown} is no readable zip archive (its entries lie over one another); make it anew.")
    left, made = most_bytes, {folder}
    for entry in entries:
        parts = _check_entry(entry, shown)
        if "__MACOSX" in parts or any(part.startswith(".") for part in parts):
            continue  # copies of editors and notes of file systems, as the readers leave them out
        target = folder.joinpath(*parts)
        made.update(target.parents[: len(parts)])
        if len(made) > most_files:
            raise Refusal(f"{shown} holds more than {most_files:,} folders; put the files in fewer.")
        left -= _unpack_entry(archive, entry, target, left, shown, most_bytes)


def _check_entry(entry: zipfile.ZipInfo, shown: str) -> tuple[str, ...]:
    """The parts of the entry's path, all of which are plain names."""
    told = f"{shown} has the entry {quote(entry.filename)}"
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    if not path.parts:
        raise Refusal(f"{told}, which is no file name; make the archive anew.")
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise Refusal(f"{told}, which leaves the archive; make the archive anew.")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise Refusal(f"{shown} has the link {quote(entry.filename)}; put the file itself in.")
    if kind not in (0, stat.S_IFREG):
        raise Refusal(f"{told}, which is a device and no file; leave it out.")
    if entry.flag_bits & 0x1:
        raise Refusal(f"{told}, which is encrypted; make the archive without a password.")
    if len(path.parts) > DEPTH:
        raise Refusal(f"{told} in {len(path.parts) - 1:,} folders; at most {DEPTH - 1} may lie in one another.")
    for part in path.parts:
        if len(part.encode("utf-8", errors="replace")) > NAME_BYTES:
            raise Refusal(f"{told}, a name of {len(part):,} letters; at most {NAME_BYTES} bytes can be stored.")
    # The library cuts a name at a zero byte.
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in entry.orig_filename):
        raise Refusal(f"{told}, whose name holds letters that can't be shown; rename it.")
    return path.parts


def _unpack_entry(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, left: int, shown: str, most_bytes: int
) -> int:
    """The bytes that were written; the size that an entry claims may be a lie."""
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out, archive.open(entry) as source:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > left:
                    raise Refusal(_too_large(shown, most_bytes))
                out.write(chunk)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise Refusal(f"{shown} has {quote(entry.filename)} twice, or as a file and a folder; keep one.") from error
    except OSError as error:
        if error.errno in _STORING:
            raise Refusal(f"{shown} can't be stored ({error.strerror}); try again later, or upload less.") from error
        # Broken bz2 data, and places that lie outside the file.
        raise _damaged(shown, entry, error) from error
    except NotImplementedError as error:
        raise Refusal(
            f"{shown} has {quote(entry.filename)}, packed in a way that isn't read ({_reason(error)}); use deflate."
        ) from error
    except (zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, Refusal):
            raise
        raise _damaged(shown, entry, error) from error
    except (zipfile.BadZipFile, struct.error) as error:
        raise _damaged(shown, entry, error) from error
    return written


def _damaged(shown: str, entry: zipfile.ZipInfo, error: Exception) -> Refusal:
    return Refusal(f"{shown} is no readable zip archive: {quote(entry.filename)} is damaged ({_reason(error)}).")


def _too_large(shown: str, most_bytes: int) -> str:
    return f"{shown} unpacks to more than {most_bytes / (1 << 20):,.4g} MiB; upload less."


def _reason(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip().partition("\n")[0].rstrip(".")
    return quote(text)[1:-1] or type(error).__name__
