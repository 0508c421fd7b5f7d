"""The models of this server, and a field that opens another one where that is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from inspector.encoder.store import EncoderStore
from inspector.figures.markup import show_notes
from inspector.server.blocks import GuardedBlocks
from inspector.server.fetching import Fetcher
from inspector.server.toasts import refuse
from inspector.session import ModelStore, Shown
from model import InputError
from model.memory import format_bytes

SUGGESTIONS = (
    ("HuggingFaceTB/SmolVLM-256M-Instruct", "16 GB, no GPU"),
    ("HuggingFaceTB/SmolVLM-500M-Instruct", "16 GB, no GPU"),
    ("lusxvr/nanoVLM-222M", "16 GB, no GPU"),
    ("lusxvr/nanoVLM-460M-8k", "16 GB, no GPU"),
    ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "16 GB, no GPU"),
    ("OpenGVLab/InternVL3-1B-hf", "16 GB, no GPU"),
    ("Qwen/Qwen2.5-VL-3B-Instruct", "one GPU"),
    ("Qwen/Qwen3-VL-2B-Instruct", "one GPU"),
    ("google/gemma-3-4b-it", "one GPU, gated"),
    ("llava-hf/llava-1.5-7b-hf", "one GPU"),
    ("openai/clip-vit-base-patch32", "for the tab CLIP"),
    ("google/siglip-base-patch16-224", "for the tab CLIP"),
)
"""Hub ids of families that are opened here, and what their size asks for. None was fetched where this was written."""


@dataclass(frozen=True)
class ModelsView:
    """``picker`` is part of the prompt: which model is asked."""

    picker: gr.Dropdown
    folded: gr.Accordion
    card: gr.HTML
    source: gr.Dropdown
    open: gr.Button
    stop: gr.Button
    note: gr.HTML


def build_models(store: ModelStore, fetcher: Fetcher) -> ModelsView:
    allowed = fetcher.allowed
    if allowed is None:
        choices = [(f"{name} ({need})", name) for name, need in SUGGESTIONS]
    else:
        choices = [(name, name) for name in sorted(allowed)]
    shown = fetcher.offers or len(store.names) > 1
    with gr.Accordion("Models", open=False, visible=shown, elem_id="models") as folded:
        picker = build_picker(store)
        card = gr.HTML(show_models(store), elem_id="models-card")
        source = gr.Dropdown(
            choices,
            value=None,
            label="Open a hub id or folder (suggestions by size; none was tried here)" if allowed is None else "Open",
            allow_custom_value=allowed is None,
            visible=fetcher.offers,
            elem_id="model-source",
        )
        with gr.Row(visible=fetcher.offers):
            opened = gr.Button("Open", size="sm", min_width=60, elem_id="model-open")
            stop = gr.Button("Stop", size="sm", min_width=60, elem_id="model-stop")
        note = gr.HTML("", elem_id="model-note")
    return ModelsView(picker, folded, card, source, opened, stop, note)


def build_picker(store: ModelStore) -> gr.Dropdown:
    """Which of the server's models is asked."""
    names = list(store.names)
    return gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")


def show_models(store: ModelStore) -> str:
    """A line for each: name, family, size, precision, and what it takes."""
    lines = []
    for facts in store.list_models():
        size = f" · {facts.weights / 1e6:,.1f} M weights" if facts.weights else ""
        place = f" · {escape(facts.placement)}" if facts.placement else ""
        need, memory = facts.need, ""
        if need is not None:
            memory = f"<br>{format_bytes(need.weights)} of memory"
            if need.keys_values is not None:
                memory += f", and {format_bytes(need.keys_values)} for {need.positions:,} tokens"
        title = f' title="{escape(str(need))}"' if need is not None else ""
        lines.append(f"<li{title}><b>{escape(facts.name)}</b> · {escape(facts.family)}{size}{place}{memory}</li>")
    return f'<ul class="vi-models">{"".join(lines)}</ul>'


