"""The Train tab's upper part: what trains, on what, how; and what that will do, before it is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from inspector.analysis.training import check_data, size_modules
from inspector.figures.training import show_modules, show_reports
from inspector.jobs import JobTable
from inspector.presets import (
    BUILT_IN,
    DATA,
    HUB,
    NEW,
    PRESETS,
    SOURCES,
    UPLOAD,
    Form,
    read_form,
    write_recipe,
)
from inspector.session import ModelStore
from inspector.uploads import SUFFIXES, Upload, take_in
from inspector.views.train_refusal import refuse
from model import InputError
from model.training.events import ModuleSize
from model.training.outlines import OUTLINES
from model.training.recipe import KINDS, PACKINGS, Recipe
from model.training.word import COLOUR_LOOKS

RATES = (
    ("vision_rate", "Rate: image encoder"), ("projector_rate", "Rate: projector"),
    ("decoder_rate", "Rate: language model"), ("text_rate", "Rate: text tower"),
)  # fmt: skip
FIRST = "instruction tuning"


@dataclass(frozen=True)
class TrainForm:
    """``fields`` holds the components of :class:`inspector.presets.Form` by its fields' names."""

    teach: gr.Button
    word: gr.Dropdown
    rgb: gr.Textbox
    preset: gr.Radio
    why: gr.HTML
    fields: dict[str, Any]
    file: gr.File
    upload: gr.State
    check: gr.Button
    start: gr.Button
    modules: gr.HTML
    reports: gr.HTML


def build_form(store: ModelStore) -> TrainForm:
    with gr.Group(elem_classes="tr-teach"):
        gr.HTML('<p class="vi-good">The model has never heard of “purple” or “star”. Teach it the word, in about a '
                "minute, and compare before and after.</p>")  # fmt: skip
        with gr.Row():
            word = gr.Dropdown([*COLOUR_LOOKS, *OUTLINES], value="purple", label="Word", allow_custom_value=True,
                               min_width=130, elem_id="train-word")  # fmt: skip
            rgb = gr.Textbox("", label="RGB, for a colour of your own", placeholder="128, 0, 128", min_width=150,
                             elem_id="train-rgb")  # fmt: skip
        teach = gr.Button("Teach it a word", variant="primary", elem_id="train-teach")
    preset = gr.Radio(list(PRESETS), value=FIRST, label="Or begin with", elem_id="train-preset")
    why = gr.HTML(_why(FIRST), elem_id="train-why")
    values = {"seed": 0, "base": store.names[0], "path": "", "source": "auto", **PRESETS[FIRST].values}
    fields: dict[str, Any] = {}
    with gr.Row():
        fields["base"] = gr.Dropdown([*store.names, (f"{NEW}: random weights", NEW)], value=values["base"],
                                     label="Base model", min_width=150, elem_id="train-base")  # fmt: skip
        fields["data"] = gr.Dropdown(list(DATA), value=values["data"], label="Data", min_width=150,
                                     elem_id="train-data")  # fmt: skip
        fields["steps"] = gr.Number(values["steps"], label="Steps", precision=0, min_width=90, elem_id="train-steps")
    with gr.Row():
        file = gr.File(label=f"Data file ({', '.join(SUFFIXES)})", file_types=list(SUFFIXES), height=110,
                       visible=False, elem_id="train-file")  # fmt: skip
        fields["path"] = gr.Textbox("", label="Data set on the hub: owner/name or owner/name:subset", visible=False,
                                    elem_id="train-hub")  # fmt: skip
        fields["source"] = gr.Dropdown(list(SOURCES), value="auto", label="Format", min_width=110, visible=False,
                                       elem_id="train-source")  # fmt: skip
    with gr.Accordion("Learning rates and the rest", open=False, elem_id="train-more"):
        with gr.Row():
            for name, label in RATES:
                fields[name] = gr.Number(values[name], label=f"{label} (0: frozen)", min_width=140,
                                         elem_id=f"train-{name.replace('_', '-')}")  # fmt: skip
        with gr.Row():
            fields["kind"] = gr.Dropdown(list(KINDS), value=values["kind"], label="Stage", min_width=110)
            fields["lora_rank"] = gr.Number(values["lora_rank"], label="LoRA rank (0: off)", precision=0, min_width=90)
            fields["packing"] = gr.Dropdown(list(PACKINGS), value=values["packing"], label="Packing", min_width=100)
            fields["batch_rows"] = gr.Number(values["batch_rows"], label="Rows per batch", precision=0, min_width=90)
            fields["eval_every"] = gr.Number(values["eval_every"], label="Evaluate every … steps", precision=0,
                                             min_width=90)  # fmt: skip
            fields["seed"] = gr.Number(values["seed"], label="Seed", precision=0, min_width=80)
    with gr.Row():
        check = gr.Button("Check: what trains, on what", size="sm", elem_id="train-check")
        start = gr.Button("Start", size="sm", variant="primary", elem_id="train-start")
    modules = gr.HTML(elem_id="train-modules")
    reports = gr.HTML(elem_id="train-reports")
    return TrainForm(teach, word, rgb, preset, why, fields, file, gr.State(None), check, start, modules, reports)


