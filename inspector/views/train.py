"""The Train tab: choose what trains on what, follow the run, see what it changed, take it away."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from inspector.analysis.training import Comparison, Measured, check_data, compare_answers, measure_change, size_modules
from inspector.delivery import COMMAND, pack_run, push_run
from inspector.figures.training import (
    chart_payload,
    overlay_payload,
    run_label,
    show_comparison,
    show_evaluation,
    show_history,
    show_modules,
    show_reports,
    show_status,
)
from inspector.jobs import JobState, JobTable, Progress, public_limits
from inspector.presets import (
    BUILT_IN,
    DATA,
    HUB,
    NEW,
    PRESETS,
    SOURCES,
    UPLOAD,
    Form,
    describe_recipe,
    read_form,
    write_recipe,
)
from inspector.session import ModelStore
from inspector.uploads import SUFFIXES, Upload, take_in
from inspector.views import prompt as prompt_view
from inspector.widgets import LossChart
from model import InputError
from model.training.outlines import OUTLINES
from model.training.recipe import KINDS, PACKINGS, Recipe
from model.training.runs import MODEL
from model.training.word import COLOUR_LOOKS, parse_word, teaching_recipe

REMEMBERED = 30
"""Runs that a browser keeps the ids of."""
PERIOD_S = 1.0
RATES = (
    ("vision_rate", "Rate: image encoder"), ("projector_rate", "Rate: projector"),
    ("decoder_rate", "Rate: language model"), ("text_rate", "Rate: text tower"),
)  # fmt: skip
FIRST = "instruction tuning"
EXPLAIN = (
    "A run has a process of its own with lower priority, so questions are answered while it trains, and it goes on "
    "when this page is closed. Loss is the mean of −ln p over the tokens that are trained on; held-out data are never "
    "trained on. A short run on a narrow task also makes a model forget: compare before and after."
)


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
class TrainView:
    """``form`` holds the components of :class:`inspector.presets.Form` by its fields' names."""

    teach: gr.Button
    word: gr.Dropdown
    rgb: gr.Textbox
    preset: gr.Radio
    why: gr.HTML
    form: dict[str, Any]
    file: gr.File
    upload: gr.State
    check: gr.Button
    start: gr.Button
    modules: gr.HTML
    reports: gr.HTML
    job: gr.Textbox
    followed: gr.State
    status: gr.HTML
    pause: gr.Button
    resume: gr.Button
    stop: gr.Button
    chart: Any
    answers: gr.HTML
    compare: gr.Button
    use: gr.Button
    export: gr.Button
    result: gr.HTML
    files: gr.File
    repository: gr.Textbox
    token: gr.Textbox
    push: gr.Button
    pushed: gr.HTML
    history: gr.HTML
    overlay: gr.CheckboxGroup
    curves: Any
    own_models: gr.State


