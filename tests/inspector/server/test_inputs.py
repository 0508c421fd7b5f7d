"""What each kind of component may have sent, and what is said of anything else."""

import os
import re
import time

import gradio as gr
import pytest
from gradio.components.api_component import Api
from gradio.events import EventData

from inspector.server.inputs import admit_inputs, check_value, read_event
from model import InputError

COLOURS = gr.Dropdown([("Red one", "red"), ("Blue one", "blue")], value="red")
RANKS = gr.Radio([("first", 1), ("second", 2)], value=None)
LAYERS = gr.CheckboxGroup(["0", "1"])
SIZE = gr.Slider(1, 128, 32, step=1)
SEED = gr.Number(0, precision=0)
TEXT, TICK, OWN = gr.Textbox(), gr.Checkbox(), gr.Dropdown(["red"], allow_custom_value=True)
QUESTIONS = Api(None, {"type": "array", "items": {"type": "string"}})
COUNT, MASK = Api(3, {"type": "integer"}), Api(False, {"type": "boolean"})
FILES = Api(None, {"type": "array", "items": {"type": "object"}})


@pytest.mark.parametrize(
    ("block", "value", "taken"),
    [
        (COLOURS, "blue", "blue"),
        (RANKS, 2, 2),
        (RANKS, None, None),
        (LAYERS, [], []),
        (LAYERS, ["1", "0"], ["1", "0"]),
        (LAYERS, None, []),
        (SIZE, 128, 128),
        (SIZE, 1, 1),
        (SEED, None, None),
        (SEED, 2**62, 2**62),
        (SEED, -3, -3),
        (TEXT, None, ""),
        (TEXT, "é🦒\x00\n", "é🦒\x00\n"),
        (TICK, None, False),
        (TICK, True, True),
        (OWN, "mauve", "mauve"),
        (QUESTIONS, ["a", ""], ["a", ""]),
        (COUNT, 5, 5),
        (MASK, True, True),
        (FILES, [{"path": "a"}], [{"path": "a"}]),
        (gr.JSON(), {"any": [1]}, {"any": [1]}),
    ],
)
def test_what_a_component_sends_is_taken(block, value, taken):
    assert check_value(block, value, "It", 100, getattr(block, "value", None) is None) == taken


@pytest.mark.parametrize(
    ("block", "value", "said"),
    [
        (COLOURS, "green", "“It” is 'green'; choose of red, blue."),
        (COLOURS, None, "“It” is None; choose of red, blue."),
        (COLOURS, ["red"], "“It” is ['red']; choose of red, blue."),
        (RANKS, True, "“It” is True; choose of 1, 2."),
        (RANKS, 1.0, "“It” is 1.0; choose of 1, 2."),
        (RANKS, "1", "“It” is '1'; choose of 1, 2."),
        (gr.Radio([]), "a", "“It” is 'a'; there is nothing to choose here yet."),
        (LAYERS, "0", "“It” is '0'; it takes a list, choose of 0, 1."),
        (LAYERS, [0], "“It” has 0; choose of 0, 1."),
        (LAYERS, [["0"]], "“It” has ['0']; choose of 0, 1."),
        (LAYERS, ["0"] * 1000, "“It” has 1,000 entries for 2 choices; give each once."),
        (SIZE, 0, "“It” is 0; it takes a number from 1 to 128."),
        (SIZE, None, "“It” is empty; it takes a number from 1 to 128."),
        (SIZE, "32", "“It” is '32'; it takes a number from 1 to 128."),
        (SIZE, float("nan"), "“It” is nan; it takes a number from 1 to 128."),
        (SEED, float("inf"), "“It” is inf; it takes a number."),
        (SEED, 10**30, "“It” is 1000000000000000000000000000000; it takes a number."),
        (SEED, 10**400, "“It” is a whole number of 1329 bits; it takes a number."),
        (SEED, True, "“It” is True; it takes a number."),
        (SEED, {}, "“It” is {}; it takes a number."),
        (TEXT, 5, "“It” is 5; it takes text."),
        (TEXT, {"a": 1}, "“It” is {'a': 1}; it takes text."),
        (TEXT, "x" * 101, "“It” has 101 characters; at most 100 are taken, shorten it."),
        (TEXT, "a\udfffb", "“It” holds half a character (a lone surrogate), which is no text; remove it."),
        (OWN, 5, "“It” is 5; it takes text."),
        (TICK, 1, "“It” is 1; it takes true or false."),
        (TICK, "false", "“It” is 'false'; it takes true or false."),
        (QUESTIONS, "a", "“It” is 'a'; it takes a list."),
        (QUESTIONS, ["a", None], "“It 2” is None; it takes text."),
        (COUNT, 2.0, "“It” is 2.0; it takes a whole number."),
        (COUNT, True, "“It” is True; it takes a whole number."),
        (MASK, "no", "“It” is 'no'; it takes true or false."),
        (FILES, ["a"], "“It 1” is 'a'; it takes an object."),
        (FILES, None, "“It” is None; it takes a list."),
    ],
)
def test_anything_else_is_one_sentence(block, value, said):
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        check_value(block, value, "It", 100, getattr(block, "value", None) is None)


def test_many_choices_are_counted():
    many = gr.Radio([str(n) for n in range(40)], value="0")
    with pytest.raises(InputError, match="choose of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 or 28 more"):
        check_value(many, "x", "It", 100, False)


@pytest.mark.parametrize(
    ("data", "kind", "value"), [({"at": 3}, int, 3), ({"at": "a"}, str, "a"), ({"at": []}, list, [])]
)
def test_data_of_an_event(data, kind, value):
    assert read_event(EventData(None, data), "at", kind) == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "lacks it"),
        ([], "lacks it"),
        ("at", "lacks it"),
        (5, "lacks it"),
        ({}, "lacks it"),
        ({"other": 3}, "lacks it"),
        ({"at": None}, "has None for it"),
        ({"at": True}, "has True for it"),
        ({"at": "3"}, "has '3' for it"),
        ({"at": 1.5}, "has 1.5 for it"),
        ({"at": float("nan")}, "has nan for it"),
        ({"at": [3]}, "has [3] for it"),
        ({"at": 2**70}, "has 1180591620717411303424 for it"),
    ],
)
def test_data_of_an_event_that_is_none(data, said):
    sentence = f"This event needs event_data with “at”, a whole number; what came {said}."
    with pytest.raises(gr.Error) as caught:
        read_event(EventData(None, data), "at", int)
    assert caught.value.message == sentence
    assert not caught.value.print_exception


def test_a_file_in_use_is_young_again_and_the_same(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    os.utime(path, ns=(1_000_000_000, 2_000_000_000))
    before = path.stat().st_ctime_ns
    monkeypatch.setattr("inspector.server.inputs.open_cache", lambda: tmp_path)
    until = time.monotonic() + 30
    while path.stat().st_ctime_ns == before and time.monotonic() < until:  # clocks of file systems are coarse
        admit_inputs([{"path": str(path)}])
    assert path.stat().st_ctime_ns > before  # by which it is swept
    assert path.stat().st_mtime_ns == 2_000_000_000  # by which it is known
