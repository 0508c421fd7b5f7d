"""Looking at what was asked: tokens and their attention, plots, the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from inspector.bounds import Bounds
from inspector.export.files import describe_sides, write_files
from inspector.files import handed_over
from inspector.row.ask import attend_tokens, find_readers
from inspector.server.blocks import GuardedBlocks
from inspector.server.inputs import read_event
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore, Shown
from inspector.views import attention as attention_view
from inspector.views import batch as batch_view
from inspector.views.results import ResultsView
from inspector.widgets import answer_sight, encode
from model import InputError


@dataclass(frozen=True)
class LookingHandlers:
    """What the events of the views below the answer call; ``page`` is what they show, None before anything was
    asked."""

    attention: attention_view.AttentionView
    batch: batch_view.BatchView
    store: ModelStore
    bounds: Bounds

    def draw_maps(self, page: Shown | None, layer: str, head: str, own_scale: bool) -> list[Any]:
        if page is None:
            return [gr.skip()] * len(self.attention.maps)
        return attention_view.draw_maps(page.inspection, page.map, layer, head, own_scale)

    def draw_plots(self, page: Shown | None, own_scale: bool) -> list[Any]:
        if page is None:
            return [gr.skip()] * len(self.attention.plots)
        return attention_view.draw_plots(page.map, own_scale)

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
        side: str,
        event: gr.EventData,
    ) -> list[Any]:
        last = read_event(event, "position", int)
        first = read_event(event, "first", int) if "first" in event._data else None
        found = self._look(page, first, last, layer, head, own_row, exclude_sinks, own_scale, side)
        looked = found[0]
        # Who looks at the maps has them with the rest: asking for them would take another quarter of a second.
        if page is None or event._data.get("maps") is not True:
            return [*found, *[gr.skip()] * len(self.attention.maps)]
        return [*found, *attention_view.draw_maps(page.inspection, looked.map, layer, head, own_scale, along=True)]

    def look_again(self, page: Shown | None, *options: Any) -> list[Any]:
        return self._look(page, None if page is None else page.start, 0 if page is None else page.selected, *options)

    def look_at_stretch(self, page: Shown | None, *values: Any) -> list[Any]:
        """``values``: those of :attr:`AttentionView.looking`, then the first and the last token."""
        *options, first, last = values
        if first is None or last is None:
            raise refuse("A stretch needs a first and a last token; fill in both numbers.")
        return self._look(page, first, last, *options)

    def choose_head(
        self,
        page: Shown | None,
        own_scale: bool,
        event: gr.EventData,
    ) -> list[Any]:
        """The layer and head that were clicked, in the pickers too; nothing is read or drawn again: maps and plots are
        of all of them."""
        if page is None:
            return [gr.skip()] * 6
        layer, head = (
            _pick(event, name, count) for name, count in zip(("layer", "head"), page.map.pattern.shape, strict=False)
        )
        heat = attention_view.heat_of(page.map, page.selected, layer, head, own_scale)
        return [
            layer,
            head,
            gr.update(heat=encode(heat)),
            attention_view.summarise(page.inspection, page.map, layer, head),
            answer_sight(along=True),
            answer_sight(along=True),
        ]

    def describe(self, page: Shown | None, own_row: bool) -> dict[str, Any]:
        """Attention of what is selected from both sides, as ``python -m inspector attention`` prints it."""
        if page is None:
            raise refuse("There is no attention to tell of yet; ask something first.")
        first = page.selected if page.start is None else page.start
        try:
            return describe_sides(self.store.get(page.model), page.inspection, first, page.selected, own_row)
        except InputError as error:
            raise refuse(error) from error

    def _look(self, page: Shown | None, first: int | None, last: int, *options: Any) -> list[Any]:
        """What is shown, strip, summary and the numbers of the stretch, for the attention of the tokens from ``first``
        (None: only one) to ``last``."""
        layer, head, own_row, exclude_sinks, own_scale, side = options
        if page is None:
            return [gr.skip()] * 5
        start, inspection = last if first is None else first, page.inspection
        try:
            vlm = self.store.get(page.model)
            found = attend_tokens(vlm, inspection, start, last, own_row=own_row, exclude_sinks=exclude_sinks)
            readers = find_readers(vlm, inspection, last, first=start) if side == attention_view.READERS else None
        except InputError as error:
            raise refuse(error) from error
        looked = replace(page, selected=last, start=start, attention=found, readers=readers)
        heat = attention_view.heat_of(looked.map, last, layer, head, own_scale)
        # Viewer and readout take row and heat from the strip, in the browser.
        return [
            looked,
            gr.update(heat=encode(heat)),
            attention_view.summarise(inspection, looked.map, layer, head),
            start,
            last,
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
    # The slow part of a page: two plots take the browser half a second, and nobody should wait for them to see the
    # tokens or the maps, or for a tab that isn't open.
    late: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "trigger_mode": "always_last"}
    # A program asks for what it wants; what describes the API is sent with every page.
    unseen: dict[str, Any] = {**late, "api_visibility": "undocumented"}
    arranged: list[Any] = [shown, batch.arrangement]
    scaled: list[Any] = [shown, attention.layer, attention.head, attention.own_scale]
    draw_batch = handlers.draw_batch
    attention.sight.seen(handlers.draw_maps, scaled, attention.maps, api_name="draw_maps", **unseen)
    attention.plots_sight.seen(
        handlers.draw_plots, [shown, attention.own_scale], attention.plots, api_name="draw_plots", **unseen
    )
    batch.sight.seen(draw_batch, arranged, batch.outputs, api_name="draw_batch", **unseen)
    batch.arrangement.input(draw_batch, arranged, batch.outputs, api_name="arrange_batch", **late)
    inputs: list[Any] = [shown, *attention.looking]
    looked: list[Any] = [shown, results.strip, attention.summary, *attention.stretch]
    # Each choice of a token or head in turn: what gradio puts off until an event is over comes with the data of the one
    # before.
    place: dict[str, Any] = {"concurrency_id": Rank.LOOK.place, "show_progress": "hidden"}
    results.strip.select(
        demo.turns.run(Rank.LOOK, handlers.select_token),
        inputs,
        [*looked, *attention.maps],
        api_name="select_token",
        trigger_mode="multiple",
        **place,
    )
    gr.on(
        [control.input for control in attention.looking],
        demo.turns.run(Rank.LOOK, handlers.look_again),
        inputs,
        looked,
        api_name="attention_controls",
        trigger_mode="always_last",
        **place,
    )
    gr.on(
        [attention.look.click, attention.first.submit, attention.last.submit],
        demo.turns.run(Rank.LOOK, handlers.look_at_stretch),
        [*inputs, *attention.stretch],
        looked,
        api_name="attention_stretch",
        trigger_mode="always_last",
        **place,
    )
    attention.board.choose(
        demo.turns.run(Rank.LOOK, handlers.choose_head),
        [shown, attention.own_scale],
        [attention.layer, attention.head, results.strip, attention.summary, attention.sight, attention.plots_sight],
        api_name="attention_head",
        trigger_mode="multiple",
        **place,
    )
    reader = gr.Button(visible=False)
    reader.click(
        demo.turns.run(Rank.LOOK, handlers.describe),
        [shown, attention.own_row],
        gr.JSON(visible=False),
        api_name="attention",
        concurrency_id=Rank.LOOK.place,
    )
    batch.make.click(handlers.make_files, arranged, batch.files, api_name="batch_files")


def _pick(event: gr.EventData, name: str, count: int) -> str:
    """A layer or head that was clicked, as its picker has it. gr.Error for one that the model doesn't have."""
    number = read_event(event, name, int)
    if not -1 <= number < count:
        raise refuse(f"There is no {name} {number}; the model has {count}, counted from 0, and −1 is the mean.")
    return attention_view.MEAN if number < 0 else str(number)
