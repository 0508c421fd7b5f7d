"""Conclusions that must hold whatever answer the row has, whatever is typed, and whatever the model would guess."""

from dataclasses import replace

import pytest

from inspector.interventions.knockout import run_lab
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect, inspect
from inspector.row.prompt import Turn
from inspector.which_image.question_contrast import measure_selection
from inspector.which_image.study import study_answer
from tests.example_cases import example_case, example_prompt


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
    assert any("The model itself says “yellow”" in reason for reason in found.verdict.reasons)


def test_an_answer_of_its_own_needs_no_note(embedded):
    *_, found = study_answer(embedded, ask_and_inspect(embedded, example_prompt("three"), GenerationSettings()))
    assert found.to_json()["greedy_answer"] == found.to_json()["answer"] == "yellow"
    assert not any("The model itself says" in reason for reason in found.verdict.reasons)


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
    assert "is no contrast and is not counted" in sentence
    assert without.sentences == ()
    assert beside.to_json()["sentences"] == [sentence]


def test_alone_it_leaves_nothing_to_contrast_with(embedded):
    """“The answer depends on image 1” with no other question: whether it is selected can't be said."""
    case = example_case(embedded, "single")
    found = measure_selection(case, 1, typed=["What is the weather like?"])
    assert found.contrast is None
    assert found.others == ()
    assert found.effects_otherwise is None


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
