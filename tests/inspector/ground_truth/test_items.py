"""Drawn prompts: the truth that an item states is in its pictures, its words and its row."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from inspector.ground_truth.items import CELLS, Item, ItemCue, build_items, name_colour
from inspector.row.layout import read_structure
from inspector.row.prompt import prepare_row
from inspector.row.references import find_pointer
from model import VLM, InputError, load_vlm
from model.tokenizer import decode
from model.training.synthetic.scenes import COLOURS

NULL = ("null", "null, own sample")
CONFLICTS = ("adjacent vs ordinal", "adjacent vs content", "ordinal vs content")
N_EACH = 48


@pytest.fixture(scope="module")
def items() -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {cell: [] for cell in CELLS}
    for item in build_items(CELLS, N_EACH, seed=3):
        found[item.cell].append(item)
    return found


@pytest.fixture(scope="module")
def vlm(golden) -> VLM:
    return load_vlm(golden / "tiny_vlm")


def asked(item: Item) -> str:
    return item.prompt.turns[item.turn].user


def colour_at(picture, box) -> str:
    """The name of the colour in the middle of the box."""
    pixel = picture.pixels.getpixel((round((box.left + box.right) / 2), round((box.top + box.bottom) / 2)))
    return {rgb: name for name, rgb in COLOURS.items()}[pixel]


def test_every_cell_has_as_many_items_as_asked_for(items):
    assert {cell: len(found) for cell, found in items.items()} == dict.fromkeys(CELLS, N_EACH)


@pytest.mark.parametrize("cell", CELLS)
def test_counts_of_images_and_slots_are_balanced(items, cell):
    counts = Counter(len(item.prompt.images) for item in items[cell])
    assert counts == {2: 12, 3: 12, 4: 12, 5: 12}
    for n_images in counts:
        slots = Counter(item.image for item in items[cell] if len(item.prompt.images) == n_images)
        if cell in NULL:
            assert slots == {None: 12}
        elif cell in ("last", "guessed"):
            assert slots == {n_images if cell == "last" else 1: 12}
        else:
            earlier = cell in ("return", "adjacent vs ordinal", "adjacent vs content")
            assert sorted(slots) == list(range(1, n_images + 1 - earlier))
            assert max(slots.values()) - min(slots.values()) <= 1


@pytest.mark.parametrize("cell", CELLS)
def test_answers_are_in_the_pictures(items, cell):
    for item in items[cell]:
        assert len(set(item.answers_by_image)) == len(item.answers_by_image) == len(item.prompt.images)
        for picture, answer in zip(item.prompt.images, item.answers_by_image, strict=True):
            assert (np.asarray(picture.pixels) == COLOURS[answer]).all(-1).sum() > 20
        if item.image is None:
            assert item.answer not in item.answers_by_image
            continue
        assert item.answer == item.answers_by_image[item.image - 1]
        assert colour_at(item.prompt.images[item.image - 1], item.box) == item.answer


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell not in NULL])
def test_a_twin_differs_in_the_shape_s_colour_alone(items, cell):
    for item in items[cell]:
        picture = item.prompt.images[item.image - 1]
        assert item.twin.pixels.size == picture.pixels.size == (64, 64)
        assert item.twin_answer not in item.answers_by_image
        assert colour_at(item.twin, item.box) == item.twin_answer
        differs = (np.asarray(item.twin.pixels) != np.asarray(picture.pixels)).any(-1)
        rows, cols = differs.nonzero()
        assert item.box.left - 1 <= cols.min() <= cols.max() <= item.box.right + 1
        assert item.box.top - 1 <= rows.min() <= rows.max() <= item.box.bottom + 1


def test_a_null_item_has_no_twin(items):
    for cell in NULL:
        item = items[cell][0]
        assert (item.image, item.twin, item.twin_answer, item.box) == (None, None, None, None)
        assert item.single_prompt.images == ()


@pytest.mark.parametrize("cell", CELLS)
def test_the_row_lets_the_question_see_the_relevant_image(items, cell, vlm):
    for item in items[cell][:16]:
        row = prepare_row(vlm, item.prompt, answering=item.turn)
        structure = read_structure(
            row, document_mask=item.prompt.document_mask, decode=lambda ids: decode(vlm.tokenizer, ids)
        )
        question = structure.questions[-1]
        assert question.text == asked(item)
        assert question.number == item.turn + 1
        expected = {
            "packed, document mask": (item.image,),
            "adjacent": tuple(range(1, (item.image or 0) + 1)),
            "packed": tuple(range(1, (item.image or 0) + 1)),
            "null, own sample": (),
        }.get(cell, tuple(range(1, len(item.prompt.images) + 1)))
        assert question.reachable == expected


@pytest.mark.parametrize("cell", CELLS)
def test_no_earlier_text_gives_the_answer_away(items, cell):
    for item in items[cell]:
        before = [text for turn in item.prompt.turns[: item.turn] for text in (turn.user, turn.assistant)]
        assert not any(item.answer in text for text in before)
        assert (item.answer in asked(item)) == (cell in NULL)
        assert all(turn.assistant for turn in item.prompt.turns[: item.turn])
        assert not any(turn.assistant for turn in item.prompt.turns[item.turn :])


@pytest.mark.parametrize(
    ("cell", "kind", "base"),
    [
        ("ordinal digit", "digit", 1),
        ("ordinal word", "word", 1),
        ("ordinal from 0", "digit", 0),
        ("last", "word", 1),
        ("guessed", "digit", 1),
        ("return", "digit", 1),
        ("adjacent vs ordinal", "digit", 1),
        ("ordinal vs content", "digit", 1),
    ],
)
def test_ordinals_point_at_the_relevant_image(items, cell, kind, base):
    for item in items[cell]:
        pointer = find_pointer(asked(item))
        assert (pointer.kind, pointer.base) == (kind, base)
        assert pointer.image(len(item.prompt.images)) == item.image


def test_the_gate_asks_the_same_of_the_relevant_image_alone(items):
    for cell in CELLS:
        for item in items[cell]:
            (turn,) = item.single_prompt.turns
            assert find_pointer(turn.user) is None
            if item.image is None:
                assert (item.single_prompt.images, turn.user) == ((), asked(item))
                continue
            (picture,) = item.single_prompt.images
            assert picture is item.prompt.images[item.image - 1]
            word = asked(item).split("what ")[1].split()[0]
            noun = shape_of(picture) if "content" in cell else "shape"
            assert turn.user == f"what {word} is the {noun}?"


@pytest.mark.parametrize("cell", ["adjacent", "content", "adjacent vs content", "packed", *NULL])
def test_the_other_cells_name_no_image(items, cell):
    assert [item for item in items[cell] if find_pointer(asked(item))] == []


def test_conflicts_point_at_two_images(items):
    for cell in CELLS:
        for item in items[cell]:
            images = [cue.image for cue in item.cues]
            assert len(images) == len(set(images)) == (2 if cell in CONFLICTS else 0 if cell in NULL else 1)
            assert images[:1] == ([] if item.image is None else [item.image])
    for item in items["adjacent vs ordinal"] + items["adjacent vs content"]:
        assert item.cues[1] == ItemCue("adjacent", len(item.prompt.images))
    # Behind three pictures or more, the content cue points at every other place as often as at the next.
    steps = Counter(
        (item.cues[1].image - item.cues[0].image) % 3
        for item in items["ordinal vs content"]
        if len(item.prompt.images) == 3
    )
    assert steps == {1: 6, 2: 6}


def shape_of(picture) -> str:
    """By how much of its box it fills: a rectangle all, a circle π / 4, a triangle half."""
    pixels = np.asarray(picture.pixels).astype(int)
    shape = np.abs(pixels - pixels[0, 0]).sum(-1) > 60
    rows, cols = shape.nonzero()
    full = shape.sum() / ((np.ptp(rows) + 1) * (np.ptp(cols) + 1))
    return "rectangle" if full > 0.9 else "circle" if full > 0.65 else "triangle"


@pytest.mark.parametrize("cell", ["content", "adjacent vs content", "ordinal vs content"])
def test_one_picture_alone_has_the_kind_that_is_asked_for(items, cell):
    for item in items[cell]:
        kinds = [shape_of(picture) for picture in item.prompt.images]
        content = next(cue for cue in item.cues if cue.name == "content")
        kind = kinds[content.image - 1]
        assert f"the {kind}?" in asked(item)
        assert kinds.count(kind) == 1


def test_the_guessed_picture_has_the_guessed_colour(items):
    assert {(item.image, item.answer) for item in items["guessed"]} == {(1, "green")}
    assert all(item.answers_by_image.count("green") == 1 for item in items["guessed"])


def test_item_n_of_different_cells_shows_the_same_pictures(items):
    for one, other in zip(items["ordinal digit"], items["packed"], strict=True):
        assert [p.pixels.tobytes() for p in one.prompt.images] == [p.pixels.tobytes() for p in other.prompt.images]
        assert one.image == other.image


def test_wordings():
    texts = {
        item.cell: (asked(item), [turn.assistant for turn in item.prompt.turns])
        for item in build_items(CELLS, 1, seed=0)
    }
    word = texts["adjacent"][0].split()[1]
    kind = texts["content"][0].split()[-1]
    assert texts["adjacent"][0] == f"what {word} is the shape?"
    assert texts["guessed"][0] == f"In image 1, what {word} is the shape?"
    assert texts["ordinal digit"][0] == f"in image 1, what {word} is the shape?"
    assert texts["ordinal word"][0] == f"what {word} is the shape in the first image?"
    assert texts["ordinal from 0"][0] == f"in <image: 0>, what {word} is the shape?"
    assert texts["last"][0] == f"what {word} is the shape in the last image?"
    assert texts["content"][0] == f"what {word} is the {kind}"
    assert texts["return"] == (f"in image 1, what {word} is the shape?", ["1", "1", ""])
    assert texts["adjacent vs ordinal"] == (f"in image 1, what {word} is the shape?", ["1", ""])


def test_the_same_seed_gives_the_same_items():
    def pixels(seed):
        return [p.pixels.tobytes() for item in build_items(["content"], 6, seed) for p in item.prompt.images]

    assert pixels(1) == pixels(1)
    assert pixels(1) != pixels(2)


def test_an_enlarged_item_is_the_same_picture_with_more_pixels():
    small, large = (next(build_items(["content"], 1, 4, enlarged=k)) for k in (1, 4))
    assert large.prompt.images[0].pixels.size == (256, 256)
    assert (large.answer, large.prompt.turns) == (small.answer, small.prompt.turns)
    assert (large.box.left, large.box.bottom) == (4 * small.box.left, 4 * small.box.bottom)
    shrunk = large.prompt.images[0].pixels.resize((64, 64), Image.Resampling.BOX)
    apart = np.abs(np.asarray(shrunk, int) - np.asarray(small.prompt.images[0].pixels, int)).max(axis=-1)
    assert (apart > 8).mean() < 0.1  # only edges


def test_a_guessed_item_shows_what_the_model_says_without_a_picture():
    found = list(build_items(["guessed"], 8, 0, guesses={"color": "red", "colour": "blue"}))
    for item in found:
        question = item.prompt.turns[0].user
        assert item.answer == ("red" if "color " in question else "blue")
        assert colour_at(item.prompt.images[0], item.box) == item.answer
    assert {item.answer for item in found} == {"red", "blue"}


@pytest.mark.parametrize(
    ("answer", "colour"),
    [
        ("red", "red"),
        (" The shape in image 2 is **Red**.", "red"),
        ("GREY", "gray"),
        ("a gray, or grey, circle", "gray"),
        ("red or blue", None),
        ("reddish", None),
        ("It isn't purple", None),
        ("", None),
    ],
)
def test_the_colour_that_an_answer_names(answer, colour):
    assert name_colour(answer) == colour


def test_fewer_images_and_a_larger_canvas():
    found = list(build_items(["ordinal digit"], 6, 0, images=(2, 3), canvas=(128, 128)))
    assert [len(item.prompt.images) for item in found] == [2, 3, 2, 3, 2, 3]
    assert {picture.pixels.size for item in found for picture in item.prompt.images} == {(128, 128)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cells": ["guess"]}, "guess.*adjacent"),
        ({"n_each": 0}, "^0 items"),
        ({"seed": -1}, "seed -1"),
        ({"images": (1, 3)}, "1 to 3"),
        ({"images": (4, 6)}, "4 to 6"),
        ({"images": (4, 3)}, "4 to 3"),
    ],
)
def test_bad_wishes_are_named(options, sentence):
    with pytest.raises(InputError, match=sentence):
        next(build_items(**({"cells": ["content"], "n_each": 48, "seed": 0} | options)))
