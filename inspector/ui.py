"""Composes the page and wires its events. Every event has an ``api_name``, so a program can do what a person does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from inspector.bounds import Bounds
from inspector.encoder.store import EncoderStore
from inspector.experiments.patch_words import BANKS
from inspector.figures.bounds import show_bounds
from inspector.files import open_cache, own_folder
from inspector.images.decoder import DECODER
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.row.feature_store import FEATURES
from inspector.row.prompt import Prompt, Turn
from inspector.row.row_store import ROWS
from inspector.runs.jobs import JobTable
from inspector.runs.part_shelf import list_parts
from inspector.server.blocks import GuardedBlocks, keep_swept
from inspector.server.fetching import Fetcher
from inspector.server.gate import Gate
from inspector.server.toasts import inform
from inspector.session import ModelStore
from inspector.views import asking as asking_view
from inspector.views import attention as attention_view
from inspector.views import batch as batch_view
from inspector.views import battery as battery_view
from inspector.views import clip as clip_view
from inspector.views import comparing as comparing_view
from inspector.views import header as header_view
from inspector.views import image_edits as edits_view
from inspector.views import lessons as lessons_view
from inspector.views import links as links_view
from inspector.views import models as models_view
from inspector.views import own_models as own_models_view
from inspector.views import patch_words as words_view
from inspector.views import prompt as prompt_view
from inspector.views import train as train_view
from inspector.views import which_image as which_view
from inspector.views.folding import build_item
from inspector.views.looking import LookingHandlers, wire_looking
from inspector.views.programs import wire_inspect, wire_tokens
from inspector.views.prompting import wire_prompt
from inspector.views.results import build_answer, build_results
from inspector.views.tools import wire_tools
from model import InspectableVLM, open_image
from model.training.synthetic.examples import EXAMPLES

TITLE = "VLM Inspector"
SEE = "<p>Below: the images as the model gets them, the selected token, and the whole row of tokens.</p>"
"""What the tab See says to whoever can't see that."""
CSS = [Path(__file__).parent / "widgets" / name for name in ("page.css", "layout.css", "which_image.css")]
JS = Path(__file__).parent / "widgets" / "page.js"


