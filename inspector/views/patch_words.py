"""Words on patches: what image tokens say at a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from inspector.bounds import Bounds
from inspector.experiments.patch_words import describe_found, find_word, measure_words
from inspector.figures.markup import show_info
from inspector.figures.patch_words import ABOUT, READINGS, show_found, show_patch_words
from inspector.figures.readers import show_readers
from inspector.row.ask import find_readers
from inspector.row.prompt import check_length
from inspector.server.blocks import GuardedBlocks
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore, Shown
from inspector.widgets import Panel
from model import STREAMS, InputError

WAITING = '<p class="vi-empty">Press “Read patches”: a word comes on each cell of the images.</p>'
UNREAD = '<p class="vi-empty">Select a cell, and see which later tokens look at it, layer by layer.</p>'
ABOUT_READERS = (
    "One pass over the row that was kept: how much of each later token's attention goes to the selected one, mean over "
    "heads and over the tokens of a kind. The tab Attention shows each head. A share says what was mixed into the "
    "reader, not that the answer needs it; only cutting edges can show that."
)


@dataclass(frozen=True)
class PatchWordsView:
    layer: gr.Slider
    reading: gr.Radio
    stream: gr.Radio
    word: gr.Textbox
    start: gr.Button
    panel: Panel
    facts: gr.JSON
    study: gr.State
    who: gr.Button
    readers: Panel

    @property
    def fresh(self) -> list[Any]:
        """What :func:`begin` fills."""
        return [self.panel, self.layer, self.facts, self.study, self.readers]


def begin(n_layers: int) -> list[Any]:
    """Values for :attr:`PatchWordsView.fresh` when something new was asked: what was read of another answer goes."""
    return [
        gr.update(value=WAITING, busy=""),
        gr.update(value=0, maximum=max(1, n_layers - 1)),
        None,
        None,
        gr.update(value=UNREAD, busy=""),
    ]


def build_patch_words() -> PatchWordsView:
    about = show_info("Words on patches", ABOUT)
    gr.HTML(f'<div class="vi-panel-head"><h3 class="vi-heading">Words on patches</h3>{about}</div>')
    with gr.Row():
        # How many layers there are is known with the first answer.
        layer = gr.Slider(0, 1, 0, step=1, label="Layer", min_width=200, elem_id="words-layer")
        reading = gr.Radio(list(READINGS), value=next(iter(READINGS)), label="Reading", elem_id="words-reading")
        stream = gr.Radio(list(STREAMS), value=STREAMS[0], label="Of the layer", elem_id="words-stream")
        word = gr.Textbox("", label="Where does this word appear first? (optional)", max_lines=1, elem_id="words-word")
    with gr.Row(elem_classes="wi-buttons"):
        start = gr.Button("Read patches", size="sm", min_width=140, elem_id="words-start")
    panel = Panel(WAITING, elem_id="words-panel")
    about = show_info("Who looks at it", ABOUT_READERS)
    gr.HTML(f'<div class="vi-panel-head"><h3 class="vi-heading">Who looks at it</h3>{about}</div>')
    with gr.Row(elem_classes="wi-buttons"):
        who = gr.Button("Who looks at the selected token?", size="sm", min_width=240, elem_id="readers-start")
    readers = Panel(UNREAD, elem_id="readers-panel")
    facts, study = gr.JSON(visible=False), gr.State(None)
    return PatchWordsView(layer, reading, stream, word, start, panel, facts, study, who, readers)


@dataclass(frozen=True)
class PatchWordsHandlers:
    store: ModelStore
    bounds: Bounds

    def read(self, page: Shown | None, layer: int, reading: str, stream: str, word: str) -> list[Any]:
        """The panel, the facts that ``python -m inspector words`` prints, and what was found, for a report."""
        try:
            if page is None:
                raise InputError("There is no answer yet; press Ask first.")
            check_length(word, "The word", self.bounds)
            vlm, inspection = self.store.get(page.model), page.inspection
            found = measure_words(vlm, inspection, int(layer), stream)
            facts, html = found.to_json(), ""
            if word.strip():
                facts["found"] = describe_found(word, find_word(vlm, inspection, word, stream))
                html = show_found(facts["found"], len(found.cells))
            html += show_patch_words(found, inspection.prompt.images, READINGS.get(reading, "nearest"))
            return [gr.update(value=html, busy=""), facts, found]
        except InputError as error:
            raise refuse(error) from error

    def find_readers(self, page: Shown | None) -> Any:
        """Which later tokens look at what is selected, as ``python -m inspector attention`` prints it."""
        try:
            if page is None:
                raise InputError("There is no answer yet; press Ask first.")
            first = page.selected if page.start is None else page.start
            found = find_readers(self.store.get(page.model), page.inspection, page.selected, first=first)
            return gr.update(value=show_readers(page.inspection.table, found), busy="")
        except InputError as error:
            raise refuse(error) from error


def wire_patch_words(view: PatchWordsView, store: ModelStore, shown: gr.State, demo: GuardedBlocks) -> None:
    """``shown`` holds a :class:`inspector.session.Shown`."""
    handlers = PatchWordsHandlers(store, demo.bounds)
    gr.on(
        [view.start.click, view.layer.release, view.reading.input, view.stream.input, view.word.submit],
        demo.turns.run(Rank.TEST, handlers.read),
        [shown, view.layer, view.reading, view.stream, view.word],
        [view.panel, view.facts, view.study],
        api_name="words",
        concurrency_id=Rank.TEST.place,
        concurrency_limit=1,
        show_progress="minimal",
    )
    view.who.click(
        demo.turns.run(Rank.TEST, handlers.find_readers),
        shown,
        view.readers,
        api_name="readers",
        concurrency_id=Rank.TEST.place,
        show_progress="minimal",
    )
