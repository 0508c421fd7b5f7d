"""The section of words on patches: the panel and the facts say what the measurement says."""

from dataclasses import replace

import gradio as gr
import pytest

from inspector.bounds import Bounds
from inspector.experiments.patch_words import measure_words
from inspector.row.ask import find_readers
from inspector.views.patch_words import PatchWordsHandlers, begin


def test_the_panel_has_a_word_on_every_cell_and_the_facts_are_the_commands(store, shown):
    panel, facts, kept = PatchWordsHandlers(store, Bounds()).read(shown, 1, "logit lens", "residual", "yellow")
    found = measure_words(store.get("embedded"), shown.inspection, 1)
    assert panel["value"].count('class="pw-cell"') == len(found.cells) == 48
    assert all(f'data-vlm-position="{cell.position}"' in panel["value"] for cell in found.cells)
    assert facts.pop("found")["logit_lens"]["cells"][1] == found.count("yellow")[0]
    assert facts == found.to_json() == kept.to_json()


def test_what_was_read_goes_with_the_answer_and_the_layers_are_the_models():
    panel, layer, facts, kept, readers = begin(30)
    assert (layer["value"], layer["maximum"], facts, kept) == (0, 29, None, None)
    assert "pw-cell" not in panel["value"]
    assert "<table" not in readers["value"]


def test_who_looks_at_the_selected_cell_is_told_layer_by_layer(store, shown):
    handlers = PatchWordsHandlers(store, Bounds())
    cell = shown.inspection.row.grids[1].start
    found = find_readers(store.get("embedded"), shown.inspection, cell)
    panel = handlers.find_readers(replace(shown, selected=cell))["value"]
    assert panel.count("<tr><th scope=row>") == len(found.pattern)
    for layer in range(len(found.pattern)):
        assert f'data-vlm-position="{found.find_top(1, layer)[0].position}"' in panel
    last = replace(shown, selected=len(shown.inspection.row) - 1)
    assert "<table" not in handlers.find_readers(last)["value"]
    with pytest.raises(gr.Error):
        handlers.find_readers(None)


def test_before_an_answer_and_at_no_layer_it_is_refused(store, shown):
    handlers = PatchWordsHandlers(store, Bounds())
    for page, layer in ((None, 0), (shown, 4)):
        with pytest.raises(gr.Error):
            handlers.read(page, layer, "nearest words", "residual", "")