def build_train(store: ModelStore, jobs: JobTable) -> TrainView:
    limits = jobs.limits
    bounds = ""
    if limits.minutes is not None:
        bounds = (
            f" <b>On this server</b> each person has {limits.per_person} run at a time, of at most {limits.steps:,} "
            f"steps and {limits.minutes:g} minutes; uploads are deleted when it ends."
        )
    gr.HTML(
        f'<div class="vi-caption">Train a copy of a model, watch it learn, and see what changed.{bounds}'
        f"<details><summary>How it runs, and what it can't show</summary>{EXPLAIN}</details></div>"
    )
    with gr.Group(elem_classes="tr-teach"):
        gr.HTML('<p class="vi-good">The model has never heard of “purple” or “star”. Teach it the word, in about a '
                "minute, and compare before and after.</p>")  # fmt: skip
        with gr.Row():
            word = gr.Dropdown([*COLOUR_LOOKS, *OUTLINES], value="purple", label="Word", allow_custom_value=True,
                               min_width=130, elem_id="train-word")  # fmt: skip
            rgb = gr.Textbox("", label="RGB, for a colour of your own", placeholder="128, 0, 128", min_width=150,
                             elem_id="train-rgb")  # fmt: skip
            teach = gr.Button("Teach it a word", variant="primary", min_width=150, elem_id="train-teach")
    preset = gr.Radio(list(PRESETS), value=FIRST, label="Or begin with", elem_id="train-preset")
    why = gr.HTML(_why(FIRST), elem_id="train-why")
    values = {"seed": 0, "base": store.names[0], "path": "", "source": "auto", **PRESETS[FIRST].values}
    form: dict[str, Any] = {}
    with gr.Row():
        form["base"] = gr.Dropdown([*store.names, (f"{NEW}: random weights", NEW)], value=values["base"],
                                   label="Base model", min_width=150, elem_id="train-base")  # fmt: skip
        form["data"] = gr.Dropdown(list(DATA), value=values["data"], label="Data", min_width=150, elem_id="train-data")
        form["steps"] = gr.Number(values["steps"], label="Steps", precision=0, min_width=90, elem_id="train-steps")
    with gr.Row():
        file = gr.File(label=f"Data file ({', '.join(SUFFIXES)})", file_types=list(SUFFIXES), height=110,
                       visible=False, elem_id="train-file")  # fmt: skip
        form["path"] = gr.Textbox("", label="Data set on the hub: owner/name or owner/name:subset", visible=False,
                                  elem_id="train-hub")  # fmt: skip
        form["source"] = gr.Dropdown(list(SOURCES), value="auto", label="Format", min_width=110, visible=False,
                                     elem_id="train-source")  # fmt: skip
    with gr.Accordion("Learning rates and the rest", open=False, elem_id="train-more"):
        with gr.Row():
            for name, label in RATES:
                form[name] = gr.Number(values[name], label=f"{label} (0: frozen)", min_width=140,
                                       elem_id=f"train-{name.replace('_', '-')}")  # fmt: skip
        with gr.Row():
            form["kind"] = gr.Dropdown(list(KINDS), value=values["kind"], label="Stage", min_width=110)
            form["lora_rank"] = gr.Number(values["lora_rank"], label="LoRA rank (0: off)", precision=0, min_width=90)
            form["packing"] = gr.Dropdown(list(PACKINGS), value=values["packing"], label="Packing", min_width=100)
            form["batch_rows"] = gr.Number(values["batch_rows"], label="Rows per batch", precision=0, min_width=90)
            form["eval_every"] = gr.Number(values["eval_every"], label="Evaluate every … steps", precision=0,
                                           min_width=90)  # fmt: skip
            form["seed"] = gr.Number(values["seed"], label="Seed", precision=0, min_width=80)
    with gr.Row():
        check = gr.Button("Check: what trains, on what", size="sm", elem_id="train-check")
        start = gr.Button("Start", size="sm", variant="primary", elem_id="train-start")
    modules = gr.HTML(elem_id="train-modules")
    reports = gr.HTML(elem_id="train-reports")
    gr.HTML('<h2 class="vi-heading">The run</h2>')
    status = gr.HTML(show_status(None, Progress()), elem_id="train-status")
    with gr.Row():
        pause = gr.Button("Pause", size="sm", min_width=80, interactive=False, elem_id="train-pause")
        resume = gr.Button("Resume", size="sm", min_width=80, interactive=False, elem_id="train-resume")
        stop = gr.Button("Stop and keep", size="sm", min_width=100, interactive=False, elem_id="train-stop")
        job = gr.Textbox("", label="Run", show_label=False, placeholder="paste a run's id here to follow it",
                         max_lines=1, min_width=200, elem_id="train-job")  # fmt: skip
    chart = LossChart(elem_id="train-chart")
    answers = gr.HTML(show_evaluation(Progress()), elem_id="train-answers")
    gr.HTML('<h2 class="vi-heading">What it changed</h2>')
    with gr.Row():
        compare = gr.Button("Compare before and after", size="sm", interactive=False, elem_id="train-compare")
        use = gr.Button("Use this model", size="sm", interactive=False, elem_id="train-use")
        export = gr.Button("Export", size="sm", min_width=80, interactive=False, elem_id="train-export")
    result = gr.HTML(
        '<p class="vi-empty">When a run has ended, the same questions with the same seed go to the model before and '
        "after it: this page's prompt, and questions that the run never saw.</p>", elem_id="train-result",
    )  # fmt: skip
    files = gr.File(label="Checkpoint in nanoVLM's format, adapter, recipe, command", interactive=False, visible=False,
                    elem_id="train-files")  # fmt: skip
    with gr.Accordion("Push to the hub", open=False, elem_id="train-hub-push"):
        with gr.Row():
            repository = gr.Textbox("", label="Repository, owner/name (made private)", min_width=180)
            token = gr.Textbox("", label="Token that may write (used once, kept nowhere)", type="password",
                               min_width=180)  # fmt: skip
            push = gr.Button("Push", size="sm", min_width=80, interactive=False, elem_id="train-push")
        pushed = gr.HTML()
    gr.HTML('<h2 class="vi-heading">Your runs</h2>')
    history = gr.HTML(show_history([]), elem_id="train-history")
    overlay = gr.CheckboxGroup([], label="Curves to lay over one another", visible=False, elem_id="train-overlay")
    curves = LossChart(elem_id="train-curves", visible=False)
    return TrainView(
        teach, word, rgb, preset, why, form, file, gr.State(None), check, start, modules, reports, job,
        gr.State(Followed()), status, pause, resume, stop, chart, answers, compare, use, export, result, files,
        repository, token, push, pushed, history, overlay, curves, gr.State([]),
    )  # fmt: skip


