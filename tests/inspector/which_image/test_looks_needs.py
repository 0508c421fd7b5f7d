"""Looking and needing: where the two differ, and where nothing is needed."""

import pytest

from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.row.numbers import say_factor
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.image_effects import measure_dependence
from inspector.which_image.looks_needs import LooksNeeds, is_quick, measure_looks_needs
from model import open_image
from model.training.synthetic.examples import EXAMPLES


def measured(vlm, name, question=None):
    example = next(example for example in EXAMPLES if example.name == name)
    images = tuple(open_image(picture) for picture in example.draw_images())
    turns = (Turn(question),) if question else tuple(map(Turn, example.turns))
    inspection = ask_and_inspect(vlm, Prompt(images, turns, example.layout), GenerationSettings(8))
    attention = attend(vlm, inspection, inspection.row_that_chose(inspection.first_answer_position))
    return inspection, attention, measure_looks_needs(vlm, inspection, attention)


def test_it_looks_at_one_image_and_needs_another(embedded):
    inspection, attention, found = measured(embedded, "five")
    assert (found.looks, found.needs) == (4, 2)
    assert found.share == pytest.approx(attention.image_shares.mean(axis=0)[3])
    falls = measure_dependence(open_case(embedded, inspection)).leave_one_out
    assert found.fall == pytest.approx(falls[1], abs=1e-5)
    assert found.fall == max(falls) > found.bar
    assert say_factor(-found.fall) in found.sentence
    assert is_quick(embedded, inspection)


def test_where_nothing_is_needed(embedded):
    _, _, found = measured(embedded, "three", "the answer is red. what is the answer?")
    assert found.needs is None
    assert found.fall < found.bar


def test_without_an_image_there_is_no_line(embedded):
    inspection = ask_and_inspect(embedded, Prompt((), (Turn("What?"),)), GenerationSettings(4))
    assert measure_looks_needs(embedded, inspection, attend(embedded, inspection, 2)) is None


def test_a_large_model_is_not_made_to_wait(embedded, monkeypatch):
    inspection, _, found = measured(embedded, "single")
    monkeypatch.setattr("inspector.which_image.looks_needs.QUICK", 1000)
    assert not is_quick(embedded, inspection)
    assert isinstance(found, LooksNeeds)
