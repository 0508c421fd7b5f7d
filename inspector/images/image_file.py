"""An image of a prompt that stays in its file: what is kept of it is a preview, and it is opened again when needed."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from PIL import Image

from inspector.images import full_size
from inspector.images.decoder import DECODER, Decoder
from inspector.images.full_size import Facts
from model import InputError, OpenedImage, ProcessedImage
from model.encoders.protocol import ImageReader
from model.picture import check_file, name_source, read_file

T = TypeVar("T")


class ImageFile:
    """The image in one file. For any number of threads; InputError from whatever looks into the file.

    Kept are its :class:`inspector.images.full_size.Facts`, once it was opened. What a model made of it is found
    again as long as somebody else keeps it: the row of a prompt, for one.
    """

    def __init__(self, path: Path, decoder: Decoder = DECODER) -> None:
        self.path = path
        self._decoder = decoder
        self._identity = _identify(path)
        self.digest = _digest(path)
        """SHA-256 of the file's bytes."""
        self._lock = threading.Lock()
        self._stored_pixels: int | None = None
        self._facts: Facts | None = None
        self._processed: WeakValueDictionary[Hashable, ProcessedImage] = WeakValueDictionary()

    @property
    def facts(self) -> Facts:
        with self._lock:
            if self._facts is None:
                self._facts = self.run(full_size.examine)
            return self._facts

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        return self.facts.size

    @property
    def notes(self) -> tuple[str, ...]:
        return self.facts.notes

    @property
    def preview(self) -> Image.Image:
        """At most :data:`model.picture.PREVIEW_PX` wide and high."""
        return full_size.read_preview(self.facts)

    @property
    def pixels(self) -> Image.Image:
        """All of them, read anew each time and kept by whoever asks."""
        return self.run(full_size.hand_over)

    def read_bytes(self) -> bytes:
        """The file as it was uploaded."""
        self._check_identity()
        return read_file(self.path)

    @property
    def kept_bytes(self) -> int:
        """Of the preview, and what else there is of a file that wasn't opened yet."""
        known = self._facts
        return 2000 + (0 if known is None else len(known.preview))

    def count_pixels(self) -> int:
        """Without decoding any."""
        with self._lock:
            if self._facts is not None:
                return self._facts.size[0] * self._facts.size[1]
            if self._stored_pixels is None:
                self._check_identity()
                self._stored_pixels = self._decoder.count_pixels(self.path)
            return self._stored_pixels

    def process(self, vlm: ImageReader) -> ProcessedImage:
        """See :func:`model.process_image`."""
        key = vlm.image_key
        with self._lock:
            if (known := self._processed.get(key)) is not None:
                vlm.plan_image(known.original_size)  # the other checkpoint may lack a tile marker
                return known
            self._facts, pictures = self.run(full_size.reduce_image, vlm.geometry)
            found = vlm.cut_image(pictures, self._facts.size, self._facts.notes)
            self._processed[key] = found
            return found

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """See :meth:`inspector.images.decoder.Decoder.run`."""
        self._check_identity()
        return self._decoder.run(self.path, function, *arguments)

    def is_unchanged(self) -> bool:
        """Whether the same bytes still lie there: gradio puts an upload where the same one of somebody else lies, so a
        new file may be the same image."""
        try:
            identity = _identify(self.path)
            if identity == self._identity:
                return True
            if _digest(self.path) != self.digest:
                return False
        except InputError:
            return False
        self._identity = identity
        return True

    def _check_identity(self) -> None:
        if not self.is_unchanged():
            raise InputError(
                f"{name_source(self.path)} was uploaded too long ago and is no longer there; upload it again."
            )


PromptImage = OpenedImage | ImageFile
"""An image of a prompt: drawn by a program or read from a file."""


def run_at_full_size(image: PromptImage, function: Callable[..., T], *arguments: Any) -> T:
    """``function`` of :mod:`inspector.images.full_size` of the image."""
    return image.run(function, *arguments) if isinstance(image, ImageFile) else function(image, *arguments)


def process_prompt_image(image: PromptImage, vlm: ImageReader) -> ProcessedImage:
    """See :func:`model.process_image`."""
    if isinstance(image, ImageFile):
        return image.process(vlm)
    return vlm.process_image(image)


class ImageShelf:
    """The files that were looked at last, so that a gallery that changes doesn't have all its images opened again.
    ``limit`` in bytes of previews; the least used go first."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._files: OrderedDict[str, ImageFile] = OrderedDict()

    def find(self, path: str | Path) -> ImageFile:
        """InputError if there is no file of a size that is taken at ``path``."""
        key = str(path)
        with self._lock:
            known = self._files.get(key)
        found = known if known is not None and known.is_unchanged() else ImageFile(Path(path))
        with self._lock:
            self._files[key] = found
            self._files.move_to_end(key)
            self._drop()
        return found

    def _drop(self) -> None:
        limit = DECODER.bounds.previews_bytes if self._limit is None else self._limit
        used = sum(file.kept_bytes for file in self._files.values())
        while used > limit and len(self._files) > 1:
            _, dropped = self._files.popitem(last=False)
            used -= dropped.kept_bytes


def _identify(path: Path) -> tuple[int, ...]:
    found = check_file(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _digest(path: Path) -> bytes:
    return hashlib.sha256(read_file(path)).digest()


SHELF = ImageShelf()
"""The server's own."""