def _why(preset: str) -> str:
    return f'<p class="vi-caption">{escape(PRESETS[preset].why)}</p>'


# --- the person and the followed run ---


def read_person(person: Any) -> dict[str, Any]:
    """What the browser remembers: a secret name for this person, and the ids of the runs. Whatever else comes, even
    by hand, is replaced."""
    if not isinstance(person, dict) or not isinstance(person.get("owner"), str) or len(person["owner"]) < 16:
        return {"owner": secrets.token_urlsafe(18), "jobs": []}
    listed = person.get("jobs")
    kept = [job for job in listed if isinstance(job, str)] if isinstance(listed, list) else []
    return {"owner": person["owner"][:64], "jobs": kept[:REMEMBERED]}


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
    rows = [(state, jobs.progress(state.id), describe_recipe(jobs.recipe(state.id))) for state in runs]
    choices = [(run_label(state), state.id) for state in runs]
    return show_history(rows), gr.update(choices=choices, value=[], visible=bool(choices))


def look(jobs: JobTable, job: str, followed: Followed | None) -> list[Any]:
    """Values for :func:`watched`: only what is new since ``followed``."""
    job = (job or "").strip()
    followed = followed or Followed()
    if not job:
        quiet = [gr.update(interactive=False)] * 7
        fresh = chart_payload("", Progress(), 0, 0)
        return [Followed(), gr.update(active=False), show_status(None, Progress()), gr.update(data=fresh),
                show_evaluation(Progress()), *quiet]  # fmt: skip
    state = jobs.read(job)
    progress = jobs.progress(job)
    anew = followed.job != job or followed.generation != progress.generation
    if anew:
        followed = Followed(job, progress.generation)
    counts = (len(progress.train), len(progress.held_out), len(progress.evaluations))
    grown = anew or counts[:2] != (followed.train, followed.held_out)
    answered = anew or counts[2] != followed.evaluations
    buttons: list[Any] = [gr.skip()] * 7
    if anew or state.status != followed.status:
        over = state.has_model and not state.live
        resumable = state.status in ("paused", "pausing") or (state.can_resume and not state.live)
        flags = (state.status == "running", resumable, state.status in ("queued", "running", "pausing", "paused"),
                 over, over, over, over)  # fmt: skip
        buttons = [gr.update(interactive=flag) for flag in flags]
    return [
        Followed(job, progress.generation, *counts, state.status),
        gr.update(active=state.live),
        show_status(state, progress),
        gr.update(data=chart_payload(job, progress, followed.train, followed.held_out)) if grown else gr.skip(),
        show_evaluation(progress) if answered else gr.skip(),
        *buttons,
    ]


def watched(view: TrainView, timer: gr.Timer) -> list[Any]:
    """The outputs of :func:`look`."""
    return [view.followed, timer, view.status, view.chart, view.answers, view.pause, view.resume, view.stop,
            view.compare, view.use, view.export, view.push]  # fmt: skip


# --- events ---


def _refuse(error: InputError) -> gr.Error:
    return gr.Error(str(error), duration=None, print_exception=False)


