"""Views that stand on a page which nobody opened: their handlers are called as they are."""

from types import SimpleNamespace

import gradio as gr
import pytest

from inspector.bounds import Bounds
from inspector.encoder.store import EncoderStore
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.runs.jobs import JobTable
from inspector.server.blocks import GuardedBlocks
from inspector.session import ModelStore, Shown
from inspector.views.asking import Page
from inspector.views.attention import build_attention
from inspector.views.clip import build_clip
from inspector.views.header import build_header, build_title
from inspector.views.image_edits import build_image_edits
from inspector.views.models import build_picker
from inspector.views.patch_words import build_patch_words
from inspector.views.prompt import build_examples, build_prompt
from inspector.views.results import build_answer, build_results
from inspector.views.which_image import build_which_image
from tests.example_cases import example_prompt


@pytest.fixture(scope="session")
def store():
    return ModelStore({"embedded": "embedded"})


@pytest.fixture(scope="session")
def page(store):
    """The views that an answer fills."""
    bounds = Bounds()
    with GuardedBlocks(bounds, False, analytics_enabled=False):
        header = build_header(build_title("A page"))
        prompt = build_prompt(store, build_examples(), bounds, build_picker(store))
        answer = build_results(*build_answer())
        views = answer, build_attention(), build_which_image(), build_patch_words()
        views = *views, build_clip(EncoderStore()), build_image_edits()
        return Page(header, prompt, *views, gr.State(None), gr.State(None))


@pytest.fixture(scope="session")
def shown(store):
    """The example with three images, asked about the third."""
    vlm = store.get("embedded")
    inspection = ask_and_inspect(vlm, example_prompt("three"), GenerationSettings())
    selected = inspection.first_answer_position
    found = attend(vlm, inspection, inspection.row_that_chose(selected))
    return Shown("embedded", inspection, selected, found, tuple(f"three-{n}.png" for n in (1, 2, 3)))


@pytest.fixture
def table(tmp_path):
    """A table without runs."""
    table = JobTable(tmp_path / "jobs")
    yield table
    table.close()


@pytest.fixture
def request_of():
    """What gradio gives a handler of a request: ``request_of(job="…")`` has that in its address."""

    def make(**query):
        client = SimpleNamespace(host="127.0.0.1")
        return SimpleNamespace(session_hash="a page", query_params=query, client=client, username=None, headers={})

    return make


@pytest.fixture
def event():
    """What a widget sends along: ``event(position=3)``."""
    return lambda **data: gr.EventData(None, data)
