"""Tools for other programs: what they give is what the commands give, and nothing else is offered."""

import base64
import io
import json

import gradio as gr
import pytest

from inspector.bounds import private_bounds
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.server import mcp_tools
from inspector.ui import build_ui
from inspector.views.tools import TOOLS, ToolHandlers
from inspector.which_image.study import study_answer
from model import InputError
from tests.example_cases import example_prompt

QUESTION = "In image 3, what colour is the shape?"


def write_uri(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def images():
    return [write_uri(image.pixels) for image in example_prompt("three").images]


@pytest.fixture
def handlers(store):
    return ToolHandlers(store, private_bounds())


def test_tokens_and_verdict_are_those_of_the_commands(handlers, store, images):
    vlm = store.get("embedded")
    inspection = ask_and_inspect(vlm, example_prompt("three"), GenerationSettings())
    found = json.loads(handlers.read_tokens(images, [QUESTION]))
    assert found["answers"] == ["yellow"]
    assert found["tokens"] == json.loads(json.dumps(inspection.table.to_json()))
    *_, studied = study_answer(vlm, inspection)
    verdict = json.loads(handlers.find_image(images, [QUESTION]))["verdict"]
    assert (verdict["image"], verdict["kind"]) == (3, studied.verdict.kind)


@pytest.mark.parametrize(
    "image", ["", "nothing", "data:image/png;base64,§", "data:text/html;base64,AAAA", "/etc/passwd"]
)
def test_what_is_no_image_is_one_sentence(handlers, image):
    with pytest.raises(gr.Error, match=r"Image 1 begins with .* data URI"):
        handlers.read_tokens([image], ["What is this?"])


def test_the_events_are_there_only_where_tools_are_offered(store):
    for tools in (False, True):
        demo = build_ui(store, tools=tools)
        names = {function.api_name for function in demo.fns.values()}
        assert set(TOOLS) & names == (set(TOOLS) if tools else set())


def test_a_server_without_the_protocols_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(mcp_tools, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="install"):
        mcp_tools.offer_tools(TOOLS)
