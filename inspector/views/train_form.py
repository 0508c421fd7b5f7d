"""The Train tab's upper part: what trains, on what, how; and what that will do, before it is started."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from inspector.bounds import Bounds
from inspector.figures.markup import show_notes
from inspector.figures.training import show_fetch, show_memory, show_modules, show_plan, show_reports
from inspector.files import new_folder, open_cache
from inspector.intake.parsers import ParserPool, ReadingStopped
from inspector.persons import identify
from inspector.runs.discretion import hide_paths
from inspector.runs.jobs import JobTable
from inspector.runs.metrics import DataCheck, check_base, least_memory, say_room
from inspector.runs.part_shelf import PartShelf
from inspector.runs.presets import (
    BUILT_IN,
    HUB,
    NANOVLM,
    NEW,
    PARTS,
    PRESETS,
    PROJECTORS,
    SOURCES,
    UPLOAD,
    Form,
    fit_preset,
    list_data,
    open_recipe,
    read_form,
    write_base,
    write_recipe,
)
from inspector.runs.samples import write_samples
from inspector.runs.uploads import SUFFIXES, Intake, Upload, UploadShelf
from inspector.server.admission import admit_file
from inspector.server.toasts import inform, refuse
from inspector.session import ModelStore
from inspector.widgets import FileInput
from model import InputError, InspectableVLM
from model.training.assembly import plan_parts, size_parts
from model.training.memory_estimate import MemoryEstimate
from model.training.model_shape import size_modules
from model.training.recipe import ASSEMBLED, KINDS, PACKINGS, Recipe, read_recipe
from model.training.synthetic.outlines import OUTLINES
from model.training.synthetic.word import COLOUR_LOOKS

RATES = (
    ("vision_rate", "Rate: image encoder"),
    ("projector_rate", "Rate: projector"),
    ("decoder_rate", "Rate: language model"),
    ("text_rate", "Rate: text tower"),
)
FIRST = "instruction tuning"
LOOK_S = 0.2
"""Between two looks at what is read."""
CHECKING = "check"


@dataclass(frozen=True)
class TrainForm:
    """``fields`` holds the components of :class:`inspector.runs.presets.Form` by its fields' names."""

    teach: gr.Button
    word: gr.Dropdown
    rgb: gr.Textbox
    preset: gr.Radio
    why: gr.HTML
    recipe: Any
    opened: gr.HTML
    show_samples: gr.Button
    samples: gr.File
    parts: Any
    fields: dict[str, Any]
    file: gr.File
    upload: gr.State
    check: gr.Button
    halt: gr.Button
    start: gr.Button
    note: gr.HTML
    modules: gr.HTML
    reports: gr.HTML

    @property
    def where(self) -> list[Any]:
        """The fields about data of one's own."""
        return [self.file, self.fields["path"], self.fields["source"]]

    @property
    def plain(self) -> dict[str, Any]:
        """The other fields."""
        return {name: field for name, field in self.fields.items() if field not in self.where}


def list_bases(names: Sequence[str]) -> list[tuple[str, str]]:
    """What a run may begin from."""
    return [
        *((name, name) for name in names),
        (f"{ASSEMBLED}: put together below", ASSEMBLED),
        (f"{NEW}: random weights", NEW),
    ]


