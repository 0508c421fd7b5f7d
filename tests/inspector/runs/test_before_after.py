"""One prompt and the same held-out questions to the model before a run and after it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from inspector.figures.before_after import show_comparison
from inspector.figures.model_comparison import light_up
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.row.prompt import Prompt, Turn
from inspector.runs.before_after import HeldOutComparison, measure_change
from inspector.which_image.model_comparison import AttentionGrid, compare_answers
from inspector.which_image.study import study_answer
from model import Box, InputError, OpenedImage, load_vlm
from model.training.evaluation.answering import probe_example
from model.training.events import Answered
from model.training.recipe import build_recipe
from model.training.synthetic.examples import EXAMPLES
from model.training.synthetic.scene_sets import read_scene_set
from model.training.synthetic.word import WordSpec, teaching_recipe
from model.training.trainer import Trainer

SCENES = {"source": "scenes", "set": "unrouted", "count": 60, "pictures": 24, "turns": 1}
SETTINGS = GenerationSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def recipe():
    """Answers that say nothing about the pictures, at a rate that makes it forget them."""
    return build_recipe(
        {
            "base": "embedded",
            "precision": "fp32",
            "stages": [
                {
                    "name": "s",
                    "kind": "instruction",
                    "steps": 2,
                    "batch_rows": 2,
                    "eval_every": 0,
                    "eval_examples": 4,
                    "learning_rates": {"decoder": 0.01},
                    "warmup_steps": 0,
                    "data": [SCENES],
                }
            ],
        },
        None,
    )


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    list(Trainer(recipe, folder).run())
    return load_vlm(folder / "model")


def prompt_of(number):
    example = EXAMPLES[number]
    return Prompt(
        tuple(OpenedImage(image) for image in example.draw_images()),
        tuple(Turn(text) for text in example.turns),
        example.layout,
    )


@pytest.fixture(scope="module")
def compared(embedded, trained):
    return list(compare_answers(embedded, trained, prompt_of(1), SETTINGS))


def test_answers_come_first_and_then_what_each_rests_on(compared, embedded, trained):
    assert [(c.before.rest is not None, c.after.rest is not None) for c in compared] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    last = compared[-1]
    assert (last.before.fingerprint, last.after.fingerprint) == (embedded.fingerprint, trained.fingerprint)
    assert embedded.fingerprint != trained.fingerprint
    assert compared[0].shifts == compared[1].shifts == ()
    inspection = ask_and_inspect(trained, prompt_of(1), SETTINGS)
    assert last.after.answers == (inspection.prompt.turns[-1].assistant,)
    *_, alone = study_answer(trained, inspection, max_new_tokens=6)
    assert last.after.rest.dependence == alone.dependence
    assert last.after.rest.verdict == alone.verdict
    assert last.before.rest.verdict.final
    bar = max(1.0, last.before.rest.dependence.noise_floor, last.after.rest.dependence.noise_floor)
    worth = np.array([last.before.rest.dependence.shapley, last.after.rest.dependence.shapley])
    assert last.shifts == tuple(abs(worth[1] - worth[0]) >= bar)
    assert any(last.shifts)  # two steps at this rate are enough to forget what the answer rested on


def test_a_model_compared_with_itself_has_not_changed(embedded):
    *_, found = compare_answers(embedded, embedded, prompt_of(2), SETTINGS)
    assert found.before == found.after
    assert found.shifts == (False, False)
    page = show_comparison(found, None)
    assert "<mark>" not in page
    assert "no difference" in page


def test_attention_lies_where_its_tokens_are_in_the_picture(embedded):
    tiles = next(n for n, example in enumerate(EXAMPLES) if example.name == "tiles")
    prompt = prompt_of(tiles)
    found = next(compare_answers(embedded, embedded, prompt, SETTINGS)).before
    inspection = ask_and_inspect(embedded, prompt, SETTINGS)
    (image,) = inspection.row.images
    (grids,) = found.image_maps
    heat = attend(embedded, inspection, inspection.row_that_chose(inspection.first_answer_position)).heat()
    spans = [span for span in inspection.row.spans if span.kind == "image"]
    tiles = [span for span in spans if span.tile != image.thumbnail_tile]
    assert [np.ravel(grid.shares).tolist() for grid in grids] == [
        pytest.approx(heat[span.start : span.stop].tolist()) for span in tiles
    ]
    assert [grid.box for grid in grids] == [image.boxes[span.tile] for span in tiles]
    total = sum(np.sum(grid.shares) for grid in grids)
    thumbnail = sum(heat[span.start : span.stop].sum() for span in spans if span not in tiles)
    assert total + thumbnail == pytest.approx(found.image_shares[0], rel=1e-5)


def test_a_model_that_answers_nothing_is_said_to(embedded, monkeypatch):
    silent = load_vlm("embedded")
    end = torch.zeros(silent.config.lm_vocab_size)
    end[silent.eos_token_id] = 50.0
    monkeypatch.setattr(silent, "logits", lambda hidden: end.expand(*hidden.shape[:-1], -1))
    *_, found = compare_answers(embedded, silent, prompt_of(2), SETTINGS)
    assert (found.after.rest, found.shifts) == (None, ())
    assert found.before.rest is not None
    assert found.after.no_rest in show_comparison(found, None)


def test_a_prompt_without_images_has_answers_alone(embedded):
    found = list(compare_answers(embedded, embedded, Prompt((), (Turn("What is 2?"),), "images-first"), SETTINGS))
    assert len(found) == 1
    assert "rests on" not in show_comparison(found[0], None)


def test_the_page_marks_what_changed_and_names_both_weights(compared):
    last = compared[-1]
    page = show_comparison(last, None)
    assert f"before <code>{last.before.fingerprint[:8]}</code>" in page
    assert f"after <code>{last.after.fingerprint[:8]}</code>" in page
    verdicts = {(side.rest.verdict.kind, side.rest.verdict.images) for side in (last.before, last.after)}
    changed = sum(last.shifts) + 2 * (len(verdicts) == 2)
    rest = page[page.index(">rests on<") : page.index("where it looked")]
    assert rest.count("<mark>") == changed
    assert rest.count("…") == 0
    assert show_comparison(compared[1], None).count("<td class=num>…</td>") == len(last.prompt.images) + 1
    assert page.count("<img") == 2 * len(last.prompt.images)
    evil = replace(last, prompt=replace(last.prompt, turns=(Turn("<script>1</script>"),)))
    assert "<script>" not in show_comparison(evil, None)


def test_a_picture_is_as_bright_as_its_share_by_area():
    grid = AttentionGrid(Box(0, 0, 480, 240), ((0.0, 0.5), (1.0, 2.0)))
    top = 1.0 / (240 * 120)
    picture = Image.new("RGB", (240, 120), (200, 100, 40))
    lit = light_up(picture, (480, 240), [grid], top)
    assert lit.size == (120, 60)
    places = ((10, 10), (110, 10), (10, 50), (110, 50))
    assert [lit.getpixel(place) for place in places] == [(50, 25, 10), (125, 62, 25), (200, 100, 40), (200, 100, 40)]
    # A model that is shown the right half alone, in finer cells: as bright by area, and nothing where it saw nothing.
    right = AttentionGrid(Box(240, 0, 480, 240), (((1 / 8,) * 4),) * 2)
    lit = light_up(picture, (480, 240), [right], 1 / (240 * 240))
    assert [lit.getpixel(place) for place in places] == [(50, 25, 10), (200, 100, 40), (50, 25, 10), (200, 100, 40)]
    dark = AttentionGrid(Box(0, 0, 8, 8), ((0.0,),))
    assert light_up(Image.new("RGB", (8, 8), (200, 200, 200)), (8, 8), [dark], 0.0).getpixel((4, 4)) == (50, 50, 50)


def test_held_out_questions_to_both(embedded, trained, recipe):
    *said, found = measure_change(embedded, trained, recipe, count=6)
    assert ["3 " in one for one in said] == [False, True, True]
    assert isinstance(found, HeldOutComparison)
    assert len(found.answers) == 3  # one in 20 of 60 is held out
    assert sum(count for _, _, count in found.families.values()) == 3
    assert list(found.groups) == ["all questions"]
    for one, two in found.answers:
        assert (one.question, one.expected) == (two.question, two.expected)
    right = sum(one.answered.strip() == one.expected.strip() for one, _ in found.answers)
    assert sum(round(before * count) for before, _, count in found.families.values()) == right
    assert found.groups["all questions"][::2] == (right / 3, 3)


def test_a_word_that_was_taught_has_groups_of_its_own(embedded, monkeypatch):
    def probes(*_):
        scenes = read_scene_set({"set": "single", "count": 4, "pictures": 6})
        made = [probe_example(embedded, scenes[n], 0) for n in range(4)]
        families = ("new word", "new word: yes/no", "colour", "new word")
        return [replace(probe, family=family) for probe, family in zip(made, families, strict=True)]

    monkeypatch.setattr("inspector.runs.before_after.word_probes", probes)
    *_, found = measure_change(embedded, embedded, teaching_recipe(WordSpec("purple")))
    assert {name: shares[2] for name, shares in found.groups.items()} == {
        "answer: “purple”": 2,
        "about “purple” otherwise": 1,
        "everything else": 1,
    }
    assert list(found.families) == ["colour", "new word", "new word: yes/no"]
    assert found.word == "purple"
    page = show_comparison(None, found)
    assert "All 4 " in page
    assert "(3)" in page


def test_a_contrastive_run_answers_nothing(embedded):
    recipe = build_recipe(
        {
            "stages": [
                {"name": "s", "kind": "contrastive", "steps": 1, "learning_rates": {"text": 1e-3}, "data": [SCENES]}
            ]
        },
        None,
    )
    assert list(measure_change(embedded, embedded, recipe)) == []


def test_a_prompt_that_fits_neither_model_is_refused(embedded):
    with pytest.raises(InputError, match="tokens"):
        next(compare_answers(embedded, embedded, Prompt((), (Turn("a " * 9000),), "images-first"), SETTINGS))


def test_changed_answers_are_listed_with_the_words_that_differ():
    answers = ((Answered("q", "red", "a red one", "f"), Answered("q", "red", "a blue one", "f")),)
    shares = {"f": (1.0, 0.0, 1)}
    page = show_comparison(None, HeldOutComparison(shares, shares, answers))
    assert "a <mark>red</mark> one" in page
    assert "a <mark>blue</mark> one" in page
    assert "all questions: 0% → 0% of 1" in page
    assert "By kind" not in page


def test_what_was_learnt_leads_and_stands_beside_its_picture():
    picture = Image.new("RGB", (8, 8), "red")
    old = (Answered("old", "red", "red", "f"), Answered("old", "red", "blue", "f"))
    new = (Answered("new", "purple", "red", "new word"), Answered("new", "purple", "purple", "new word"))
    groups = {"answer: “purple”": (0.0, 1.0, 1), "everything else": (1.0, 0.0, 1)}
    found = HeldOutComparison(groups, groups, (old, new), "purple", ((picture,), (picture, picture)))
    assert found.headline == ("“purple”", (0.0, 1.0, 1))
    page = show_comparison(None, found, over=True)
    assert "“purple”: 0% → 100% of 1" in page
    first, second = page.split('class="ba-card"')[1:]
    assert (first.count("<img"), second.count("<img")) == (2, 1)
    assert "<p>new</p>" in first
    assert "right would be: red" in second
    assert "0% (0)" in page
    assert "100% (1)" in page
