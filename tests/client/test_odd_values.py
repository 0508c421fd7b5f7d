"""Every event of the app with odd values for each of its inputs, and with odd data of the event itself: it works, or
is refused in one sentence. Nothing prints a traceback and nothing answers with an exception of Python's."""

import asyncio
import re
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.events import EventData
from gradio.state_holder import SessionState

from app import build_demo, open_models
from inspector.runs.jobs import JobTable
from inspector.server.inputs import FAILED
from model import InputError

NAN, INFINITY = float("nan"), float("inf")
FILE = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
PLAIN = [None, True, "x", 10**30, NAN, "\ud800", [None], {"a": 1}]
"""For inputs that take one value; tests/inspector/test_intake.py has more of them."""
ODD = [
    *PLAIN,
    False,
    -1,
    1.5,
    1e-300,
    INFINITY,
    "",
    "x" * 300_000,
    [],
    [[]],
    ["x"],
    [1, 2],
    [{}],
    {},
    {"path": 5},
    {"path": "/etc/hostname"},
    FILE,
    [FILE],
    [{"image": {"path": "/etc/hostname"}}],
    [{"image": FILE, "caption": 5}],
    [{"video": FILE}],
    {"image": FILE, "caption": None},
    [["/etc/hostname", None]],
    {"owner": 5, "jobs": {"a": 1}},
    {"owner": "x" * 20, "jobs": [[], 5]},
]
SINGLE = (gr.Textbox, gr.Checkbox, gr.Number, gr.Slider, gr.Radio, gr.Dropdown, gr.CheckboxGroup)
ODD_EVENTS = [
    None,
    [],
    "position",
    5,
    True,
    {},
    *(
        {name: value}
        for name in ("position", "index", "start", "files", "things")
        for value in (
            None,
            True,
            "3",
            1.5,
            -1,
            10**30,
            NAN,
            [],
            [1],
            {},
            [{"name": 5}],
            [{"name": "a", "size": NAN}],
            [{"name": "a" * 10**6, "size": 10**30}],
            ["image 1"] * 1000,
            [[]] * 5,
        )
    ),
    {"start": 0, "stop": None},
    {"start": 0, "stop": "1"},
    {"start": 10**30, "stop": 0},
    {"start": -1, "stop": -(10**18)},
]
REQUEST = SimpleNamespace(query_params={"job": "<b>"}, headers={}, username=None, client=None, session_hash="a page")

# Outside a server's event gradio makes a Python warning of what it would show.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def demo():
    demo = build_demo(open_models([]))
    demo.exited = False
    return demo


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    def start(self, owner, recipe, uploads=None):
        raise InputError("Nothing is trained here.")

    monkeypatch.setattr(JobTable, "start", start)


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def asked(runner, demo):
    """The state of a session that was asked something and got an answer."""
    state = SessionState(demo)
    function = event_of(demo, "ask")
    inputs = usual(function)
    names = [block.label for block in function.inputs]
    inputs[names.index("Turn 1: question")] = "What color is the shape?"
    inputs[names.index("Longest answer (tokens)")] = 2

    async def run():
        iterator, answering = None, True
        while answering:
            output = await demo.process_api(function, inputs, state, iterator=iterator)
            iterator, answering = output["iterator"], output["is_generating"]

    runner.run(run())
    return state


def event_of(demo, name):
    return next(function for function in demo.fns.values() if function.api_name == name)


def usual(function):
    return [getattr(block, "value", None) if not block.stateful else None for block in function.inputs]


def call(runner, demo, function, inputs, state, data=None):
    """What is said, or "" where it works. Of a stream the first step is run."""

    async def run():
        event = EventData(None, data)
        output = await demo.process_api(function, inputs, state, request=REQUEST, event_data=event)
        if (iterator := output["iterator"]) is not None:
            await iterator.aclose()

    try:
        runner.run(run())
    except gr.Error as error:
        return error.message if not error.print_exception else "a traceback is printed"
    return ""