def build_form(store: ModelStore, bounds: Bounds, shelf: PartShelf | None = None) -> TrainForm:
    shelf = shelf or PartShelf()
    with gr.Group(elem_classes="tr-teach"):
        gr.HTML(
            '<p class="vi-good">The model has never heard of “purple” or “star”. Teach it the word, in about a '
            "minute, and compare before and after.</p>"
        )
        with gr.Row():
            word = gr.Dropdown(
                [*COLOUR_LOOKS, *OUTLINES],
                value="purple",
                label="Word",
                allow_custom_value=True,
                min_width=130,
                elem_id="train-word",
            )
            rgb = gr.Textbox(
                "", label="RGB, for a colour of your own", placeholder="128, 0, 128", min_width=150, elem_id="train-rgb"
            )
        teach = gr.Button("Teach it a word", variant="primary", elem_id="train-teach")
    preset = gr.Radio(list(PRESETS), value=FIRST, label="Or begin with", elem_id="train-preset")
    why = gr.HTML(say_why(FIRST), elem_id="train-why")
    values = {"seed": 0, "path": "", "source": "auto", **PRESETS[FIRST].values, "base": store.names[0]}
    fields: dict[str, Any] = {}
    with gr.Row():
        fields["base"] = gr.Dropdown(
            list_bases(store.names),
            value=values["base"],
            label="Base model",
            min_width=150,
            elem_id="train-base",
        )
        fields["data"] = gr.Dropdown(
            list(list_data(bounds)), value=values["data"], label="Data", min_width=150, elem_id="train-data"
        )
        fields["steps"] = gr.Number(values["steps"], label="Steps", step=1, min_width=90, elem_id="train-steps")
    with gr.Row(visible=False, elem_id="train-parts") as parts:
        for name, label, known in (
            ("vision", "Image encoder", shelf.vision),
            ("language", "Language model", shelf.language),
        ):
            fields[name] = gr.Dropdown(
                list(known),
                value=PARTS[name],
                label=f"{label}{', or a hub id or folder' if shelf.anything else ''}",
                allow_custom_value=shelf.anything,
                min_width=180,
                elem_id=f"train-{name}",
            )
        fields["projector"] = gr.Dropdown(
            list(PROJECTORS), value=PARTS["projector"], label="Projector", min_width=110, elem_id="train-projector"
        )
    with gr.Row():
        file = FileInput(
            label=f"Data file ({', '.join(SUFFIXES)})",
            file_types=list(SUFFIXES),
            height=110,
            visible=False,
            elem_id="train-file",
        )
        fields["path"] = gr.Textbox(
            "", label="Data set on the hub: owner/name or owner/name:subset", visible=False, elem_id="train-hub"
        )
        fields["source"] = gr.Dropdown(
            list(SOURCES), value="auto", label="Format", min_width=110, visible=False, elem_id="train-source"
        )
    with gr.Accordion("Learning rates and the rest", open=False, elem_id="train-more"):
        with gr.Row():
            for name, label in RATES:
                fields[name] = gr.Number(
                    values[name], label=f"{label} (0: frozen)", min_width=140, elem_id=f"train-{name.replace('_', '-')}"
                )
        with gr.Row():
            fields["kind"] = gr.Dropdown(list(KINDS), value=values["kind"], label="Stage", min_width=110)
            fields["lora_rank"] = gr.Number(values["lora_rank"], label="LoRA rank (0: off)", step=1, min_width=90)
            fields["packing"] = gr.Dropdown(list(PACKINGS), value=values["packing"], label="Packing", min_width=100)
            fields["batch_rows"] = gr.Number(values["batch_rows"], label="Rows per batch", step=1, min_width=90)
            fields["eval_every"] = gr.Number(values["eval_every"], label="Evaluate every … steps", step=1, min_width=90)
            fields["seed"] = gr.Number(values["seed"], label="Seed", step=1, min_width=80)
    with gr.Accordion("Open a recipe, or see what data look like", open=False, elem_id="train-files-in"):
        recipe = FileInput(
            label="A recipe (.toml), to fill the form with", file_types=[".toml"], height=130, elem_id="train-recipe"
        )
        opened = gr.HTML(elem_id="train-opened")
        show_samples = gr.Button("A sample file of each format", size="sm", elem_id="train-show-samples")
        samples = gr.File(label="To look at, or to upload", interactive=False, visible=False, elem_id="train-samples")
    with gr.Row():
        check = gr.Button("Check: what trains, on what", size="sm", elem_id="train-check")
        halt = gr.Button("Stop checking", size="sm", visible=False, elem_id="train-halt")
        start = gr.Button("Start", size="sm", variant="primary", elem_id="train-start")
    note = gr.HTML(elem_id="train-note")
    modules = gr.HTML(elem_id="train-modules")
    reports = gr.HTML(elem_id="train-reports")
    upload: gr.State = gr.State(None)
    # The order of a program's arguments is that of the fields, and what came later comes last.
    fields = {name: one for name, one in fields.items() if name not in PARTS} | {name: fields[name] for name in PARTS}
    return TrainForm(
        teach=teach,
        word=word,
        rgb=rgb,
        preset=preset,
        why=why,
        recipe=recipe,
        opened=opened,
        show_samples=show_samples,
        samples=samples,
        parts=parts,
        fields=fields,
        file=file,
        upload=upload,
        check=check,
        halt=halt,
        start=start,
        note=note,
        modules=modules,
        reports=reports,
    )


