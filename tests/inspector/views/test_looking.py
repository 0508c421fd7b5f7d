"""Looking at a token: its attention comes with it, and a position that the row doesn't have is refused."""

import gradio as gr
import pytest

from inspector.bounds import Bounds
from inspector.views.batch import build_batch
from inspector.views.looking import LookingHandlers

CONTROLS = ("mean", "mean", False, False, False)


@pytest.fixture(scope="module")
def handlers(page, store):
    with gr.Blocks(analytics_enabled=False):
        return LookingHandlers(page.attention, build_batch(), store, Bounds())


def test_a_selected_token_is_kept_with_the_attention_of_the_row_that_chose_it(handlers, shown, event):
    position = shown.selected
    looked, _, summary = handlers.select_token(shown, *CONTROLS, event(position=position))
    assert (looked.selected, looked.attention.position) == (position, position - 1)
    assert "image tokens" in summary
    own, *_ = handlers.look_again(looked, "mean", "mean", True, False, False)
    assert (own.selected, own.attention.position) == (position, position)


@pytest.mark.parametrize(("data", "sentence"), [({"position": 10**6}, "1000000"), ({}, "“position”")])
def test_a_position_beyond_the_row_is_refused(handlers, shown, event, data, sentence):
    with pytest.raises(gr.Error, match=sentence):
        handlers.select_token(shown, *CONTROLS, event(**data))


def test_nothing_is_drawn_before_anything_was_asked(handlers, event):
    assert handlers.select_token(None, *CONTROLS, event(position=0)) == [gr.skip()] * 3
    assert handlers.draw_plots(None, False) == [gr.skip()] * len(handlers.attention.plots)
    assert handlers.draw_batch(None, "row") == [gr.skip()] * len(handlers.batch.outputs)
    with pytest.raises(gr.Error, match="batch"):
        handlers.make_files(None, "row")
