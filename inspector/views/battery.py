"""The battery in the “Which image?” tab: run it on the chosen model, watch, stop, keep what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from inspector.figures.battery import INTRODUCTION, show_battery, show_progress
from inspector.ground_truth.run import run_battery
from inspector.ground_truth.scores import MIN_ITEMS, Battery, read_battery
from inspector.server.blocks import GuardedBlocks
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore
from inspector.views import prompt as prompt_view
from inspector.widgets import Panel
from model import InputError
from model.checkpoint import EMBEDDED

TITLE = "How far to trust this, on this checkpoint"
SHIPPED = EMBEDDED / "battery.json"
SHIPPED_BELOW = '<h4 class="vi-heading">As it ships</h4>'
SIZES = {"quick (12 items a cell)": 12, f"full ({MIN_ITEMS} items a cell)": MIN_ITEMS}


@dataclass(frozen=True)
class BatteryView:
    size: gr.Radio
    start: gr.Button
    stop: gr.Button
    card: Panel
    facts: gr.JSON


def build_battery() -> BatteryView:
    gr.HTML(f'<p class="vi-caption">{INTRODUCTION}</p>')
    with gr.Row(elem_classes="wi-buttons"):
        size = gr.Radio(list(SIZES), value=next(iter(SIZES)), label="Items", min_width=220, elem_id="battery-size")
        start = gr.Button("Run the battery", min_width=140, elem_id="battery-start")
        stop = gr.Button("Stop and keep", min_width=120, elem_id="battery-stop")
    card = Panel(show_battery(None), elem_id="battery-card")
    return BatteryView(size, start, stop, card, gr.JSON(visible=False))


def read_shipped(fingerprint: str) -> Battery | None:
    """The result that ships with the embedded model, if this is that model."""
    battery = read_battery(json.loads(SHIPPED.read_text("utf-8"))) if SHIPPED.is_file() else None
    return battery if battery is not None and battery.fingerprint == fingerprint else None


@dataclass(frozen=True)
class BatteryHandlers:
    """What the battery's events call: values for the card, and its facts."""

    store: ModelStore

    def show(self, model: str) -> list[Any]:
        try:
            battery = read_shipped(self.store.get(model).fingerprint)
        except InputError:
            battery = None  # the prompt says what is wrong with the model
        card = show_battery(battery, self.store.title_of(model))
        return [gr.update(value=card, busy=""), battery.to_json() if battery else None]

    def run(self, model: str, size: str) -> Iterator[list[Any]]:
        try:
            vlm, title = self.store.get(model), self.store.title_of(model)
            shipped = read_shipped(vlm.fingerprint)
            # What ships was run on more items and stays, below what is run now.
            below = "" if shipped is None else SHIPPED_BELOW + show_battery(shipped, title)
            for progress in run_battery(vlm, n_each=SIZES.get(size, MIN_ITEMS)):
                card = show_battery(progress.battery, title) + below
                yield [gr.update(value=card, busy=show_progress(progress)), progress.battery.to_json()]
        except InputError as error:
            raise refuse(error) from error


def wire_battery(view: BatteryView, store: ModelStore, demo: GuardedBlocks, prompt: prompt_view.PromptView) -> None:
    handlers = BatteryHandlers(store)
    outputs: list[Any] = [view.card, view.facts]
    # Minutes long: in a queue of its own, one at a time, so that nobody's question waits for it.
    running = view.start.click(
        demo.turns.run(Rank.BATTERY, handlers.run, demo.bounds.battery_s),
        [prompt.model, view.size],
        outputs,
        api_name="battery",
        concurrency_id=Rank.BATTERY.place,
        concurrency_limit=1,
        show_progress="hidden",
    )
    view.stop.click(
        lambda: gr.update(busy=""), None, view.card, cancels=[running], api_name="battery_stop", show_progress="hidden"
    )
    gr.on(
        [demo.load, prompt.model.change],
        handlers.show,
        prompt.model,
        outputs,
        api_name="battery_card",
        show_progress="hidden",
    )
