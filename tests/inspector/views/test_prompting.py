"""Putting the prompt together: every change of the images can be undone, and turns stay within their number."""

import gradio as gr
import pytest

from inspector.bounds import Bounds
from inspector.views.prompt import MAX_TURNS, load_example
from inspector.views.prompting import PromptHandlers, add_turn, clear_images, drop_turn


@pytest.fixture
def handlers(store):
    return PromptHandlers(store, Bounds())


@pytest.fixture
def gallery(store, tmp_path):
    """Three images."""
    return load_example(store, "embedded", 1, tmp_path)[0]


def test_each_change_of_the_images_is_undone_by_itself(handlers, gallery, event):
    *_, history = handlers.add("embedded", gallery[:1], [path for path, _ in gallery[1:]], [gallery[:1]])
    placed, *_, history = handlers.place("embedded", gallery, history, event(start=0, stop=2))
    assert placed == [gallery[1], gallery[2], gallery[0]]
    removed, *_, history = handlers.remove("embedded", placed, history, event(index=0))
    assert removed == placed[1:]
    emptied, *_, history = clear_images(history)
    assert emptied == []
    back = []
    while len(history) > 1:
        images, _, _, history = handlers.undo("embedded", history)
        back.append(images)
    assert back == [removed, placed, gallery, gallery[:1]]


def test_nothing_to_undo_and_an_image_that_is_gone_change_nothing(handlers, gallery, event, capsys):
    assert handlers.undo("embedded", [gallery]) == (gr.skip(), gr.skip(), gr.skip(), [gallery])
    assert "undo" in capsys.readouterr().out
    with pytest.raises(gr.Error, match=r"image 9 .* 3"):
        handlers.place("embedded", gallery, [gallery], event(start=8, stop=0))
    with pytest.raises(gr.Error, match="“index”"):
        handlers.remove("embedded", gallery, [gallery], event())


def test_turns_stay_within_their_number():
    assert [drop_turn(1)[0], add_turn(1)[0], add_turn(MAX_TURNS)[0]] == [1, 2, MAX_TURNS]
    assert [update["visible"] for update in add_turn(1)[1:]] == [True] * 2 + [False] * (MAX_TURNS - 2)
