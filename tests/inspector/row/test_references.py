"""How questions point at images, and turning them to other images."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.row.references import Pointer, find_pointer, find_pointers, point_at
from model import InputError


def found(question: str) -> list[tuple[str, int | None, str]]:
    return [
        (pointer.kind, pointer.number, question[pointer.start : pointer.stop]) for pointer in find_pointers(question)
    ]


@pytest.mark.parametrize(
    ("question", "kind", "number", "word"),
    [
        ("In image 2, what colour is the shape?", "digit", 2, "2"),
        ("what color is the shape in image 3?", "digit", 3, "3"),
        ("What is in picture 12", "digit", 12, "12"),
        ("photo 2: who is it?", "digit", 2, "2"),
        ("WHAT IS IN IMAGE 2?", "digit", 2, "2"),
        ("what is in image2?", "digit", 2, "2"),
        ("What does image #2 show?", "digit", 2, "2"),
        ("What does image no. 2 show?", "digit", 2, "2"),
        ("What does Picture number 3 show?", "digit", 3, "3"),
        ("In the image 2, what is it?", "digit", 2, "2"),
        ("What is image 2's colour?", "digit", 2, "2"),
        ("Describe img_2.", "digit", 2, "2"),
        ("Describe the 2nd image.", "digit", 2, "2nd"),
        ("Describe the 11th photograph.", "digit", 11, "11th"),
        ("what is in the second image?", "word", 2, "second"),
        ("First picture: what is it?", "word", 1, "First"),
        ("What is in the\nthird photo?", "word", 3, "third"),
        ("what is in the last image?", "word", None, "last"),
        ("And the FINAL PICTURE?", "word", None, "FINAL"),
        ("Describe the last of the three images.", "word", None, "last"),
        ("Describe the second of these pictures.", "word", 2, "second"),
        ("the first one of the 3 images, please", "word", 1, "first"),
        ("what is in picture two?", "word", 2, "two"),
        ("Image one: what is it?", "word", 1, "one"),
        ("what comes first in the second image?", "word", 2, "second"),
        ("In image 2, 3 circles are drawn. Which is largest?", "digit", 2, "2"),
        ("Which of the two shapes in image 3 is blue?", "digit", 3, "3"),
    ],
)
def test_one_pointer(question, kind, number, word):
    assert found(question) == [(kind, number, word)]
    pointer = find_pointer(question)
    assert pointer is not None
    assert (pointer.kind, pointer.number) == (kind, number)


@pytest.mark.parametrize(
    "question",
    [
        "",
        "   ",
        "What colour is the shape?",
        "what comes first?",
        "Which one is the first?",
        "Is there a second image?",
        "What is the last word in the image?",
        "How many images are there?",
        "Are all 3 images the same?",
        "one image or two?",
        "in one of the images",
        "the image one sees",
        "In the image 2 dogs play.",
        "Is the image 2 pixels wide?",
        "Is image 20% brighter?",
        "Is the image 2x larger?",
        "a 3D image 3D",
        "the image 1920 px wide",
        "What about image 2.5?",
        "each first image",
        "Which image has the red circle?",
        "the first two images",
        "Look at the image. 2 dogs play.",
        "imaged 2",
        "preimage 2",
        "the second shape in the image",
        "is the second circle in the picture red?",
        "2 images",
        "image: 2 cats",
        "the 2th image",
        "the 0th image",
        "image ２",
        "image two-tone",
    ],
)
def test_no_pointer(question):
    assert find_pointers(question) == ()
    assert find_pointer(question) is None


@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        ("are image 1 and image 2 the same colour?", [1, 2]),
        ("are images 1 and 2 the same?", [1, 2]),
        ("Compare images 1, 2 and 4.", [1, 2, 4]),
        ("is image 1 or 3 larger?", [1, 3]),
        ("the first and the third image", [1, 3]),
        ("Do the first and last pictures match?", [1, None]),
        ("is the first image the same as the second?", [1, 2]),
        ("Is image 1 brighter than the last one?", [1, None]),
        ("is the 1st image darker than the 2nd?", [1, 2]),
        ("In image 2, what is it? And in image 2?", [2, 2]),
        ("photo one and photo two", [1, 2]),
    ],
)
def test_several_pointers_are_no_pointer(question, numbers):
    assert [pointer.number for pointer in find_pointers(question)] == numbers
    assert find_pointer(question) is None


@pytest.mark.parametrize(
    ("question", "number", "base"),
    [
        ("What is in image 0?", 1, 0),
        ("What is in image zero?", 1, 0),
        ("Counted from 0, what is in image 1?", 2, 0),
        ("What is in image 1 (zero-based)?", 2, 0),
        ("Indexing from zero, what is in image 2?", 3, 0),
        ("What is in <image: 1>?", 2, 0),
        ("What is in image 1?", 1, 1),
        ("Counted from 1, what is in image 1?", 1, 1),
        ("Counted from 0, what is in the second image?", 2, 1),
    ],
)
def test_images_count_from_0_only_where_that_is_said(question, number, base):
    pointer = find_pointer(question)
    assert pointer is not None
    assert (pointer.number, pointer.base) == (number, base)


@pytest.mark.parametrize(
    ("question", "number", "expected"),
    [
        ("In image 2, what colour is the shape?", 3, "In image 3, what colour is the shape?"),
        ("Describe the 2nd image.", 3, "Describe the 3rd image."),
        ("Describe the 2nd image.", 1, "Describe the 1st image."),
        ("Describe the 1ST IMAGE.", 2, "Describe the 2ND IMAGE."),
        ("what is in the second image?", 1, "what is in the first image?"),
        ("Second image: what is it?", 4, "Fourth image: what is it?"),
        ("THE SECOND IMAGE", 3, "THE THIRD IMAGE"),
        ("what is in the last image?", 2, "what is in the second image?"),
        ("what is in the last image?", 4, "what is in the last image?"),
        ("what is in the third image?", 4, "what is in the fourth image?"),
        ("what is in picture two?", 3, "what is in picture three?"),
        ("What is in image 0?", 3, "What is in image 2?"),
        ("What is in <image: 1>?", 4, "What is in <image: 3>?"),
        ("Counted from 0, what is in image 1?", 1, "Counted from 0, what is in image 0?"),
        ("In image 2, what is it?", 2, "In image 2, what is it?"),
    ],
)
def test_turning_a_question_to_another_of_four_images(question, number, expected):
    pointer = find_pointer(question)
    assert pointer is not None
    assert point_at(question, pointer, number, 4) == expected


def test_turning_one_of_several_pointers():
    question = "are image 1 and image 2 the same colour?"
    assert point_at(question, find_pointers(question)[1], 3, 3) == "are image 1 and image 3 the same colour?"


@pytest.mark.parametrize("number", [0, -1, 4])
def test_an_image_that_is_not_there_is_named(number):
    question = "what is in image 2?"
    pointer = find_pointer(question)
    assert pointer is not None
    with pytest.raises(InputError, match=rf"image {number};.* 1 to 3"):
        point_at(question, pointer, number, 3)


def test_a_pointer_of_another_question_is_refused():
    with pytest.raises(InputError, match="another question"):
        point_at("what is it?", Pointer("digit", 2, 0, 1), 1, 2)


def test_last_is_the_last_of_however_many():
    last, second = find_pointer("the last image"), find_pointer("the second image")
    assert last is not None
    assert second is not None
    assert [last.image(n) for n in (1, 3, 5)] == [1, 3, 5]
    assert [second.image(n) for n in (1, 3, 5)] == [2, 2, 2]


WORDS = [
    "image",
    "images",
    "picture",
    "1",
    "2",
    "0",
    "3rd",
    "first",
    "second",
    "last",
    "one",
    "two",
    "the",
    "a",
    "and",
    "or",
    ",",
    ".",
    "?",
    "<image: 1>",
    "<|im_end|>",
    "#",
    "of",
    "is",
    "as",
    "ﬁrst",
    "²",
    "\x00",
    "x",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), st.integers(1, 5))
def test_any_pointer_lies_in_the_text_and_turns_round(question, number):
    pointers = find_pointers(question)
    assert list(pointers) == sorted(pointers, key=lambda pointer: pointer.start)
    for pointer in pointers:
        assert 0 <= pointer.start < pointer.stop <= len(question)
        turned = point_at(question, pointer, number, 5)
        assert turned[: pointer.start] == question[: pointer.start]
        assert turned.endswith(question[pointer.stop :])
        back = find_pointers(turned)[pointers.index(pointer)]
        # The digit 0 is all that says so in such a question; its number is the caller's to keep.
        if {pointer.base, back.base} == {1}:
            assert back.image(5) == number


@pytest.mark.parametrize(
    "text",
    [
        "image " * 4000,
        "first " * 4000,
        "image" + " " * 20_000 + "2",
        "image 1 and " * 2000,
        "the first of " * 2000 + "images",
    ],
)
def test_twenty_thousand_characters_are_read_at_once(text):
    import time

    start = time.process_time()
    find_pointers(text)
    assert time.process_time() - start < 2