def say_why(preset: str) -> str:
    found = PRESETS[preset]
    took = (
        f" Its {found.values['steps']:,} steps took {found.seconds} s on one thread of a busy machine."
        if found.seconds
        else ""
    )
    return f'<p class="vi-caption">{escape(found.why + took)}</p>'


@dataclass(frozen=True)
class RecipeReader:
    """From the form's values, in the order of its fields, to what they ask for."""

    form: TrainForm
    store: ModelStore
    bounds: Bounds
    shelf: PartShelf = field(default_factory=PartShelf)

    def read(self, preset: str, upload: Upload | None, values: Sequence[Any]) -> tuple[Form, Recipe]:
        """InputError for values that ask for nothing that can be trained."""
        form = read_form(**dict(zip(self.form.fields, values, strict=True)))
        if form.data == UPLOAD:
            source = form.source if form.source != "auto" or upload is None else upload.source
            # What was typed counts for nothing: only what this person uploaded is read.
            path, images = (str(upload.path), str(upload.images)) if upload is not None else ("", "")
            form = replace(form, path=path, source=source, images=images)
        base: Any = write_base(form, self.shelf) if form.base == ASSEMBLED else NEW
        if form.base not in (ASSEMBLED, NEW):
            base = self.store.source_of(form.base)
        recipe = write_recipe(form, base, f"{preset}: {form.data}", self.bounds)
        if form.base not in (ASSEMBLED, NEW):  # these are nanoVLM's kind, which goes through every stage
            check_base(self.store.get(form.base), recipe)
        return form, recipe

    def base_of(self, form: Form, recipe: Recipe) -> InspectableVLM:
        """A model of the shape that will be trained, with or without weights."""
        if recipe.parts is not None:
            return plan_parts(recipe.parts)
        if form.base != NEW:
            return self.store.get(form.base)
        # One that is there renders as the new one will, and making a tokenizer takes seconds.
        alike = next((name for name in self.store.names if self.store.kind_of(name) == NANOVLM), None)
        return self.store.get_base(recipe) if alike is None else self.store.get(alike)

    def show_parts(self, form: Form, recipe: Recipe) -> str:
        """Parameters of each part, what is fetched of them, and what is taken whatever the data are. InputError for
        parts that don't fit."""
        fetched = self.show_fetch(recipe)
        vlm = self.base_of(form, recipe)
        return fetched + self._show_parts(vlm, recipe, least_memory(vlm, recipe))

    def show_fetch(self, recipe: Recipe) -> str:
        """Asked before anything of a part is fetched."""
        if recipe.parts is None:
            return ""
        return show_fetch(size_parts(recipe.parts, recipe.folder, self.bounds.hub_bytes))

    def _show_parts(self, vlm: InspectableVLM, recipe: Recipe, memory: MemoryEstimate) -> str:
        told = show_memory(memory, self.bounds.run_bytes, least=True)
        return show_modules(size_modules(vlm, recipe.stages[0])) + told

    def admit(self, form: Form, recipe: Recipe) -> str:
        """:meth:`show_parts` of a run that is about to start. InputError where it can't fit whatever its data are."""
        fetched = self.show_fetch(recipe)
        vlm = self.base_of(form, recipe)
        memory = least_memory(vlm, recipe)
        if why := say_room(memory, self.bounds.run_bytes):
            raise InputError(f"The run doesn't fit: {why}; train fewer parts, use LoRA, or take a smaller model.")
        return fetched + self._show_parts(vlm, recipe, memory)


