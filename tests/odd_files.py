"""Files that people bring and that are no plain picture, as bytes by name; the tests say what each must lead to."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from model import InputError, open_image


def refused(source) -> str:
    """The one sentence that says why an image can't be opened."""
    with pytest.raises(InputError) as caught:
        open_image(source)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 300
    return sentence


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def bomb():
    """A PNG whose header promises 60,000 × 60,000 pixels."""
    data = bytearray(encode(Image.new("1", (8, 8))))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def turned():
    """A JPEG of 60 × 40 pixels whose EXIF tag says that it lies on its side."""
    tags = Image.Exif()
    tags[0x0112] = 6
    return encode(Image.new("RGB", (60, 40), "red"), "JPEG", exif=tags)


UNUSABLE = {
    "words.png": b"these are words and not a picture",
    "cut.png": encode(noise(200, 200))[:9000],
    "empty.png": b"",
    "bomb.png": bomb(),
}
USABLE = {
    "dot.png": encode(Image.new("RGB", (1, 1), "red")),
    "thin.png": encode(noise(5, 1200)),
    "wide.png": encode(Image.new("L", (20_000, 30), 90)),
    "deep.png": encode(Image.fromarray(np.full((40, 40), 30_000, dtype=np.uint16))),
    "print.jpg": encode(Image.new("CMYK", (40, 40), (0, 200, 200, 0)), "JPEG"),
    "moving.gif": encode(
        Image.new("RGB", (32, 32), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (32, 32), "blue")]
    ),
    "turned.jpg": turned(),
}
