"""Looking at what was asked: tokens and their attention, plots, the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from inspector.bounds import Bounds
from inspector.export.files import write_files
from inspector.files import handed_over
from inspector.row.ask import attend
from inspector.server.blocks import GuardedBlocks
from inspector.server.inputs import read_event
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore, Shown
from inspector.views import attention as attention_view
from inspector.views import batch as batch_view
from inspector.views.results import ResultsView
from inspector.widgets import encode
from model import InputError


@dataclass(frozen=True)
class LookingHandlers:
    """What the events of the views below the answer call; ``page`` is what they show, None before anything was
    asked."""

    attention: attention_view.AttentionView
    batch: batch_view.BatchView
    store: ModelStore
    bounds: Bounds

    def draw_plots(self, page: Shown | None, own_scale: bool) -> list[Any]:
        if page is None:
            return [gr.skip()] * len(self.attention.plots)
        return attention_view.draw(page.attention, own_scale)

    def draw_batch(self, page: Shown | None, arrangement: str) -> list[Any]:
        if page is None:
            return [gr.skip()] * len(self.batch.outputs)
        try:
            return batch_view.draw(self.store.get(page.model), page.inspection, arrangement)
        except InputError as error:
            raise refuse(error) from error

    def select_token(
        self,
        page: Shown | None,
        layer: str,
        head: str,
        own_row: bool,
        exclude_sinks: bool,
        own_scale: bool,
        event: gr.EventData,
    ) -> list[Any]:
        return self._look(page, read_event(event, "position", int), layer, head, own_row, exclude_sinks, own_scale)

    def look_again(self, page: Shown | None, *options: Any) -> list[Any]:
        return self._look(page, 0 if page is None else page.selected, *options)

    def _look(self, page: Shown | None, position: int, *options: Any) -> list[Any]:
        """What is shown, the strip and the summary, for the attention of ``position``."""
        layer, head, own_row, exclude_sinks, own_scale = options
        if page is None:
            return [gr.skip()] * 3
        if not 0 <= position < len(page.inspection.row):
            raise refuse(f"The row has no position {position}.")
        row = position if own_row else page.inspection.row_that_chose(position)
        found = attend(self.store.get(page.model), page.inspection, row, exclude_sinks=exclude_sinks)
        heat = attention_view.heat_of(found, position, layer, head, own_scale)
        # Viewer and readout take row and heat from the strip, in the browser.
        return [
            replace(page, selected=position, attention=found),
            gr.update(heat=encode(heat)),
            attention_view.summarise(page.inspection, found),
        ]

    def make_files(self, page: Shown | None, arrangement: str) -> Any:
        if page is None:
            raise refuse("There is no batch yet; ask something first.")
        with handed_over(self.bounds) as folder:
            files = write_files(self.store.get(page.model), page.inspection, arrangement, folder)
        return gr.update(value=files, visible=True)


def wire_looking(
    results: ResultsView,
    attention: attention_view.AttentionView,
    batch: batch_view.BatchView,
    store: ModelStore,
    shown: gr.State,
    demo: GuardedBlocks,
) -> None:
    """``shown`` holds a :class:`inspector.session.Shown`."""
    handlers = LookingHandlers(attention, batch, store, demo.bounds)
    # The slow part of a page: three plots take the browser half a second, and nobody should wait for them to see the
    # tokens, or for a tab that isn't open.
    late: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "trigger_mode": "always_last"}
    # A program asks for what it wants; what describes the API is sent with every page.
    unseen: dict[str, Any] = {**late, "api_visibility": "undocumented"}
    arranged: list[Any] = [shown, batch.arrangement]
    scaled: list[Any] = [shown, attention.own_scale]
    draw_batch = handlers.draw_batch
    attention.sight.seen(handlers.draw_plots, scaled, attention.plots, api_name="draw_plots", **unseen)
    batch.sight.seen(draw_batch, arranged, batch.outputs, api_name="draw_batch", **unseen)
    batch.arrangement.input(draw_batch, arranged, batch.outputs, api_name="arrange_batch", **late)
    inputs: list[Any] = [shown, *attention.controls]
    looked: list[Any] = [shown, results.strip, attention.summary]
    # Each selection in turn: what gradio puts off until an event is over comes with the data of the one before.
    place: dict[str, Any] = {"concurrency_id": Rank.LOOK.place, "show_progress": "hidden"}
    results.strip.select(
        demo.turns.run(Rank.LOOK, handlers.select_token),
        inputs,
        looked,
        api_name="select_token",
        trigger_mode="multiple",
        **place,
    )
    gr.on(
        [control.input for control in attention.controls],
        demo.turns.run(Rank.LOOK, handlers.look_again),
        inputs,
        looked,
        api_name="attention_controls",
        trigger_mode="always_last",
        **place,
    )
    batch.make.click(handlers.make_files, arranged, batch.files, api_name="batch_files")