def fault_in(said):
    """Why a sentence is none; "" for a good one."""
    if said == FAILED:
        return "the server failed"
    if re.search(r"<class|Traceback|object at 0x|\w+Error\b|NoneType|validation error", said):
        return "Python speaks"
    sentence = re.fullmatch(r"[A-Z“-].{5,500}[.”]", said)
    return "" if sentence or not said else "no sentence"


def events(demo):
    """Each event once: those that ask for an example do what /ask does."""
    return [function for function in demo.fns.values() if not (function.api_name or "").startswith("ask_")]


def odd_calls(runner, demo, session, functions, odd):
    """What was sent and what was said; each call begins with the session as it was."""
    data = dict(session.state_data)
    for function in functions:
        for place, block in enumerate(function.inputs):
            values = PLAIN if isinstance(block, SINGLE) else odd
            for value in values if not block.stateful else ():
                session.state_data = dict(data)
                inputs = usual(function)
                inputs[place] = value
                what = f"{function.api_name}, {block.label} = {value!r:.40}"
                yield what, call(runner, demo, function, inputs, session)


@pytest.mark.parametrize("before", ["nothing was asked", "there is an answer"])
def test_odd_inputs(runner, demo, asked, before, capfd):
    if before == "nothing was asked":
        calls = odd_calls(runner, demo, SessionState(demo), events(demo), ODD)
    else:
        shown = next(block for block in event_of(demo, "tokens").inputs)
        calls = odd_calls(runner, demo, asked, [f for f in events(demo) if shown in f.inputs], ODD[:12:3])
    faults = [f"{what}: {fault}: {said:.200}" for what, said in calls if (fault := fault_in(said))]
    assert faults == []
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("before", ["nothing was asked", "there is an answer"])
def test_odd_data_of_events(runner, demo, asked, before, capfd):
    """Those that read data of the event say what is wrong with it; the others don't look at it."""
    readers = {"place_image", "remove_image", "refuse_files", "select_token", "lab_choose", "clip_patch"}
    session = asked if before == "there is an answer" else SessionState(demo)
    state, faults = dict(session.state_data), []
    for function in events(demo):
        for data in ODD_EVENTS if function.api_name in readers else ODD_EVENTS[:3]:
            if function.api_name not in readers and before == "there is an answer":
                continue
            session.state_data = dict(state)
            said = call(runner, demo, function, usual(function), session, data)
            if fault := fault_in(said):
                faults.append(f"{function.api_name}, {data!r:.60}: {fault}: {said:.200}")
            if function.api_name in readers and not isinstance(data, dict):
                sentence = r"This event needs event_data with “\w+”, a (list|whole number); what came lacks it\."
                assert re.fullmatch(sentence, said)
    assert faults == []
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("came", [[], [None], [None] * 200])
def test_too_few_and_too_many_inputs(runner, demo, came):
    session = SessionState(demo)
    for function in events(demo):
        said = call(runner, demo, function, list(came), session)
        assert fault_in(said) == ""
        if len(came) < len(function.inputs) and function.fn is not None:
            assert said.startswith(f"“{function.api_name}” takes {len(function.inputs)} values and {len(came)} came; ")


def test_what_happens_in_the_browser_alone(runner, demo):
    session = SessionState(demo)
    for function in events(demo):
        if function.fn is None:
            said = call(runner, demo, function, usual(function), session)
            assert f"“{function.api_name}”" in said


def test_what_fails_in_a_handler_is_written_down_and_not_told(runner, demo, monkeypatch, caplog):
    function = event_of(demo, "tokens")

    def broken(page):
        raise KeyError("/home/somebody/secret")

    monkeypatch.setattr(function, "fn", broken)
    assert call(runner, demo, function, [None], SessionState(demo)) == FAILED
    assert "/home/somebody/secret" in caplog.text
    assert "“tokens”" in caplog.text
