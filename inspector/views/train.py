"""The Train tab: choose what trains on what, follow the run, see what it changed, take it away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from inspector.bounds import Bounds, format_bound, private_bounds, public_bounds
from inspector.figures.markup import show_notes
from inspector.persons import identify
from inspector.runs.delivery import COMMAND
from inspector.runs.discretion import hide_all_paths, hide_paths
from inspector.runs.jobs import JobTable
from inspector.runs.part_shelf import PartShelf
from inspector.runs.presets import UPLOAD
from inspector.runs.uploads import Upload
from inspector.server.blocks import GuardedBlocks
from inspector.server.toasts import refuse, warn
from inspector.session import ModelStore
from inspector.views import prompt as prompt_view
from inspector.views.train_form import RecipeReader, TrainForm, build_form, wire_form
from inspector.views.train_result import ResultView, build_result, wire_result
from inspector.views.train_run import (
    HistoryView,
    RunView,
    build_history,
    build_run,
    list_history,
    look,
    read_job,
    read_person,
    read_runs,
    remember,
    watched,
    wire_history,
    wire_run,
)
from model import InputError
from model.training.synthetic.word import parse_word, teaching_recipe

PERIOD_S = 1.0
EXPLAIN = (
    "A run has a process of its own with lower priority, so questions are answered while it trains, and it goes on "
    "when this page is closed. Loss is the mean of −ln p over the tokens that are trained on; held-out data are never "
    "trained on. A short run on a narrow task also makes a model forget: compare before and after."
)


@dataclass(frozen=True)
class TrainView:
    form: TrainForm
    run: RunView
    result: ResultView
    history: HistoryView


def build_train(store: ModelStore, jobs: JobTable, shelf: PartShelf | None = None) -> TrainView:
    gr.HTML(
        '<div class="vi-caption">Train a copy of a model, watch it learn, and see what changed.'
        f"{say_bounds(jobs.bounds)}"
        f"<details><summary>How it runs, and what it can't show</summary>{EXPLAIN}</details></div>"
    )
    form = build_form(store, jobs.bounds, shelf)
    gr.HTML('<h2 class="vi-heading">The run</h2>')
    run = build_run()
    gr.HTML('<h2 class="vi-heading">What it changed</h2>')
    result = build_result()
    gr.HTML('<h2 class="vi-heading">Your runs</h2>')
    return TrainView(form, run, result, build_history())


def say_bounds(bounds: Bounds) -> str:
    """What a run may take on this server; nothing where it may take what it likes."""
    said = []
    if bounds.runs_per_person is not None:
        runs = "1 run" if bounds.runs_per_person == 1 else f"{bounds.runs_per_person} runs"
        said.append(f"each person has {runs} at a time")
    if bounds.run_minutes is not None:
        said.append(
            f"a run takes at most {bounds.run_steps:,} steps and {bounds.run_minutes:g} minutes, loading and "
            "pauses included"
        )
    if bounds.run_bytes is not None:
        said.append(f"a run has {format_bound(bounds.run_bytes, 'bytes')} of memory")
    if not bounds.keep_uploads:
        said.append("uploads are deleted when it ends")
    if bounds.run_hours is not None:
        said.append(f"a run that is over is kept for {bounds.run_hours:g} hours, or less where the disk is full")
    return f" <b>On this server</b> {'; '.join(said)}." if said else ""


@dataclass(frozen=True)
class TrainHandlers:
    """What starts and finds runs calls; ``known`` is what a browser remembers of its runs."""

    reader: RecipeReader
    jobs: JobTable

    def start(self, request: gr.Request, preset: str, upload: Upload | None, known: Any, *values: Any) -> Iterator[Any]:
        known = read_person(known)
        try:
            found, recipe = self.reader.read(preset, upload, values)
            mine = upload.folder if upload is not None and found.data == UPLOAD else None
            shown = self.reader.admit(found, recipe)
            yield [shown, *self._follow_new(known, self.jobs.start(identify(request), recipe, mine)), ""]
        except InputError as error:
            # Beside the button, one sentence however often it is pressed; a program gets it as an error.
            yield {self.reader.form.note: show_notes([str(error)])}
            raise refuse(error, seen=False) from error

    def teach(self, word: str, rgb: str, known: Any, request: gr.Request) -> list[Any]:
        known = read_person(known)
        try:
            spec = parse_word(str(word or "").strip().lower(), str(rgb or "").strip() or None)
            return self._follow_new(known, self.jobs.start(identify(request), teaching_recipe(spec)))
        except InputError as error:
            raise refuse(error, stays=True) from error

    def attach(self, known: Any, request: gr.Request) -> list[Any]:
        """The run that the address names, else this browser's newest that isn't over, else its newest."""
        known = read_person(known)
        wanted = str(dict(request.query_params).get("job", ""))
        runs = read_runs(self.jobs, known)
        job = wanted or next((state.id for state in runs if state.live), runs[0].id if runs else "")
        try:
            values = look(self.jobs, job, None)
        except InputError as error:
            warn(error, stays=True)
            job, values = "", look(self.jobs, "", None)
        if wanted and job and job not in known["jobs"]:
            known = remember(known, job)
        return [job, known, *list_history(self.jobs, known), *values]

    def describe(self, job: str) -> dict[str, Any]:
        """A run's state and last numbers; ``job`` is its id."""
        try:
            state, progress = read_job(self.jobs, (job or "").strip())
        except InputError as error:
            raise refuse(error) from error
        return {
            "id": state.id,
            "title": state.title,
            "status": state.status,
            "position": state.position,
            "error": hide_paths(state.error or "") or None,
            "fingerprint": state.run.get("fingerprint"),
            "base_fingerprint": state.run.get("base_fingerprint"),
            "steps_done": len(progress.train),
            "losses": [point[1] if math.isfinite(point[1]) else None for point in progress.train],
            "held_out": [list(p) for p in progress.held_out],
            "accuracy": progress.evaluations[-1]["accuracy"] if progress.evaluations else {},
            "can_resume": state.can_resume,
            "ledger": hide_all_paths(state.run.get("ledger") or {}),
            "command": COMMAND,
        }

    def _follow_new(self, known: dict[str, Any], job: str) -> list[Any]:
        known = remember(known, job)
        return [job, known, *list_history(self.jobs, known), *look(self.jobs, job, None)]


