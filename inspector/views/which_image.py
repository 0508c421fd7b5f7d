"""The “Which image?” tab: which image an answer rests on, test by test, the verdict first and in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from inspector.bounds import Bounds
from inspector.encoder.store import EncoderStore
from inspector.experiments.image_edits import EditStudy
from inspector.experiments.patch_words import PatchWords
from inspector.export.command_line import write_which_image
from inspector.export.experiments import EXPERIMENTS, Experiment
from inspector.export.report import ShownStudy, report, study
from inspector.figures.clip import show_text_study
from inspector.figures.image_edits import show_edits
from inspector.figures.markup import show_notes
from inspector.figures.patch_words import show_all_words
from inspector.figures.which_image import (
    PANELS,
    show_structure,
    show_verdict,
    show_waiting,
)
from inspector.files import handed_over
from inspector.interventions.target import is_answered, open_case, read_row
from inspector.row.ask import Inspection
from inspector.row.layout import RowStructure
from inspector.row.prompt import check_length
from inspector.server.blocks import GuardedBlocks
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore, Shown
from inspector.views import lab as lab_view
from inspector.views.clip import EncoderShown
from inspector.views.folding import build_item
from inspector.which_image.study import STEPS
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
STOPPED_WITHIN = "Stopped: this is what had been found by then."

PERIOD_S = 0.25
"""Partial results are sent no more often: a page that draws all the time doesn't hear a click on Cancel."""

Updates = dict[Any, Any]


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
    report: gr.Button
    file: gr.File
    facts: gr.JSON
    study: gr.State
    running: gr.State
    lab: lab_view.LabView

    @property
    def outputs(self) -> list[Any]:
        """Of every event that runs tests."""
        return [self.note, self.verdict, *self.panels.values(), self.facts, self.study, self.running]

    @property
    def fresh(self) -> list[Any]:
        """What :func:`begin` fills."""
        lab = self.lab
        return [
            self.turn,
            self.file,
            *self.outputs,
            lab.board,
            lab.layers,
            lab.heads,
            lab.line,
            lab.note,
            lab.result,
            lab.things,
            lab.cuts,
        ]


def build_which_image() -> WhichImageView:
    lab = lab_view.build_lab()
    gr.HTML(f'<p class="vi-caption">{INTRODUCTION}</p>')
    with gr.Row(elem_classes="wi-controls", equal_height=False):
        turn = gr.Radio([], label="Answer to explain", min_width=220, elem_id="which-turn")
        contrast = gr.Textbox(
            "",
            label="Contrast with (another question, optional)",
            min_width=220,
            lines=1,
            max_lines=1,
            placeholder="In image 1, what colour is the shape?",
            elem_id="which-contrast",
        )
        reference = gr.Textbox(
            "",
            label="Reference answer (optional)",
            min_width=160,
            lines=1,
            max_lines=1,
            placeholder="the right answer",
            elem_id="which-reference",
        )
    with gr.Row(elem_classes="wi-buttons"):
        start = gr.Button("Which image?", variant="primary", min_width=140, elem_id="which-start")
        everything = gr.Button("Run all", min_width=90, elem_id="which-all")
        cancel = gr.Button("Cancel", min_width=80, elem_id="which-cancel")
        make = gr.Button("Make report (HTML)", size="sm", min_width=140, elem_id="which-report")
    file = gr.File(label="Report", interactive=False, visible=False, elem_id="which-report-file")
    note = gr.HTML(elem_id="which-note", elem_classes="wi-note")
    verdict = gr.HTML(show_verdict(None, FIRST), elem_id="which-verdict", apply_default_css=False)
    panels: dict[str, Panel] = {}
    more: dict[str, gr.Button] = {}
    for key in ("dependence", "matrix", "selection", "swaps", "attention", "structure", "checks"):
        with build_item(key, PANELS[key].title, opened=key == "dependence"):
            panels[key] = Panel(show_waiting(key, WAITING), elem_id=f"which-panel-{key}")
    for one in EXPERIMENTS:
        with build_item(one.key, one.text.title):
            more[one.key] = gr.Button(one.button, size="sm", min_width=90, elem_id=f"which-{one.key}")
            panels[one.key] = Panel(show_waiting(one.key, one.waiting, one.text), elem_id=f"which-panel-{one.key}")
    facts = gr.JSON(visible=False)
    study: gr.State = gr.State(None)
    running: gr.State = gr.State("")  # key of the experiment whose panel holds part of a result
    return WhichImageView(
        turn,
        contrast,
        reference,
        start,
        cancel,
        note,
        verdict,
        panels,
        more,
        everything,
        make,
        file,
        facts,
        study,
        running,
        lab,
    )


