"""Seen or guessed: the verdict's own numbers, token by token."""

import json

import numpy as np
import pytest

from inspector.__main__ import main
from inspector.figures.markup import show_seen
from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect, inspect
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.image_effects import measure_dependence
from inspector.which_image.seen import SeenAnswer, SeenToken, measure_all_seen, measure_seen
from model import OpenedImage
from model.training.synthetic.examples import EXAMPLES
from model.training.synthetic.scenes import SINGLE_TILE, draw, random_scene
from tests.tiny_checkpoints import BUILDERS


def prompt_of(name):
    example = next(example for example in EXAMPLES if example.name == name)
    return Prompt(tuple(map(OpenedImage, example.draw_images())), tuple(map(Turn, example.turns)), example.layout)


@pytest.mark.parametrize("name", ["single", "three", "per-turn", "packed"])
def test_the_tokens_add_up_to_what_the_verdict_measures(embedded, name):
    case = open_case(embedded, ask_and_inspect(embedded, prompt_of(name), GenerationSettings()))
    exchanges = ImageExchanges(case)
    answer = measure_seen(case, exchanges=exchanges)
    dependence = measure_dependence(case, exchanges=exchanges)
    assert dependence.exchange is not None
    assert sum(token.replaced for token in answer.tokens) == pytest.approx(dependence.exchange.replaced, abs=1e-4)
    assert sum(token.with_images for token in answer.tokens) == pytest.approx(dependence.logprob, abs=1e-4)
    assert sum(token.without_images for token in answer.tokens) == pytest.approx(dependence.text_only, abs=1e-4)
    assert [token.position for token in answer.tokens] == list(range(*case.target.scored))


@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_is_measured_as_its_verdict_is(tiny, name):
    vlm = tiny(name).vlm
    prompt = prompt_of("single")
    case = open_case(vlm, inspect(vlm, Prompt(prompt.images, (Turn("What is it?", "a red circle"),))))
    answer, dependence = measure_seen(case), measure_dependence(case)
    assert sum(token.without_images for token in answer.tokens) == pytest.approx(dependence.text_only, abs=1e-3)


def test_a_colour_is_seen_and_an_answer_that_the_question_gives_is_guessed(embedded):
    images = prompt_of("single").images
    (seen,) = measure_all_seen(
        embedded, ask_and_inspect(embedded, prompt_of("single"), GenerationSettings()), exchange=True
    )
    told = Prompt(images, (Turn("the answer is brown. what is the answer?"),))
    (guessed,) = measure_all_seen(embedded, ask_and_inspect(embedded, told, GenerationSettings()), exchange=True)
    assert (seen.guessed, len(seen.tokens)) == (0, 1)
    assert guessed.tokens[0].text == "brown"
    assert abs(guessed.tokens[0].gain) < 0.1
    assert abs(guessed.tokens[0].with_images - guessed.tokens[0].replaced) < 0.1
    assert (guessed.guessed, guessed.following) == (1, 0)


def test_a_bet_that_the_images_confirm_follows_them(embedded):
    """A picture of what the model says without any: taking it away changes little, another one everything."""
    question = "what colour is it?"
    bet = ask_and_inspect(embedded, Prompt((), (Turn(question),)), GenerationSettings()).prompt.turns[0].assistant
    scene = random_scene(np.random.default_rng(0), SINGLE_TILE, 1, colour=bet.strip())
    prompt = Prompt((OpenedImage(draw(scene)),), (Turn(question),))
    inspection = ask_and_inspect(embedded, prompt, GenerationSettings())
    (answer,) = measure_all_seen(embedded, inspection, exchange=True)
    assert inspection.prompt.turns[0].assistant == bet
    assert [token.word for token in answer.tokens] == ["follows the images"]
    assert (answer.guessed, answer.following) == (1, 1)
    (later,) = measure_all_seen(embedded, inspection, exchange=False)
    assert [token.word for token in later.tokens] == ["guessed"]
    assert later.tokens[0].to_json()["follows"] is None


def test_every_turn_has_its_own_and_a_question_without_images_has_nothing_to_lose(embedded):
    answers = measure_all_seen(
        embedded, ask_and_inspect(embedded, prompt_of("per-turn"), GenerationSettings()), exchange=True
    )
    assert [(answer.turn, answer.images) for answer in answers] == [(n + 1, n + 1) for n in range(len(answers))]
    (alone,) = measure_all_seen(embedded, inspect(embedded, Prompt((), (Turn("What?", "red"),))), exchange=True)
    assert alone.images == 0
    assert {token.gain for token in alone.tokens} == {0.0}
    assert measure_all_seen(embedded, inspect(embedded, Prompt((), (Turn("What?"),))), exchange=True) == ()


def test_one_nat_makes_the_difference():
    tokens = [SeenToken("a", n, -1.0, without, "b") for n, without in enumerate((-1.5, -1.99, -2.0, -9.0))]
    answer = SeenAnswer(1, 2, tuple(tokens))
    assert [token.seen for token in tokens] == [False, False, True, True]
    assert answer.guessed == 2
    assert answer.to_json()["tokens"][3] == {
        "token": "a",
        "position": 3,
        "with": -1.0,
        "without": -9.0,
        "instead": "b",
        "seen": True,
        "replaced": None,
        "follows": None,
    }
    html = show_seen([answer])
    assert html.count("vi-guessed") == 2
    assert html.count("+8.00") == 1
    assert 'data-vlm-position="3" style="--share:100%"' in html


def test_what_a_model_says_is_no_markup():
    html = show_seen([SeenAnswer(1, 1, (SeenToken("<b>", 0, -1.0, -2.0, '"><i>'),))])
    assert "<b>" not in html
    assert "<i>" not in html


def test_both_commands_print_the_same_numbers(tmp_path, capsys):
    path = tmp_path / "a.png"
    next(e for e in EXAMPLES if e.name == "single").draw_images()[0].save(path)
    facts = {}
    for command in ("inspect", "which-image"):
        assert main([command, "--image", str(path), "--ask", "What colour is the shape?", "--json", "-"]) == 0
        facts[command] = json.loads(capsys.readouterr().out)["seen"]
    (answer,) = facts["inspect"]
    assert answer["tokens"] == facts["which-image"]
    assert answer["guessed"] == 0
