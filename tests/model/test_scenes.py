"""Drawn scenes: the answers are read off the pixels again, and the same seed gives the same scene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model.training.fresh import SPECIAL_TOKENS, build_tokenizer, scratch_config
from model.training.synthetic import scenes as sc
from model.training.synthetic.easy_vqa import read_easy_vqa
from model.training.synthetic.examples import EXAMPLES


def coloured(image, name: str) -> np.ndarray:
    return (np.asarray(image) == np.array(sc.COLOURS[name])).all(-1)


def test_same_seed_same_picture_and_another_seed_another():
    first, again, other = (sc.random_scene(np.random.default_rng(seed), (192, 128), 3) for seed in (5, 5, 6))
    assert first == again
    assert sc.draw(first).tobytes() == sc.draw(again).tobytes()
    assert first != other


def test_a_rectangle_is_drawn_where_it_says_and_nowhere_else():
    shape = sc.Shape("red", "rectangle", "large", (40.0, 20.0), (10.0, 8.0))
    image = sc.draw(sc.Scene((128, 64), (250, 240, 230), (shape,)))
    red = coloured(image, "red")
    assert image.size == (128, 64)
    assert red[13:27, 31:49].all()
    assert not red[:11].any()
    assert not red[:, :29].any()
    assert image.getpixel((0, 63)) == (250, 240, 230)


@pytest.mark.parametrize("canvas", sc.CANVAS_SIZES)
def test_shapes_lie_on_the_canvas_and_never_touch(canvas):
    rng = np.random.default_rng(1)
    for _ in range(40):
        scene = sc.random_scene(rng, canvas)
        assert 1 <= len(scene.shapes) <= sc.MAX_SHAPES
        for index, shape in enumerate(scene.shapes):
            left, top, right, bottom = shape.box
            assert min(left, top) >= 0
            assert right <= canvas[0]
            assert bottom <= canvas[1]
            assert coloured(sc.draw(scene), shape.colour).any()
            for other in scene.shapes[index + 1 :]:
                assert other.box[0] > right or other.box[1] > bottom or other.box[3] < top


def test_label_map_counts_every_shape():
    scene = sc.Scene(
        (64, 64),
        (255, 255, 255),
        (
            sc.Shape("blue", "rectangle", "small", (10.0, 10.0), (5.0, 5.0)),
            sc.Shape("teal", "circle", "small", (50.0, 50.0), (6.0, 6.0)),
        ),
    )
    labels = sc.label_map(scene)
    assert (labels == 1).sum() == 11 * 11
    assert (labels == 2).sum() == pytest.approx(np.pi * 6.5**2, rel=0.1)
    assert labels[10, 10] == 1
    assert labels[50, 50] == 2
    assert labels[30, 30] == 0


def two_shapes() -> sc.Scene:
    return sc.Scene(
        (192, 64),
        (255, 255, 255),
        (
            sc.Shape("red", "circle", "large", (20.0, 12.0), (10.0, 10.0)),
            sc.Shape("blue", "circle", "large", (170.0, 32.0), (10.0, 10.0)),
        ),
    )


def test_answers_of_a_known_scene():
    scene = two_shapes()
    found: dict[str, set[str]] = {}
    rng = np.random.default_rng(2)
    for _ in range(600):
        for question, answer, _ in sc.scene_turns(rng, scene, 4):
            found.setdefault(question, set()).add(answer)
    assert all(len(answers) == 1 for answers in found.values())
    answer = {question: next(iter(answers)) for question, answers in found.items()}
    assert answer["how many shapes are there?"] == "2"
    assert answer["how many circles are there?"] == "2"
    assert answer["how many red shapes are there?"] == "1"
    assert answer["what is the blue shape?"] == "circle"
    assert answer["is the red circle on the left or on the right?"] == "left"
    assert answer["is the red shape at the top or at the bottom?"] == "top"
    assert answer["is the blue shape on the left or on the right?"] == "right"
    assert answer["describe the image."] == "a red circle and a blue circle"
    assert answer["is there a red circle?"] == "yes"
    assert answer["is there a red triangle?"] == "no"
    assert answer["is there not a red circle?"] == "no"
    # The blue circle is level with the middle, and "the circle" could be either.
    assert "is the blue shape at the top or at the bottom?" not in answer
    assert "what color is the circle?" not in answer


@pytest.mark.parametrize(("second", "told"), [(45.1, "a red circle and a blue circle"), (35.0, None)])
def test_a_caption_needs_an_order_that_anybody_would_tell(second: float, told: str | None):
    """Of 192 pixels centres must lie 0.08, or 15.36 pixels, apart from left to right."""
    first, other = two_shapes().shapes
    shapes = (first, replace(other, centre=(second, 50.0)))
    turn = sc.ask_caption(np.random.default_rng(0), sc.Scene((192, 64), (255, 255, 255), shapes))
    assert (turn and turn[1]) == told


def test_every_scene_gets_a_question_even_two_shapes_that_no_words_tell_apart():
    one, other = (sc.Shape("yellow", "triangle", "small", (x, 32.0), (6.0, 6.0)) for x in (12.0, 50.0))
    scene = sc.Scene((64, 64), (250, 250, 250), (one, other))
    rng = np.random.default_rng(7)
    turns = [sc.scene_turns(rng, scene, 1) for _ in range(500)]
    assert {len(turn) for turn in turns} == {1}
    assert {family for ((_, _, family),) in turns} == {"count", "yes/no", "caption"}


def test_images_are_numbered_from_one_in_questions():
    rng = np.random.default_rng(3)
    group = [sc.random_scene(rng, n_shapes=1, colour=colour, kind="circle") for colour in ("red", "teal", "black")]
    question, answer, family = sc.ask_colour_by_index(rng, group, 1)
    assert "image 2" in question
    assert (answer, family) == ("teal", "colour by index")
    which = {sc.ask_which(rng, group)[:2] for _ in range(50)}
    assert ("which image has the red circle?", "1") in which
    assert ("which image has the black circle?", "3") in which
    assert sc.ask_list(rng, group)[1] == "red circle, teal circle, black circle"
    assert sc.ask_same_colour(rng, group)[1] == "no"
    assert sc.ask_same_colour(rng, group[:1] * 2)[1] == "yes"


def test_groups_differ_in_colour():
    rng = np.random.default_rng(4)
    for n_images in range(2, sc.MAX_IMAGES + 1):
        group = sc.different_scenes(rng, n_images)
        assert len({scene.shapes[0].colour for scene in group}) == n_images
        assert {len(scene.shapes) for scene in group} == {1}


def test_yes_and_no_are_about_even():
    rng = np.random.default_rng(5)
    answers = [sc.ask_yes_no(rng, sc.random_scene(rng))[1] for _ in range(1000)]
    assert 440 < answers.count("yes") < 560


def test_images_come_with_the_first_turn_or_each_with_its_own():
    rng = np.random.default_rng(6)
    scenes = sc.different_scenes(rng, 2)
    images = tuple(sc.draw(scene) for scene in scenes)
    together = sc.conversation(images, sc.multi_image_turns(rng, scenes, 2)).conversation
    assert [len(message.images) for message in together.messages] == [2, 0, 0, 0]
    apart = sc.conversation_per_turn(images, [sc.scene_turns(rng, scene, 1) for scene in scenes]).conversation
    assert [len(message.images) for message in apart.messages] == [1, 0, 1, 0]
    assert [message.role for message in apart.messages] == ["user", "assistant"] * 2


def test_easy_vqa_splits():
    test = read_easy_vqa("test")
    assert (len(test), sum(len(picture.turns) for picture in test)) == (1000, 9673)
    assert sum(len(picture.turns) for picture in read_easy_vqa("train")) == 38575
    assert not {picture.path for picture in test} & {picture.path for picture in read_easy_vqa("train")}
    assert test[0].open().size == (64, 64)
    families = {family for picture in test for _, _, family in picture.turns}
    assert families == {"easy-VQA colour", "easy-VQA shape", "easy-VQA yes/no"}


def test_examples_are_drawn_the_same_each_time_and_show_what_is_expected():
    layouts = {example.layout for example in EXAMPLES}
    assert layouts == {"images-first", "per-turn", "packed"}
    for example in EXAMPLES:
        images = example.draw_images()
        assert [image.tobytes() for image in images] == [image.tobytes() for image in example.draw_images()]
        assert len(example.turns) == len(example.expected)
        if example.layout != "images-first":
            assert len(images) == len(example.turns)
    named = {example.name: example for example in EXAMPLES}
    assert coloured(named["three"].draw_images()[2], named["three"].expected[0]).any()
    assert coloured(named["single"].draw_images()[0], named["single"].expected[0]).any()
    assert named["five"].scenes()[1].shapes[0].colour == named["five"].expected[0]
    assert str(len(named["tiles"].scenes()[0].shapes)) == named["tiles"].expected[0]


def test_tokenizer_has_every_task_word_whole_every_byte_and_single_digits():
    tokenizer = build_tokenizer()
    pieces = tokenizer.backend_tokenizer
    for word in ("red", "teal", "circle", "triangle", "image", "colour", "color", "bottom", "yes", "which"):
        for text in (word, " " + word, word.capitalize()):
            assert len(pieces.encode(text, add_special_tokens=False).ids) == 1, text
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    assert len(pieces.encode("192", add_special_tokens=False).ids) == 3
    text = "ünïcode 漢字 😀\t\x00 <row_9>"
    assert tokenizer.decode(pieces.encode(text, add_special_tokens=False).ids) == text
    assert len(tokenizer) == scratch_config(len(tokenizer) - 11).lm_vocab_size
