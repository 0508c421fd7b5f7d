"""The section of edits: they add up, the last is taken back, and what is no edit changes nothing."""

import json

import gradio as gr
import pytest

from inspector.experiments.image_edits import run_edits
from inspector.interventions.target import open_case
from inspector.views.image_edits import ImageEditsHandlers, begin


@pytest.fixture
def handlers(store):
    return ImageEditsHandlers(store)


def test_edits_add_up_and_the_last_is_taken_back(handlers, store, shown):
    [one] = handlers.edit(shown, None, "image 3: black 0,0,48,48", 1)
    [two] = handlers.edit(shown, one[3], "image 2: grey 0,0,9,9", 1)
    [back] = handlers.undo(shown, two[3])
    assert [study.texts for study in (one[3], two[3], back[3])] == [
        ("image 3: black 0,0,48,48",),
        ("image 3: black 0,0,48,48", "image 2: grey 0,0,9,9"),
        ("image 3: black 0,0,48,48",),
    ]
    assert back[1:] == one[1:]
    [none], [cleared] = handlers.undo(shown, back[3]), handlers.clear(shown)
    assert none == cleared
    assert cleared[3:] == [None, None]


def test_the_facts_are_the_commands_and_the_board_shows_the_edited_images(handlers, store, shown):
    [one] = handlers.edit(shown, None, "image 3: black 0,0,48,48", None)
    [two] = handlers.edit(shown, one[3], "image 2: grey 0,0,9,9", None)
    note, board, panel, study, facts = two
    assert note == ""
    assert sorted(json.loads(board["data"])["edited"]) == ["1", "2"]
    assert panel["value"].count("<li") == 2
    assert panel["value"].count("<figure>") == 3
    assert facts.pop("command").endswith("--edit 'image 3: black 0,0,48,48' --edit 'image 2: grey 0,0,9,9' --json -")
    assert facts == study.to_json()
    case = open_case(store.get("embedded"), shown.inspection)
    anew = run_edits(case, study.texts).to_json()
    assert anew["edits"][0] == facts["edits"][0]
    assert anew["edits"][1]["pixels"]["change"] == pytest.approx(facts["edits"][1]["pixels"]["change"], abs=1e-4)


def test_they_go_with_the_answer(store, shown):
    note, board, panel, study, facts, turn = begin(store, "embedded", shown.inspection)
    assert (note, study, facts) == ("", None, None)
    assert json.loads(board["data"]) == {"edited": {}}
    assert "<figure" not in panel["value"]
    assert (turn["value"], turn["visible"]) == (1, False)


@pytest.mark.parametrize(
    ("event", "arguments", "sentence"),
    [
        ("edit", (None, " ", None), "rectangle"),
        ("edit", (None, "image 9: black 0,0,9,9", None), "image 9"),
        ("edit", (None, "image 1: black 0,0,9,9", 4), "Turn 4"),
        ("undo", (None,), "undo"),
    ],
)
def test_what_is_no_edit_is_said_and_the_edits_stay(handlers, shown, event, arguments, sentence):
    run = getattr(handlers, event)(shown, *arguments)
    note, *others = next(run)
    assert sentence in note
    assert others == [gr.skip()] * 4
    with pytest.raises(gr.Error, match=sentence) as refused:
        next(run)
    assert not refused.value.visible


def test_before_an_answer_there_is_nothing_to_edit(handlers):
    for run in (handlers.edit(None, None, "image 1: black 0,0,9,9", None), handlers.clear(None)):
        note, *_ = next(run)
        assert "Ask" in note
