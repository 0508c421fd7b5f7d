"""Every event of the app with odd values for each of its inputs, and with odd data of the event itself: it works, or
is refused in one sentence. Nothing prints a traceback and nothing answers with an exception of Python's."""

import asyncio
import re

import gradio as gr
import pytest
from gradio.events import EventData
from gradio.state_holder import SessionState

from app import build_demo, open_models
from inspector.intake import FAILED
from inspector.jobs import JobTable
from model import InputError

NAN, INFINITY = float("nan"), float("inf")
FILE = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
ODD = [
    None, True, False, "x", -1, 3, {}, 1e-300, 1e308, [None], NAN, INFINITY, 10**30, 1.5, 0, -(2**63), "", "3", "\ud800",
    "x" * 300_000, [], [None], [[]], ["x"], ["0", "0"], [1, 2], [{}], {}, {"a": 1}, {"path": 5}, {"path": "/etc/hostname"}, FILE,
    [FILE], [{"image": {"path": "/etc/hostname"}}], [{"image": FILE, "caption": 5}], [{"video": FILE}],
    {"image": FILE, "caption": None}, [["/etc/hostname", None]], {"owner": 5, "jobs": {"a": 1}}, {"owner": "x" * 20, "jobs": [[], 5]},
]  # fmt: skip
ODD_EVENTS = [
    None, [], "position", 5, True, {}, {"position": None}, *(
        {name: value} for name in ("position", "index", "start", "files", "things")
        for value in (None, True, "3", 1.5, -1, 10**30, NAN, [], [1], ["x"], {}, [{"name": 5}], [{"name": "a", "size": NAN}],
                      [{"name": "a" * 10**6, "size": 10**30}], ["image 1"] * 1000, [[]] * 5)
    ),
    {"start": 0, "stop": None}, {"start": 0, "stop": "1"}, {"start": 10**30, "stop": 0}, {"start": -1, "stop": -(10**30)},
]  # fmt: skip


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
        output = await demo.process_api(function, inputs, state, event_data=EventData(None, data))
        if (iterator := output["iterator"]) is not None:
            await iterator.aclose()

    try:
        runner.run(run())
    except gr.Error as error:
        assert not error.print_exception
        return error.message
    return ""


def fault_in(said):
    """Why a sentence is none; "" for a good one."""
    if said == FAILED:
        return "the server failed"
    if re.search(r"<class|Traceback|object at 0x|\w+Error\b|NoneType|validation error", said):
        return "Python speaks"
    if said and ((not said[0].isupper() and said[0] not in "“-") or said[-1] not in ".”" or "\n" in said or len(said) > 500):
        return "no sentence"
    return ""



def events(demo):
    """Each event once: those that ask for an example do what /ask does."""
    return [function for function in demo.fns.values() if not (function.api_name or "").startswith("ask_")]


def odd_calls(runner, demo, session, functions, odd):
    """What was sent and what was said; each call begins with the session as it was."""
    data = dict(session.state_data)
    for function in functions:
        for place, block in enumerate(function.inputs):
            for value in odd if not block.stateful else ():
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
    readers = {"place_image", "remove_image", "refuse_files", "select_token", "lab_choose"}
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
                assert re.fullmatch(r"This event needs event_data with “\w+”, a (list|whole number); what came lacks it.",
                                    said)  # fmt: skip
    assert faults == []
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("came", [[], [None], [None] * 200])
def test_too_few_and_too_many_inputs(runner, demo, came):
    for function in events(demo):
        said = call(runner, demo, function, list(came), SessionState(demo))
        assert fault_in(said) == ""
        if len(came) < len(function.inputs):
            assert said == (f"“{function.api_name}” takes {len(function.inputs)} values and {len(came)} came; compare it "
                            "with the API's description.")  # fmt: skip


def test_what_happens_in_the_browser_alone(runner, demo):
    for function in events(demo):
        if function.fn is None:
            said = call(runner, demo, function, usual(function), SessionState(demo))
            assert said == f"“{function.api_name}” happens in the browser alone; a program can't call it."


def test_what_fails_in_a_handler_is_written_down_and_not_told(runner, demo, monkeypatch, caplog):
    function = event_of(demo, "tokens")

    def broken(page):
        raise KeyError("/home/somebody/secret")

    monkeypatch.setattr(function, "fn", broken)
    assert call(runner, demo, function, [None], SessionState(demo)) == FAILED
    assert "/home/somebody/secret" in caplog.text
    assert "“tokens”" in caplog.text
