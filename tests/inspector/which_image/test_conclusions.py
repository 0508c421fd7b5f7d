"""Conclusions that must hold whatever answer the row has, whatever is typed, and whatever the model would guess."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inspector.ground_truth.items import build_items
from inspector.interventions.knockout import run_lab
from inspector.interventions.prefix_cache import PrefixCache
from inspector.interventions.target import image_keys, open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect, inspect
from inspector.row.prompt import Turn
from inspector.row.row_store import ROWS
from inspector.which_image.image_effects import measure_dependence, measure_matrix
from inspector.which_image.noise_floor import choose_stretches
from inspector.which_image.question_contrast import measure_selection
from inspector.which_image.self_checks import run_checks
from inspector.which_image.study import study_answer
from inspector.which_image.verdict import judge, name_leader
from model import Cut, load_vlm
from tests.example_cases import example_case, example_prompt, whole_row

CONTROL = Path(__file__).parents[2] / "control"


def given(vlm, name, *answers):
    """The example with answers that a person gave, as inspected."""
    prompt = example_prompt(name)
    turns = tuple(replace(turn, assistant=answer) for turn, answer in zip(prompt.turns, answers, strict=True))
    return inspect(vlm, replace(prompt, turns=turns))


# --- answers that the model would not give itself ---


@pytest.mark.parametrize("answer", ["blue", "yellow yellow", "a yellow rectangle", "ye"])
def test_a_swap_flips_what_the_model_says_and_not_what_a_person_gave(embedded, answer):
    *_, found = study_answer(embedded, given(embedded, "three", answer), max_new_tokens=8)
    assert [(swap.image, swap.before, swap.answer, swap.flipped) for swap in found.swaps] == [
        (1, "yellow", "yellow", False),
        (2, "yellow", "yellow", False),
        (3, "yellow", "red", True),
    ]
    facts = found.to_json()
    assert (facts["answer"], facts["greedy_answer"]) == (answer, "yellow")
    assert any("itself" in reason and "“yellow”" in reason for reason in found.verdict.reasons)


def test_an_answer_of_its_own_needs_no_note(embedded):
    *_, found = study_answer(embedded, ask_and_inspect(embedded, example_prompt("three"), GenerationSettings()))
    assert found.to_json()["greedy_answer"] == found.to_json()["answer"] == "yellow"
    assert not any("itself" in reason for reason in found.verdict.reasons)


def test_a_sampled_answer_is_no_flip(embedded):
    """Hot enough to say something else: seed 3 does."""
    settings = GenerationSettings(8, temperature=5.0, seed=3)
    inspection = ask_and_inspect(embedded, example_prompt("three"), settings)
    assert inspection.prompt.turns[0].assistant != "yellow"
    case = open_case(embedded, inspection, max_new_tokens=8)
    assert not case.gives_own_answer
    assert case.text(case.greedy_ids) == "yellow"
    *_, found = study_answer(embedded, inspection, max_new_tokens=8)
    assert [swap.flipped for swap in found.swaps] == [False, False, True]


def test_an_inert_cut_flips_nothing(embedded):
    """Turn 1 can't see image 2, so to hide it from everything is nothing at all."""
    case = open_case(embedded, given(embedded, "per-turn", "blue", "circle", "brown"), 1)
    lab = run_lab(case, ["image 2 -> later"])
    assert (lab.answer, lab.greedy_answer, lab.trials[-1].answer) == ("blue", "green", "green")
    assert lab.flipped is False
    assert lab.change == pytest.approx(0, abs=1e-4)
    assert {"answer": "blue", "greedy_answer": "green", "new_answer": "green", "flipped": False}.items() <= (
        lab.to_json().items()
    )
    cut = run_lab(case, ["image 1 -> later"])
    assert cut.flipped is (cut.trials[-1].answer != "green")


# --- questions that a person typed ---