def begin(view: WhichImageView, store: ModelStore, model: str, inspection: Inspection) -> list[Any]:
    """Values for :attr:`WhichImageView.fresh` when something new was asked: the structure, which costs nothing, and
    nothing else that spoke of the answer before."""
    structure = read_structure(store, model, inspection)
    answered = list_answers(structure)
    updates: Updates = {
        view.turn: gr.update(choices=answered, value=answered[-1][1] if answered else None),
        view.file: gr.update(value=None, visible=False),
        view.note: "",
        view.verdict: show_verdict(None, READY if answered else FIRST),
        view.facts: None,
        view.study: None,
        view.running: "",
        **{view.panels[key]: _blank(key) for key in view.panels},
        view.panels["structure"]: gr.update(value=show_structure(structure), busy=""),
        **lab_view.begin(view.lab, store, model, inspection),
    }
    return [updates[component] for component in view.fresh]


def _blank(key: str, sentence: str = "") -> Any:
    one = next((one for one in EXPERIMENTS if one.key == key), None)
    body = show_waiting(key, sentence or (one.waiting if one else WAITING), one.text if one else None)
    return gr.update(value=body, busy="", note="")


def read_structure(store: ModelStore, model: str, inspection: Inspection) -> RowStructure:
    apart = inspection.prompt.keeps_samples_apart
    return read_row(store.get(model), inspection, apart)


def list_answers(structure: RowStructure) -> list[tuple[str, int]]:
    """The choices of an answer to explain: its beginning, and its turn."""
    answered = [question for question in structure.questions if is_answered(question)]
    return [(f"{q.number}: {q.answer_text.strip() or '(empty)'}"[:40], q.number) for q in answered]


def read_contrasts(typed: str) -> list[str]:
    """The questions to contrast with that a person typed."""
    return [typed.strip()] if typed.strip() else []


@dataclass(frozen=True)
class WhichImageHandlers:
    """What the events of the tab call; ``page`` is what the page shows, ``kept`` what was found out about it."""

    view: WhichImageView
    store: ModelStore
    encoders: EncoderStore
    bounds: Bounds

    def guarded(self, run: Callable[..., Iterator[Updates]]) -> Callable[..., Iterator[Updates]]:
        """A broken request is said where it happened, and a program gets the sentence as an error."""

        def stream(
            page: Shown | None,
            kept: ShownStudy | None,
            turn: int | None = None,
            contrast: str = "",
            reference: str = "",
        ) -> Iterator[Updates]:
            try:
                if page is None:
                    raise InputError("There is no answer yet; press Ask first.")
                for text, what in ((contrast, "The question to contrast with"), (reference, "The reference answer")):
                    check_length(text, what, self.bounds)
                yield from run(page, kept, turn, contrast, reference)
            except InputError as error:
                quiet = {panel: gr.update(busy="") for panel in self.view.panels.values()}
                yield {**quiet, self.view.note: show_notes([str(error)])}
                raise refuse(error, seen=False) from error

        return stream

    def run_study(
        self, page: Shown, kept: ShownStudy | None, turn: int | None, contrast: str, reference: str
    ) -> Iterator[Updates]:
        """After each step what is known by then."""
        view, began = self.view, time.perf_counter()
        steps = study(
            self.store.get(page.model),
            page.inspection,
            turn,
            reference=reference.strip(),
            typed=read_contrasts(contrast),
            max_new_tokens=page.settings.max_new_tokens,
        )
        for known in steps:
            found, done = known.found, STEPS.index(known.found.step)
            updates: Updates = {view.panels[key]: gr.update(value=html, busy="") for key, html in known.drawn.items()}
            if kept is not None and kept.found.turn == found.turn:
                known = known.joined(kept, [one.key for one in EXPERIMENTS])
            elif done == 0:
                # What was found out about another turn's answer must not stand beside this one's.
                updates |= {view.panels[one.key]: _blank(one.key) for one in EXPERIMENTS}
            if done + 1 < len(STEPS):
                following = STEPS[done + 1]
                updates[view.panels[following]] = gr.update(busy=f"{PANELS[following].busy} …")
            if found.verdict is not None:
                note = f"Turn {found.turn}, {time.perf_counter() - began:.1f} s."
                command = self._repeat(page, found.turn, contrast, reference)
                updates[view.verdict] = show_verdict(found.verdict, note, command)
                updates[view.facts] = known.facts
            yield {view.note: "", view.study: known, **updates}

    def run_experiments(
        self,
        wanted: tuple[Experiment, ...],
        page: Shown,
        kept: ShownStudy | None,
        turn: int | None,
        contrast: str,
        reference: str,
    ) -> Iterator[Updates]:
        """The study first, where it was not run or is of another turn's answer."""
        view = self.view
        if kept is None or kept.found.checks is None or (turn is not None and kept.found.turn != turn):
            for updates in self.run_study(page, kept, turn, contrast, reference):
                kept = updates[view.study]
                yield updates
        assert kept is not None
        for one in wanted:
            panel = view.panels[one.key]
            yield {view.note: "", panel: gr.update(busy=f"{one.text.busy} …", note="")}
            case = open_case(
                self.store.get(page.model),
                page.inspection,
                kept.found.turn,
                max_new_tokens=page.settings.max_new_tokens,
            )
            step: tuple[str, Any] = ("", None)
            told = 0.0
            for step in one.run(case, kept.found):
                if time.perf_counter() - told >= PERIOD_S:
                    yield {panel: gr.update(value=step[0], busy=f"{one.text.busy} …"), view.running: one.key}
                    told = time.perf_counter()
            html, facts = step
            kept = kept.adding(one.key, html, facts)
            yield {panel: gr.update(value=html, busy=""), view.study: kept, view.facts: kept.facts, view.running: ""}

    def stop(self, kept: ShownStudy | None, running: str) -> Updates:
        """What was not run is said to be so: an older result would pass for one of this run."""
        view = self.view
        drawn = {} if kept is None else kept.drawn
        updates: Updates = {
            view.panels[key]: gr.update(busy="") if key in drawn else _blank(key, STOPPED)
            for key in view.panels
            if key in STEPS
        }
        for one in EXPERIMENTS:
            within = one.key == running
            updates[view.panels[one.key]] = gr.update(busy="", note=STOPPED_WITHIN) if within else gr.update(busy="")
        updates[view.running] = ""
        if kept is None:
            updates.pop(view.panels["structure"])
            updates[view.verdict] = show_verdict(None, STOPPED)
        return updates

    def make_report(
        self,
        page: Shown | None,
        kept: ShownStudy | None,
        edited: EditStudy | None,
        words: PatchWords | None,
        compared: EncoderShown | None,
        contrast: str,
        reference: str,
    ) -> Any:
        """With what the page's other tabs found about the same prompt: edits, words on patches, and CLIP."""
        if page is None or kept is None or kept.found.verdict is None:
            raise refuse("There is no verdict yet; press “Which image?” first.")
        if edited is not None and edited.steps:
            kept = kept.adding("edits", show_edits(edited, page.inspection), edited.to_json())
        images = page.inspection.prompt.images
        if words is not None:
            kept = kept.adding("words", show_all_words(words, images), words.to_json())
        try:
            if compared is not None and compared.found is not None:
                used = self.encoders.get(compared.encoder, self.store.get(page.model))
                if compared.is_of(used, images):
                    drawn = show_text_study(compared.found, images, used)
                    kept = kept.adding("clip", drawn, compared.found.to_json())
            command = self._repeat(page, kept.found.turn, contrast, reference)
            title = self.store.title_of(page.model)
            html = report(self.store.get(page.model), page.inspection, title, page.names, kept, command)
            with handed_over(self.bounds) as folder:
                path = folder / "report.html"
                path.write_text(html, "utf-8")
        except InputError as error:
            raise refuse(error) from error
        return gr.update(value=str(path), visible=True)

    def _repeat(self, page: Shown, turn: int, contrast: str, reference: str) -> str:
        return write_which_image(
            page.inspection.prompt,
            self.store.argument_of(page.model),
            page.names,
            page.settings,
            turn,
            reference.strip(),
            read_contrasts(contrast),
        )