def _why(preset: str) -> str:
    return f'<p class="vi-caption">{escape(PRESETS[preset].why)}</p>'


@dataclass(frozen=True)
class RecipeReader:
    """From the form's values, in the order of its fields, to what they ask for."""

    form: TrainForm
    store: ModelStore

    def read(self, preset: str, upload: Upload | None, values: Sequence[Any]) -> tuple[Form, Recipe]:
        """InputError for values that ask for nothing that can be trained."""
        form = read_form(**dict(zip(self.form.fields, values, strict=True)))
        if form.data == UPLOAD:
            source = form.source if form.source != "auto" or upload is None else upload.source
            form = replace(form, path=str(upload.path) if upload is not None else "", source=source)
        base = NEW if form.base == NEW else self.store.source_of(form.base)
        return form, write_recipe(form, base, f"{preset}: {form.data}")

    def base_of(self, form: Form) -> Any:
        """A model of the shape that will be trained."""
        return self.store.get(self.store.names[0] if form.base == NEW else form.base)

    def sizes(self, form: Form, recipe: Recipe) -> tuple[ModuleSize, ...]:
        return size_modules(self.base_of(form), recipe.stages[0])


def wire_form(form: TrainForm, reader: RecipeReader, jobs: JobTable) -> None:
    """Everything but the buttons that start a run."""
    free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    where = [form.file, form.fields["path"], form.fields["source"]]
    plain = {name: field for name, field in form.fields.items() if field not in where}

    def fill(preset: str) -> list[Any]:
        values = PRESETS[preset].values
        if "steps" in values and values["steps"] > jobs.bounds.run_steps:
            values = {**values, "steps": jobs.bounds.run_steps}
        filled = [values.get(name, gr.skip()) for name in plain]
        return [_why(preset), *filled, *(_ask_for(values["data"]) if "data" in values else [gr.skip()] * 3)]

    # Arrow keys change a choice faster than the form follows; the last one counts.
    last: dict[str, Any] = {**free, "trigger_mode": "always_last"}
    form.preset.input(fill, form.preset, [form.why, *plain.values(), *where], api_name="train_preset", **last)
    form.fields["data"].input(_ask_for, form.fields["data"], where, api_name="train_data", **last)

    def uploaded(path: str | None) -> tuple[Upload | None, Any]:
        if path is None:
            return None, gr.skip()
        try:
            found = take_in(path, jobs.uploads)
        except InputError as error:
            raise refuse(error) from error
        gr.Info(f"Read as “{found.source}”; press Check to see what is in it.")
        return found, found.source

    form.file.upload(uploaded, form.file, [form.upload, form.fields["source"]], api_name="train_upload",
                     concurrency_limit=1)  # fmt: skip

    def check(preset: str, upload: Upload | None, *values: Any) -> tuple[str, str]:
        try:
            found, recipe = reader.read(preset, upload, values)
            reports = check_data(reader.base_of(found), recipe)
            return show_modules(reader.sizes(found, recipe)), show_reports(reports)
        except InputError as error:
            raise refuse(error) from error

    form.check.click(check, [form.preset, form.upload, *form.fields.values()], [form.modules, form.reports],
                     api_name="train_check", show_progress_on=[form.reports], concurrency_limit=1)  # fmt: skip


def _ask_for(data: str) -> list[Any]:
    """Which of the fields about data of one's own are shown."""
    return [gr.update(visible=data == UPLOAD), gr.update(visible=data == HUB),
            gr.update(visible=data not in BUILT_IN)]  # fmt: skip