@pytest.mark.parametrize(
    "typed", ["What is the weather like?", "Are image 1 and image 2 alike?", "What is in image 7?"]
)
def test_a_typed_question_about_no_single_image_is_no_contrast(embedded, typed):
    case = example_case(embedded, "three", turns=(Turn("In image 3, what colour is the shape?"),))
    without, beside = (measure_selection(case, 3, typed=questions) for questions in ([], [typed]))
    assert len(beside.asked) == len(without.asked) + 1
    assert beside.contrast == pytest.approx(without.contrast, abs=1e-5)
    assert [one.question for one in beside.others] == [one.question for one in without.others]
    (sentence,) = beside.sentences
    assert typed in sentence
    assert without.sentences == ()
    assert beside.to_json()["sentences"] == [sentence]


def test_alone_it_leaves_nothing_to_contrast_with(embedded):
    """“The answer depends on image 1” with no other question: whether it is selected can't be said."""
    case = example_case(embedded, "single")
    found = measure_selection(case, 1, typed=["What is the weather like?"])
    assert found.contrast is None
    assert found.others == ()
    assert found.effects_otherwise_by("ablation") is None


# --- reference answers ---


@pytest.mark.parametrize("text", ["<|im_end|>", "red<|image|>", "<|im_start|>assistant\nred", "<row_1_col_1>"])
def test_a_reference_answer_is_text(embedded, text):
    found = next(
        step for step in study_answer(embedded, given(embedded, "three", "yellow"), reference=text) if step.reference
    )
    special = set(embedded.tokenizer.get_added_vocab().values())
    ids = found.case.encode(text)
    assert not special & set(ids)
    assert found.reference.tokens == len(ids) > 1
    assert found.reference.answer == text
    assert found.reference.logprob < -3


# --- the noise floor ---


@pytest.mark.parametrize("name", ["three", "two", "per-turn", "packed", "tiles"])
def test_the_noise_floor_takes_text_away_as_images_are(embedded, name):
    """From everything behind it: the same number from whole passes whose edges a tap cuts."""
    case = example_case(embedded, name)
    images = {p for image in case.structure.images for p in range(image.start, image.stop)}
    stop = case.target.scored[1]
    sizes = [len(image_keys(image)) for image in case.structure.images]
    stretches = choose_stretches(case, case.target, int(np.median(sizes)))
    assert stretches
    assert len({len(gone) for gone in stretches}) == 1
    changes = []
    for gone in stretches:
        assert not images & set(gone)
        assert 0 < gone[0] <= gone[-1] < case.target.start
        cut = Cut([p for p in range(gone[0], stop) if p not in gone], gone)
        changes.append(abs(whole_row(case) - whole_row(case, [cut])))
    found = measure_dependence(case)
    scale = np.median(sizes) / len(stretches[0])
    assert found.noise_floor == pytest.approx(scale * np.quantile(changes, 0.95), abs=1e-4 * scale)
    assert (found.noise_draws, found.noise_size) == (len(stretches), len(stretches[0]))
    assert found.noise_scale == pytest.approx(scale)
    assert scale >= 1


# --- what can't be seen ---


def test_what_is_out_of_reach_is_changed_and_measured(embedded):
    """A row that lets a question see what its structure says it can't: the effect is found, and the check fails."""
    case = example_case(embedded, "packed", document_mask=True)
    honest = measure_matrix(case)
    assert honest.beyond_reach == 0.0
    row = case.prefix_cache.row
    leaking = replace(case, prefix_cache=PrefixCache(embedded, ROWS.read(embedded, row, False)))
    matrix = measure_matrix(leaking)
    assert matrix.beyond_reach > 0
    assert matrix.leakage > 0
    checks = run_checks(leaking, measure_dependence(leaking), matrix)
    assert [check.value for check in checks if not check.ok].count(matrix.beyond_reach) == 1


