"""The Train tab's middle part: one run that is followed and steered, and what the browser remembers of its runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from inspector.figures.training import (
    chart_payload,
    overlay_payload,
    run_label,
    show_evaluation,
    show_first_batch,
    show_history,
    show_ledger,
    show_status,
)
from inspector.persons import identify
from inspector.runs.jobs import JobState, JobTable
from inspector.runs.presets import describe_recipe
from inspector.runs.progress import Progress
from inspector.server.toasts import refuse
from inspector.widgets import LossChart, encode
from model import InputError
from model.training.runs import RunFolder

REMEMBERED = 30
"""Runs that a browser keeps the ids of."""
STEERING = 3
"""Buttons that steer a run: pause, resume, stop."""
AFTER = 5
"""Buttons that need a run with weights: compare, use, export, push, go on."""


@dataclass(frozen=True)
class Followed:
    """How much of which run this page has drawn."""

    job: str = ""
    generation: int = -1
    train: int = 0
    held_out: int = 0
    evaluations: int = 0
    status: str = ""


@dataclass(frozen=True)
class RunView:
    job: gr.Textbox
    followed: gr.State
    status: gr.HTML
    pause: gr.Button
    resume: gr.Button
    stop: gr.Button
    chart: Any
    answers: gr.HTML


@dataclass(frozen=True)
class HistoryView:
    history: gr.HTML
    overlay: gr.CheckboxGroup
    curves: Any


def build_run() -> RunView:
    status = gr.HTML(show_status(None, Progress()), elem_id="train-status")
    with gr.Row():
        pause = gr.Button("Pause", size="sm", min_width=80, interactive=False, elem_id="train-pause")
        resume = gr.Button("Resume", size="sm", min_width=80, interactive=False, elem_id="train-resume")
        stop = gr.Button("Stop and keep", size="sm", min_width=100, interactive=False, elem_id="train-stop")
        job = gr.Textbox(
            "",
            label="Run",
            show_label=False,
            placeholder="a run's id, to follow it",
            max_lines=1,
            min_width=200,
            container=False,
            elem_id="train-job",
        )
    chart = LossChart(elem_id="train-chart")
    answers = gr.HTML(show_evaluation(Progress()), elem_id="train-answers")
    return RunView(job, gr.State(Followed()), status, pause, resume, stop, chart, answers)


def build_history() -> HistoryView:
    history = gr.HTML(show_history([]), elem_id="train-history")
    overlay = gr.CheckboxGroup([], label="Curves to lay over one another", visible=False, elem_id="train-overlay")
    return HistoryView(history, overlay, LossChart(elem_id="train-curves", visible=False))


# --- the person ---


def read_person(person: Any) -> dict[str, Any]:
    """What the browser remembers: the ids of its runs. Whatever else comes, even by hand, is left out; who somebody is
    nobody says of himself."""
    listed = person.get("jobs") if isinstance(person, dict) else None
    kept = [job for job in listed if isinstance(job, str)] if isinstance(listed, list) else []
    return {"jobs": kept[:REMEMBERED]}


def remember(known: dict[str, Any], job: str) -> dict[str, Any]:
    """What the browser is to remember now; the newest run first, each once."""
    others = (other for other in known["jobs"] if other != job)
    return {**known, "jobs": [job, *others][:REMEMBERED]}


def read_runs(jobs: JobTable, person: Any) -> list[JobState]:
    """The person's runs that are still here, newest first."""
    found = []
    for job in read_person(person)["jobs"]:
        try:
            found.append(jobs.read(job))
        except InputError:
            continue  # removed with time; nothing to say about it
    return found


def list_history(jobs: JobTable, person: Any) -> tuple[str, Any]:
    """Values for the history and for the choice of curves."""
    runs = read_runs(jobs, person)
    rows = [(state, jobs.progress(state.id), _settings(jobs, state.id)) for state in runs]
    choices = [(run_label(state), state.id) for state in runs]
    return show_history(rows), gr.update(choices=choices, value=[], visible=bool(choices))


def _settings(jobs: JobTable, job: str) -> Sequence[str]:
    """One run whose recipe is damaged must not hide the others."""
    try:
        return describe_recipe(jobs.recipe(job))
    except InputError as error:
        return [str(error)]


# --- the run that is followed ---


def read_job(jobs: JobTable, job: str) -> tuple[JobState, Progress]:
    """A run's state and what it said; what of that can't be read is said in the state. InputError for an id that names
    no run."""
    state, progress = jobs.read(job), jobs.progress(job)
    if progress.damaged and not state.live and state.error is None:
        lines = "1 line" if progress.damaged == 1 else f"{progress.damaged:,} lines"
        state = replace(state, error=f"{lines} of what this run said can't be read and are left out of its curves.")
    return state, progress


