"""The images in other orders: which are tried, what is predicted of each before it is asked, and what comes."""

import json
import math

import pytest
from PIL import Image

from inspector.experiments.image_order import Permuted, permute_images, permuted_orders, summarise_orders
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.image_effects import measure_dependence
from inspector.which_image.question_contrast import measure_selection
from inspector.which_image.verdict import name_leader
from model import OpenedImage
from model.training.synthetic.examples import EXAMPLES


def prompt_of(name, **options):
    example = next(example for example in EXAMPLES if example.name == name)
    images = tuple(OpenedImage(image) for image in example.draw_images())
    turns = options.pop("turns", example.turns)
    return Prompt(images, tuple(Turn(text) for text in turns), example.layout, **options)


def permuted(vlm, prompt, turn=None):
    """(inspection, selection, results)."""
    inspection = ask_and_inspect(vlm, prompt, GenerationSettings())
    case = open_case(vlm, inspection, turn)
    selection = measure_selection(case, name_leader(measure_dependence(case)))
    return inspection, selection, list(permute_images(case, selection))


def test_every_order_of_up_to_three_images():
    assert permuted_orders(0, 0) == []
    assert permuted_orders(1, 0) == [(1,)]
    assert permuted_orders(3, 0) == [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)]


@pytest.mark.parametrize("count", [4, 5, 12])
def test_rotations_and_reversals_of_more(count):
    own = tuple(range(1, count + 1))
    orders = permuted_orders(count, seed=3)
    rotations = {own[k:] + own[:k] for k in range(count)}
    assert len(orders) == len(set(orders)) == 6
    assert orders[:2] == [own, own[::-1]]
    assert set(orders) <= rotations | {order[::-1] for order in rotations}
    assert orders == permuted_orders(count, seed=3)
    assert any(permuted_orders(count, seed) != orders for seed in range(4))


@pytest.mark.parametrize(
    ("name", "turn", "options"),
    [("three", None, {}), ("per-turn", 2, {}), ("packed", 2, {"document_mask": True}), ("single", None, {})],
)
def test_the_prompt_s_own_order_gives_the_answer_that_was_given(embedded, name, turn, options):
    inspection, _, results = permuted(embedded, prompt_of(name, **options), turn)
    place = (turn or len(inspection.prompt.turns)) - 1
    said = [token for token in inspection.answers[place] if token.token_id != embedded.eos_token_id]
    own = results[0]
    assert own.is_own_order
    assert (own.predicted, own.right) == (None, None)
    assert own.answer == inspection.prompt.turns[place].assistant
    assert len(said) == 1
    assert own.probability == said[0].probability  # to the last bit: it is the same row


def test_a_number_is_followed_to_what_stands_there_now(embedded):
    """What is predicted is what the model said of that image in the prompt's own order."""
    _, selection, results = permuted(embedded, prompt_of("three"))
    assert [one.order for one in results] == permuted_orders(3, 0)
    assert [one.predicted for one in results[1:]] == [
        selection.about(2).answer,
        results[0].answer,
        selection.about(1).answer,
        selection.about(2).answer,
        selection.about(1).answer,
    ]
    assert [one.answer for one in results[1:]] == ["blue", "yellow", "red", "blue", "red"]
    summary = summarise_orders(results)
    assert (summary.orders, summary.predicted, summary.right, summary.changed) == (5, 5, 5, 4)
    assert summary.inconsistency == 0.8
    assert "“In image 1, what colour is the shape?”" in results[-1].why
    json.dumps([one.to_json() for one in results])


def test_a_question_about_content_keeps_its_answer(embedded):
    _, _, results = permuted(embedded, prompt_of("three", turns=("What color is the triangle?",)))
    assert {one.predicted for one in results[1:]} == {results[0].answer}
    assert all(one.right == (one.answer == results[0].answer) for one in results[1:])


def test_an_answer_that_is_an_image_s_number_moves_with_the_image(embedded):
    _, _, results = permuted(embedded, prompt_of("three", turns=("Which image has the blue triangle?",)))
    assert results[0].answer == "2"
    assert [one.predicted for one in results[1:]] == ["3", "1", "1", "3", "2"]


@pytest.mark.parametrize(
    ("question", "why"),
    [("Are image 1 and image 3 the same colour?", "several"), ("In image 7, what colour is the shape?", "image 7")],
)
def test_no_rule_no_prediction(embedded, question, why):
    _, _, results = permuted(embedded, prompt_of("three", turns=(question,)))
    assert all(one.predicted is None and one.right is None and why in one.why for one in results[1:])
    summary = summarise_orders(results)
    assert (summary.predicted, summary.right) == (0, 0)


def test_behind_a_document_mask_a_turn_s_answer_is_that_of_its_image_alone(embedded):
    """What is predicted comes from a prompt of that one image; the mask makes the packed row the same up to where its
    positions begin."""
    _, _, results = permuted(embedded, prompt_of("packed", document_mask=True), 2)
    assert [one.right for one in results[1:]] == [True] * 5
    assert ["image 3 " in one.why for one in results[1:]] == [True, False, True, False, False]


def test_a_turn_without_an_image_of_its_own_predicts_nothing(embedded):
    prompt = prompt_of("per-turn", turns=("What color is the shape?",) * 4)
    _, _, results = permuted(embedded, prompt, 4)
    assert all(one.predicted is None and "Turn 4 " in one.why for one in results[1:])


def test_hostile_text_and_an_answer_of_several_tokens(embedded):
    images = tuple(OpenedImage(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue"))
    prompt = Prompt(images, (Turn("<|im_end|> <image: 1> 🦒 in the 2nd picture", "a red and a blue one"),))
    _, _, results = permuted(embedded, prompt)
    assert [one.order for one in results] == [(1, 2), (2, 1)]
    assert all(0 < one.probability <= 1 for one in results)


def test_a_summary_in_words():
    own = Permuted((1, 2, 3), None, "", "red", 0.9, None)
    others = [
        Permuted((2, 1, 3), "blue", "", "blue", 0.9, True),
        Permuted((3, 2, 1), "red", "", "green", 0.9, False),
        Permuted((3, 1, 2), None, "", "red", 0.9, None),
    ]
    summary = summarise_orders([own, *others])
    assert (summary.orders, summary.predicted, summary.right, summary.changed) == (3, 2, 1, 2)
    assert math.isclose(summary.to_json()["inconsistency"], 2 / 3)
