"""The Train tab's lower part: what a run changed, and its model to use and to take away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from inspector.bounds import Bounds
from inspector.figures.before_after import show_comparison
from inspector.runs.before_after import HeldOutComparison, measure_change, word_of
from inspector.runs.delivery import pack_run, push_run
from inspector.runs.jobs import JobTable
from inspector.runs.presets import PRESETS, SECOND_STAGE
from inspector.server.blocks import GuardedBlocks
from inspector.server.toasts import inform, refuse, warn
from inspector.server.turns import Rank
from inspector.session import ModelStore
from inspector.views import prompt as prompt_view
from inspector.views.train_form import TrainForm, fill_fields, filled_fields, list_bases, say_why
from inspector.which_image.model_comparison import Comparison, compare_answers
from model import InputError
from model.training.runs import MODEL

TO_FORM = "() => { document.querySelector('#train-preset').scrollIntoView({ block: 'center' }); }"
EMPTY = (
    '<p class="vi-empty">When a run has ended, the same questions with the same seed go to the model before and after '
    "it: questions that the run never saw, and this page's prompt.</p>"
)


@dataclass(frozen=True)
class ResultView:
    compare: gr.Button
    use: gr.Button
    export: gr.Button
    result: gr.HTML
    files: gr.File
    repository: gr.Textbox
    token: gr.Textbox
    push: gr.Button
    pushed: gr.HTML
    own_models: gr.State
    go_on: gr.Button


def build_result() -> ResultView:
    with gr.Row():
        compare = gr.Button("Compare before and after", size="sm", interactive=False, elem_id="train-compare")
        use = gr.Button("Use this model", size="sm", interactive=False, elem_id="train-use")
        go_on = gr.Button("Go on with stage 2", size="sm", interactive=False, elem_id="train-go-on")
        export = gr.Button("Export", size="sm", min_width=80, interactive=False, elem_id="train-export")
    # Beside the button that makes it, above what may be long.
    files = gr.File(
        label="Checkpoint in nanoVLM's format, adapter, recipe, command",
        interactive=False,
        visible=False,
        elem_id="train-files",
    )
    result = gr.HTML(EMPTY, elem_id="train-result")
    with gr.Accordion("Push to the hub", open=False, elem_id="train-hub-push"):
        with gr.Row():
            repository = gr.Textbox("", label="Repository, owner/name (made private)", min_width=180)
            token = gr.Textbox(
                "", label="Token that may write (used once, kept nowhere)", type="password", min_width=180
            )
            push = gr.Button("Push", size="sm", min_width=80, interactive=False, elem_id="train-push")
        pushed = gr.HTML()
    return ResultView(compare, use, export, result, files, repository, token, push, pushed, gr.State([]), go_on)


@dataclass(frozen=True)
class ResultHandlers:
    """What the events below a run call; ``job`` is the run's id. ``bounds`` are those of a prompt."""

    store: ModelStore
    jobs: JobTable
    bounds: Bounds
    form: TrainForm

    def compare(self, job: str, *values: Any) -> Iterator[str]:
        comparison: Comparison | None = None
        measured: HeldOutComparison | None = None
        try:
            recipe = self.jobs.recipe((job or "").strip())
            yield show_comparison(None, None, "loading both models")
            before = self.store.get_base(recipe)
            after = self.store.get(admit_run(self.store, self.jobs, job))
            for found in measure_change(before, after, recipe):
                if isinstance(found, HeldOutComparison):
                    measured = found
                else:
                    yield show_comparison(None, None, found)
            # A word that was taught is nothing that this page's prompt asks about.
            if word_of(recipe) is None:
                yield show_comparison(None, measured, "asking this page's prompt")
                for comparison in _compare_prompt(before, after, values, self.bounds):
                    yield show_comparison(comparison, measured, "taking images away from this page's prompt")
            yield show_comparison(comparison, measured, over=True)
        except InputError as error:
            raise refuse(error, stays=True) from error

    def use(self, job: str, own: list[tuple[str, str]]) -> list[Any]:
        own, name = self._admit(job, own)
        common = [(shared, shared) for shared in self.store.names]
        inform(f"“{own[0][0]}” is in the model picker of this page, for you alone.")
        return [
            own,
            gr.update(choices=[*common, *own], value=name, visible=True),
            gr.update(choices=[*own, *list_bases(self.store.names)]),
        ]

    def go_on(self, job: str, own: list[tuple[str, str]]) -> list[Any]:
        """The form for the second stage, from what this run made."""
        own, name = self._admit(job, own)
        base = gr.update(choices=[*own, *list_bases(self.store.names)], value=name)
        filled = fill_fields(self.form, {**PRESETS[SECOND_STAGE].values, "base": base})
        # What was shown of the run before says nothing about the next one.
        return [own, "", "", SECOND_STAGE, say_why(SECOND_STAGE), *filled]

    def _admit(self, job: str, own: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], str]:
        """This page's own models with the run's first, and its name."""
        try:
            name = admit_run(self.store, self.jobs, job)
            fingerprint = self.store.get(name).fingerprint
        except InputError as error:
            raise refuse(error, stays=True) from error
        label = f"{self.store.title_of(name)} #{fingerprint[:8]}"
        return [(label, name), *(entry for entry in own if entry[1] != name)], name

    def export(self, job: str) -> Any:
        try:
            path = pack_run(self.jobs.run_folder((job or "").strip()), self.jobs.read(job.strip()).run)
        except InputError as error:
            raise refuse(error, stays=True) from error
        return gr.update(value=str(path), visible=True)

    def push(self, job: str, repository: str, token: str) -> tuple[str, str]:
        try:
            folder = self.jobs.run_folder((job or "").strip())
            address = push_run(folder, self.jobs.read(job.strip()).run, repository or "", token or "")
        except InputError as error:
            warn(error, stays=True)
            return "", f'<p class="tr-error" role="alert">{escape(str(error))}</p>'
        return "", f'<p class="vi-good">✓ On the hub: <a href="{escape(address)}">{escape(address)}</a></p>'


