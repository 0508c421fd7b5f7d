"""What a person or a program takes away of what was asked, and what is said where nothing was."""

import json
from pathlib import Path

import gradio as gr
import pytest

from inspector.bounds import Bounds
from inspector.views.header import HeaderHandlers
from inspector.views.programs import InspectHandler, read_tokens


def test_export_and_share_give_what_is_shown(store, shown):
    handlers = HeaderHandlers(store, Bounds())
    path, note = handlers.export(shown)
    assert note == ""
    assert json.loads(Path(path).read_text("utf-8"))["answer"] == "yellow"
    line, note = handlers.share(shown)
    assert note == ""
    assert line["value"].startswith("python -m inspector inspect --image three-1.png")


def test_before_anything_was_asked_there_is_nothing_to_take_away(store):
    handlers = HeaderHandlers(store, Bounds())
    for taken, note in (handlers.export(None), handlers.share(None)):
        assert taken == gr.skip()
        assert note
    with pytest.raises(gr.Error, match="tokens"):
        read_tokens(None)


def test_a_program_asks_in_one_call(store, shown):
    facts = InspectHandler(store, Bounds()).inspect([], ["What color is the shape?"], max_new_tokens=2)
    assert facts["model"]["fingerprint"] == shown.inspection.fingerprint
    assert [token["position"] for token in read_tokens(shown)["tokens"]] == list(range(len(shown.inspection.row)))
