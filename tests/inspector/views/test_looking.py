"""Looking at a token: its attention comes with it, and a position that the row doesn't have is refused."""

import json
import re

import gradio as gr
import pytest

from inspector.bounds import Bounds
from inspector.row.ask import find_readers
from inspector.views.attention import READERS, READS
from inspector.views.batch import build_batch
from inspector.views.looking import LookingHandlers

CONTROLS = ("mean", "mean", False, False, False, READS)


@pytest.fixture(scope="module")
def handlers(page, store):
    with gr.Blocks(analytics_enabled=False):
        return LookingHandlers(page.attention, build_batch(), store, Bounds())


def test_a_selected_token_is_kept_with_the_attention_of_the_row_that_chose_it(handlers, shown, event):
    position = shown.selected
    looked, _, summary, *stretch = handlers.select_token(shown, *CONTROLS, event(position=position))[:5]
    assert (looked.selected, looked.attention.position) == (position, position - 1)
    assert "image tokens" in summary
    assert stretch == [position, position]
    own, *_ = handlers.look_again(looked, "mean", "mean", True, False, False, READS)
    assert (own.selected, own.attention.position) == (position, position)


@pytest.mark.parametrize(("data", "sentence"), [({"position": 10**6}, "1000000"), ({}, "“position”")])
def test_a_position_beyond_the_row_is_refused(handlers, shown, event, data, sentence):
    with pytest.raises(gr.Error, match=sentence):
        handlers.select_token(shown, *CONTROLS, event(**data))


def test_nothing_is_drawn_before_anything_was_asked(handlers, event):
    assert handlers.select_token(None, *CONTROLS, event(position=0)) == [gr.skip()] * 7
    assert handlers.draw_maps(None, "mean", "mean", False) == [gr.skip()] * len(handlers.attention.maps)
    assert handlers.draw_plots(None, False) == [gr.skip()] * len(handlers.attention.plots)
    assert handlers.draw_batch(None, "row") == [gr.skip()] * len(handlers.batch.outputs)
    with pytest.raises(gr.Error, match="batch"):
        handlers.make_files(None, "row")


def test_a_stretch_is_kept_with_its_mean_and_told_from_both_sides_as_in_a_shell(handlers, store, shown, event):
    vlm, row = store.get("embedded"), shown.inspection.row
    first, last = row.grids[1].start, row.grids[1].start + 3
    looked, _, _, *stretch = handlers.select_token(shown, *CONTROLS, event(position=last, first=first))[:5]
    assert stretch == [first, last]
    assert (looked.attention.first, looked.attention.position, looked.readers) == (first, last, None)
    typed, *_ = handlers.look_at_stretch(shown, *CONTROLS[:-1], READERS, first, last)
    readers = find_readers(vlm, shown.inspection, last, first=first)
    assert typed.map.to_json() == readers.to_json()
    facts = handlers.describe(typed, False)
    assert facts["readers"] == readers.to_json()
    assert facts["attention"] == looked.attention.to_json()
    assert [token["position"] for token in facts["tokens"]] == list(range(first, last + 1))


@pytest.mark.parametrize(("first", "last"), [(5, 4), (-1, 4), (0, 10**6), (None, 4)])
def test_a_stretch_that_isn_t_there_is_refused(handlers, shown, first, last):
    with pytest.raises(gr.Error, match=r"to token|both"):
        handlers.look_at_stretch(shown, *CONTROLS, first, last)


def test_a_head_that_is_clicked_is_picked_shown_and_named(handlers, shown, event):
    layer, head, strip, summary, *sights = handlers.choose_head(shown, False, event(layer=2, head=1))
    assert (layer, head) == ("2", "1")
    # Maps and plots show all layers and heads, and needn't be drawn again.
    assert [sight["data"].endswith(" along") for sight in sights] == [True, True]
    heat = json.loads(strip["heat"])
    assert heat["label"] == "layer 2, head 1"
    share = sum(shown.attention.share_images(shown.inspection.row, 2, 1))
    assert share == pytest.approx(shown.attention.image_share[2, 1], abs=1e-6)
    assert f"{100 * share:.1f} %" in summary or f"{100 * share:.2f} %" in summary
    assert re.search(r"\(layer 2, head 1\)", summary)
    assert handlers.choose_head(shown, False, event(layer=-1, head=-1))[:2] == ["mean", "mean"]
    with pytest.raises(gr.Error, match="no head 99"):
        handlers.choose_head(shown, False, event(layer=0, head=99))


def test_the_board_and_two_plots_are_drawn_of_either_side(handlers, shown):
    _, board = handlers.draw_maps(shown, "1", "mean", False)
    data = json.loads(board["data"])
    assert (data["layer"], data["head"], data["readers"]) == (1, None, False)
    assert [plot["visible"] for plot in handlers.draw_plots(shown, False)[1:]] == [True, True]
    seen, *_ = handlers.look_again(shown, *CONTROLS[:-1], READERS)
    _, board = handlers.draw_maps(seen, "mean", "mean", False)
    assert json.loads(board["data"])["readers"]
    assert [plot["visible"] for plot in handlers.draw_plots(seen, False)[1:]] == [True, False]


def test_maps_that_are_looked_at_come_with_the_token(handlers, shown, event):
    position = shown.selected - 2
    *_, unasked, undrawn = handlers.select_token(shown, *CONTROLS, event(position=position, maps=False))
    assert [unasked, undrawn] == [gr.skip()] * 2
    looked, *_, sight, board = handlers.select_token(shown, *CONTROLS, event(position=position, maps=True))
    assert sight["data"].endswith(" along")
    assert board == handlers.draw_maps(looked, "mean", "mean", False)[1]
