"""Lessons: every one finds its example and its place, and says this prompt's own numbers, on any model."""

import re

import pytest
import torch
from PIL import Image

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


@pytest.fixture(scope="module")
def small(embedded):
    """One image that is not cut, one question."""
    prompt = Prompt((open_image(Image.new("RGB", (60, 60), "red")),), (Turn("Which colour?"),))
    return ShownPrompt(embedded, ask_and_inspect(embedded, prompt, GenerationSettings(8)))


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
        ("input-ids", ("91 numbers", "48 for images", "21 for tile markers")),
        ("padding", ("34 and", "102 times “<|im_end|>” (id 2)")),
        ("padding-side", ("“right”", "34 and 136 tokens")),
        ("roles", ("10 tokens", "“user” × 1", "11 tokens")),
        ("turns", ("1 image and 3 questions",)),
        ("marker", ("“<row_1_col_1>” at position 20", "2 × 3", "16 image tokens, 21 to 36")),
        ("regions", ("into 2 × 3", "cut into 3 × 3")),
        ("resizing", ("192 × 128 px → resized to 192 × 128 px → 2 × 3 tiles and a thumbnail",)),
        ("image-string", ("positions 3 to 121", "7 markers", "112 image tokens")),
        ("several", ("3 packed samples",)),
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


@pytest.mark.parametrize(
    ("key", "numbers"),
    [
        ("parts", ("1 image (60 × 60 px)", "1 input of", "16 image tokens", "31 positions")),
        ("input-ids", ("31 numbers", "16 for images", "1 for tile markers")),
        ("padding", ("one row of 31 tokens", "begin with 31 times “<|im_end|>” (id 2)")),
        ("padding-side", ("31 tokens long",)),
        ("turns", ("1 image and 1 question",)),
        (
            "marker",
            ("“<|global_image|>” at position 3", "image 1 (60 × 60 px) comes whole", "16 image tokens, 4 to 19"),
        ),
        ("regions", ("not cut and one tile", "cut into 3 × 3")),
        ("resizing", ("Image 1: 60 × 60 px → resized to 64 × 64 px → 1 tile.",)),
        ("several", ("one image", "positions 3 to 19")),
        ("which-image", ("none to choose", "% of the attention")),
        ("labels", ("of 31",)),
        ("attention-mask", ("0 of 31 in the row", "2 times")),
        ("clip", ("every loss is 0",)),
    ],
)
def test_a_lesson_answers_on_a_prompt_that_shows_it_less_well(small, key, numbers):
    said = BY_KEY[key].tell(small)
    for number in numbers:
        assert number in said


def test_images_of_one_size_share_a_sentence(embedded):
    images = tuple(open_image(Image.new("RGB", size, "red")) for size in ((384, 256), (384, 256), (50, 50)))
    shown = ShownPrompt(embedded, ask_and_inspect(embedded, Prompt(images, (Turn("Which?"),)), GenerationSettings(4)))
    assert (
        "Images 1 and 2: 384 × 256 px → resized to 192 × 128 px → 2 × 3 tiles and a thumbnail of the whole; image 3"
        in (BY_KEY["resizing"].tell(shown))
    )
    assert "cut into 2 × 3 and 1 × 1 tiles" in BY_KEY["regions"].tell(shown)
    assert "“<row_1_col_1>”" in BY_KEY["marker"].tell(shown)


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
