"""Lessons: every one finds its example and its place, and says this prompt's own numbers, on any model."""

import re

import pytest
import torch

from inspector.lessons.course import LESSONS, find_lesson
from inspector.lessons.shown_prompt import ShownPrompt, count_of, list_of
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn
from model import InputError, OpenedImage, open_image
from model.training.synthetic.examples import EXAMPLES
from tests import tiny_checkpoints as made

BY_KEY = {lesson.key: lesson for lesson in LESSONS}


@pytest.fixture(scope="module")
def shown(embedded):
    known = {}

    def show(name):
        if name not in known:
            example = next(example for example in EXAMPLES if example.name == name)
            images = tuple(open_image(picture) for picture in example.draw_images())
            prompt = Prompt(images, tuple(Turn(turn) for turn in example.turns), example.layout)
            known[name] = ShownPrompt(embedded, ask_and_inspect(embedded, prompt, GenerationSettings(8)))
        return known[name]

    return show


def tell(shown, key):
    return BY_KEY[key].tell(shown(BY_KEY[key].example))


def test_keys_are_links_and_examples_exist():
    assert len(BY_KEY) == len(LESSONS)
    assert all(re.fullmatch(r"[a-z0-9-]+", lesson.key) for lesson in LESSONS)
    assert {lesson.example for lesson in LESSONS} <= {example.name for example in EXAMPLES}
    assert find_lesson(LESSONS[3].key) == 3
    with pytest.raises(InputError, match="nothing"):
        find_lesson("nothing")


@pytest.mark.parametrize(
    ("key", "numbers"),
    [
        ("parts", ("3 images", "[3 64 64]", "48 image tokens", "91 positions of 192 numbers", "4 layers of 4")),
        ("stage-1", ("98,304 of 2,733,760 weights (3.6%)",)),
        ("stage-2", ("1,907,520 of 2,733,760",)),
        ("frozen", ("826,240 of 2,733,760",)),
        ("tensors", ("input_ids [1, 91]", "images [3, 3, 64, 64]")),
        ("input-ids", ("91 numbers", "48 image tokens", "21 tile markers")),
        ("padding", ("34 and", "102 times “<|im_end|>” (id 2)")),
        ("padding-side", ("“right”",)),
        ("roles", ("10 tokens", "“user” × 1", "11 tokens")),
        ("turns", ("1 image and 3 questions",)),
        ("marker", ("“<row_1_col_1>” at position 20", "2 × 3", "16 image tokens, 21 to 36")),
        ("regions", ("into 2 × 3", "cut into 3 × 3")),
        ("resizing", ("192 × 128 px → resized to 192 × 128 px → 2 × 3 tiles and a thumbnail",)),
        ("image-string", ("positions 3 to 121", "7 markers", "112 image tokens")),
        ("several", ("packed samples",)),
        ("which-image", ("5 of 5 images", "most at image 4")),
        ("labels", ("3 of 91", "-100")),
        ("clip", ("3 images", "“a yellow rectangle”", "ln 3 = 1.10", "10.40")),
        ("zero-shot", ("image 3 is “yellow”", "image 2 is “blue”")),
        ("heads", ("128 numbers", "50 steps of 48 pairs")),
    ],
)
def test_a_lesson_says_the_numbers_of_the_prompt(shown, key, numbers):
    said = tell(shown, key)
    for number in numbers:
        assert number in said


def test_padding_is_counted_as_the_batch_has_it(shown):
    prompt = shown("uneven")
    batch = prompt.padded
    hidden = int((~batch.attention_mask).sum())
    assert hidden == 102
    assert bool((batch.input_ids[0, :hidden] == 2).all())
    assert f"{hidden} of {batch.attention_mask.numel()}" in tell(shown, "attention-mask")


@pytest.mark.parametrize("name", ["idefics3", "llava", "internvl", "qwen2.5 vl", "qwen3 vl", "gemma3"])
def test_every_lesson_has_an_answer_on_every_family(tiny, name):
    vlm = tiny(name).vlm
    parts = vlm.count_parts()
    assert sum(parts.values()) == vlm.n_parameters
    assert min(parts.values()) > 0
    images = tuple(OpenedImage(made.noise(*size)) for size in [(64, 64), (150, 100)])
    for given in (images, ()):
        prompt = Prompt(given, (Turn("What is it?"), Turn("And this?")))
        found = ShownPrompt(vlm, ask_and_inspect(vlm, prompt, GenerationSettings(4)))
        for lesson in LESSONS:
            said = lesson.tell(found)
            assert said.endswith((".", "…"))
            assert "None" not in said


def test_the_projector_s_outputs_are_measured(shown):
    prompt = shown("three")
    image = prompt.embeds[prompt.is_image()]
    assert f"{float(image.norm(dim=-1).median()):.2f}" in tell(shown, "projector")
    assert image.shape == torch.Size((48, 192))


def test_lists_and_counts():
    assert list_of(["a"]) == "a"
    assert list_of(["a", "b", "c"]) == "a, b and c"
    assert list_of([]) == "none"
    assert (count_of(1, "tile"), count_of(1234, "tile"), count_of(2, "time", "times")) == (
        "1 tile",
        "1,234 tiles",
        "2 times",
    )