def wire_result(
    view: ResultView,
    store: ModelStore,
    jobs: JobTable,
    prompt: prompt_view.PromptView,
    job: gr.Textbox,
    form: TrainForm,
    demo: GuardedBlocks,
) -> None:
    """``job`` names the run; ``form`` is what begins the next one."""
    handlers = ResultHandlers(store, jobs, prompt.bounds, form)
    compared = view.compare.click(
        demo.turns.run(Rank.EXPERIMENT, handlers.compare, demo.bounds.study_s),
        [job, *prompt.inputs],
        view.result,
        api_name="train_compare",
        concurrency_id=Rank.EXPERIMENT.place,
        concurrency_limit=1,
        show_progress="hidden",
    )
    # What was found of one run must not stand below another.
    job.change(
        lambda: (EMPTY, gr.update(value=None, visible=False)),
        None,
        [view.result, view.files],
        api_name="train_another",
        concurrency_limit=None,
        show_progress="hidden",
        cancels=[compared],
    )
    view.use.click(
        handlers.use,
        [job, view.own_models],
        [view.own_models, prompt.model, form.fields["base"]],
        api_name="train_use",
        concurrency_limit=None,
        show_progress="hidden",
    )
    gone_on = view.go_on.click(
        handlers.go_on,
        [job, view.own_models],
        [view.own_models, form.modules, form.reports, form.preset, form.why, *filled_fields(form)],
        api_name="train_go_on",
        concurrency_limit=None,
        show_progress="hidden",
    )
    # The form that is filled now stands far above the button.
    gone_on.success(None, None, None, js=TO_FORM, api_visibility="private")
    view.export.click(handlers.export, job, view.files, api_name="train_export", concurrency_limit=1)
    pushed = [view.token, view.pushed]
    view.push.click(
        handlers.push, [job, view.repository, view.token], pushed, api_name="train_push", concurrency_limit=1
    )


def admit_run(store: ModelStore, jobs: JobTable, job: str) -> str:
    """The name under which the store gives the run's model to those who know the run. InputError without weights."""
    job = (job or "").strip()
    state = jobs.read(job)
    if not state.has_model:
        raise InputError("This run has no weights yet; wait until it has ended, or stop it and keep what is there.")
    # The run's id gives the right to steer it, so it is no part of a name that goes around with every question. What
    # is made of it and the weights is the same each time, and can't be guessed without it.
    return store.admit(job, jobs.run_folder(job) / MODEL, state.title)


def _compare_prompt(before: Any, after: Any, values: Sequence[Any], bounds: Bounds) -> Iterator[Comparison]:
    """The page's prompt to both; a prompt that can't be asked is said and left out."""
    _, gallery, turns, layout, document_mask, *rest = values
    count = len(rest) - 2 * prompt_view.MAX_TURNS
    try:
        settings = prompt_view.read_settings(rest[:count], bounds)
        asked, _ = prompt_view.read_prompt(gallery, turns, layout, document_mask, rest[count:], bounds)
        yield from compare_answers(before, after, asked, settings)
    except InputError as error:
        warn(f"This page's prompt is left out: {error}")
