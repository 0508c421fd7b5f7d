"""Images are decoded elsewhere: whatever a file does to its decoder, the server says one sentence and goes on."""

import os
import signal
import struct
import threading
import time
import zlib

import pytest
from PIL import Image

from inspector.bounds import private_bounds
from inspector.images import full_size
from inspector.images.decoder import Decoder
from model import InputError


@pytest.fixture
def decoder():
    made = []

    def make(**changes) -> Decoder:
        made.append(Decoder(private_bounds(**changes)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (40, 20), "red").save(path)
    return path


def png(path, *chunks):
    """A picture of 8 × 8 with further chunks, each (name, data, how often)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    more = b"".join(chunk(name, data) * count for name, data, count in chunks)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + more
        + chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
        + chunk(b"IEND", b"")
    )
    return path


def exif_bomb(tags: int, size: int) -> bytes:
    """Tags that all claim the same ``size`` bytes for themselves: read one by one they are ``tags`` times as many."""
    start = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack("<HHII", 1000 + tag, 1, size, start) for tag in range(tags))
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", tags) + entries + bytes(4 + size)


def test_facts_of_an_image(decoder, image):
    facts = decoder().run(image, full_size.examine)
    assert facts.size == (40, 20)
    assert facts.notes == ()
    assert full_size.read_preview(facts).getpixel((39, 19)) == (255, 0, 0)


def test_pixels_are_counted_by_the_header(decoder, tmp_path):
    whole = tmp_path / "whole.png"
    Image.effect_noise((300, 200), 50).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:5000])
    one = decoder()
    assert one.count_pixels(cut) == 60_000
    with pytest.raises(InputError, match=r"cut\.png.*damaged"):
        one.run(cut, full_size.examine)


def test_a_process_is_used_again(decoder, image):
    one = decoder()
    one.run(image, full_size.examine)
    (first,) = one._idle
    one.run(image, full_size.examine)
    assert one._idle == [first]


def test_a_process_that_held_much_is_not_used_again(decoder, tmp_path):
    large = tmp_path / "large.png"
    Image.new("L", (9000, 9000)).save(large)
    one = decoder()
    assert one.run(large, full_size.examine).size == (9000, 9000)
    assert one._idle == []


def test_a_process_that_was_killed_in_between_is_replaced(decoder, image):
    one = decoder()
    one.run(image, full_size.examine)
    (process,) = one._idle
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    assert one.run(image, full_size.examine).size == (40, 20)


def test_a_file_that_keeps_its_decoder_busy_is_given_up(decoder, image, tmp_path):
    """2.5 million empty chunks, each read on its own."""
    bomb = png(tmp_path / "bomb.png", (b"aaAa", b"", 2_500_000))
    one = decoder(decode_s=1.0)
    with pytest.raises(InputError, match=r"bomb\.png.*too long"):
        one.run(bomb, full_size.examine)
    assert one.run(image, full_size.examine).size == (40, 20)


def test_nobody_waits_longer_than_is_bounded(decoder, image, tmp_path):
    bomb = png(tmp_path / "bomb.png", (b"aaAa", b"", 2_500_000))
    one = decoder()
    one.run(image, full_size.examine)  # the process is there
    one.bounds = private_bounds(decode_wait_s=0.5)
    began = time.monotonic()
    with pytest.raises(InputError, match="too long"):
        one.run(bomb, full_size.examine)
    assert time.monotonic() - began < 30


def test_a_file_that_takes_all_memory_is_given_up(decoder, image, tmp_path):
    """2,000 tags of 8 MB each in a file of 8 MB."""
    bomb = png(tmp_path / "bomb.png", (b"eXIf", exif_bomb(2000, 8_000_000), 1))
    one = decoder()
    with pytest.raises(InputError, match=r"bomb\.png.*memory"):
        one.run(bomb, full_size.examine)
    assert one.run(image, full_size.examine).size == (40, 20)


def test_a_text_that_unpacks_to_gigabytes_is_refused(decoder, tmp_path):
    bomb = png(tmp_path / "bomb.png", (b"zTXt", b"key\0\0" + zlib.compress(bytes(100_000_000)), 1))
    with pytest.raises(InputError, match=r"bomb\.png.*image"):
        decoder().run(bomb, full_size.examine)


def places(one: Decoder, weights, together: threading.Barrier | None = None) -> list[int]:
    """The largest numbers (of images, of pixels) that were decoded at the same time."""
    most, lock = [0, 0], threading.Lock()

    def hold(weight: int) -> None:
        with one._take_place(weight, time.monotonic() + 60, "“x”"):
            with lock:
                most[0], most[1] = max(most[0], one._running), max(most[1], one._pixels)
            if together is not None:
                together.wait(60)

    threads = [threading.Thread(target=hold, args=(weight,)) for weight in weights]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return most


def test_small_images_go_side_by_side(decoder):
    one = decoder(decoders=3, decoding_pixels=100)
    # None leaves before all three are in.
    assert places(one, [30, 30, 30], threading.Barrier(3)) == [3, 90]


def test_large_images_go_one_by_one(decoder):
    assert places(decoder(decoders=3, decoding_pixels=100), [60, 80, 60, 500])[0] == 1


def test_no_more_processes_than_are_allowed(decoder):
    assert places(decoder(decoders=1, decoding_pixels=100), [1] * 8) == [1, 1]


def test_whoever_waits_too_long_is_told_so(decoder):
    one = decoder(decoding_pixels=100)
    with (
        one._take_place(100, time.monotonic() + 60, "“first”"),
        pytest.raises(InputError, match=r"second\.png"),
        one._take_place(1, time.monotonic() + 0.1, "“second.png”"),
    ):
        pass
    with one._take_place(100, time.monotonic(), "“third”"):
        pass


def test_a_large_image_is_not_overtaken_for_ever(decoder):
    one = decoder(decoders=3, decoding_pixels=100)
    order, entered = [], threading.Event()

    def wait(name: str, weight: int) -> None:
        with one._take_place(weight, time.monotonic() + 60, name):
            order.append(name)

    with one._take_place(50, time.monotonic(), "“first”"):
        large = threading.Thread(target=wait, args=("large", 100))
        large.start()
        while len(one._waiting) < 1:
            entered.wait(0.01)
        small = threading.Thread(target=wait, args=("small", 10))
        small.start()
        while len(one._waiting) < 2:
            entered.wait(0.01)
    large.join(60)
    small.join(60)
    assert order == ["large", "small"]


def test_who_sends_many_images_waits_for_them_alone(decoder):
    one = decoder(decoders=1)
    order, waiting, threads = [], threading.Event(), []

    def wait(person: str) -> None:
        names[threading.get_ident()] = person
        with one._take_place(1, time.monotonic() + 60, "“x”"):
            order.append(person)

    names = {threading.get_ident(): "first"}
    one.find_person = lambda: names[threading.get_ident()]
    with one._take_place(1, time.monotonic() + 60, "“first”"):
        for number, person in enumerate(["many", "many", "many", "other", "many"], start=1):
            threads.append(threading.Thread(target=wait, args=(person,)))
            threads[-1].start()
            while len(one._waiting) < number:
                waiting.wait(0.01)
    for thread in threads:
        thread.join(60)
    assert order == ["many", "other", "many", "many", "many"]


def test_images_of_somebody_who_has_gone_are_not_opened(decoder, image):
    class Gone(Exception):
        pass

    def say() -> str:
        raise Gone

    one = decoder()
    one.find_person = say
    with pytest.raises(Gone):
        one.run(image, full_size.examine)
    assert one._waiting == one._idle == []
