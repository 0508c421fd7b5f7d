"""Links: one that restores what the page shows, and what the page does when it is opened by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from inspector.export.link import ViewLink, read_link
from inspector.figures.markup import show_notes
from inspector.images.example_files import PAGE_EXAMPLES, recognise_example, write_example
from inspector.images.image_file import ImageFile
from inspector.images.link_shelf import LinkShelf
from inspector.persons import identify
from inspector.server.blocks import GuardedBlocks
from inspector.server.turns import Rank
from inspector.session import SECRET, ModelStore, Shown
from inspector.views import asking as asking_view
from inspector.views import attention as attention_view
from inspector.views import prompt as prompt_view
from inspector.views.attention import AttentionView
from inspector.views.header import HeaderView
from inspector.views.looking import LookingHandlers
from inspector.views.own_models import OwnModels
from inspector.views.results import ResultsView
from model import InputError

TABS = ("See", "Attention", "Which image?", "Patches", "CLIP", "Two models", "Batch", "Train")
OPEN_TAB = """(page, layer, head) => {
    const tab = document.querySelector('.vi-results [role=tab][aria-selected=true]');
    return [page, layer, head, tab ? tab.dataset.tabId : ''];
}"""
"""Which tab is open is known in the browser alone."""
COMPLETE = """(written) => {
    const link = written ? location.origin + location.pathname + written : '';
    const select = () => {
        const field = document.querySelector('#link-text textarea, #link-text input');
        if (field && link) { field.focus(); field.select(); }
    };
    setTimeout(select, 200);
    if (navigator.clipboard && link) navigator.clipboard.writeText(link).catch(() => {});
    return link;
}"""
"""Where the server is asked from is known in the browser alone, too."""

SELECT = """() => {
    const named = new URLSearchParams(location.search), bus = window.vlmBus;
    if (!named.has('token') || !bus || !bus.heat || bus.heat.selected !== Number(named.get('token'))) return;
    bus.position = bus.heat.selected;
    bus.stretch = bus.heat.first < bus.position ? [bus.heat.first, bus.position] : null;
    const detail = { position: bus.position, origin: 'server' };
    document.dispatchEvent(new CustomEvent('vlm:select', { detail }));
}"""
"""The widgets hear of a selection that came from the link."""


@dataclass(frozen=True)
class LinkHandlers:
    """What the events call. ``folder``: where the examples' pictures lie. The prompt's ``inputs`` stand in
    ``prompt``."""

    store: ModelStore
    shelf: LinkShelf
    prompt: prompt_view.PromptView
    looking: LookingHandlers
    own_models: OwnModels
    folder: Path

    def write(self, page: Shown | None, layer: str, head: str, tab: str, request: gr.Request) -> list[Any]:
        """The link from its “?” on, and what there is to say of it; the field that it is to stand in opens."""
        if page is None:
            return [gr.skip(), gr.skip(), show_notes(["There is nothing to link to yet; ask something first."])]
        prompt = page.inspection.prompt
        images = [image for image in prompt.images if isinstance(image, ImageFile)]
        said = []
        try:
            example = recognise_example([image.path for image in images], self.folder)
            kept = "" if example else self.shelf.keep(images, page.names, identify(request))
            if images and example is None:
                said.append(self.shelf.promise)
            if is_own := page.model.startswith(SECRET):
                said.append("The model of a run is nobody else's: the link opens with the server's first one.")
            _, turns, _, _, *texts = prompt_view.write_prompt(prompt)
            answers = texts[prompt_view.MAX_TURNS :]
            written = ViewLink(
                model="" if is_own else page.model,
                example=example.name if example else "",
                images=kept,
                turns=tuple(zip(texts[:turns], answers[:turns], strict=True)),
                layout=prompt.layout,
                document_mask=prompt.document_mask,
                settings=page.settings,
                tab=tab if tab in TABS else "",
                first=page.start if page.start != page.selected else None,
                token=page.selected,
                layer=layer if layer != attention_view.MEAN else "",
                head=head if head != attention_view.MEAN else "",
            ).write()
        except InputError as error:
            return [gr.skip(), gr.skip(), show_notes([str(error)])]
        return [written, gr.update(visible=True, info=" ".join(said) or None), ""]

    def open(self, kept: Any, request: gr.Request) -> list[Any]:
        """What the page opens with: values for the prompt's contents, the model, the settings, the note in the header,
        and the person's own models, of which the browser remembers ``kept``. Of a link that asks for what isn't here,
        what is."""
        own, picked = self.own_models.bring_back(kept)
        notes, first = [], self.store.names[0]
        try:
            link = read_link(_read_query(request), self.prompt.bounds)
        except InputError as error:
            link = ViewLink()
            notes.append(str(error))
        model = link.model or picked or first
        try:
            self.store.get(model)
        except InputError as error:
            notes.append(f"{error} Until then “{first}” answers.")
            model = first
        if link.has_prompt:
            try:
                paths = self._find_images(link)
            except InputError as error:
                notes.append(str(error))
                paths = []
            written = prompt_view.write_contents(paths, link.turns, link.layout, link.document_mask)
        else:
            named = (n for n, one in enumerate(PAGE_EXAMPLES) if one.name == link.example)
            opening = next(named, asking_view.OPENING_EXAMPLE)
            written = prompt_view.write_example_contents(opening, self.folder)
        contents = prompt_view.fill_contents(self.store, model, written, self.prompt.bounds)
        choices = [*((name, name) for name in self.store.names), *own]
        picker = gr.update(choices=choices, value=model, visible=len(choices) > 1) if own else model
        # A picker that says what it said already starts nothing.
        shown = gr.skip() if model == first and not own else picker
        return [*contents, shown, *self._settings(link), show_notes(notes), *self.own_models.offer(own)]

    def restore(
        self, page: Shown | None, own_row: bool, exclude_sinks: bool, own_scale: bool, request: gr.Request
    ) -> list[Any]:
        """What was selected, once the question is answered: what is shown, strip, summary, the stretch, layer, head and
        the open tab. A link to a run opens Train."""
        nothing = [gr.skip()] * 7
        values = _read_query(request)
        if "job" in values:
            return [*nothing, gr.update(selected="Train")]
        try:
            link = read_link(values, self.prompt.bounds)
        except InputError:
            return [*nothing, gr.skip()]  # said when the page was opened
        tab = gr.update(selected=link.tab) if link.tab in TABS else gr.skip()
        if page is None or link.token is None:
            return [*nothing, tab]
        counts = page.attention.pattern.shape[:2]
        layer, head = (
            name if name in map(str, range(count)) else attention_view.MEAN
            for name, count in zip((link.layer, link.head), counts, strict=True)
        )
        first, last = link.token if link.first is None else link.first, link.token
        if not 0 <= first <= last < len(page.inspection.row):
            return [*nothing, tab]
        options = (layer, head, own_row, exclude_sinks, own_scale, attention_view.READS)
        looked = self.looking.look_at_stretch(page, *options, first, last)
        return [*looked, layer, head, tab]

    def _find_images(self, link: ViewLink) -> list[Path]:
        if link.images:
            return self.shelf.take(link.images)
        example = next((one for one in PAGE_EXAMPLES if one.name == link.example), None)
        return write_example(example, self.folder) if example else []

    def _settings(self, link: ViewLink) -> list[Any]:
        """As far as the form's sliders go."""
        if link.settings is None:
            return [gr.skip()] * len(self.prompt.settings)
        asked = replace(link.settings, max_new_tokens=min(link.settings.max_new_tokens, prompt_view.LONGEST))
        temperature, top_k = min(asked.temperature, prompt_view.HOTTEST), min(asked.top_k, prompt_view.WIDEST)
        return [asked.max_new_tokens, temperature, top_k, max(asked.top_p, prompt_view.NARROWEST), asked.seed]