def look(jobs: JobTable, job: str, followed: Followed | None) -> list[Any]:
    """Values for :func:`watched`: only what is new since ``followed``. InputError for an id that names no run."""
    job = (job or "").strip()
    followed = followed or Followed()
    if not job:
        quiet = [gr.update(interactive=False)] * (STEERING + AFTER)
        fresh = chart_payload("", Progress(), 0, 0)
        return [
            Followed(),
            gr.update(active=False),
            show_status(None, Progress()),
            gr.update(data=encode(fresh)),
            show_evaluation(Progress()),
            *quiet,
        ]
    state, progress = read_job(jobs, job)
    anew = followed.job != job or followed.generation != progress.generation
    if anew:
        followed = Followed(job, progress.generation)
    counts = (len(progress.train), len(progress.held_out), len(progress.evaluations))
    grown = anew or counts[:2] != (followed.train, followed.held_out)
    answered = anew or counts[2] != followed.evaluations
    buttons: list[Any] = [gr.skip()] * (STEERING + AFTER)
    changed = anew or state.status != followed.status
    if changed:
        flags = (state.can_pause, state.can_go_on, state.can_stop, *[state.has_model and not state.live] * AFTER)
        buttons = [gr.update(interactive=flag) for flag in flags]
    return [
        Followed(job, progress.generation, *counts, state.status),
        gr.update(active=state.live),
        show_status(state, progress),
        gr.update(data=encode(chart_payload(job, progress, followed.train, followed.held_out))) if grown else gr.skip(),
        _show_data(jobs, state) + show_evaluation(progress) if answered or changed else gr.skip(),
        *buttons,
    ]


def _show_data(jobs: JobTable, state: JobState) -> str:
    """What became of the data, and what of them the stage began with."""
    index, stage = state.run.get("stage_index", 0), str(state.run.get("stage", ""))
    rows = RunFolder(jobs.run_folder(state.id)).read_first_batch(index) if isinstance(index, int) else ()
    return show_ledger(state.run) + show_first_batch(stage, rows)


def watched(view: RunView, timer: gr.Timer, after: list[gr.Button]) -> list[Any]:
    """The outputs of :func:`look`; ``after`` are the :data:`AFTER` buttons."""
    return [view.followed, timer, view.status, view.chart, view.answers, view.pause, view.resume, view.stop, *after]


@dataclass(frozen=True)
class RunHandlers:
    """What the events of the followed run call: values for :func:`watched`; ``job`` is the run's id."""

    jobs: JobTable

    def tick(self, job: str, followed: Followed) -> list[Any]:
        try:
            return look(self.jobs, job, followed)
        except InputError:
            # Said once when it was opened; a run that is gone is not looked for every second.
            return [Followed(), gr.update(active=False), *[gr.skip()] * (3 + STEERING + AFTER)]

    def follow(self, job: str) -> list[Any]:
        try:
            return look(self.jobs, job, None)
        except InputError as error:
            raise refuse(error, stays=True) from error

    # Whoever has the id may pause and stop; who goes on takes a place.

    def pause(self, job: str) -> list[Any]:
        return self._steer(job, self.jobs.pause)

    def resume(self, job: str, request: gr.Request) -> list[Any]:
        return self._steer(job, lambda job: self.jobs.resume(job, identify(request)))

    def stop(self, job: str) -> list[Any]:
        return self._steer(job, self.jobs.stop)

    def _steer(self, job: str, action: Callable[[str], None]) -> list[Any]:
        try:
            action((job or "").strip())
            return look(self.jobs, job, None)
        except InputError as error:
            raise refuse(error, stays=True) from error


def wire_run(view: RunView, jobs: JobTable, timer: gr.Timer, seen: list[Any]) -> None:
    """``seen``: :func:`watched`."""
    handlers = RunHandlers(jobs)
    free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    timer.tick(handlers.tick, [view.job, view.followed], seen, api_name="train_tick", **free)
    view.job.submit(handlers.follow, view.job, seen, api_name="train_open", **free)
    # A chart that is drawn late, in a tab opened after a reload, has only got what is new since.
    view.chart.missed(handlers.follow, view.job, seen, api_visibility="private", **free)
    view.pause.click(handlers.pause, view.job, seen, api_name="train_pause", **free)
    view.resume.click(handlers.resume, view.job, seen, api_name="train_resume", **free)
    view.stop.click(handlers.stop, view.job, seen, api_name="train_stop", **free)


@dataclass(frozen=True)
class HistoryHandlers:
    """What the list of a browser's runs calls; ``known`` is what that browser remembers."""

    jobs: JobTable

    def refresh(self, job: str, known: Any) -> tuple[Any, Any]:
        try:
            live = bool(job) and self.jobs.read(job.strip()).live
        except InputError:
            live = True
        return (gr.skip(), gr.skip()) if live else list_history(self.jobs, known)

    def lay_over(self, chosen: list[str]) -> Any:
        try:
            runs = [(run_label(self.jobs.read(job)), self.jobs.progress(job)) for job in (chosen or [])[:6]]
        except InputError as error:
            raise refuse(error, stays=True) from error
        return gr.update(data=encode(overlay_payload(runs)), visible=bool(runs))


def wire_history(view: HistoryView, run: RunView, jobs: JobTable, person: gr.BrowserState) -> None:
    handlers = HistoryHandlers(jobs)
    free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    # While the followed run goes on the list has nothing new; it is looked at again when that is over.
    listed = [view.history, view.overlay]
    run.status.change(handlers.refresh, [run.job, person], listed, api_name="train_ended", **free)
    laid: dict[str, Any] = {"api_name": "train_overlay", "trigger_mode": "always_last", **free}
    view.overlay.input(handlers.lay_over, view.overlay, view.curves, **laid)
