"""Putting the prompt together: every change of the images can be undone, and turns stay within their number."""

import gradio as gr
import pytest
from PIL import Image

from inspector.bounds import Bounds
from inspector.views.prompt import MAX_TURNS, write_example_contents
from inspector.views.prompting import REMEMBERED, PromptHandlers, add_turn, drop_turn, remember


@pytest.fixture
def handlers(store, tmp_path):
    return PromptHandlers(store, Bounds(), tmp_path)


@pytest.fixture
def written(tmp_path):
    """Three images, one asked about."""
    return write_example_contents(1, tmp_path)


def test_undo_goes_back_to_the_last_prompt_that_was_another_one_its_question_too(handlers, written, event):
    gallery, *texts = written
    placed = handlers.place("embedded", gallery, event(start=0, stop=2))[0]
    assert placed == [gallery[1], gallery[2], gallery[0]]
    removed = handlers.remove("embedded", placed, event(index=0))[0]
    assert removed == placed[1:]
    other = [*texts[:3], "And what is it?", *texts[4:]]
    history = []
    for images, others in ((gallery, texts), (placed, texts), (removed, texts), (removed, texts), (None, other)):
        history = remember(history, images, *others)
    assert len(history) == 4
    now, back = [None, *other], []
    while history:
        *contents, history = handlers.undo("embedded", history, *now)
        now = [contents[0], contents[3], contents[4], contents[5]["value"], *contents[6 : 6 + 2 * MAX_TURNS]]
        back.append((now[0], now[4]))
    assert back == [(removed, written[4]), (placed, written[4]), (gallery, written[4])]


def test_what_undo_goes_back_to_is_bounded():
    history = []
    for number in range(3 * REMEMBERED):
        history = remember(history, [], 1, "images-first", False, str(number))
    assert [entry[-1] for entry in history] == [str(n) for n in range(2 * REMEMBERED, 3 * REMEMBERED)]


def test_nothing_to_undo_and_an_image_that_is_gone_change_nothing(handlers, written, event, capsys):
    *values, history = handlers.undo("embedded", [written], *written)
    assert values == [gr.skip()] * (len(written) + 2 + MAX_TURNS)
    assert history == []
    assert "undo" in capsys.readouterr().out
    with pytest.raises(gr.Error, match=r"image 9 .* 3"):
        handlers.place("embedded", written[0], event(start=8, stop=0))
    with pytest.raises(gr.Error, match="“index”"):
        handlers.remove("embedded", written[0], event())


def test_the_first_own_image_takes_the_place_of_an_examples_and_the_second_stands_behind_it(
    handlers, written, tmp_path
):
    files = []
    for name in ("one.png", "two.png"):
        Image.new("RGB", (70, 50), "teal").save(tmp_path / name)
        files.append(str(tmp_path / name))
    kept = handlers.add("embedded", written[0], files[:1])[0]
    assert kept == [(files[0], None)]
    assert handlers.add("embedded", kept, files[1:])[0] == [(files[0], None), (files[1], None)]
    # Two of the three are no longer the example.
    assert len(handlers.add("embedded", written[0][1:], files[:1])[0]) == 3
    # A picture of that name that is another one is a person's own.
    named = tmp_path / "own" / "single-1.png"
    named.parent.mkdir()
    Image.new("RGB", (70, 50), "teal").save(named)
    assert len(handlers.add("embedded", [(str(named), None)], files[:1])[0]) == 2


def test_turns_stay_within_their_number():
    assert [drop_turn(1)[0], add_turn(1)[0], add_turn(MAX_TURNS)[0]] == [1, 2, MAX_TURNS]
    assert [update["visible"] for update in add_turn(1)[1:]] == [True] * 2 + [False] * (MAX_TURNS - 2)


def test_files_that_are_no_pictures_leave_the_example_where_it_is(handlers, written, tmp_path):
    (tmp_path / "words.png").write_bytes(b"words")
    gallery, _, rejected = handlers.add("embedded", written[0], [str(tmp_path / "words.png")])
    assert [path for path, _ in gallery] == [path for path, _ in handlers.plan("embedded", written[0])[0]]
    assert len(gallery) == 3
    assert "words.png" in rejected