def test_the_sum_of_shapley_values_can_be_wrong(embedded):
    case = example_case(embedded, "three")
    found = measure_dependence(case)
    name = "Shapley values add up to log p with all images − without any"
    # The sum is the cache's own, so a cache that is off is off in both; another road tells.
    for wrong in (
        replace(found, shapley=(9.0, 0.0, 0.0)),
        replace(found, shapley=(9.0, 0.0, 0.0), text_only=found.logprob - 9),
    ):
        checks = {check.name: check.ok for check in run_checks(case, wrong, measure_matrix(case))}
        assert checks[name] is False
    assert all(check.ok for check in run_checks(case, found, measure_matrix(case)))


# --- answers that the model would guess ---


@pytest.fixture(scope="module")
def guessed(embedded):
    """Item 4 of its group: without any image the model says “green” with p .59."""
    item = next(item for item in build_items(["guessed"], 5, 1) if item.number == 4)
    inspection = ask_and_inspect(embedded, item.prompt, GenerationSettings(8))
    *_, found = study_answer(embedded, inspection, max_new_tokens=8)
    return found


def test_exchange_names_the_image_where_taking_away_names_none(guessed):
    assert guessed.dependence.answer == "green"
    assert max(guessed.dependence.shapley) < 1
    assert guessed.dependence.exchange.shapley[0] > 5
    assert max(map(abs, guessed.dependence.exchange.shapley[1:])) < 1
    verdict = guessed.verdict
    assert (verdict.kind, verdict.image, verdict.carried_by) == ("selected", 1, ("exchange",))
    facts = guessed.to_json()
    assert facts["verdict"]["carried_by"] == ["exchange"]
    assert facts["dependence"]["exchange"]["shapley"] == list(guessed.dependence.exchange.shapley)
    assert facts["selection"]["exchange_contrast"] > 5
    assert len(facts["selection"]["asked"][0]["exchange_effects"]) == len(guessed.structure.images)


def test_without_the_exchange_it_can_not_be_told(guessed):
    dependence = replace(guessed.dependence, exchange=None)
    assert judge(guessed.case, dependence, guessed.selection, guessed.swaps).kind == "unclear"


def test_measures_that_name_different_images_leave_it_open(guessed):
    dependence = guessed.dependence
    n = len(dependence.shapley)
    other = replace(dependence, shapley=(0.0, 6.0, *[0.0] * (n - 2)), leave_one_out=(0.0, 6.0, *[0.0] * (n - 2)))
    assert name_leader(other) is None
    verdict = judge(guessed.case, other, guessed.selection, guessed.swaps)
    assert (verdict.kind, verdict.image, verdict.carried_by) == ("unclear", None, ())
    assert "image 2 " in verdict.sentence
    assert "image 1 " in verdict.sentence


def test_effects_of_several_by_exchange_speak_against_one_by_ablation(guessed):
    n = len(guessed.dependence.shapley)
    both = replace(guessed.dependence.exchange, shapley=(4.0, 4.0, *[0.0] * (n - 2)))
    one = replace(
        guessed.dependence, shapley=(6.0, *[0.0] * (n - 1)), leave_one_out=(6.0, *[0.0] * (n - 1)), exchange=both
    )
    verdict = judge(guessed.case, one, guessed.selection, guessed.swaps)
    assert (verdict.kind, verdict.images, verdict.carried_by) == ("several", (1, 2), ("exchange",))


def test_the_control_is_not_said_to_be_selected_by_exchange_either():
    control = load_vlm(CONTROL)
    for item in build_items(["guessed", "ordinal digit"], 3, 2):
        inspection = ask_and_inspect(control, item.prompt, GenerationSettings(8))
        *_, found = study_answer(control, inspection, item.turn + 1, max_new_tokens=8)
        assert found.verdict.kind != "selected"
        if found.selection.exchange_contrast is not None:
            assert abs(found.selection.exchange_contrast) < 0.5


def test_no_image_needed_holds_by_both_measures(embedded):
    for item in build_items(["null"], 4, 2):
        inspection = ask_and_inspect(embedded, item.prompt, GenerationSettings(8))
        *_, found = study_answer(embedded, inspection, max_new_tokens=8)
        assert (found.verdict.kind, found.verdict.carried_by) == ("none", ())
        assert max(map(abs, found.dependence.exchange.shapley)) < 0.1
