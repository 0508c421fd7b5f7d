"""Cuts by hand: they add up, the last is taken back, and what is no cut changes nothing."""

import json
from html import escape

import gradio as gr
import pytest

from inspector.views.lab import LabHandlers


@pytest.fixture
def handlers(store):
    return LabHandlers(store)


def test_cuts_add_up_and_the_last_is_taken_back(handlers, shown):
    [one] = handlers.cut(shown, [], "image 1 → question", 1)
    [two] = handlers.cut(shown, one[2], "image 3 → question", 1)
    [back] = handlers.undo(shown, two[2], "what is written and not yet cut", 1)
    assert [outputs[2] for outputs in (one, two)] == [
        ["image 1 -> question"],
        ["image 1 -> question", "image 3 -> question"],
    ]
    assert back[2] == one[2]
    assert back[3]["change"] == pytest.approx(one[3]["change"], abs=1e-6)
    [cleared] = handlers.clear(shown, two[2])
    assert (cleared[2], cleared[3]["change"]) == ([], 0)


def test_scissors_hide_a_whole_image_from_all_behind_it_and_show_it_again(handlers, shown, event):
    [one] = handlers.snip(shown, ["image 1 -> question"], "", 1, event(thing="image 3"))
    assert one[2] == ["image 1 -> question", "image 3 -> later"]
    assert escape(json.dumps(one[2]), quote=True) in one[1]
    [by_hand] = handlers.cut(shown, ["image 1 -> question"], "image 3 -> later", 1)
    assert one[3] == by_hand[3]
    [back] = handlers.snip(shown, one[2], "", 1, event(thing="image 3"))
    assert back[2] == ["image 1 -> question"]
    with pytest.raises(gr.Error, match="image 9"):
        list(handlers.snip(shown, [], "", 1, event(thing="image 9")))


@pytest.mark.parametrize(
    ("event", "cuts", "line", "sentence"),
    [
        ("undo", [], "", "undo"),
        ("cut", ["image 1 -> question"], " ", "chosen"),
        ("cut", ["image 1 -> question"], "image 9 -> question", "image 9"),
    ],
)
def test_what_is_no_cut_is_said_and_the_cuts_stay(handlers, shown, event, cuts, line, sentence):
    run = getattr(handlers, event)(shown, cuts, line, 1)
    note, *others = next(run)
    assert sentence in note
    assert others == [gr.skip()] * 3
    with pytest.raises(gr.Error, match=sentence) as refused:
        next(run)
    assert not refused.value.visible


def test_what_is_chosen_becomes_a_line(handlers, shown, event):
    limits = ("question", ["1"], [])
    things, line = handlers.choose(shown, *limits, event(things=["image 1", 7, "image 2"]))
    assert things == ["image 1", "image 2"]
    assert line == "image 1, image 2 -> question @layers 1"
    more, _ = handlers.add_token(shown, things, *limits)
    assert more[:2] == things
    assert len(more) == 3
    assert handlers.add_token(shown, more, *limits)[0] == more
    with pytest.raises(gr.Error, match="Ask"):
        handlers.add_token(None, [], *limits)
