"""Asking: the answer comes token by token, and what can't be asked takes nothing away."""

import gradio as gr
import pytest

from inspector.session import Answering, Shown
from inspector.views.asking import AskingHandlers
from inspector.views.prompt import MAX_TURNS, load_example

SETTINGS = (32, 0, 0, 1, 0)
CONTROLS = ("mean", "mean", False, False, False)


@pytest.fixture
def handlers(page, store, tmp_path):
    return AskingHandlers(page, store, tmp_path)


def asked(gallery, *questions):
    """The inputs of Ask, in order."""
    texts = [*questions, *[""] * (2 * MAX_TURNS - len(questions))]
    return ["embedded", gallery, len(questions), "images-first", False, *SETTINGS, *texts, *CONTROLS]


def value_of(page, component, outputs):
    return outputs[page.answered.index(component)]


@pytest.fixture
def pictures(store, tmp_path):
    return load_example(store, "embedded", 1, tmp_path)[0]


def test_an_answer_comes_token_by_token_and_then_fills_the_page(handlers, page, pictures):
    *coming, last = handlers.ask(*asked(pictures, "In image 3, what color is the shape?"))
    answer, line = handlers.look_closer(value_of(page, page.shown, last))
    assert "needs image 3" in line
    assert 'in their places"' not in value_of(page, page.results.answer, last)
    assert 'in their places"' in answer
    assert handlers.look_closer(None) == [gr.skip(), gr.skip()]
    counts = [len(value_of(page, page.answering, step).tokens[0]) for step in coming]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    assert all(value_of(page, page.shown, step) == gr.skip() for step in coming)
    shown = value_of(page, page.shown, last)
    assert isinstance(shown, Shown)
    assert shown.inspection.prompt.turns[0].assistant == "yellow"
    assert value_of(page, page.answering, last) is None
    assert len(last) == len(page.answered)


@pytest.mark.parametrize(
    ("gallery", "questions", "sentence"),
    [
        ([], [""], "question"),
        ([], ["What color is it?", " "], "Turn 2"),
        ([("nowhere.png", None)] * 99, ["What color is it?"], "99 images"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence_and_the_former_answer_stays(handlers, page, gallery, questions, sentence):
    steps = handlers.ask(*asked(gallery, *questions))
    outputs = next(steps)
    assert sentence in value_of(page, page.prompt.note, outputs)
    others = [value for part, value in zip(page.answered, outputs, strict=True) if part is not page.prompt.note]
    assert [value for value in others if value != gr.skip()] == [None]
    assert value_of(page, page.answering, outputs) is None
    with pytest.raises(gr.Error, match=sentence) as refused:
        next(steps)
    assert not refused.value.visible


def test_a_stopped_answer_is_shown_as_far_as_it_came(handlers, page, pictures):
    steps = handlers.ask(*asked(pictures, "In image 3, what color is the shape?", "In image 1, what color is it?"))
    while not (stopped := value_of(page, page.answering, next(steps))).tokens[0]:
        pass
    outputs = handlers.stop(None, stopped, *CONTROLS)
    note = value_of(page, page.prompt.note, outputs)
    assert "1 token" in note
    assert "1 later turn" in note
    assert value_of(page, page.shown, outputs).inspection.answers == (stopped.tokens[0],)


def test_a_stop_before_the_first_token_keeps_the_former_answer(handlers, page, shown):
    assert handlers.stop(shown, None, *CONTROLS) == [gr.skip()] * len(page.answered)
    prompt = shown.inspection.prompt
    outputs = handlers.stop(shown, Answering("embedded", prompt, (), shown.settings, ((),)), *CONTROLS)
    assert value_of(page, page.shown, outputs) == gr.skip()
    assert "yellow" in value_of(page, page.results.answer, outputs)


def test_an_image_that_is_not_there_is_named_before_the_answer(handlers, page, pictures):
    first, *_, last, line = handlers.ask(*asked(pictures, "In image 7, what color is the shape?"))
    for step in (first, last):
        assert "image 7" in value_of(page, page.prompt.note, step)
        assert "3 images" in value_of(page, page.prompt.note, step)
    assert "image 7" in value_of(page, page.prompt.note, line)
    first, *_ = handlers.ask(*asked(pictures, "In image 3, what color is the shape?"))
    assert value_of(page, page.prompt.note, first) == ""
