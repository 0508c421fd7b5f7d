"""Whatever file a person brings: upright 8-bit RGB comes out, or one sentence that says what to do."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from model import InputError, VLMConfig, open_image, plan_image, process_image
from model.image import MAX_PIXELS
from tests.odd_files import encode, refused

SMALL = VLMConfig(
    vit_img_size=64,
    vit_patch_size=8,
    mp_pixel_shuffle_factor=2,
    mp_image_token_length=16,
    max_img_size=192,
    resize_to_max_side_len=False,
)


def pixel(opened, x=0, y=0):
    assert opened.pixels.mode == "RGB"
    return opened.pixels.getpixel((x, y))


def half_red(size=(40, 20)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    return image


def test_rgb_stays_as_it_is_and_says_nothing():
    image = half_red()
    opened = open_image(encode(image))
    assert opened.pixels.tobytes() == image.tobytes()
    assert opened.notes == ()


@pytest.mark.parametrize(
    ("orientation", "size", "red_at", "blue_at"),
    [
        (1, (40, 20), (5, 10), (35, 10)),
        (2, (40, 20), (35, 10), (5, 10)),  # mirrored
        (3, (40, 20), (35, 10), (5, 10)),  # upside down
        (6, (20, 40), (10, 5), (10, 35)),  # to be turned clockwise
        (8, (20, 40), (10, 35), (10, 5)),  # to be turned anticlockwise
    ],
)
def test_exif_orientation_is_applied(orientation, size, red_at, blue_at):
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encode(half_red(), exif=exif))
    assert opened.pixels.size == size
    assert pixel(opened, *red_at) == (255, 0, 0)
    assert pixel(opened, *blue_at) == (0, 0, 255)
    assert any("EXIF" in note for note in opened.notes) == (orientation != 1)


@pytest.mark.parametrize(("alpha", "red"), [(255, (255, 0, 0)), (0, (255, 255, 255)), (51, (255, 204, 204))])
def test_transparency_lies_over_white(alpha, red):
    opened = open_image(encode(Image.new("RGBA", (4, 4), (255, 0, 0, alpha))))
    assert pixel(opened) == red
    assert any("white" in note for note in opened.notes) == (alpha != 255)


def test_grey_with_alpha_lies_over_white():
    assert pixel(open_image(encode(Image.new("LA", (4, 4), (0, 0))))) == (255, 255, 255)
    assert pixel(open_image(encode(Image.new("LA", (4, 4), (0, 255))))) == (0, 0, 0)


def test_a_palettes_transparent_colour_lies_over_white():
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1, 0, 1])
    opened = open_image(encode(image, transparency=0))
    assert [pixel(opened, x) for x in range(2)] == [(255, 255, 255), (0, 255, 0)]
    assert [pixel(open_image(encode(image)), x) for x in range(2)] == [(255, 0, 0), (0, 255, 0)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"])
def test_every_mode_becomes_rgb_of_the_same_size(mode):
    opened = open_image(Image.new(mode, (7, 5)))
    assert opened.pixels.mode == "RGB"
    assert opened.pixels.size == (7, 5)


def test_golden_pictures_with_alpha_are_composited_where_upstream_drops_it(golden):
    picture = Image.open(golden / "images" / "rgba_200x150.png")
    opened = open_image(golden / "images" / "rgba_200x150.png")
    pixels = np.asarray(picture.convert("RGBA"), dtype=np.float64)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(opened.pixels) - expected).max() <= 1
    assert opened.pixels.tobytes() != picture.convert("RGB").tobytes()


def test_sixteen_bits_are_scaled_to_eight():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    opened = open_image(encode(Image.fromarray(values)))
    assert [pixel(opened, x)[0] for x in range(4)] == [0, 1, 128, 255]
    assert any("8 bits" in note for note in opened.notes)


def test_a_dark_sixteen_bit_picture_stays_dark():
    """Its scale is that of the file's 16 bits, whatever its brightest pixel is."""
    dark, hardly_lighter = np.array([[0, 255]], dtype=np.uint16), np.array([[0, 257]], dtype=np.uint16)
    assert pixel(open_image(encode(Image.fromarray(dark))), 1) == (1, 1, 1)
    assert pixel(open_image(encode(Image.fromarray(hardly_lighter))), 1) == (1, 1, 1)


