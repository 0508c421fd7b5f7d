"""Links and what a browser remembers: what is restored, and what is never given away."""

from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import gradio as gr
import pytest

import model
from inspector.bounds import Bounds
from inspector.images.image_file import ImageFile
from inspector.images.link_shelf import LinkShelf
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.row.prompt import Prompt, Turn
from inspector.session import SECRET, Shown
from inspector.views import own_models
from inspector.views.links import LinkHandlers
from inspector.views.looking import LookingHandlers
from inspector.views.own_models import OwnModels
from inspector.views.prompt import write_example_contents

EMBEDDED = Path(model.__file__).parent / "embedded"


@pytest.fixture
def handlers(page, store, table, tmp_path):
    looking = LookingHandlers(page.attention, None, store, Bounds())
    shelf = LinkShelf(tmp_path / "links", Bounds())
    return LinkHandlers(store, shelf, page.prompt, looking, OwnModels(store, table), tmp_path)


@pytest.fixture
def asked(store, tmp_path):
    """The example with three images as a page has it, in files; another token than the first is selected."""
    gallery, *_ = write_example_contents(1, tmp_path)
    prompt = Prompt(tuple(ImageFile(tmp_path / path) for path, _ in gallery), (Turn("In image 3, what is it?"),))
    vlm = store.get("embedded")
    inspection = ask_and_inspect(vlm, prompt, GenerationSettings())
    names = tuple(f"three-{n}.png" for n in (1, 2, 3))
    return Shown("embedded", inspection, 12, attend(vlm, inspection, 12), names, start=9)


def read(link):
    return dict(parse_qsl(link.removeprefix("?")))


def test_a_link_names_the_example_and_the_question_but_not_what_the_model_answered(handlers, asked, request_of):
    link, field, note = handlers.write(asked, "2", "mean", "Attention", request_of())
    assert note == ""
    assert field["visible"]
    assert read(link) == {
        "model": "embedded",
        "example": "three",
        "tab": "Attention",
        "first": "9",
        "token": "12",
        "layer": "2",
        "ask1": "In image 3, what is it?",
        "max_new_tokens": "32",
        "temperature": "0",
        "top_k": "0",
        "top_p": "1",
        "seed": "0",
    }
    assert not (handlers.shelf.root).exists()


def test_what_a_link_restores_is_what_was_selected(handlers, asked, request_of):
    link = read(handlers.write(asked, "2", "1", "Attention", request_of())[0])
    fresh = replace(asked, selected=80, start=None)
    looked, _, _, first, last, layer, head, tab = handlers.restore(fresh, False, False, False, request_of(**link))
    assert (looked.start, looked.selected, first, last, layer, head) == (9, 12, 9, 12, "2", "1")
    assert tab == gr.update(selected="Attention")
    # A model with fewer layers, what is no layer, and a row that is shorter.
    for other in ("99", "9" * 6000, "²", "-1"):
        assert handlers.restore(fresh, False, False, False, request_of(**{**link, "layer": other}))[5] == "mean"
    beyond = request_of(**{**link, "token": "9999"})
    assert handlers.restore(fresh, False, False, False, beyond)[:7] == [gr.skip()] * 7
    run = handlers.restore(fresh, False, False, False, request_of(job="anything"))
    assert run[-1] == gr.update(selected="Train")


def test_a_runs_model_is_never_in_a_link(handlers, asked, request_of):
    secret = replace(asked, model=f"{SECRET}0123456789")
    link, field, _ = handlers.write(secret, "mean", "mean", "", request_of())
    assert SECRET not in link
    assert "0123456789" not in link
    assert "model" not in read(link)
    assert "nobody else's" in field["info"]


def test_nothing_asked_makes_no_link(handlers, request_of):
    link, field, note = handlers.write(None, "mean", "mean", "", request_of())
    assert (link, field) == (gr.skip(), gr.skip())
    assert "ask something first" in note


def test_a_model_that_is_gone_and_what_a_browser_made_up_leave_the_page_as_it_is(store, table):
    models = OwnModels(store, table)
    kept = models.keep(f"{SECRET}abc", "a-run-that-was", None)
    assert kept == {"runs": {f"{SECRET}abc": "a-run-that-was"}, "picked": f"{SECRET}abc"}
    assert models.keep("embedded", "a-run-that-was", kept)["picked"] == "embedded"
    with pytest.warns(UserWarning, match="is gone"):
        assert models.bring_back(kept) == ([], "")
    for nonsense in (None, 3, {"runs": [1], "picked": 2}, {"runs": {"a": 1}}):
        assert models.bring_back(nonsense) == ([], "")
    assert models.offer([]) == [gr.skip(), gr.skip()]


def test_the_model_that_was_picked_is_there_after_a_reload_and_asked_first(handlers, store, request_of, monkeypatch):
    admit = lambda store, jobs, job: store.admit(f"secret of {job}", EMBEDDED, f"run {job}")  # noqa: E731
    monkeypatch.setattr(own_models, "admit_run", admit)
    first, second = admit(store, None, "one"), admit(store, None, "two")
    kept = handlers.own_models.keep(first, "one", None)
    kept = handlers.own_models.keep(second, "two", kept)
    kept = handlers.own_models.keep(first, "two", kept)  # picked again while another run is followed
    assert kept == {"runs": {first: "one", second: "two"}, "picked": first}
    opened = handlers.open(kept, request_of())
    picker, own = opened[len(handlers.prompt.contents)], opened[-2]
    assert own == [(f"run one #{store.get(first).fingerprint[:8]}", first), (own[1][0], second)]
    assert (picker["value"], picker["visible"]) == (first, True)
    assert [value for _, value in picker["choices"]] == ["embedded", first, second]
    # Of another model's link that model is asked, and these are offered all the same.
    named = handlers.open(kept, request_of(model="embedded", ask1="What is it?"))
    assert named[len(handlers.prompt.contents)]["value"] == "embedded"