@dataclass(frozen=True)
class FormHandlers:
    """What the form's events call. Files are read in processes of ``pool``, and what was taken in lies on ``shelf``."""

    form: TrainForm
    reader: RecipeReader
    pool: ParserPool
    shelf: UploadShelf

    def fill(self, preset: str, base: str) -> list[Any]:
        try:
            kind = "" if base in (NEW, ASSEMBLED) else self.reader.store.kind_of(str(base))
            values, most = fit_preset(preset, kind), self.reader.bounds.run_steps
        except InputError as error:
            raise refuse(error) from error
        if "steps" in values and values["steps"] > most:
            values["steps"] = most
        if values and "base" not in values and base in (NEW, ASSEMBLED):
            # What an earlier preset began from is none of this one's business; a model that was picked stays.
            values["base"] = self.reader.store.names[0]
        return [say_why(preset), *fill_fields(self.form, values)]

    def open(self, path: str | None) -> list[Any]:
        """A recipe's file into the form."""
        try:
            file = admit_file(path, open_cache())
            found = open_recipe(read_recipe(file), self.reader.store.names, self.reader.shelf)
        except InputError as error:
            raise refuse(InputError(hide_paths(str(error))), stays=True) from error
        told = [f"Not in the form: {sentence}." for sentence in found.left_out]
        values = dict(found.values)
        # What an address or a file is called has its own field, shown with the data.
        filled = fill_fields(self.form, values)
        if values["data"] == HUB:
            filled[len(self.form.plain) + 1] = gr.update(visible=True, value=values["path"])
        return [
            show_notes(told) if told else '<p class="vi-good">✓ The form says all that the recipe does.</p>',
            *filled,
        ]

    def describe(self, preset: str, upload: Upload | None, *values: Any) -> list[Any]:
        """What would train, whenever the base or one of its parts is chosen; the former check is over with it."""
        try:
            base = dict(zip(self.form.fields, values, strict=True))["base"]
            shown = _ask_for_parts(base)
            if base != ASSEMBLED:
                return [shown, "", "", ""]
            # The data may not be there yet, and are not looked at.
            plain = [
                "scenes: captions" if name == "data" and value in (UPLOAD, HUB) else value
                for name, value in zip(self.form.fields, values, strict=True)
            ]
            found, recipe = self.reader.read(preset, upload, plain)
            return [shown, "", self.reader.show_parts(found, recipe), ""]
        except InputError as error:
            return [gr.skip(), show_notes([hide_paths(str(error))]), "", ""]

    async def upload(self, request: gr.Request, path: str | None, old: Upload | None) -> AsyncIterator[Any]:
        page = request.session_hash or ""
        try:
            file = admit_file(path, open_cache())
            # A check of the older upload is about nothing from now on.
            self.pool.stop((page, CHECKING))
            intake = await asyncio.to_thread(
                self.shelf.begin, file, identify(request), page=(page, "upload"), replaced=old
            )
        except InputError as error:
            raise refuse(error, stays=True) from error
        try:
            async with aclosing(_follow(intake)) as looks:
                async for found in looks:
                    if found is not None:
                        inform(f"Read as “{found.source}”; press Check to see what is in it.")
                    yield (gr.skip(), gr.skip()) if found is None else (found, found.source)
        finally:
            _discard(file)

    def remove_upload(self, request: gr.Request, old: Upload | None) -> None:
        self.pool.stop((request.session_hash or "",))
        self.shelf.remove(old)

    async def check(self, request: gr.Request, preset: str, upload: Upload | None, *values: Any) -> AsyncIterator[Any]:
        def begin() -> tuple[DataCheck, str]:
            found, recipe = self.reader.read(preset, upload, values)
            fetched = self.reader.show_fetch(recipe)
            vlm = self.reader.base_of(found, recipe)
            shown = fetched + show_modules(size_modules(vlm, recipe.stages[0]))
            return DataCheck(self.pool, vlm, recipe, _checking(request)), shown

        # What an earlier check found is about nothing from now on, also where this one fails.
        yield "", "", ""
        try:
            checking, shown = await asyncio.to_thread(begin)
        except InputError as error:
            raise refuse(error, stays=True) from error
        explain = partial(_explain_bare, upload) if upload is not None else None
        async with aclosing(_follow(checking, explain)) as looks:
            async for reports in looks:
                if reports is None:
                    yield gr.skip(), gr.skip(), gr.skip()
                    continue
                plan = show_plan(checking.plan, self.reader.bounds.run_bytes)
                yield shown, plan + show_reports(reports), ""

    def show_samples(self) -> Any:
        try:
            return gr.update(value=[str(path) for path in write_samples(new_folder())], visible=True)
        except InputError as error:
            raise refuse(error) from error

    def stop(self, request: gr.Request) -> None:
        self.pool.stop(_checking(request))

    def take_halt_back(self, request: gr.Request) -> Any:
        return gr.update(visible=self.pool.is_reading(_checking(request)))


def fill_fields(form: TrainForm, values: Mapping[str, Any]) -> list[Any]:
    """Values for :func:`filled_fields`; fields without one stay."""
    filled = [values.get(name, gr.skip()) for name in form.plain]
    where = _ask_for(values["data"]) if "data" in values else [gr.skip()] * 3
    return [*filled, *where, _ask_for_parts(values["base"]) if "base" in values else gr.skip()]


