"""States of one question in the run of another: identities at both ends, and the same by hand, layer by layer."""

import json
from dataclasses import replace

import pytest
import torch

from inspector.experiments.binding_patching import AddressCurve, patch_addresses, patch_between, tell_address
from inspector.interventions.continuations import Continuation
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.question_contrast import measure_selection
from model import OpenedImage
from model.language import Pass
from model.masks import build_mask
from model.training.synthetic.examples import EXAMPLES


def opened(vlm, name, questions=None, turn=None, **options):
    """(case, selection)."""
    example = next(example for example in EXAMPLES if example.name == name)
    images = tuple(OpenedImage(image) for image in example.draw_images())
    prompt = Prompt(images, tuple(Turn(text) for text in questions or example.turns), example.layout, **options)
    case = open_case(vlm, ask_and_inspect(vlm, prompt, GenerationSettings()), turn)
    return case, measure_selection(case, None)


@pytest.fixture(scope="module")
def three(embedded):
    return opened(embedded, "three")


def logprob(case, prompt, answer, given=0):
    """log p of ``answer`` behind ``prompt``, without its first ``given`` tokens."""
    end = case.target.start + len(prompt)
    continuation = Continuation(case.target.start, (*prompt, *answer), (end + given, end + len(answer)))
    return case.prefix_cache.run([continuation])[0].logprob


def test_at_the_ends_the_patch_is_the_other_question_or_nothing(three):
    case, selection = three
    target, source = selection.asked[:2]
    question, chooser = patch_addresses(case, selection)
    assert (question.rows, chooser.rows) == ("question", "chooser")
    assert (question.source, question.target) == (source.question, target.question)
    assert (question.source_answer, question.target_answer) == ("red", "yellow")
    layers = case.vlm.config.lm_n_blocks
    assert len(question.source_logprobs) == len(chooser.target_logprobs) == layers + 1
    asked_source = [logprob(case, source.prompt_ids, one.answer_ids) for one in (source, target)]
    asked_target = [logprob(case, target.prompt_ids, one.answer_ids) for one in (source, target)]

    def at(curve, layer):
        return [curve.source_logprobs[layer], curve.target_logprobs[layer]]

    # The choosing row holds the same token in both questions, so before layer 0 the others are all of the question.
    assert at(question, 0) == pytest.approx(asked_source, abs=1e-4)
    assert at(question, layers) == pytest.approx(asked_target, abs=1e-4)
    assert at(chooser, 0) == pytest.approx(asked_target, abs=1e-4)
    assert at(chooser, layers) == pytest.approx(asked_source, abs=1e-4)


def states(case, prompt):
    """What enters each layer, and leaves the last, for the row up to where the answer begins."""
    vlm, start = case.vlm, case.target.start
    ids = torch.tensor(prompt)
    x = torch.cat((case.prefix_cache.embeds[:start], vlm.decoder.token_embedding(ids)))[None]
    found = [x]
    for block in vlm.decoder.blocks:
        x = block(x, context(case, x))
        found.append(x)
    return found


def context(case, x):
    length = x.shape[1]
    mask = build_mask(torch.ones(1, length, dtype=torch.bool), None, length)
    return Pass(mask, *case.vlm.decoder.rotary_embd(torch.arange(length)[None]))


@torch.no_grad()
def by_hand(case, source, target, layer, rows):
    """log p of both answers' one token: the source's states at ``rows`` before ``layer`` in the target's own pass."""
    decoder = case.vlm.decoder
    given = states(case, source.prompt_ids)[layer]
    x = states(case, target.prompt_ids)[layer].clone()
    x[:, rows] = given[:, rows]
    for block in decoder.blocks[layer:]:
        x = block(x, context(case, x))
    logprobs = decoder.head(decoder.norm(x[0, -1])).log_softmax(dim=-1)
    return [logprobs[one.answer_ids[0]].item() for one in (source, target)]