def raw_png(width, depth, kind, row, *chunks) -> bytes:
    """One row of pixels as PNG's specification writes them: not everything of it can be written by Pillow."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"".join((b"\x89PNG\r\n\x1a\n", head, *(chunk(*one) for one in chunks), data, chunk(b"IEND", b"")))


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (raw_png(4, 2, 0, b"\x1b", (b"tRNS", b"\0\1")), [0, 255, 170, 255]),
        (raw_png(2, 4, 0, b"\x1f", (b"tRNS", b"\0\1")), [255, 255]),
        (raw_png(2, 8, 0, b"\x0a\xc8", (b"tRNS", b"\0\x0a")), [255, 200]),
        (raw_png(2, 16, 0, b"\1\0\x80\0", (b"tRNS", b"\1\0")), [255, 128]),
        (raw_png(2, 16, 2, b"\1\0" * 3 + b"\x80\0" * 3, (b"tRNS", b"\1\0" * 3)), [255, 128]),
    ],
)
def test_the_transparent_colour_of_a_png_of_any_depth(data, pixels):
    opened = open_image(data)
    assert [pixel(opened, x)[0] for x in range(len(pixels))] == pixels
    assert "transparency laid over white" in opened.notes


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4)])
def test_twelve_bits_of_colour_in_sixteen_say_that_they_are_dark(kind, channels):
    row = b"\x0f\xff" * 3 + b"\xff\xff" * (channels - 3)
    opened = open_image(raw_png(1, 16, kind, row))
    assert pixel(opened) == (15, 15, 15)
    assert opened.notes[0] == "16-bit values scaled to 8 bits"
    assert opened.notes[1].startswith("nearly black")
    bright = open_image(raw_png(1, 16, kind, b"\xff\xff" * channels))
    assert (pixel(bright), bright.notes) == ((255, 255, 255), ("16-bit values scaled to 8 bits",))


def test_a_turned_tiff_says_so():
    opened = open_image(encode(half_red(), "TIFF", tiffinfo={0x0112: 6}))
    assert (opened.pixels.size, opened.notes) == ((20, 40), ("turned upright by its EXIF tag",))


def test_cmyk_jpeg():
    opened = open_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = pixel(opened, 4, 4)
    assert red > 240
    assert max(green, blue) < 20
    assert any("CMYK" in note for note in opened.notes)


def test_first_frame_of_an_animation_and_it_says_so():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "green", "blue")]
    opened = open_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert pixel(opened) == (255, 0, 0)
    assert opened.notes == ("first of 3 frames",)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    sentence = refused(data[: int(len(data) * share)])
    assert "damaged" in sentence or "an image" in sentence


def test_no_bytes():
    assert "empty" in refused(b"")


@pytest.mark.parametrize("data", [b"hello", b"\x00" * 1000, b"<svg/>", b"%PDF-1.7\n"])
def test_not_an_image(data):
    assert "an image" in refused(data)


def test_the_files_name_is_in_the_sentence(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no picture")
    assert "notes.txt" in refused(path)
    assert "missing.png" in refused(tmp_path / "missing.png")
    assert str(tmp_path) not in refused(path)  # where uploads lie is nobody's business


def png_header(width: int, height: int) -> bytes:
    """A valid PNG of one grey bit per pixel whose header promises far more than its few bytes hold."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\x00" * 1000)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(9_500, 9_500), (50_000, 50_000), (2_000_000, 100)])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(size):
    assert size[0] * size[1] > MAX_PIXELS
    sentence = refused(png_header(*size))
    assert "too large" in sentence
    assert "89 million" in sentence


def test_an_image_in_memory_has_the_same_limit():
    assert "too large" in refused(Image.new("1", (9_500, 9_500)))


@pytest.mark.parametrize(
    ("size", "resized", "grid"),
    [
        ((1, 1), (64, 64), (1, 1)),
        ((5, 1200), (64, 192), (3, 1)),
        ((1200, 5), (192, 64), (1, 3)),
        ((20_000, 100), (192, 64), (1, 3)),
        ((65, 64), (128, 128), (2, 2)),
    ],
)
def test_extreme_sizes(size, resized, grid):
    processed = process_image(Image.new("RGB", size, "white"), SMALL)
    assert processed.original_size == size
    assert processed.resized_size == resized
    assert processed.grid == grid
    assert plan_image(size, SMALL).tiles == len(processed.tiles) == len(processed.boxes)
    assert processed.tiles.min().item() == pytest.approx(1)
    assert processed.tiles.max().item() == pytest.approx(1)


def test_no_pixels_at_all():
    with pytest.raises(InputError, match="pixels"):
        plan_image((0, 10), SMALL)


def test_notes_reach_the_processed_image():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "green")]
    opened = open_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert process_image(opened, SMALL).notes == ("first of 2 frames",)
