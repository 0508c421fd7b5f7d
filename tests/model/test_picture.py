"""What is opened at all: regular files of a bounded size, by seven decoders, after a look at the number of pixels."""

import os
import socket
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from model import InputError, open_image, picture
from model.picture import FORMATS, MAX_FILE_BYTES, MAX_FRAMES, read_header, shrink
from tests.odd_files import encode, refused


def test_a_pipe_that_nobody_writes_to_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "“pipe.png”" in refused(tmp_path / "pipe.png")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/ptmx", "/dev/full", "/", "/proc/self"])
def test_devices_and_folders_are_not_read(path):
    assert "a file" in refused(path)


def test_a_socket_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its whole path may be too long for a socket's name
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        assert "a file" in refused("socket.png")


def test_a_link_to_a_device_is_a_device(tmp_path):
    (tmp_path / "link.png").symlink_to("/dev/zero")
    assert "“link.png”" in refused(tmp_path / "link.png")


def test_files_that_the_kernel_writes_are_empty():
    assert "empty (0 bytes)" in refused("/proc/self/status")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    tracemalloc.start()
    sentence = refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "“large.png” has 40.00 MiB" in sentence
    assert peak < 1_000_000
    assert "40.00 MiB" in refused(bytes(MAX_FILE_BYTES + 1))


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "a\0b.png", "\udcff\udcfe.png"])
def test_names_that_no_file_can_have(tmp_path, name):
    sentence = refused(str(tmp_path / name))
    assert "read" in sentence
    assert str(tmp_path) not in sentence
    sentence.encode()


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "AVIF"])
def test_seven_kinds_are_opened(kind):
    opened = open_image(encode(Image.new("RGB", (40, 20), "red"), kind))
    assert opened.size == (40, 20)
    assert opened.notes == ()


def test_avif_is_opened():
    opened = open_image(encode(Image.new("RGB", (40, 20), "red"), "AVIF"))
    assert opened.size == (40, 20)
    red, green, blue = opened.pixels.getpixel((20, 10))
    assert red > 240
    assert max(green, blue) < 15


def test_what_some_cameras_call_a_jpeg_is_opened():
    frames = [Image.new("RGB", (40, 20), colour) for colour in ("red", "blue")]
    opened = open_image(encode(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert opened.size == (40, 20)
    assert opened.pixels.getpixel((20, 10))[0] > 240
    assert opened.notes == ("first of 2 frames",)


@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "PCX", "JPEG2000", "SGI", "ICNS", "DDS", "IM", "EPS"])
def test_no_other_decoder_is_tried(kind):
    assert "an image" in refused(encode(Image.new("RGB", (64, 64), "red"), kind))


def with_size(data: bytes, kind: str, side: int) -> bytes:
    """The same file with a header that promises ``side`` × ``side`` pixels."""
    made = bytearray(data)
    little, big = side.to_bytes(4, "little"), side.to_bytes(4, "big")
    if kind == "GIF":
        made[6:10] = little[:2] * 2
    elif kind == "BMP":
        made[18:26] = little * 2
    elif kind == "WEBP":
        made[26:30] = little[:2] * 2
    elif kind == "JPEG":
        start = made.index(b"\xff\xc0")
        made[start + 5 : start + 9] = big[2:] * 2
    elif kind == "AVIF":
        start = made.index(b"ispe")
        made[start + 8 : start + 16] = big * 2
    elif kind == "TIFF":
        (first,) = struct.unpack_from("<I", made, 4)
        for place in range(first + 2, first + 2 + 12 * made[first], 12):
            if struct.unpack_from("<H", made, place)[0] in (256, 257):
                struct.pack_into("<HII", made, place + 2, 4, 1, side)
    return bytes(made)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "PNG"])  # PNG: in test_image_modes
def test_the_header_is_asked_before_anything_is_decoded(kind, monkeypatch):
    data = with_size(encode(Image.new("RGB", (64, 64), "red"), kind), kind, 9_500)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert "too large; at most 89 million" in refused(data)
    with pytest.raises(InputError, match="too large"):
        read_header(data)


def gif_of(frames: int) -> bytes:
    one = encode(Image.new("P", (8, 8), 0), "GIF")
    empty = b"\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00"
    return one[:-1] + empty * (frames - 1) + b"\x3b"


@pytest.mark.parametrize(
    ("frames", "note"),
    [
        (2, "first of 2 frames"),
        (MAX_FRAMES, "first of 1000 frames"),
        (MAX_FRAMES + 1, "first of over 1000 frames"),
        (300_000, "first of over 1000 frames"),
    ],
)
def test_frames_are_counted_up_to_a_bound(frames, note):
    opened = open_image(gif_of(frames))
    assert opened.notes == (note,)
    assert opened.size == (8, 8)


def tiff_pages(pages: int, last: int = 0) -> bytes:
    """Pages of 8 × 8 that share one strip; ``last``: where the page after the last one is said to lie."""
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 64)]
    size = 2 + 12 * len(tags) + 4
    made = b"II*\x00" + (72).to_bytes(4, "little") + bytes([200]) * 64
    for page in range(pages):
        after = 72 + (page + 1) * size if page + 1 < pages else last
        made += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        made += struct.pack("<I", after)
    return made


@pytest.mark.parametrize(
    ("pages", "last", "notes"),
    [
        (1, 0, ()),
        (3, 0, ("first of 3 frames",)),
        (3, 72, ("first of 3 frames",)),
        (1500, 0, ("first of over 1000 frames",)),
    ],
)
def test_pages_of_a_tiff_even_in_a_loop(pages, last, notes):
    opened = open_image(tiff_pages(pages, last))
    assert opened.notes == notes
    assert opened.pixels.getpixel((3, 3)) == (200, 200, 200)


@pytest.mark.parametrize(
    "size", [(768, 768), (769, 768), (4000, 3000), (3000, 4001), (1, 5000), (5000, 3), (1537, 1023)]
)
@pytest.mark.parametrize("longest", [96, 768])
def test_a_preview_is_what_thumbnail_makes(size, longest):
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    expected = image.copy()
    expected.thumbnail((longest, longest))
    found = shrink(image, longest)
    assert found.size == expected.size
    assert found.tobytes() == expected.tobytes()
    assert found is not image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "L", "1", "I;16", "F", "LAB"])
def test_colours_converted_in_bands_are_those_of_the_whole(mode, monkeypatch):
    noise = np.random.default_rng(1).integers(0, 256, (50, 40, 4), dtype=np.uint8)
    if mode == "F":
        image = Image.fromarray(noise[..., 0].astype(np.float32) * 3)
    elif mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 250)
    elif mode in ("RGBA", "CMYK"):
        image = Image.frombytes(mode, (40, 50), noise.tobytes())
    else:
        image = Image.fromarray(noise[..., :3]).convert("RGBA" if mode == "LA" else "RGB").convert(mode)
    if mode == "P":
        image.info["transparency"] = 7
    whole = open_image(image)
    monkeypatch.setattr(picture, "_BAND_PIXELS", 7 * 40)
    bands = open_image(image)
    assert bands.pixels.tobytes() == whole.pixels.tobytes()
    assert bands.notes == whole.notes


def test_a_picture_of_a_program_stays_as_it_was():
    image = Image.new("RGB", (4, 4), "red")
    open_image(image).pixels.putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (255, 0, 0)
