"""What each kind of component may have sent, and what is said of anything else."""

import os
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
        (COLOURS, None, "It.*None.*red, blue"),
        (COLOURS, ["red"], r"It.*\['red'\].*red, blue"),
        (RANKS, True, "It.*True.*1, 2"),
        (RANKS, 1.0, r"It.*1\.0.*1, 2"),
        (RANKS, "1", "It.*'1'.*1, 2"),
        (gr.Radio([]), "a", "It.*'a'"),
        (LAYERS, "0", "It.*'0'.*list.*0, 1"),
        (LAYERS, [0], "It.*0.*0, 1"),
        (LAYERS, [["0"]], r"It.*\['0'\].*0, 1"),
        (LAYERS, ["0"] * 1000, "It.*1,000.* 2 "),
        (SIZE, None, "It.*empty.*128"),
        (SIZE, "32", "It.*'32'.*128"),
        (SIZE, float("nan"), "It.*nan.*128"),
        (SEED, float("inf"), "It.*inf"),
        (SEED, 10**30, "It.*1000000000000000000000000000000"),
        (SEED, 10**400, "It.*1329"),
        (SEED, True, "It.*True"),
        (SEED, {}, r"It.*\{\}.*number"),
        (TEXT, {"a": 1}, r"It.*\{'a': 1\}.*text"),
        (TEXT, "a\udfffb", "It.*surrogate"),
        (OWN, 5, "It.*5.*text"),
        (TICK, "false", "It.*'false'.*true or false"),
        (QUESTIONS, "a", "It.*'a'.*list"),
        (QUESTIONS, ["a", None], "It 2.*None.*text"),
        (COUNT, 2.0, r"It.*2\.0.*whole"),
        (COUNT, True, "It.*True.*whole"),
        (MASK, "no", "It.*'no'.*true or false"),
        (FILES, ["a"], "It 1.*'a'.*object"),
        (FILES, None, "It.*None.*list"),
    ],
)
def test_anything_else_is_one_sentence(block, value, said):
    with pytest.raises(InputError, match=said):
        check_value(block, value, "It", 100, getattr(block, "value", None) is None)


def test_many_choices_are_counted():
    many = gr.Radio([str(n) for n in range(40)], value="0")
    with pytest.raises(InputError, match=r"0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 .*28"):
        check_value(many, "x", "It", 100, False)


@pytest.mark.parametrize(
    ("data", "kind", "value"), [({"at": 3}, int, 3), ({"at": "a"}, str, "a"), ({"at": []}, list, [])]
)
def test_data_of_an_event(data, kind, value):
    assert read_event(EventData(None, data), "at", kind) == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "lacks"),
        ({}, "lacks"),
        ({"other": 3}, "lacks"),
        ({"at": None}, "None"),
        ({"at": True}, "True"),
        ({"at": "3"}, "'3'"),
        ({"at": 1.5}, r"1\.5"),
        ({"at": float("nan")}, "nan"),
        ({"at": [3]}, r"\[3\]"),
        ({"at": 2**70}, "1180591620717411303424"),
    ],
)
def test_data_of_an_event_that_is_none(data, said):
    with pytest.raises(gr.Error, match=rf"“at”.*{said}") as caught:
        read_event(EventData(None, data), "at", int)
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
