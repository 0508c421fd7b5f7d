"""“Teach it a word”: what can be taught, true answers, what is measured, what the command says."""

import json
import re

import numpy as np
import pytest

from model import InputError
from model.training.__main__ import main
from model.training.data.datasets import open_examples
from model.training.recipe import build_recipe
from model.training.synthetic import scenes as sc
from model.training.synthetic.outlines import OUTLINES
from model.training.synthetic.word import (
    WordSpec,
    parse_rgb,
    parse_word,
    plural,
    read_word_set,
    teaching_recipe,
    word_probes,
)

PURPLE = WordSpec("purple")
STAR = WordSpec("star", "shape")


def _turns(example):
    messages = example.conversation.messages
    return [(q.text.lower().rstrip("?."), a.text) for q, a in zip(messages[::2], messages[1::2], strict=True)]


def _images(example):
    return [np.asarray(image) for message in example.conversation.messages for image in message.images]


def test_a_word_knows_its_look():
    assert PURPLE.rgb == (128, 0, 128)
    assert WordSpec("zorp", rgb=(10, 120, 240)).colours["zorp"] == (10, 120, 240)
    assert STAR.shape == "star"
    assert WordSpec("blick", "shape", shape="heart").outlines == {"blick": OUTLINES["heart"]}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"word": "two words"}, "'two words'"),
        ({"word": "<|im_end|>"}, "2 to 20"),
        ({"word": 7}, "word.*7"),
        ({"word": "zorp", "rgb": [128, 0]}, r"\[128, 0\]"),
        ({"word": "zorp", "rgb": [128, 0, 256]}, "0 to 255"),
        ({"word": "zorp", "rgb": "128"}, "0 to 255"),
        ({"word": "white", "rgb": [255, 255, 255]}, "pale"),
        ({"word": "purple", "shape": "star"}, "no shape"),
        ({"word": "star", "kind": "shape", "rgb": [1, 2, 3]}, "no RGB value"),
        ({"word": "blick", "kind": "shape"}, "blick.*star, heart, cross"),
        ({"word": "purple", "kind": "size"}, "kind.*'size'.*colour.*shape"),
        ({"word": "purple", "colour": "x"}, "colour.*kind"),
        ({"kind": "colour"}, "names no word"),
        ({"word": "purple", "pictures": 3}, "pictures.*3.*64"),
        ({"word": "purple", "images": [1, 9]}, r"images.*\[1, 9\].* 2 to 5"),
        ({"word": "purple", "several_share": 2}, "several_share.*2"),
    ],
)
def test_what_cant_be_taught_is_said(values, sentence):
    with pytest.raises(InputError, match=sentence):
        read_word_set(values)


def test_scenes_without_the_word_look_as_ever():
    rng = np.random.default_rng(0)
    for _ in range(10):
        scene = sc.random_scene(rng)
        assert PURPLE.draw(scene).tobytes() == STAR.draw(scene).tobytes() == sc.draw(scene).tobytes()


def test_the_words_colour_is_drawn():
    shape = sc.Shape("red", "rectangle", "large", (30.0, 30.0), (10.0, 8.0))
    picture = PURPLE.draw(sc.Scene((64, 64), (240, 240, 240), (PURPLE.marked(shape),)))
    assert picture.getpixel((30, 30)) == (128, 0, 128)
    assert picture.getpixel((10, 30)) == (240, 240, 240)


@pytest.mark.parametrize(
    ("name", "share", "middle"),
    # Shares of the box that the outline fills: 1/2 and 3/4 are the rhombus's and the hexagon's by geometry; a ring
    # of radii 1/2 and 0.28 fills π(0.25 − 0.0784); a cross of arms 0.34 wide 2·0.34 − 0.34².
    [("diamond", 0.5, True), ("hexagon", 0.75, True), ("ring", 0.539, False), ("cross", 0.5644, True)],
)
def test_outlines_fill_what_they_should(name, share, middle):
    spec = WordSpec(name, "shape")
    shape = sc.Shape("black", name, "large", (128.0, 128.0), (100.0, 100.0))
    pixels = np.asarray(spec.draw(sc.Scene((256, 256), (255, 255, 255), (shape,))))[..., 0]
    assert (255 - pixels.astype(float)).sum() / 255 / 200**2 == pytest.approx(share, abs=0.01)
    assert bool(pixels[128, 128] < 10) is middle


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_touch_all_sides_of_their_box(name):
    points = np.array(OUTLINES[name])
    assert points.min(axis=0) == pytest.approx([0, 0])
    assert points.max(axis=0) == pytest.approx([1, 1])


def test_examples_are_always_the_same_and_seeds_differ():
    table = {**PURPLE.table(), "pictures": 64, "count": 50, "seed": 3}
    one, two, other = read_word_set(table), read_word_set(table), read_word_set({**table, "seed": 4})
    assert len(one) == 50
    assert _turns(one[7]) == _turns(two[7])
    assert all((a == b).all() for a, b in zip(_images(one[7]), _images(two[7]), strict=True))
    assert any(_turns(one[n]) != _turns(other[n]) for n in range(5))
    with pytest.raises(IndexError, match=r"purple.* 50\."):
        one[50]


