"""The “Two models” tab: the prompt that is shown, asked anew of its model and of the one that is picked now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from inspector.figures.markup import show_notes
from inspector.figures.model_comparison import show_models
from inspector.server.blocks import GuardedBlocks
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore, Shown
from inspector.views import prompt as prompt_view
from inspector.which_image.model_comparison import compare_answers
from inspector.widgets import Panel
from model import InputError

INTRODUCTION = (
    "The prompt that is shown, asked of two models: the one that answered it, and the one that is picked now. Their "
    "answers, where they look in the same pictures, and which image each answer rests on, measured by interventions."
)


@dataclass(frozen=True)
class ComparingView:
    start: gr.Button
    card: Panel


def build_comparing() -> ComparingView:
    gr.HTML(f'<p class="vi-caption">{INTRODUCTION}</p>')
    with gr.Row(elem_classes="wi-buttons"):
        start = gr.Button("Compare", variant="primary", min_width=140, elem_id="compare-start")
    note = show_notes(["Pick another model above the images, then press Compare."])
    return ComparingView(start, Panel(note, elem_id="compare-card"))


@dataclass(frozen=True)
class ComparingHandlers:
    """What Compare calls; ``page`` is what the page shows, ``model`` the one that is picked."""

    store: ModelStore

    def compare(self, page: Shown | None, model: str) -> Iterator[Any]:
        if page is None:
            yield gr.update(value=show_notes(["There is no answer to compare yet; ask something first."]), busy="")
            return
        names = self.store.title_of(page.model), self.store.title_of(model)
        if page.model == model:
            sentence = f"The answer that is shown is {names[0]}'s already; pick another model, then press Compare."
            yield gr.update(value=show_notes([sentence]), busy="")
            return
        # What the model said is asked for anew; what a person gave stays given.
        prompt = page.inspection.prompt
        turns = (
            turn if turn.answer_ids is None else replace(turn, assistant="", answer_ids=None) for turn in prompt.turns
        )
        prompt = replace(prompt, turns=tuple(turns))
        try:
            yield gr.update(busy=f"Asking {names[0]} and {names[1]} …")
            steps = compare_answers(self.store.get(page.model), self.store.get(model), prompt, page.settings)
            doing = [f"Taking images away from {name} …" for name in names] if prompt.images else []
            for found, busy in zip(steps, [*doing, ""], strict=True):
                yield gr.update(value=f'<div class="tr-result">{show_models(found, names)}</div>', busy=busy)
        except InputError as error:
            raise refuse(error, stays=True) from error


def wire_comparing(
    view: ComparingView, store: ModelStore, shown: gr.State, demo: GuardedBlocks, prompt: prompt_view.PromptView
) -> None:
    """``shown`` holds a :class:`inspector.session.Shown`."""
    view.start.click(
        demo.turns.run(Rank.EXPERIMENT, ComparingHandlers(store).compare, demo.bounds.study_s),
        [shown, prompt.model],
        view.card,
        api_name="compare",
        concurrency_id=Rank.EXPERIMENT.place,
        concurrency_limit=1,
        show_progress="hidden",
    )