def wire_train(
    view: TrainView,
    store: ModelStore,
    jobs: JobTable,
    demo: GuardedBlocks,
    prompt: prompt_view.PromptView,
    person: gr.BrowserState,
    timer: gr.Timer,
    shelf: PartShelf | None = None,
) -> None:
    """``person`` and ``timer`` must be declared at the top level of the Blocks, or nothing comes back after a reload
    while another tab is open."""
    form, run, result = view.form, view.run, view.result
    reader = RecipeReader(form, store, jobs.bounds, shelf or PartShelf())
    seen = watched(run, timer, [result.compare, result.use, result.export, result.push, result.go_on])
    wire_form(form, reader, jobs)
    wire_run(run, jobs, timer, seen)
    wire_history(view.history, run, jobs, person)
    wire_result(result, store, jobs, prompt, run.job, form, demo)
    started: list[Any] = [run.job, person, view.history.history, view.history.overlay, *seen]
    asked: list[Any] = [form.modules, *started, form.note]
    handlers = TrainHandlers(reader, jobs)
    starting: dict[str, Any] = {"concurrency_limit": 1, "show_progress": "hidden"}
    form.start.click(
        handlers.start,
        [form.preset, form.upload, person, *form.fields.values()],
        asked,
        api_name="train_start",
        **starting,
    )
    form.teach.click(handlers.teach, [form.word, form.rgb, person], started, api_name="train_teach_word", **starting)
    demo.load(handlers.attach, person, started, api_name="train_attach", concurrency_limit=None, show_progress="hidden")
    gr.api(handlers.describe, api_name="job", concurrency_limit=None)


def jobs_from(root: str | None, public: bool) -> JobTable:
    """The table of this server; ``root`` None is a temporary folder."""
    return JobTable(Path(root) if root else None, public_bounds() if public else private_bounds())