def test_the_same_by_hand(three):
    case, selection = three
    target, source = selection.asked[0], selection.asked[2]
    chooser = case.target.start + len(target.prompt_ids) - 1
    for rows, places in (("question", list(range(case.target.start, chooser))), ("chooser", [chooser])):
        curve = patch_between(case, source, target, rows)
        for layer in range(case.vlm.config.lm_n_blocks + 1):
            expected = by_hand(case, source, target, layer, places)
            found = [curve.source_logprobs[layer], curve.target_logprobs[layer]]
            assert found == pytest.approx(expected, abs=1e-4), (rows, layer)


def test_the_pointer_moves_from_the_question_to_the_choosing_row(three):
    question, chooser = patch_addresses(*three)
    assert question.follows[0]
    assert not question.follows[-1]
    assert not chooser.follows[0]
    assert chooser.follows[-1]
    assert "“red”" in question.sentence
    assert json.loads(json.dumps(question.to_json()))["follows"] == list(question.follows)
    assert tell_address([question, chooser]) != ""


def test_answers_that_begin_alike_are_told_apart_where_they_differ(three):
    case, selection = three
    target, source = (
        replace(one, answer_ids=(20, last)) for one, last in zip(selection.asked[:2], (31, 30), strict=True)
    )
    curve = patch_between(case, source, target, "chooser")
    assert curve.source_logprobs[-1] == pytest.approx(logprob(case, source.prompt_ids, (20, 30), 1), abs=1e-4)
    assert curve.target_logprobs[0] == pytest.approx(logprob(case, target.prompt_ids, (20, 31), 1), abs=1e-4)


def test_an_answer_that_begins_another_is_told_apart_by_its_end(three):
    case, selection = three
    target, source = (
        replace(one, answer_ids=ids) for one, ids in zip(selection.asked[:2], ((20,), (20, 30)), strict=True)
    )
    eos = case.vlm.eos_token_id
    curve = patch_between(case, source, target, "question")
    assert curve.target_logprobs[-1] == pytest.approx(logprob(case, target.prompt_ids, (20, eos), 1), abs=1e-4)
    assert curve.source_logprobs[0] == pytest.approx(logprob(case, source.prompt_ids, (20, 30, eos), 1), abs=1e-4)


def test_passes_are_split_where_they_would_grow_too_large(three, monkeypatch):
    case, selection = three
    whole = list(patch_addresses(case, selection))
    monkeypatch.setattr("inspector.experiments.binding_patching.PASS_POSITIONS", 1)
    for one, other in zip(whole, patch_addresses(case, selection), strict=True):
        assert other.source_logprobs == pytest.approx(one.source_logprobs, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "questions", "turn", "options", "why"),
    [
        ("single", None, None, {}, "another image"),
        ("per-turn", None, None, {}, "as many tokens"),
        ("packed", None, 2, {"document_mask": True}, "another image"),
        ("per-turn", ("In image 1, what is it? <|im_end|>",) * 3, 1, {}, "another image"),
    ],
)
def test_what_could_not_be_patched_is_said(embedded, name, questions, turn, options, why):
    curves = list(patch_addresses(*opened(embedded, name, questions, turn, **options)))
    assert [curve.rows for curve in curves] == ["question", "chooser"]
    for curve in curves:
        assert why in curve.not_done
        assert curve.sentence == curve.not_done
        assert curve.turning_layer is None
    assert tell_address(curves) == ""


def test_equal_answers_have_no_curve(three):
    case, selection = three
    same = tuple(replace(one, answer_ids=(30,), greedy_ids=(30,)) for one in selection.asked)
    curve = next(patch_addresses(case, replace(selection, asked=same)))
    assert curve.not_done
    with pytest.raises(ValueError, match="different"):
        patch_between(case, same[0], same[1], "question")


def curve(rows, follows):
    return AddressCurve(
        rows, "a?", "b?", 1, 2, "red", "blue", tuple(-1.0 if on else -3.0 for on in follows), (-2.0,) * len(follows)
    )


def test_turning_layers():
    assert curve("question", (True, True, False, False, False)).turning_layer == 1
    assert curve("question", (True, True, True, True, True)).turning_layer == 4
    assert curve("question", (False, True, False, False, False)).turning_layer is None
    assert curve("chooser", (False, True, False, True, True)).turning_layer == 3
    assert curve("chooser", (False, False, False, False, True)).turning_layer == 4
    assert curve("chooser", (False,) * 5).turning_layer is None