def build_ui(
    store: ModelStore,
    jobs: JobTable | None = None,
    bounds: Bounds | None = None,
    open_to_all: bool = False,
    allowed: frozenset[str] | None = frozenset(),
    encoders: EncoderStore | None = None,
    tools: bool = False,
    parts: Sequence[str] = (),
) -> GuardedBlocks:
    """The page over the models of ``store``; start it with ``launch(**launch_options())``. ``jobs``: where training
    runs are kept (a temporary folder if None). ``bounds``: what it gives (a private server's if None).
    ``open_to_all``: whether it may be asked under any host name. ``allowed``: checkpoints that a person may open, see
    :class:`inspector.server.fetching.Fetcher`. ``encoders``: what the CLIP tab offers beside the model's own.
    ``tools``: whether there are events for assistants of other programs, see :mod:`inspector.views.tools`.
    ``parts``: encoders and language models that a VLM may be put together from, beside these."""
    jobs, bounds, encoders = jobs or JobTable(), bounds or Bounds(), encoders or EncoderStore()
    fetcher = Fetcher(allowed, bounds.hub_bytes)
    shelf = list_parts((*(store.source_of(name) for name in store.names), *encoders.sources, *parts), allowed)
    open_cache()
    folder = Path(tempfile.mkdtemp(prefix="examples-", dir=own_folder()))
    kept = int(bounds.sweep_s), int(bounds.cache_hours * 3600)
    options: dict[str, Any] = {"analytics_enabled": False, "delete_cache": kept, "fill_width": True}
    with GuardedBlocks(bounds, open_to_all, title=TITLE, **options) as demo:
        store.watch(demo.turns.before_block)
        encoders.watch(demo.turns.before_block)
        store.private_bytes = bounds.private_model_bytes
        store.tell = inform
        DECODER.bounds, DECODER.find_person = bounds, demo.turns.find_person
        FEATURES.kept.limit, ROWS.kept.limit = bounds.features_bytes, bounds.rows_bytes
        BANKS.kept.limit = bounds.words_bytes
        with gr.Row(elem_classes="vi-header", equal_height=False):
            provenance = header_view.build_title(TITLE)
            models = models_view.build_models(store, fetcher)
            lessons = lessons_view.build_lessons()
            header = header_view.build_header(provenance)
        lesson = lessons_view.build_text()
        shown: gr.State = gr.State(None)
        # At the top level: inside a tab that isn't open they would not come back after a reload. The secret only keeps
        # the browser's copy readable after a restart; what it holds is the person's own.
        person = gr.BrowserState(None, storage_key="vlm-inspector-runs", secret="vlm-inspector-01")
        picked = gr.BrowserState(None, storage_key="vlm-inspector-models", secret="vlm-inspector-01")
        timer = gr.Timer(train_view.PERIOD_S, active=False)
        examples = prompt_view.build_examples()
        with gr.Row(equal_height=False, elem_classes="vi-body"):
            with gr.Column(scale=0, min_width=320, elem_classes="vi-prompt"):
                prompt = prompt_view.build_prompt(store, examples, bounds, models.picker)
            with gr.Column(scale=1, min_width=340, elem_classes="vi-results"):
                answer = build_answer()
                # Titles that find no room are never put into a menu: the bar scrolls.
                with gr.Tabs(overflow_behavior="wrap") as tabs:
                    with gr.Tab("See", id="See"):
                        gr.HTML(SEE, elem_classes="vi-see")
                    with gr.Tab("Attention", id="Attention"):
                        attention = attention_view.build_attention()
                    with gr.Tab("Which image?", id="Which image?"):
                        which = which_view.build_which_image()
                        with build_item("battery", battery_view.TITLE):
                            battery = battery_view.build_battery()
                    with gr.Tab("Patches", id="Patches"):
                        words = words_view.build_patch_words()
                        edits = edits_view.build_image_edits()
                    with gr.Tab("CLIP", id="CLIP"):
                        clip = clip_view.build_clip(encoders)
                    # Of one model nothing can be compared.
                    with gr.Tab("Two models", id="Two models", visible=len(store.names) > 1) as comparing_tab:
                        comparing = comparing_view.build_comparing()
                    with gr.Tab("Batch", id="Batch"):
                        batch = batch_view.build_batch()
                    with gr.Tab("Train", id="Train"):
                        train = train_view.build_train(store, jobs, shelf)
                results = build_results(*answer)
        gr.HTML(show_bounds(bounds), elem_id="bounds")
        wire_prompt(prompt, store, folder)
        own = train.result.own_models
        models_view.wire_models(
            models, results.former, shown, own, comparing_tab, clip.encoder, store, encoders, fetcher, demo
        )
        page = asking_view.Page(header, prompt, results, attention, which, words, clip, edits, shown, gr.State(None))
        looking = LookingHandlers(attention, batch, store, bounds)
        own_models = own_models_view.OwnModels(store, jobs)
        own_models_view.wire_own_models(own_models, models.picker, models.folded, own, train.run.job, picked)
        links = links_view.LinkHandlers(store, demo.links, prompt, looking, own_models, folder)
        # Something real as soon as the page is open.
        filled = [*prompt.contents, prompt.model, *prompt.settings, header.note, own, train.form.fields["base"]]
        loaded = demo.load(links.open, picked, filled, api_name="load", show_progress="hidden")
        asking = asking_view.wire_asking(page, store, demo, folder, loaded)
        links_view.wire_links(links, header, asking.opened, results, attention, tabs, shown, demo)
        lessons_view.wire_lessons(lessons, lesson, asking, tabs, batch, store, shown, demo)
        wire_looking(results, attention, batch, store, shown, demo)
        words_view.wire_patch_words(words, store, shown, demo)
        clip_view.wire_clip(clip, store, encoders, shown, demo)
        edits_view.wire_image_edits(edits, store, shown, demo)
        wire_tokens(shown)
        header_view.wire_header(header, store, shown, bounds)
        told = (edits.study, words.study, clip.shown)
        which_view.wire_which_image(which, store, encoders, shown, told, demo)
        battery_view.wire_battery(battery, store, demo, prompt)
        comparing_view.wire_comparing(comparing, store, shown, demo, prompt)
        train_view.wire_train(train, store, jobs, demo, prompt, person, timer, shelf)
        wire_inspect(store, demo)
        if tools:
            wire_tools(store, demo)
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
    attention = attend(vlm, inspection, row)
    attention_view.draw_maps(inspection, attention, attention_view.MEAN, attention_view.MEAN, False)
    attention_view.draw_plots(attention, False)