def wire_train(
    view: TrainView,
    store: ModelStore,
    jobs: JobTable,
    demo: gr.Blocks,
    prompt: prompt_view.PromptView,
    person: gr.BrowserState,
    timer: gr.Timer,
    model_queue: str,
) -> None:
    """``person`` and ``timer`` must be declared at the top level of the Blocks, or nothing comes back after a reload
    while another tab is open."""
    free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    seen = watched(view, timer)
    names = list(view.form)
    fields = list(view.form.values())

    def fill(preset: str) -> list[Any]:
        values = PRESETS[preset].values
        if "steps" in values and values["steps"] > jobs.limits.steps:
            values = {**values, "steps": jobs.limits.steps}
        filled = [values.get(name, gr.skip()) for name in names]
        return [_why(preset), *filled, *(_ask_for(values["data"]) if "data" in values else [gr.skip()] * 3)]

    where = [view.file, view.form["path"], view.form["source"]]
    plain = [field for field in fields if field not in where]
    order = [names.index(name) for name, field in view.form.items() if field in plain]

    def fill_plain(preset: str) -> list[Any]:
        why, *rest = fill(preset)
        return [why, *(rest[place] for place in order), *rest[len(names) :]]

    view.preset.input(fill_plain, view.preset, [view.why, *plain, *where], api_name="train_preset", **free)

    view.form["data"].input(_ask_for, view.form["data"], where, api_name="train_data", **free)

    def uploaded(path: str | None, old: Upload | None) -> tuple[Upload | None, Any]:
        if path is None:
            return None, gr.skip()
        try:
            found = take_in(path, jobs.uploads)
        except InputError as error:
            raise _refuse(error) from error
        gr.Info(f"Read as “{found.source}”; press Check to see what is in it.")
        return found, found.source

    view.file.upload(uploaded, [view.file, view.upload], [view.upload, view.form["source"]], api_name="train_upload",
                     concurrency_limit=1)  # fmt: skip

    def recipe_of(values: Sequence[Any], upload: Upload | None, title: str) -> tuple[Form, Recipe]:
        form = read_form(**dict(zip(names, values, strict=True)))
        if form.data == UPLOAD:
            source = form.source if form.source != "auto" or upload is None else upload.source
            form = replace(form, path=str(upload.path) if upload is not None else "", source=source)
        base = NEW if form.base == NEW else store.source_of(form.base)
        return form, write_recipe(form, base, f"{title}: {form.data}")

    def check(preset: str, upload: Upload | None, *values: Any) -> tuple[str, str]:
        try:
            form, recipe = recipe_of(values, upload, preset)
            vlm = store.get(store.names[0] if form.base == NEW else form.base)
            return show_modules(size_modules(vlm, recipe.stages[0])), show_reports(check_data(vlm, recipe))
        except InputError as error:
            raise _refuse(error) from error

    view.check.click(check, [view.preset, view.upload, *fields], [view.modules, view.reports],
                     api_name="train_check", show_progress_on=[view.reports], concurrency_limit=1)  # fmt: skip

    started: list[Any] = [view.job, person, view.history, view.overlay, *seen]

    def follow_new(known: dict[str, Any], job: str) -> list[Any]:
        known = {**known, "jobs": [job, *known["jobs"]][:REMEMBERED]}
        return [job, known, *list_history(jobs, known), *look(jobs, job, None)]

    def start(preset: str, upload: Upload | None, known: Any, *values: Any) -> list[Any]:
        known = read_person(known)
        try:
            form, recipe = recipe_of(values, upload, preset)
            mine = upload.folder if form.data == UPLOAD and upload is not None else None
            shown = size_modules(store.get(store.names[0] if form.base == NEW else form.base), recipe.stages[0])
            return [show_modules(shown), *follow_new(known, jobs.start(known["owner"], recipe, mine))]
        except InputError as error:
            raise _refuse(error) from error

    view.start.click(start, [view.preset, view.upload, person, *fields], [view.modules, *started],
                     api_name="train_start", concurrency_limit=1, show_progress="hidden")  # fmt: skip

    def teach(word: str, rgb: str, known: Any) -> list[Any]:
        known = read_person(known)
        try:
            spec = parse_word((word or "").strip().lower(), (rgb or "").strip() or None)
            return follow_new(known, jobs.start(known["owner"], teaching_recipe(spec)))
        except InputError as error:
            raise _refuse(error) from error

    view.teach.click(teach, [view.word, view.rgb, person], started, api_name="train_teach_word", concurrency_limit=1,
                     show_progress="hidden")  # fmt: skip

    def tick(job: str, followed: Followed) -> list[Any]:
        try:
            return look(jobs, job, followed)
        except InputError:
            # Said once when it was opened; a run that is gone is not looked for every second.
            return [Followed(), gr.update(active=False), *[gr.skip()] * (len(seen) - 2)]

    timer.tick(tick, [view.job, view.followed], seen, api_name="train_tick", **free)

    def open_job(job: str) -> list[Any]:
        try:
            return look(jobs, job, None)
        except InputError as error:
            raise _refuse(error) from error

    view.job.submit(open_job, view.job, seen, api_name="train_open", **free)

    def steer(action: Any) -> Any:
        def ask(job: str) -> list[Any]:
            try:
                action((job or "").strip())
                return look(jobs, job, None)
            except InputError as error:
                raise _refuse(error) from error

        return ask

    for button, action, name in ((view.pause, jobs.pause, "train_pause"), (view.resume, jobs.resume, "train_resume"),
                                 (view.stop, jobs.stop, "train_stop")):  # fmt: skip
        button.click(steer(action), view.job, seen, api_name=name, **free)

    def attach(known: Any, request: gr.Request) -> list[Any]:
        """The run that the address names, else this browser's newest that isn't over, else its newest."""
        known = read_person(known)
        wanted = str(dict(request.query_params).get("job", ""))
        runs = read_runs(jobs, known)
        job = wanted or next((state.id for state in runs if state.live), runs[0].id if runs else "")
        try:
            values = look(jobs, job, None)
        except InputError as error:
            gr.Warning(str(error), duration=None)
            job, values = "", look(jobs, "", None)
        if wanted and job and job not in known["jobs"]:
            known = {**known, "jobs": [job, *known["jobs"]][:REMEMBERED]}
        return [job, known, *list_history(jobs, known), *values]

    demo.load(attach, person, started, api_name="train_attach", **free)

    # The list is worth looking at again when the followed run is over.
    view.status.change(refresh_if_over(jobs), [view.job, person], [view.history, view.overlay],
                       api_name="train_ended", **free)  # fmt: skip

    def overlay(chosen: list[str]) -> Any:
        try:
            runs = [(run_label(jobs.read(job)), jobs.progress(job)) for job in chosen[:6]]
        except InputError as error:
            raise _refuse(error) from error
        return gr.update(data=overlay_payload(runs), visible=bool(runs))

    view.overlay.input(overlay, view.overlay, view.curves, api_name="train_overlay", **free)

    prompt_inputs = list(prompt.inputs)

    def compare(job: str, *values: Any) -> Iterator[str]:
        comparison: Comparison | None = None
        measured: Measured | None = None
        try:
            recipe = jobs.recipe((job or "").strip())
            yield show_comparison(None, None, "loading both models")
            before = store.get_base(recipe.base, recipe.seed)
            after = store.get(admit_run(store, jobs, job))
            yield show_comparison(None, None, "asking this page's prompt")
            comparison = _compare_prompt(before, after, values)
            for found in measure_change(before, after, recipe):
                if isinstance(found, Measured):
                    measured = found
                else:
                    yield show_comparison(comparison, None, found)
            yield show_comparison(comparison, measured)
        except InputError as error:
            raise _refuse(error) from error

    view.compare.click(compare, [view.job, *prompt_inputs], view.result, api_name="train_compare",
                       concurrency_id=model_queue, show_progress="hidden")  # fmt: skip

    def use(job: str, own: list[tuple[str, str]]) -> list[Any]:
        try:
            name = admit_run(store, jobs, job)
            state = jobs.read(job.strip())
            store.get(name)
        except InputError as error:
            raise _refuse(error) from error
        label = f"{state.title} #{(state.run.get('fingerprint') or '')[:8]}"
        own = [(label, name), *(entry for entry in own if entry[1] != name)]
        common = [(shared, shared) for shared in store.names]
        gr.Info(f"“{label}” is in the model picker of this page, for you alone.")
        return [own, gr.update(choices=[*common, *own], value=name, visible=True),
                gr.update(choices=[*common, *own, (f"{NEW}: random weights", NEW)])]  # fmt: skip

    view.use.click(use, [view.job, view.own_models], [view.own_models, prompt.model, view.form["base"]],
                   api_name="train_use", **free)  # fmt: skip

    def export(job: str) -> Any:
        try:
            path = pack_run(jobs.run_folder((job or "").strip()), jobs.read(job.strip()).run)
        except InputError as error:
            raise _refuse(error) from error
        return gr.update(value=str(path), visible=True)

    view.export.click(export, view.job, view.files, api_name="train_export", concurrency_limit=1)

    def push(job: str, repository: str, token: str) -> tuple[str, str]:
        try:
            address = push_run(jobs.run_folder((job or "").strip()), repository or "", token or "")
        except InputError as error:
            gr.Warning(str(error), duration=None)
            return "", f'<p class="tr-error" role="alert">{escape(str(error))}</p>'
        return "", f'<p class="vi-good">✓ On the hub: <a href="{escape(address)}">{escape(address)}</a></p>'

    view.push.click(push, [view.job, view.repository, view.token], [view.token, view.pushed], api_name="train_push",
                    concurrency_limit=1)  # fmt: skip
    gr.api(_describe_job(jobs), api_name="job", concurrency_limit=None)


