"""The battery's card: what ships with a model is shown, and a run fills it item by item."""

import json

import gradio as gr
import pytest

from inspector.views import battery as view
from inspector.views.battery import BatteryHandlers


def test_a_run_fills_the_card_from_its_first_item_on_and_what_ships_is_shown(store, tmp_path, monkeypatch):
    handlers = BatteryHandlers(store)
    run = handlers.run("embedded", "quick (12 items a cell)")
    card, found = next(run)
    run.close()
    assert card["busy"]
    assert found["fingerprint"] == store.get("embedded").fingerprint
    monkeypatch.setattr(view, "SHIPPED", tmp_path / "battery.json")
    assert handlers.show("embedded")[1] is None
    view.SHIPPED.write_text(json.dumps(found), "utf-8")
    card, facts = handlers.show("embedded")
    assert (card["busy"], facts) == ("", found)
    # A run stands above what ships and takes nothing of it away.
    run = handlers.run("embedded", "quick (12 items a cell)")
    both = next(run)[0]["value"]
    run.close()
    assert both.endswith(card["value"])
    assert both.count('class="wi-battery"') == 2


def test_without_a_model_the_card_is_empty_and_a_run_is_refused(store):
    handlers = BatteryHandlers(store)
    card, facts = handlers.show("none")
    assert (card["busy"], facts) == ("", None)
    with pytest.raises(gr.Error, match="none"):
        next(handlers.run("none", ""))