def test_answers_about_a_colour_are_true():
    """The pictures themselves say where purple is."""
    examples = read_word_set({**PURPLE.table(), "pictures": 200, "count": 400, "seed": 5})
    seen = set()
    for example in examples:
        purple = [bool((image == (128, 0, 128)).all(-1).any()) for image in _images(example)]
        for question, answer in _turns(example):
            if found := re.search(r"in image (\d)", question):
                seen.add("index")
                if "colo" in question:
                    assert (answer == "purple") is purple[int(found[1]) - 1], question
            elif question.startswith("which image has the purple"):
                seen.add("which")
                assert purple[int(answer) - 1]
            elif "purple shape" in question and len(purple) == 1 and question.startswith("how many"):
                seen.add("count")
                assert int(answer) == purple[0]
            elif len(purple) == 1 and re.match(r"(is|does) .*\b(a|no) purple shape", question):
                negated = " not " in question or " no " in question
                seen.add((purple[0], negated))
                assert (answer == "yes") is (purple[0] is not negated), question
    assert seen == {"index", "which", "count", (True, False), (True, True), (False, False), (False, True)}


def test_what_the_word_may_be_confused_with_is_drawn_beside_it():
    assert [WordSpec(word).rival for word in ("purple", "cyan", "navy")] == ["brown", "teal", "black"]
    assert STAR.rival is None
    examples = read_word_set({**PURPLE.table(), "pictures": 400, "count": 300, "seed": 8})
    shown = {
        name: sum(any((image == rgb).all(-1).any() for image in _images(example)) for example in examples)
        for name, rgb in sc.COLOURS.items()
    }
    assert min(shown.values()) > 20
    assert shown["brown"] > 1.3 * max(count for name, count in shown.items() if name != "brown")


def test_families_say_where_the_word_is_in_play():
    examples = read_word_set({**STAR.table(), "pictures": 200, "count": 300, "seed": 6})
    for example in examples:
        for (question, answer), family in zip(_turns(example), example.families, strict=True):
            assert (family == "new word") is (answer == "star")
            if family != "new word":
                assert family.startswith("new word: ") is ("star" in question or "star" in answer)


def test_no_index_question_is_ambiguous():
    """Among several pictures all colours differ, unless it is asked whether they do."""
    examples = read_word_set({**PURPLE.table(), "pictures": 200, "count": 200, "several_share": 1.0, "seed": 7})
    for example in examples:
        for question, answer in _turns(example):
            if question.startswith("are the images"):
                assert answer == "no"
            if question.startswith("list"):
                colours = [part.split()[0] for part in answer.split(", ")]
                assert len(set(colours)) == len(colours)


def test_grammar():
    assert [plural(kind) for kind in ("star", "cross", "box", "arch")] == ["stars", "crosses", "boxes", "arches"]
    assert sc.with_article("orange circle") == "an orange circle"
    assert sc.with_article("purple circle") == "a purple circle"


def test_a_recipe_teaches_any_word():
    recipe = teaching_recipe(WordSpec("blick", "shape", shape="heart"), ["stages.word.steps=7"])
    table = recipe.stages[0].data[0]
    assert (table["source"], table["word"], table["kind"], table["shape"]) == ("word", "blick", "shape", "heart")
    assert "rgb" not in table
    assert recipe.stages[0].steps == 7
    assert "vision_encoder" not in recipe.stages[0].learning_rates
    assert {entry["source"] for entry in recipe.stages[0].data} == {"word", "scenes", "easy-vqa"}
    tables = [dict(entry) for entry in recipe.stages[0].data]
    again = build_recipe(
        {
            "stages": [
                {"name": "word", "kind": "instruction", "steps": 7, "data": tables, "learning_rates": {"MP": 1e-3}}
            ]
        },
        recipe.folder,
    )
    assert _turns(open_examples(again.stages[0].data[0], recipe.folder)[0])


def test_words_from_a_command_line():
    assert parse_word("star") == STAR
    assert parse_word("star", rgb="#7f007f") == WordSpec("star", rgb=(127, 0, 127))
    assert parse_word("blick", shape="heart") == WordSpec("blick", "shape", shape="heart")
    assert parse_rgb("128, 0,128") == parse_rgb("128 0 128") == parse_rgb("#800080") == (128, 0, 128)
    for wrong in ("purple", "1,2", "#80008", "#80008g", "1,2,3,4"):
        with pytest.raises(InputError, match="128,0,128"):
            parse_rgb(wrong)
    with pytest.raises(InputError, match="not both"):
        parse_word("star", "1,2,3", "star")


def test_held_out_prompts_cover_old_and_new(embedded):
    probes = word_probes(embedded, PURPLE, count=4)
    families = {probe.family for probe in probes}
    assert {
        "new word",
        "new word: yes/no",
        "new word: which image",
        "colour",
        "shape",
        "count",
        "yes/no",
        "position",
        "caption",
        "colour by index",
        "shape by index",
        "which image",
        "same colour",
        "list",
        "return",
        "easy-VQA colour",
        "easy-VQA shape",
        "easy-VQA yes/no",
    } <= families
    new = [probe for probe in probes if probe.family == "new word"]
    assert [probe.answer for probe in new] == ["purple"] * 4
    # Asked alone, so that no earlier turn gives the word away.
    assert all("purple" not in embedded.tokenizer.decode(probe.sample.input_ids) for probe in new)


def test_the_command_says_before_and_after(tmp_path, capsys):
    steps = [f"--set=stages.word.{value}" for value in ("steps=1", "eval_examples=2", "batch_rows=1")]
    assert main(["teach", "purple", "--out", str(tmp_path / "run"), "--prompts", "2", *steps]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["word"] == {"source": "word", "word": "purple", "kind": "colour", "rgb": [128, 0, 128]}
    assert next(iter(report["before"])) == "new word"
    assert set(report["before"]) == set(report["after"])
    assert 0 < report["seconds"] < 60
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert main(["teach", "red", "--out", str(tmp_path / "other")]) == 2
    assert "“red”" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
