"""What a decoding process answers comes through as it was, and nothing else does."""

from multiprocessing import Pipe

import numpy as np
import pytest
from PIL import Image

from inspector.images.decoded import receive_answer, send_answer
from inspector.images.full_size import Facts
from model.picture import Header


def through(value):
    here, there = Pipe()
    with here, there:
        send_answer(there, value)
        return receive_answer(here)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2.5,
        "“text”",
        b"\x00\xff",
        (),
        ("done", (1, 2), False),
        Header((4, 5), 2),
        Facts((4, 5), ("first of 2 frames",), b"file"),
        ("done", (Facts((1, 1), (), b""), (1, 2, 3)), True),
    ],
)
def test_values(value):
    assert through(value) == value


def test_arrays_and_pictures():
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    facts, found, picture = through((Facts((1, 2), (), b"x"), array, Image.fromarray(array)))
    assert facts == Facts((1, 2), (), b"x")
    assert (found == array).all()
    found += 1  # it may be written to
    assert picture.mode == "RGB"
    assert (np.asarray(picture) == array).all()


@pytest.mark.parametrize("value", [object(), {"a": 1}, np.zeros(3), Image.new("L", (2, 2)), print])
def test_what_an_answer_cannot_hold(value):
    with pytest.raises(TypeError, match="hold"):
        through(value)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"[",
        b"\xff",
        b'{"array": 0, "shape": [9]}',
        b'{"bytes": 7}',
        b'{"os.system": {"command": "id"}}',
        b'{"header": {"size": 1, "more": 2}}',
        b'{"picture": 0, "size": [1000, 1000]}',
        b"{}",
        b'{"facts": 3}',
    ],
)
def test_what_is_no_answer(head):
    here, there = Pipe()
    with here, there:
        for part in (head, b"1", b"abc"):
            there.send_bytes(part)
        with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
            receive_answer(here)


def test_an_answer_of_too_many_parts():
    here, there = Pipe()
    with here, there:
        there.send_bytes(b"null")
        there.send_bytes(b"1000000")
        with pytest.raises(ValueError, match="1000000"):
            receive_answer(here)


def test_the_other_side_has_ended():
    here, there = Pipe()
    there.close()
    with here, pytest.raises(EOFError):
        receive_answer(here)