def refresh_if_over(jobs: JobTable) -> Any:
    """The history, drawn again when the followed run is over; while it runs the list has nothing new."""

    def refresh(job: str, known: Any) -> tuple[Any, Any]:
        try:
            live = bool(job) and jobs.read(job.strip()).live
        except InputError:
            live = True
        return (gr.skip(), gr.skip()) if live else list_history(jobs, known)

    return refresh


def _ask_for(data: str) -> list[Any]:
    """Which of the fields about data of one's own are shown."""
    return [gr.update(visible=data == UPLOAD), gr.update(visible=data == HUB),
            gr.update(visible=data not in BUILT_IN)]  # fmt: skip


def admit_run(store: ModelStore, jobs: JobTable, job: str) -> str:
    """The name under which the store gives the run's model to those who know the run. InputError without weights."""
    job = (job or "").strip()
    state = jobs.read(job)
    if not state.has_model:
        raise InputError("This run has no weights yet; wait until it has ended, or stop it and keep what is there.")
    name = f"run:{job}:{(state.run.get('fingerprint') or 'unfinished')[:8]}"
    store.admit(name, jobs.run_folder(job) / MODEL)
    return name


def _compare_prompt(before: Any, after: Any, values: Sequence[Any]) -> Comparison | None:
    """The page's prompt to both; a prompt that can't be asked is said and left out."""
    _, gallery, turns, layout, document_mask, *rest = values
    count = len(rest) - 2 * prompt_view.MAX_TURNS
    try:
        settings = prompt_view.read_settings(rest[:count])
        asked, _ = prompt_view.read_prompt(gallery, turns, layout, document_mask, rest[count:])
        return compare_answers(before, after, asked, settings)
    except InputError as error:
        gr.Warning(f"This page's prompt is left out: {error}")
        return None


def _describe_job(jobs: JobTable) -> Any:
    def describe(job: str) -> dict[str, Any]:
        """A run's state and last numbers; ``job`` is its id."""
        try:
            state, progress = jobs.read(job), jobs.progress(job)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return {
            "id": state.id, "title": state.title, "status": state.status, "position": state.position,
            "error": state.error, "fingerprint": state.run.get("fingerprint"),
            "base_fingerprint": state.run.get("base_fingerprint"), "steps_done": len(progress.train),
            "losses": [point[1] for point in progress.train], "held_out": [list(p) for p in progress.held_out],
            "accuracy": progress.evaluations[-1]["accuracy"] if progress.evaluations else {},
            "can_resume": state.can_resume, "command": COMMAND,
        }  # fmt: skip

    return describe


def jobs_from(root: str | None, public: bool) -> JobTable:
    """The table of this server; ``root`` None is a temporary folder."""
    return JobTable(Path(root) if root else None, public_limits() if public else None)
