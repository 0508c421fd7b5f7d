"""The control checkpoint does what its card says: it sees, and it ignores which image is asked for."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from model import VLM, load_vlm
from model.training.recipe import read_recipe
from scripts.control import ControlMeasurement, measure_control, picture_effects

CONTROL = Path(__file__).parent


@pytest.fixture(scope="module")
def control() -> VLM:
    return load_vlm(CONTROL)


@pytest.fixture(scope="module")
def measured(control) -> ControlMeasurement:
    return measure_control(control, prompts=40)


@pytest.fixture(scope="module")
def card() -> str:
    return (CONTROL / "README.md").read_text(encoding="utf-8")


def share(card: str, row: str) -> float:
    return float(re.search(rf"^\| {re.escape(row)}[^|]*\| ([0-9.]+) \|$", card, re.MULTILINE).group(1))


def test_it_ships_small_and_in_nanovlm_s_format():
    files = {path.name: path.stat().st_size for path in CONTROL.iterdir() if path.suffix != ".py" and path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} == set(files)
    assert sum(files.values()) <= 3_000_000
    with safe_open(CONTROL / "model.safetensors", framework="pt") as weights:
        kinds = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert kinds.pop("decoder.rotary_embd.inv_freq") == "F32"
    assert set(kinds.values()) == {"BF16"}


def test_it_computes_in_float32(control):
    assert {parameter.dtype for parameter in control.parameters()} == {torch.float32}


def test_it_sees_one_picture(measured, card):
    assert measured.single["colour"] >= 0.95
    assert measured.single["shape"] >= 0.95
    assert measured.single["colour"] == pytest.approx(share(card, "colour of the shape in one picture"), abs=0.01)
    assert measured.single["shape"] == pytest.approx(share(card, "shape in one picture"), abs=0.01)


def test_of_several_it_answers_about_one_whichever_is_asked_for(measured, card):
    assert measured.prompts == 40
    assert measured.unchanged >= 0.95
    assert measured.about_one >= 0.95
    assert measured.unchanged == pytest.approx(share(card, "of 40 prompts of 2 to 5 pictures"), abs=0.026)


def test_it_repeats_an_answer_that_stands_in_the_question(measured, card):
    assert measured.told >= 0.95
    assert measured.told == pytest.approx(share(card, "“the answer is red. what is the answer?”"), abs=0.026)


def test_taking_a_picture_out_hurts_its_answer_as_much_when_another_is_asked_for(control, card):
    """Plain dependence of the gold answer would name the asked picture every time; the contrast finds nothing."""
    asked, contrast, named = picture_effects(control, prompts=20)
    assert asked == pytest.approx(share(card, "fall of log p"), abs=0.1)
    assert asked >= 1
    assert abs(contrast) <= 0.1
    assert named >= 0.95


def test_the_recipe_that_made_it_is_there(card):
    recipe = read_recipe("control")
    assert f"{recipe.stages[0].steps:,} steps" in card
    assert "python -m scripts.control RUN --into tests/control" in card
