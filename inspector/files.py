"""Files that the app makes: where they lie, and that none stays. No gradio here.

Gradio copies a file that an event hands over into its cache, and leaves the original where it is; a file that lies in
the cache already is served from there and deleted with it. So everything that is handed over is made in the cache. The
cache is this server's own and goes when it ends.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path

from inspector.bounds import Bounds
from model import InputError

CACHE = "GRADIO_TEMP_DIR"
"""Environment variable from which gradio knows its cache."""
MADE = "made"
"""Folder of the cache for what the app made itself."""


@cache
def own_folder() -> Path:
    """A temporary folder of this process, gone at its end."""
    folder = Path(tempfile.mkdtemp(prefix="vlm-inspector-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def open_cache() -> Path:
    """Gradio's cache: the folder that its variable names, else one in :func:`own_folder`. Call it before a component is
    made."""
    if not os.environ.get(CACHE):
        os.environ[CACHE] = str(own_folder() / "cache")
    return Path(os.environ[CACHE]).resolve()


def new_folder() -> Path:
    """A new folder in the cache, whose name can't be guessed, for files that an event hands over. InputError if it
    can't be made."""
    folder = open_cache() / MADE / secrets.token_urlsafe(24)
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise InputError(_refuse(error)) from error
    return folder


def name_source(title: str, source: str, known: Mapping[str, str]) -> str:
    """A name for the checkpoint at ``source`` among ``known`` (name → source), the one that it has there if it has one:
    ``title`` (a folder's last part), with a number where that is another's."""
    if (own := next((name for name, other in known.items() if other == source), None)) is not None:
        return own
    short = Path(title).name if Path(title).is_dir() else title
    numbered = (short if n == 1 else f"{short} ({n})" for n in count(1))
    return next(name for name in numbered if name not in known)


@contextmanager
def handed_over(bounds: Bounds | None = None) -> Iterator[Path]:
    """:func:`new_folder`. InputError if what is to be in it can't be written; what was begun is removed then. Where
    all that was made is older or takes more than ``bounds`` allow, the oldest goes."""
    bounds = bounds or Bounds()
    folder = new_folder()
    try:
        yield folder
        sweep(folder.parent, bounds.made_s, bounds.made_bytes)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(_refuse(error)) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def sweep(root: Path, seconds: float, most: int) -> None:
    """Removes the folders in ``root`` that are older than ``seconds``, empty ones too, and the oldest of the others
    while they take more than ``most`` bytes together; the newest stays in any case."""
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        with suppress(FileNotFoundError):  # gradio or another sweep was quicker
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append((folder.stat().st_mtime, folder, size))
    total, now = sum(size for _, _, size in found), time.time()
    for changed, folder, size in sorted(found)[:-1]:
        if now - changed > seconds or total > most:
            shutil.rmtree(folder, ignore_errors=True)
            total -= size


def _refuse(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return f"The file can't be written ({reason}); try again later, or tell the server's owner."