def filled_fields(form: TrainForm) -> list[Any]:
    """What a preset fills: the plain fields, those about data of one's own, and the row of parts."""
    return [*form.plain.values(), *form.where, form.parts]


def offer_halt() -> Any:
    return gr.update(visible=True)


def _checking(request: gr.Request) -> tuple[str, str]:
    """What the pool knows a page's check by."""
    return request.session_hash or "", CHECKING


def wire_form(form: TrainForm, reader: RecipeReader, jobs: JobTable) -> None:
    """Everything but the buttons that start a run."""
    pool = ParserPool(jobs.bounds)
    shelf = UploadShelf(jobs.uploads, pool, jobs.used_uploads)
    form.upload.delete_callback = shelf.remove  # the page is gone
    handlers = FormHandlers(form, reader, pool, shelf)
    # Arrow keys change a choice faster than the form follows; the last one counts.
    last: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "trigger_mode": "always_last"}
    filled = [form.why, *filled_fields(form)]
    filling = form.preset.input(
        handlers.fill, [form.preset, form.fields["base"]], filled, api_name="train_preset", **last
    )
    form.fields["data"].input(_ask_for, form.fields["data"], form.where, api_name="train_data", **last)
    unseen: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    # The newest counts: it ends an older one of the same page, which a browser would otherwise wait for.
    newest: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "multiple"}
    form.recipe.upload(handlers.open, form.recipe, [form.opened, *filled[1:]], api_name="train_open_recipe", **last)
    form.show_samples.click(handlers.show_samples, None, form.samples, api_name="train_samples", concurrency_limit=1)
    chosen = [form.fields[name].input for name in ("base", *PARTS)]
    asked = [form.preset, form.upload, *form.fields.values()]
    told = [form.parts, form.note, form.modules, form.reports]
    gr.on(chosen, handlers.describe, asked, told, api_name="train_parts", **last)
    # What a preset fills counts when it is there.
    filling.then(handlers.describe, asked, told, **unseen)
    taken = [form.upload, form.fields["source"]]
    form.file.upload(handlers.upload, [form.file, form.upload], taken, api_name="train_upload", **newest)
    form.file.clear(handlers.remove_upload, form.upload, form.upload, api_name="cleared", **unseen)
    # A page sends the second event of a click when the first has ended, so the button to stop it comes before.
    form.check.click(offer_halt, None, form.halt, **unseen)
    checked = form.check.click(
        handlers.check,
        [form.preset, form.upload, *form.fields.values()],
        [form.modules, form.reports, form.note],
        api_name="train_check",
        show_progress_on=[form.reports],
        **newest,
    )
    # What is checked is over with whatever changes it; a start checks for itself.
    gr.on(
        [form.halt.click, form.start.click, form.preset.input, *(field.input for field in form.fields.values())],
        handlers.stop,
        None,
        None,
        **unseen,
    )
    checked.then(handlers.take_halt_back, None, form.halt, **unseen)


def _explain_bare(upload: Upload, error: InputError) -> InputError:
    """A file that names images and came without any is told apart from one with a slip in it."""
    if upload.is_alone and "is not there" in str(error):
        return InputError(
            f"{error} “{upload.path.name}” came alone: put it in one zip with its images, and upload that."
        )
    return error


async def _follow(
    reading: Intake | DataCheck, explain: Callable[[InputError], InputError] | None = None
) -> AsyncGenerator[Any, None]:
    """None at every look until it is known what was read, then that; nothing where it was stopped. Whoever closes this
    ends the reading: at every step gradio notices a closed page."""
    try:
        while (found := await asyncio.to_thread(reading.look)) is None:
            yield None
            await asyncio.sleep(LOOK_S)
    except ReadingStopped:
        return
    except InputError as error:
        raise refuse(error if explain is None else explain(error), stays=True) from error
    finally:
        await asyncio.to_thread(reading.close)
    yield found


def _discard(file: Path) -> None:
    """Removes gradio's copy, which has been taken in or refused."""
    with contextlib.suppress(OSError):  # another upload of the same bytes was taken in before
        file.unlink()
        file.parent.rmdir()


def _ask_for_parts(base: Any) -> Any:
    return gr.update(visible=base == ASSEMBLED)


def _ask_for(data: Any) -> list[Any]:
    """Which of the fields about data of one's own are shown; a program may send anything."""
    data = str(data)
    return [gr.update(visible=data == UPLOAD), gr.update(visible=data == HUB), gr.update(visible=data not in BUILT_IN)]