def _read_query(request: gr.Request) -> Mapping[str, str]:
    return {str(name): str(value) for name, value in dict(request.query_params).items()}


def wire_links(
    handlers: LinkHandlers,
    header: HeaderView,
    opened: Any,
    results: ResultsView,
    attention: AttentionView,
    tabs: gr.Tabs,
    shown: gr.State,
    demo: GuardedBlocks,
) -> None:
    """``opened``: the event that has asked what the page opens with. ``shown`` holds a
    :class:`inspector.session.Shown`."""
    tab = gr.Textbox("", label="Tab", visible=False)
    written = gr.Textbox("", label="Address", visible=False)
    made = header.link.click(
        handlers.write,
        [shown, attention.layer, attention.head, tab],
        [written, header.address, header.note],
        js=OPEN_TAB,
        api_name="link",
        concurrency_limit=2,
        show_progress="hidden",
    )
    made.success(None, written, header.address, js=COMPLETE, api_visibility="private")
    opened.then(
        demo.turns.run(Rank.LOOK, handlers.restore),
        [shown, attention.own_row, attention.exclude_sinks, attention.own_scale],
        [shown, results.strip, attention.summary, *attention.stretch, attention.layer, attention.head, tabs],
        api_visibility="private",
        concurrency_id=Rank.LOOK.place,
        show_progress="hidden",
    ).success(None, None, None, js=SELECT, api_visibility="private")