def wire_which_image(
    view: WhichImageView,
    store: ModelStore,
    encoders: EncoderStore,
    shown: gr.State,
    told: Sequence[gr.State],
    demo: GuardedBlocks,
) -> None:
    """``shown`` holds a :class:`inspector.session.Shown`; ``told``: what the report tells of besides, the page's edits
    of images, its words on patches, and its :class:`inspector.views.clip.EncoderShown`. A question of the same page
    ends what runs here."""
    handlers = WhichImageHandlers(view, store, encoders, demo.bounds)

    def ranked(rank: Rank, run: Callable[..., Iterator[Updates]]) -> Callable[..., Iterator[Updates]]:
        return handlers.guarded(demo.turns.run(rank, run, demo.bounds.study_s))

    asked: list[Any] = [shown, view.study, view.turn, view.contrast, view.reference]
    waiting: dict[str, Any] = {"concurrency_limit": 1, "show_progress": "minimal", "show_progress_on": [view.verdict]}
    runs = [
        gr.on(
            [view.start.click, view.contrast.submit, view.reference.submit],
            ranked(Rank.TEST, handlers.run_study),
            asked,
            view.outputs,
            api_name="which_image",
            concurrency_id=Rank.TEST.place,
            **waiting,
        )
    ]
    buttons = [(view.more[one.key], one.key, (one,)) for one in EXPERIMENTS]
    for button, key, wanted in (*buttons, (view.everything, "all", EXPERIMENTS)):
        run = ranked(Rank.EXPERIMENT, partial(handlers.run_experiments, wanted))
        place = Rank.EXPERIMENT.place
        runs.append(button.click(run, asked, view.outputs, api_name=f"which_{key}", concurrency_id=place, **waiting))

    # Only once it is cancelled: what a run still has on the way would be drawn over what is said of its end.
    view.cancel.click(None, cancels=runs, api_name="which_cancel").then(
        handlers.stop,
        [view.study, view.running],
        view.outputs,
        api_name="which_stopped",
        concurrency_limit=None,
        show_progress="hidden",
    )
    report_of: list[Any] = [shown, view.study, *told, view.contrast, view.reference]
    view.report.click(handlers.make_report, report_of, view.file, api_name="which_report")
    lab_view.wire_lab(view.lab, store, shown, view.turn, demo)