@dataclass(frozen=True)
class ModelsHandlers:
    """What the events call: note, the picker's choices, the table, and the choices of encoders. ``own``: labels and
    names of the models that this page's person trained, which stay in the picker."""

    store: ModelStore
    encoders: EncoderStore
    fetcher: Fetcher

    def open(self, source: str | None, own: list[tuple[str, str]]) -> Iterator[list[Any]]:
        try:
            for progress in self.fetcher.open(self.store, self.encoders, source or ""):
                note = f'<p class="vi-caption" role="status">{escape(str(progress))}</p>'
                picked, card, encoder = gr.skip(), gr.skip(), gr.skip()
                if progress.model:
                    picked = gr.update(choices=self._choose_from(own), value=progress.model, visible=True)
                    card = show_models(self.store)
                elif progress.encoder:
                    encoder = gr.update(choices=list(self.encoders.names), value=progress.encoder, visible=True)
                yield [note, picked, card, encoder]
        except InputError as error:
            yield [show_notes([str(error)]), gr.skip(), gr.skip(), gr.skip()]
            raise refuse(error, seen=False) from error

    def refresh(self, own: list[tuple[str, str]]) -> list[Any]:
        choices, encoders = self._choose_from(own), list(self.encoders.names)
        return [
            gr.update(choices=choices, visible=len(choices) > 1),
            show_models(self.store),
            gr.update(choices=encoders, visible=len(encoders) > 1),
        ]

    def _choose_from(self, own: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [*((name, name) for name in self.store.names), *own]

    def show_comparing(self) -> Any:
        """Of one model nothing can be compared."""
        return gr.update(visible=len(self.store.names) > 1)

    def keep_answer(self, page: Shown | None) -> str:
        """What stays of the last answer beside the next one, when another model is picked."""
        if page is None:
            return ""
        turn = page.inspection.prompt.turns[-1]
        return show_former(self.store.title_of(page.model), turn.user, turn.assistant)


def show_former(model: str, question: str, answer: str) -> str:
    """An answer of another model: whose, to what, and what it said."""
    said = escape(answer) or "nothing"
    return (
        f'<p class="vi-former" role="note"><b>{escape(model)}</b> said to “{escape(question)}”: <span>{said}</span></p>'
    )


def wire_models(
    view: ModelsView,
    former: gr.HTML,
    shown: gr.State,
    own: gr.State,
    comparing: gr.Tab,
    encoder: gr.Dropdown,
    store: ModelStore,
    encoders: EncoderStore,
    fetcher: Fetcher,
    demo: GuardedBlocks,
) -> None:
    """``former``: where the last answer stays; ``shown`` holds an :class:`inspector.session.Shown`, ``own`` the models
    of this page's person; ``comparing``: the tab of two models; ``encoder``: the choice of encoders in the CLIP tab."""
    handlers = ModelsHandlers(store, encoders, fetcher)
    model = view.picker
    model.change(
        handlers.keep_answer, shown, former, api_visibility="private", concurrency_limit=None, show_progress="hidden"
    )
    if not fetcher.offers:
        return
    opening = view.open.click(
        handlers.open,
        [view.source, own],
        [view.note, model, view.card, encoder],
        api_name="open_model",
        concurrency_id="fetch",
        concurrency_limit=4,
        show_progress="hidden",
    )
    view.stop.click(
        lambda: show_notes(["Stopped; files that are whole stay here."]),
        None,
        view.note,
        cancels=[opening],
        api_name="stop_opening",
        show_progress="hidden",
    )
    # What others opened since the server began is everybody's, on this page too when it looks.
    listed = gr.on(
        [demo.load, view.folded.expand],
        handlers.refresh,
        own,
        [model, view.card, encoder],
        api_name="list_models",
        show_progress="hidden",
    )
    private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    for event in (listed, opening):
        event.then(handlers.show_comparing, None, comparing, **private)
