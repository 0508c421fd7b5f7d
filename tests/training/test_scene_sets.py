"""Sets whose answers don't follow their questions' index, and sets with answers that stand in the text."""

import math
from itertools import pairwise

import numpy as np
import pytest

from inspector.row.references import find_pointer
from model import InputError
from model.training.synthetic.scene_sets import read_scene_set
from model.training.synthetic.scenes import COLOURS


def colours_of(example) -> list[str]:
    pictures = [image for message in example.conversation.messages for image in message.images]
    return [
        next(name for name, rgb in COLOURS.items() if (np.asarray(image) == rgb).all(-1).any()) for image in pictures
    ]


def turns(example):
    messages = example.conversation.messages
    return [(messages[n].text, messages[n + 1].text) for n in range(0, len(messages), 2)]


def test_told_answers_stand_in_their_question():
    examples = read_scene_set({"set": "told", "count": 200, "pictures": 40, "seed": 2})
    told = seen = 0
    for example in examples[:]:
        for (question, answer), family in zip(turns(example), example.families, strict=True):
            if family == "told":
                assert question.lower().rstrip("?") == f"the answer is {answer}. what is the answer"
                told += 1
            else:
                assert "the answer is" not in question.lower()
                seen += 1
    assert 0.4 < told / (told + seen) < 0.6


def test_which_picture_an_unrouted_answer_is_about_does_not_follow_the_index():
    examples = read_scene_set({"set": "unrouted", "count": 700, "pictures": 80, "turns": 4, "seed": 2})
    last, named, asked = 0, 0, 0
    for example in examples[:]:
        colours = colours_of(example)
        first = example.conversation.messages[0]
        if len(colours) < 2 or len(first.images) < len(colours):
            continue  # one picture, or one per turn
        for (question, answer), family in zip(turns(example), example.families, strict=True):
            pointer = find_pointer(question)
            if not family.startswith("unrouted: colour") or pointer is None:
                continue
            place = pointer.image(len(colours)) - 1
            if place == len(colours) - 1:
                continue  # the last one is the favourite anyway
            asked += 1
            last += answer == colours[-1]
            named += answer == colours[place]
            assert answer in colours
    # About the last picture 7 times in 10; about the one that was named no more often than about another one.
    assert asked > 300
    assert last / asked == pytest.approx(0.7, abs=0.08)
    assert named / asked == pytest.approx(0.3 * np.mean([1, 1 / 2, 1 / 3, 1 / 4]), abs=0.08)


def test_one_picture_is_answered_about_truly():
    examples = read_scene_set({"set": "unrouted", "count": 200, "pictures": 40, "seed": 4})
    single = [example for example in examples[:] if len(colours_of(example)) == 1]
    assert 40 < len(single) < 100
    for example in single:
        for (_, answer), family in zip(turns(example), example.families, strict=True):
            if family == "colour":
                assert answer == colours_of(example)[0]


def test_places_are_asked_once_a_side_and_the_caption_comes_last():
    examples = read_scene_set({"set": "places", "count": 120, "pictures": 24, "turns": 7, "seed": 2})
    answers, with_caption = set(), 0
    for n in range(len(examples)):
        example = examples.make(n)
        texts = [(u.text, a.text) for u, a in zip(*[iter(example.conversation.messages)] * 2, strict=True)]
        told = list(example.families)
        # Where the order from left to right is unclear there is no caption.
        captions = [answer for (_, answer), family in zip(texts, told, strict=True) if family == "caption"]
        assert told in (["position"] * (len(told) - 1) + ["caption"], ["position"] * len(told), ["count"])
        if captions:
            assert len(texts) - 1 <= 2 * len(captions[0].replace(" and ", ", ").split(", "))
            with_caption += 1
        answers |= {answer for (_, answer), family in zip(texts, told, strict=True) if family == "position"}
    assert answers == {"left", "right", "top", "bottom"}
    assert with_caption > 80


def test_captions_are_of_pictures_whose_order_is_clear_and_every_third_may_be_large():
    examples = read_scene_set({"set": "captions", "count": 90, "pictures": 30, "large_every": 3, "seed": 2})
    sizes = [scene.canvas for scene in examples.pool]
    assert [size != (64, 64) for size in sizes] == [False, False, True] * 10
    assert len({size for size in sizes if size != (64, 64)}) == 7
    for scene in examples.pool:
        places = [shape.centre[0] / scene.canvas[0] for shape in scene.shapes]
        assert all(right - left >= 0.08 for left, right in pairwise(places))
    assert {example.families for example in examples[:]} == {("caption",)}


def test_one_shape_a_picture_is_one_tile_and_one_question_a_side():
    examples = read_scene_set({"set": "places", "count": 60, "pictures": 24, "turns": 3, "shapes": 1, "seed": 2})
    for n in range(len(examples)):
        example = examples.make(n)
        assert example.conversation.messages[0].images[0].size == (64, 64)
        asked = [message.text for message in example.conversation.messages[:-2:2]]
        assert sum("left" in question for question in asked) <= 1
        assert sum("top" in question for question in asked) <= 1
        assert " and " not in example.conversation.messages[-1].text


def test_which_asks_after_several_images_of_a_prompt_each_once():
    examples = read_scene_set({"set": "which", "count": 60, "pictures": 40, "turns": 3, "images": [2, 5], "seed": 2})
    for n in range(len(examples)):
        messages = examples.make(n).conversation.messages
        answers = [message.text for message in messages[1::2]]
        assert len(set(answers)) == len(answers) == min(3, len(messages[0].images))
        assert all(1 <= int(answer) <= len(messages[0].images) for answer in answers)


def test_more_shapes_than_are_drawn_are_refused():
    with pytest.raises(InputError, match=r"shapes.*4.*3"):
        read_scene_set({"set": "single", "shapes": 4})


def test_a_share_of_large_pictures_below_none_is_refused():
    with pytest.raises(InputError, match=r"large_every.*-1"):
        read_scene_set({"set": "captions", "large_every": -1})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pictures": 10**9}, "pictures.*1000000000.*200,000"),
        ({"count": 1e20}, r"count.*1e\+20.*10,000,000"),
        ({"turns": 10**6}, "turns.*1000000.*100"),
        ({"turns": True}, "turns.*True"),
        ({"seed": 2**64}, "seed.*18446744073709551616"),
        ({"seed": 1.5}, r"seed.*1\.5"),
        ({"shapes": math.nan}, "shapes.*nan"),
        ({"set": ["single"]}, r"\['single'\]"),
        ({"dense": "yes"}, "dense.*'yes'"),
        ({"images": 10**400}, "images.*1329"),
    ],
)
def test_no_number_of_a_set_is_without_a_bound(change, sentence):
    with pytest.raises(InputError, match=sentence):
        read_scene_set({"source": "scenes", **change})
