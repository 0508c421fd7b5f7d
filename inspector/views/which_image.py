"""The “Which image?” tab: which image an answer rests on, test by test, the verdict first and in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from inspector.analysis.case import is_answered, open_case, read_row
from inspector.analysis.gaze import Gaze, measure_gaze
from inspector.analysis.inspection import Inspection
from inspector.analysis.structure import RowStructure
from inspector.analysis.which_image import STEPS, WhichImage, study_answer
from inspector.figures.markup import show_notes
from inspector.figures.which_image import (
    PANELS,
    show_attention,
    show_checks,
    show_dependence,
    show_matrix,
    show_selection,
    show_structure,
    show_swaps,
    show_verdict,
    show_waiting,
)
from inspector.session import ModelStore, Shown
from inspector.views import lab as lab_view
from inspector.views import prompt as prompt_view
from inspector.views.experiments import EXPERIMENTS, Experiment
from inspector.widgets import Panel
from model import InputError

INTRODUCTION = (
    "Which image does an answer rest on, and did the question pick it? Images are taken away, questions turned to "
    "another image, pictures swapped: what changes the answer is named, with numbers."
)
FIRST = "Press Ask first; then pick the answer to explain and press “Which image?”."
READY = "Press “Which image?”: the verdict comes here in words, and the tests below it."
WAITING = "Comes with “Which image?”."
STOPPED = "Stopped before this was run; press again to run it."

Updates = dict[Any, Any]


@dataclass(frozen=True)
class Study:
    """What a page has found out about one answer: ``found`` without its case, ``drawn`` the panels by their keys,
    ``facts`` what a program is told."""

    found: WhichImage
    drawn: dict[str, str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class WhichImageView:
    turn: gr.Radio
    contrast: gr.Textbox
    reference: gr.Textbox
    start: gr.Button
    cancel: gr.Button
    note: gr.HTML
    verdict: gr.HTML
    panels: dict[str, Panel]
    more: dict[str, gr.Button]
    everything: gr.Button
    facts: gr.JSON
    study: gr.State
    lab: lab_view.LabView

    @property
    def outputs(self) -> list[Any]:
        """Of every event that runs tests."""
        return [self.note, self.verdict, *self.panels.values(), self.facts, self.study]

    @property
    def fresh(self) -> list[Any]:
        """What :func:`begin` fills."""
        lab = self.lab
        return [self.turn, *self.outputs, lab.board, lab.layers, lab.heads, lab.line, lab.note, lab.result, lab.things,
                lab.cuts]  # fmt: skip


def build_which_image() -> WhichImageView:
    gr.HTML(f'<p class="vi-caption">{INTRODUCTION}</p>')
    with gr.Row(elem_classes="wi-controls", equal_height=False):
        turn = gr.Radio([], label="Answer to explain", min_width=220, elem_id="which-turn")
        contrast = gr.Textbox(
            label="Contrast with (another question, optional)", min_width=220, lines=1, max_lines=1,
            placeholder="In image 1, what colour is the shape?", elem_id="which-contrast",
        )  # fmt: skip
        reference = gr.Textbox(label="Reference answer (optional)", min_width=160, lines=1, max_lines=1,
                               placeholder="the right answer", elem_id="which-reference")  # fmt: skip
    with gr.Row(elem_classes="wi-buttons"):
        start = gr.Button("Which image?", variant="primary", min_width=140, elem_id="which-start")
        cancel = gr.Button("Cancel", min_width=80, elem_id="which-cancel")
    note = gr.HTML(elem_id="which-note", elem_classes="wi-note")
    verdict = gr.HTML(show_verdict(None, FIRST), elem_id="which-verdict", apply_default_css=False)
    panels: dict[str, Panel] = {}
    for keys in (("structure",), ("dependence", "matrix"), ("selection",), ("swaps",), ("attention", "checks")):
        with gr.Row(equal_height=False, elem_classes="wi-pair"):
            for key in keys:
                with gr.Column(min_width=320):
                    panels[key] = _panel(key)
    gr.HTML('<h3 class="vi-heading">More</h3>')
    with gr.Row(elem_classes="wi-buttons"):
        more = {
            one.key: gr.Button(one.button, size="sm", min_width=90, elem_id=f"which-{one.key}") for one in EXPERIMENTS
        }
        everything = gr.Button("Run all", size="sm", min_width=90, elem_id="which-all")
    for one in EXPERIMENTS:
        panels[one.key] = Panel(show_waiting(one.key, one.waiting, one.text), elem_id=f"which-panel-{one.key}")
    lab = lab_view.build_lab()
    facts = gr.JSON(visible=False)
    study: gr.State = gr.State(None)
    return WhichImageView(turn, contrast, reference, start, cancel, note, verdict, panels, more, everything, facts,
                          study, lab)  # fmt: skip


def _panel(key: str) -> Panel:
    return Panel(show_waiting(key, WAITING), elem_id=f"which-panel-{key}")


def begin(view: WhichImageView, store: ModelStore, model: str, inspection: Inspection) -> list[Any]:
    """Values for :attr:`WhichImageView.fresh` when something new was asked: the structure, which costs nothing, and
    nothing else that spoke of the answer before."""
    structure = read_structure(store, model, inspection)
    answered = [question for question in structure.questions if is_answered(question)]
    choices = [(f"{q.number}: {q.answer_text.strip() or '(empty)'}"[:40], q.number) for q in answered]
    updates: Updates = {
        view.turn: gr.update(choices=choices, value=answered[-1].number if answered else None),
        view.note: "",
        view.verdict: show_verdict(None, READY if answered else FIRST),
        view.facts: None,
        view.study: None,
        **{view.panels[key]: _blank(key) for key in view.panels},
        view.panels["structure"]: gr.update(value=show_structure(structure), busy=""),
        **lab_view.begin(view.lab, store, model, inspection),
    }
    return [updates[component] for component in view.fresh]


def _blank(key: str, sentence: str = "") -> Any:
    one = next((one for one in EXPERIMENTS if one.key == key), None)
    body = show_waiting(key, sentence or (one.waiting if one else WAITING), one.text if one else None)
    return gr.update(value=body, busy="")


def read_structure(store: ModelStore, model: str, inspection: Inspection) -> RowStructure:
    apart = inspection.prompt.document_mask and inspection.prompt.layout == "packed"
    return read_row(store.get(model), inspection, apart)


def draw(found: WhichImage, inspection: Inspection, gaze: Gaze | None = None) -> dict[str, str]:
    """The panels of all steps that are done, by their keys. ``gaze`` comes with the step “attention”."""
    drawn = {"structure": show_structure(found.structure, found.turn)}
    if found.dependence is not None:
        drawn["dependence"] = show_dependence(found.dependence, found.structure, found.turn, found.reference)
    if found.matrix is not None:
        drawn["matrix"] = show_matrix(found.matrix, found.structure)
    if found.selection is not None:
        drawn["selection"] = show_selection(found.selection)
    if found.swaps is not None:
        drawn["swaps"] = show_swaps(found.swaps, inspection.prompt.images, found.verdict)
    if found.attention is not None:
        drawn["attention"] = show_attention(gaze)
    if found.checks is not None:
        drawn["checks"] = show_checks(found.checks)
    return drawn


def look_beside(found: WhichImage) -> Gaze | None:
    """Attention beside the interventions; None without an image. ``found`` with its case, after “attention”."""
    if found.case is None or found.attention is None or found.dependence is None or not found.structure.images:
        return None
    return measure_gaze(found.case, found.attention, found.dependence)


def wire_which_image(
    view: WhichImageView, store: ModelStore, shown: gr.State, prompt: prompt_view.PromptView, queue: str
) -> None:
    """``shown`` holds a :class:`inspector.session.Shown`; ``queue`` is the place that all uses of a model share."""

    def guarded(run: Callable[..., Iterator[Updates]]) -> Callable[..., Iterator[Updates]]:
        """A broken request is said where it happened, and a program gets the sentence as an error."""

        def stream(page: Shown | None, *values: Any) -> Iterator[Updates]:
            try:
                if page is None:
                    raise InputError("There is no answer yet; press Ask first.")
                yield from run(page, *values)
            except InputError as error:
                quiet = {panel: gr.update(busy="") for panel in view.panels.values()}
                yield {**quiet, view.note: show_notes([str(error)])}
                raise gr.Error(str(error), visible=False, print_exception=False) from error

        return stream

    def study(page: Shown, number: int | None, contrast: str, reference: str) -> Iterator[Updates]:
        began = time.perf_counter()
        vlm, inspection = store.get(page.model), page.inspection
        typed = [contrast.strip()] if contrast.strip() else []
        gaze: Gaze | None = None
        for found in study_answer(vlm, inspection, number, reference=reference.strip(), typed=typed):
            done = STEPS.index(found.step)
            if found.step == "attention":
                gaze = look_beside(found)
            facts = {} if found.verdict is None else found.to_json()
            if gaze is not None:
                facts["gaze"] = gaze.to_json()
            kept = Study(replace(found, case=None), draw(found, inspection, gaze), facts)
            updates: Updates = {view.panels[key]: gr.update(value=html, busy="") for key, html in kept.drawn.items()}
            if done + 1 < len(STEPS):
                following = STEPS[done + 1]
                updates[view.panels[following]] = gr.update(busy=f"{PANELS[following].busy} …")
            if found.verdict is not None:
                note = f"Turn {found.turn}, {time.perf_counter() - began:.1f} s."
                updates[view.verdict] = show_verdict(found.verdict, note)
                updates[view.facts] = facts
            yield {view.note: "", view.study: kept, **updates}

    def experiments(wanted: tuple[Experiment, ...]) -> Callable[..., Iterator[Updates]]:
        def run(
            page: Shown, kept: Study | None, number: int | None, contrast: str, reference: str
        ) -> Iterator[Updates]:
            if kept is None or kept.found.checks is None or (number is not None and kept.found.turn != number):
                for updates in study(page, number, contrast, reference):
                    kept = updates[view.study]
                    yield updates
            assert kept is not None
            for one in wanted:
                panel = view.panels[one.key]
                yield {view.note: "", panel: gr.update(busy=f"{one.text.busy} …")}
                case = open_case(store.get(page.model), page.inspection, kept.found.turn)
                step: tuple[str, Any] = ("", None)
                for step in one.run(case, kept.found):
                    yield {panel: gr.update(value=step[0], busy=f"{one.text.busy} …")}
                html, facts = step
                kept = Study(kept.found, {**kept.drawn, one.key: html}, {**kept.facts, one.key: facts})
                yield {panel: gr.update(value=html, busy=""), view.study: kept, view.facts: kept.facts}

        return run

    asked: list[Any] = [shown, view.turn, view.contrast, view.reference]
    place: dict[str, Any] = {"concurrency_id": queue, "show_progress": "minimal", "show_progress_on": [view.verdict]}
    runs = [
        gr.on([view.start.click, view.contrast.submit, view.reference.submit], guarded(study), asked, view.outputs,
              api_name="which_image", **place)
    ]  # fmt: skip
    further: list[Any] = [shown, view.study, *asked[1:]]
    for one in EXPERIMENTS:
        runs.append(view.more[one.key].click(guarded(experiments((one,))), further, view.outputs,
                                             api_name=f"which_{one.key}", **place))  # fmt: skip
    runs.append(view.everything.click(guarded(experiments(EXPERIMENTS)), further, view.outputs, api_name="which_all",
                                      **place))  # fmt: skip

    def stop(kept: Study | None) -> Updates:
        """What was not run is said to be so: an older result would pass for one of this run."""
        drawn = {} if kept is None else kept.drawn
        updates: Updates = {view.panels[key]: gr.update(busy="") if key in drawn else _blank(key, STOPPED)
                            for key in view.panels if key in STEPS}  # fmt: skip
        updates |= {view.panels[one.key]: gr.update(busy="") for one in EXPERIMENTS}
        if kept is None:
            updates.pop(view.panels["structure"])
            updates[view.verdict] = show_verdict(None, STOPPED)
        return updates

    view.cancel.click(stop, view.study, view.outputs, cancels=runs, api_name="which_cancel", concurrency_limit=None,
                      show_progress="hidden")  # fmt: skip
    # A new question makes what is still running about the old one pointless, and it would have to wait for it.
    gr.on([prompt.ask.click, *(question.submit for question in prompt.questions),
           *(example.click for example in prompt.examples)], None, cancels=runs, api_name="which_give_way")  # fmt: skip
    lab_view.wire_lab(view.lab, store, shown, view.turn, queue)
