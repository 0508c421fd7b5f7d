"""Composes the page and wires its events. Every event has an ``api_name``, so a program can do what a person does."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from inspector.bounds import Bounds
from inspector.export.command_line import write_inspect
from inspector.export.files import write_facts, write_files
from inspector.figures.bounds import show_bounds
from inspector.figures.markup import show_notes, show_plans
from inspector.files import handed_over, open_cache, own_folder
from inspector.images.decoder import DECODER
from inspector.images.image_file import SHELF
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend, describe
from inspector.row.feature_store import FEATURES
from inspector.row.prompt import Prompt, Turn, check_count, check_pixels
from inspector.row.row_store import ROWS
from inspector.runs.jobs import JobTable
from inspector.server.blocks import GuardedBlocks, keep_swept
from inspector.server.gate import Gate
from inspector.server.inputs import read_event
from inspector.server.toasts import inform, refuse
from inspector.server.turns import IMAGES, Rank, Turns
from inspector.session import ModelStore, Shown
from inspector.views import asking as asking_view
from inspector.views import attention as attention_view
from inspector.views import batch as batch_view
from inspector.views import battery as battery_view
from inspector.views import header as header_view
from inspector.views import prompt as prompt_view
from inspector.views import train as train_view
from inspector.views import which_image as which_view
from inspector.views.results import ResultsView, build_results
from inspector.widgets import encode
from model import InputError, InspectableVLM, open_image
from model.training.synthetic.examples import EXAMPLES

TITLE = "VLM Inspector"
CSS = [Path(__file__).parent / "widgets" / name for name in ("page.css", "which_image.css")]
JS = Path(__file__).parent / "widgets" / "page.js"


def build_ui(
    store: ModelStore, jobs: JobTable | None = None, bounds: Bounds | None = None, open_to_all: bool = False
) -> GuardedBlocks:
    """The page over the models of ``store``; start it with ``launch(**launch_options())``. ``jobs``: where training
    runs are kept (a temporary folder if None). ``bounds``: what it gives (a private server's if None).
    ``open_to_all``: whether it may be asked under any host name."""
    jobs, bounds = jobs or JobTable(), bounds or Bounds()
    open_cache()
    folder = Path(tempfile.mkdtemp(prefix="examples-", dir=own_folder()))
    kept = int(bounds.sweep_s), int(bounds.cache_hours * 3600)
    options: dict[str, Any] = {"analytics_enabled": False, "delete_cache": kept, "fill_width": True}
    with GuardedBlocks(bounds, open_to_all, title=TITLE, **options) as demo:
        turns = demo.turns
        store.watch(turns.before_block)
        store.private_bytes = bounds.private_model_bytes
        DECODER.bounds, DECODER.find_person = bounds, turns.find_person
        FEATURES.limit, ROWS.limit = bounds.features_bytes, bounds.rows_bytes
        header = header_view.build_header(TITLE)
        shown: gr.State = gr.State(None)
        # At the top level: inside a tab that isn't open they would not come back after a reload. The secret only keeps
        # the browser's copy readable after a restart; what it holds is the person's own.
        person = gr.BrowserState(None, storage_key="vlm-inspector-runs", secret="vlm-inspector-01")
        timer = gr.Timer(train_view.PERIOD_S, active=False)
        examples = prompt_view.build_examples()
        with gr.Row(equal_height=False):
            with gr.Column(scale=0, min_width=340, elem_classes="vi-prompt"):
                prompt = prompt_view.build_prompt(store, examples, bounds)
            with gr.Column(scale=1, min_width=340, elem_classes="vi-results"):
                results = build_results()
                with gr.Tabs():
                    with gr.Tab("Attention"):
                        attention = attention_view.build_attention()
                    with gr.Tab("Which image?"):
                        which = which_view.build_which_image()
                        battery = battery_view.build_battery()
                    with gr.Tab("Batch"):
                        batch = batch_view.build_batch()
                    with gr.Tab("Train"):
                        train = train_view.build_train(store, jobs)
        gr.HTML(show_bounds(bounds), elem_id="bounds")
        _wire_prompt(store, prompt)
        page = asking_view.Page(header, prompt, results, attention, which, shown, gr.State(None))
        asking_view.wire_asking(page, store, demo, folder)
        _wire_results(store, turns, results, attention, batch, shown, bounds)
        _wire_header(store, header, shown, bounds)
        which_view.wire_which_image(which, store, shown, demo)
        battery_view.wire_battery(battery, store, demo, prompt)
        train_view.wire_train(train, store, jobs, demo, prompt, person, timer)
        gr.api(turns.run(Rank.ASK, _inspect_api(store, bounds)), api_name="inspect", concurrency_id=Rank.ASK.place)
    return demo


def launch_options() -> dict[str, Any]:
    """Arguments of ``launch`` that belong to the page: look, limits, and that nothing is kept or sent elsewhere."""
    font = ["system-ui", "sans-serif"]
    mono = ["ui-monospace", "monospace"]
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=font, font_mono=mono, radius_size="sm", spacing_size="sm"
    )
    return {
        "css_paths": CSS,
        "js": JS.read_text("utf-8"),
        "theme": theme,
        "max_file_size": f"{prompt_view.MAX_UPLOAD_MB}mb",
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "app_kwargs": {"middleware": [Middleware(Gate)], "lifespan": keep_swept},
        "footer_links": ["api"],
        "show_error": False,  # of refusals nothing changes; what else goes wrong names places of this machine
    }


def warm_up(vlm: InspectableVLM) -> None:
    """Asks the question that every page opens with once, unseen: the library of the figures and torch's kernels load at
    their first use, and nobody should wait for that."""
    example = EXAMPLES[asking_view.OPENING_EXAMPLE]
    images = tuple(open_image(picture) for picture in example.draw_images())
    inspection = ask_and_inspect(vlm, Prompt(images, (Turn(example.turns[0]),)), GenerationSettings(max_new_tokens=4))
    row = inspection.row_that_chose(inspection.first_answer_position)
    attention_view.draw(attend(vlm, inspection, row), own_scale=False)


def _wire_prompt(store: ModelStore, view: prompt_view.PromptView) -> None:
    free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    # Opening images takes its time: in a place of their own they can't take all threads, and turns are fair.
    opening: dict[str, Any] = {"concurrency_id": IMAGES, "concurrency_limit": 4, "show_progress": "hidden"}
    # Two clicks in quick succession are two; by default gradio drops those that come while one is on its way.
    in_turn: dict[str, Any] = {"concurrency_limit": 1, "show_progress": "hidden", "trigger_mode": "multiple"}

    def changed(model: str, gallery: prompt_view.GalleryValue, history: list) -> tuple[Any, str, str, list]:
        kept, plans, rejected = prompt_view.plan_images(store, model, gallery, view.bounds)
        return kept, plans, rejected, [*history[-19:], kept]

    images: list[Any] = [view.gallery, view.plans, view.rejected, view.history]
    view.gallery.upload(changed, [view.model, view.gallery, view.history], images, api_name="plan_images", **opening)

    def added(
        model: str, gallery: prompt_view.GalleryValue, files: list[str], history: list
    ) -> tuple[Any, str, str, list]:
        return changed(model, [*(gallery or []), *((path, None) for path in files or [])], history)

    view.add.upload(added, [view.model, view.gallery, view.add, view.history], images, api_name="add_images", **opening)

    def place(model: str, gallery: prompt_view.GalleryValue, history: list, event: gr.EventData) -> tuple:
        try:
            return changed(
                model,
                prompt_view.place_image(gallery, read_event(event, "start", int), read_event(event, "stop", int)),
                history,
            )
        except InputError as error:
            raise refuse(error) from error

    def remove(model: str, gallery: prompt_view.GalleryValue, history: list, event: gr.EventData) -> tuple:
        return changed(model, prompt_view.remove_image(gallery, read_event(event, "index", int)), history)

    for event, change, name in ((view.plans.move, place, "place_image"), (view.plans.remove, remove, "remove_image")):
        event(change, [view.model, view.gallery, view.history], images, api_name=name, **opening)

    def refused(event: gr.EventData) -> str:
        return prompt_view.refuse_files(read_event(event, "files", list))

    view.plans.refuse(refused, None, view.refused, api_name="refuse_files", **in_turn)

    view.clear.click(
        lambda history: ([], show_plans([], [], []), "", [*history[-19:], []]),
        view.history,
        images,
        api_name="clear_images",
        **free,
    )

    def undo(model: str, history: list) -> tuple[Any, str, str, list]:
        if len(history) < 2:
            inform("There is nothing to undo.")
            return gr.skip(), gr.skip(), gr.skip(), history
        return *prompt_view.plan_images(store, model, history[-2], view.bounds), history[:-1]

    view.undo.click(undo, [view.model, view.history], images, api_name="undo_images", **opening)
    view.model.change(changed, [view.model, view.gallery, view.history], images, api_name="pick_model", **opening)

    def resize(step: int) -> Any:
        def change(count: int) -> list[Any]:
            count = min(max(count + step, 1), prompt_view.MAX_TURNS)
            return [count, *prompt_view.show_turns(count)]

        return change

    for button, step, name in ((view.add_turn, 1, "add_turn"), (view.drop_turn, -1, "drop_turn")):
        button.click(resize(step), view.shown_turns, [view.shown_turns, *view.rows], api_name=name, **in_turn)
    view.layout.change(
        lambda layout: gr.update(visible=layout == "packed"),
        view.layout,
        view.document_mask,
        api_name="pick_layout",
        **free,
    )


def _wire_results(
    store: ModelStore,
    turns: Turns,
    results: ResultsView,
    attention: attention_view.AttentionView,
    batch: batch_view.BatchView,
    shown: gr.State,
    bounds: Bounds,
) -> None:
    def on_plots(page: Shown | None, own_scale: bool) -> list[Any]:
        return [gr.skip()] * len(attention.plots) if page is None else attention_view.draw(page.attention, own_scale)

    def on_arrangement(page: Shown | None, arrangement: str) -> list[Any]:
        if page is None:
            return [gr.skip()] * len(batch.outputs)
        try:
            return batch_view.draw(store.get(page.model), page.inspection, arrangement)
        except InputError as error:
            raise refuse(error) from error

    # The slow part of a page: three plots take the browser half a second, and nobody should wait for them to see the
    # tokens, or for a tab that isn't open.
    late: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "trigger_mode": "always_last"}
    # A program asks for what it wants; what describes the API is sent with every page.
    unseen: dict[str, Any] = {**late, "api_visibility": "undocumented"}
    inputs: list[Any] = [shown, batch.arrangement]
    attention.sight.seen(on_plots, [shown, attention.own_scale], attention.plots, api_name="draw_plots", **unseen)
    batch.sight.seen(on_arrangement, inputs, batch.outputs, api_name="draw_batch", **unseen)
    batch.arrangement.input(on_arrangement, inputs, batch.outputs, api_name="arrange_batch", **late)

    looked: list[Any] = [shown, results.strip, attention.summary]

    def look(page: Shown | None, position: int, *options: Any) -> list[Any]:
        layer, head, own_row, exclude_sinks, own_scale = options
        if page is None:
            return [gr.skip()] * len(looked)
        if not 0 <= position < len(page.inspection.row):
            raise refuse(f"The row has no position {position}.")
        row = position if own_row else page.inspection.row_that_chose(position)
        found = attend(store.get(page.model), page.inspection, row, exclude_sinks=exclude_sinks)
        heat = attention_view.heat_of(found, position, layer, head, own_scale)
        # Viewer and readout take row and heat from the strip, in the browser.
        return [
            replace(page, selected=position, attention=found),
            gr.update(heat=encode(heat)),
            attention_view.summarise(page.inspection, found),
        ]

    def on_select(
        page: Shown | None,
        layer: str,
        head: str,
        own_row: bool,
        exclude_sinks: bool,
        own_scale: bool,
        event: gr.EventData,
    ) -> list[Any]:
        return look(page, read_event(event, "position", int), layer, head, own_row, exclude_sinks, own_scale)

    def on_control(page: Shown | None, *options: Any) -> list[Any]:
        return look(page, 0 if page is None else page.selected, *options)

    # Each selection in turn: what gradio puts off until an event is over comes with the data of the one before.
    place: dict[str, Any] = {"concurrency_id": Rank.LOOK.place, "show_progress": "hidden"}
    results.strip.select(
        turns.run(Rank.LOOK, on_select),
        [shown, *attention.controls],
        looked,
        api_name="select_token",
        trigger_mode="multiple",
        **place,
    )
    gr.on(
        [control.input for control in attention.controls],
        turns.run(Rank.LOOK, on_control),
        [shown, *attention.controls],
        looked,
        api_name="attention_controls",
        trigger_mode="always_last",
        **place,
    )

    def on_make(page: Shown | None, arrangement: str) -> Any:
        if page is None:
            raise refuse("There is no batch yet; ask something first.")
        with handed_over(bounds) as folder:
            files = write_files(store.get(page.model), page.inspection, arrangement, folder)
        return gr.update(value=files, visible=True)

    batch.make.click(on_make, [shown, batch.arrangement], batch.files, api_name="batch_files")

    def read_tokens(page: Shown | None) -> dict[str, Any]:
        """The row of tokens that this browser or client asked about last."""
        if page is None:
            raise refuse("There are no tokens yet; ask something first.")
        return page.inspection.table.to_json()

    tokens = gr.JSON(visible=False)
    reader = gr.Button(visible=False)
    reader.click(read_tokens, shown, tokens, api_name="tokens", concurrency_limit=None)


def _wire_header(store: ModelStore, view: header_view.HeaderView, shown: gr.State, bounds: Bounds) -> None:
    nothing = show_notes(["There is nothing to take away yet; ask something first."])

    def export(page: Shown | None) -> tuple[Any, str]:
        if page is None:
            return gr.skip(), nothing
        try:
            with handed_over(bounds) as folder:
                return write_facts(store.get(page.model), page.inspection, page.attention, folder), ""
        except InputError as error:
            return gr.skip(), show_notes([str(error)])

    def share(page: Shown | None) -> tuple[Any, str]:
        if page is None:
            return gr.skip(), nothing
        line = write_inspect(page.inspection.prompt, store.argument_of(page.model), page.names, page.settings)
        return header_view.show_line(line), ""

    free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    view.export.click(export, shown, [view.file, view.note], api_name="export", **free).success(
        None, None, None, js=header_view.DOWNLOAD, api_visibility="private"
    )
    view.share.click(share, shown, [view.command, view.note], api_name="share", **free).success(
        None, view.command, None, js=header_view.COPY, api_visibility="private"
    )


def _path_of(image: Any) -> str:
    # gradio hands an uploaded file over as a dictionary or as its own class, by the way it came.
    return str(image["path"] if isinstance(image, dict) else image.path)


def _inspect_api(store: ModelStore, bounds: Bounds) -> Any:
    def inspect(
        images: list[gr.FileData],
        questions: list[str],
        layout: str = "images-first",
        document_mask: bool = False,
        model: str = "",
        max_new_tokens: int = 32,
    ) -> dict[str, Any]:
        """Asks and returns every fact as JSON, like ``python -m inspector inspect``. ``layout`` is one of
        images-first, per-turn, packed."""
        try:
            vlm = store.get(model or store.names[0])
            settings = GenerationSettings(max_new_tokens, bounds=bounds)
            check_count(len(images), bounds)
            opened = tuple(SHELF.find(_path_of(image)) for image in images)
            check_pixels(opened, bounds)
            asked = Prompt(opened, tuple(Turn(text) for text in questions), layout, document_mask, bounds)  # type: ignore[arg-type]
            inspection = ask_and_inspect(vlm, asked, settings)
            row = inspection.row_that_chose(inspection.first_answer_position)
            return describe(vlm, inspection, attend(vlm, inspection, row))
        except InputError as error:
            raise refuse(error) from error

    return inspect
