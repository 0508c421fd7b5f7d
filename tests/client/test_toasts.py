"""What a client is told when something can't be done: text for a program, text in HTML for the page."""

import ast
import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from gradio.state_holder import SessionState
from gradio_client import Client
from gradio_client.exceptions import AppError

from inspector.server.toasts import PlainToasts

# gradio's and httpx's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

ROOT = Path(__file__).parent.parent.parent
RAISING = {"Error", "Warning", "Info", "Success"}
MARKUP = "<img src=x> & <image>"


def find_calls(source):
    """Lines that call one of gradio's own, by whatever name it was imported."""
    tree, names = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gradio":
            names |= {alias.asname or alias.name for alias in node.names if alias.name in RAISING}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            (
                isinstance(node.func, ast.Attribute)
                and node.func.attr in RAISING
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in ("gr", "gradio")
            )
            or (isinstance(node.func, ast.Name) and node.func.id in names)
        )
    ]


def test_messages_are_made_in_one_place():
    files = [ROOT / "app.py", *sorted((ROOT / "inspector").rglob("*.py"))]
    calling = {str(file.relative_to(ROOT)) for file in files if find_calls(file.read_text("utf-8"))}
    assert calling == {"inspector/server/toasts.py"}
    assert find_calls("import gradio as gr\nraise gr.Error('x')") == [2]
    assert find_calls("from gradio import Warning as say\n\nsay('x')") == [3]


def call(url, name, data, headers):
    """An event's last word, as the page or a program reads it."""
    config = httpx.get(f"{url}config").json()
    index = next(number for number, one in enumerate(config["dependencies"]) if one["api_name"] == name)
    body = {"data": data, "fn_index": index, "session_hash": f"told-{name}-{len(headers)}"}
    joined = httpx.post(f"{url}gradio_api/queue/join", json=body, headers=headers)
    assert joined.status_code == 200, joined.text
    address = f"{url}gradio_api/queue/data?session_hash={body['session_hash']}"
    with httpx.stream("GET", address, timeout=60) as stream:
        for line in stream.iter_lines():
            message = json.loads(line[6:]) if line.startswith("data: ") else {}
            if message.get("msg") == "process_completed":
                assert message["success"] is False
                return message["output"]["error"]
    pytest.fail("the stream ended before the event")


def test_a_program_reads_what_came_as_it_came(app_url):
    client = Client(app_url, verbose=False)
    with pytest.raises(AppError) as caught:
        client.predict(MARKUP, api_name="/train_open")
    assert "&lt;" not in str(caught.value)
    assert MARKUP[:11] in str(caught.value)
    with pytest.raises(AppError, match="<image>"):
        client.predict([], ["What?"], "images-first", False, "<image>", 4, api_name="/inspect")


@pytest.mark.parametrize(
    ("headers", "escaped"),
    [
        ({"x-gradio-user": "app"}, True),
        ({"x-gradio-user": "api"}, False),
        ({}, False),
        # A browser, even if what stands before the server drops what the page says of itself.
        ({"origin": "http://localhost:7860"}, True),
        ({"origin": "http://localhost:7860", "x-gradio-user": "api"}, True),
    ],
)
def test_the_page_gets_text_that_stays_text_as_html(app_url, headers, escaped):
    said = call(app_url, "inspect", [[], ["What?"], "images-first", False, "<image> & “b”", 4], headers)
    written = "“&lt;image&gt; &amp; “b””" if escaped else "“<image> & “b””"
    assert written in said


def test_values_that_a_sentence_quotes_are_escaped(app_url):
    page = {"x-gradio-user": "app"}
    said = call(app_url, "pick_layout", ["<img src=x>"], page)
    assert "&lt;img src=x&gt;" in said
    said = call(app_url, "refuse_files", [], page)
    assert "“files”" in said


@pytest.mark.parametrize(("headers", "escaped"), [({"x-gradio-user": "app"}, True), ({"x-gradio-user": "api"}, False)])
@pytest.mark.parametrize(
    ("sent", "words", "on_the_page"),
    [("<img src=x>", "Value: '<img src=x>' ", "Value: '&lt;img src=x&gt;' "), ("a", "'<b>'", "'&lt;b&gt;'")],
)
def test_errors_of_gradios_own_and_unexpected_ones_are_escaped_as_well(headers, escaped, sent, words, on_the_page):
    """Without the checks of inputs, which in the app stand before gradio's."""

    def fail(choice):
        raise KeyError("<b>")

    with PlainToasts() as demo:
        choice = gr.Radio(["a"])
        choice.change(fail, choice, None)
    demo.exited = False
    with pytest.raises(gr.Error) as caught:
        asyncio.run(demo.process_api(0, [sent], SessionState(demo), SimpleNamespace(headers=headers)))
    assert caught.value.message.startswith(on_the_page if escaped else words)
    assert ("<" in caught.value.message) is not escaped
