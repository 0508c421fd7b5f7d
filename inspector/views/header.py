"""The line above everything: name, which model answered, and what can be taken away of what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from inspector.bounds import Bounds
from inspector.export.bundle import NAME, write_bundle
from inspector.export.command_line import write_inspect
from inspector.export.files import write_facts
from inspector.figures.markup import show_notes
from inspector.files import handed_over
from inspector.session import RUN_MODEL, ModelStore, Shown
from model import InputError

_NOTHING = show_notes(["There is nothing to take away yet; ask something first."])


@dataclass(frozen=True)
class HeaderView:
    """``file`` and ``archive`` are never seen: Export and ``bundle`` fill them and the page's script downloads them.
    ``address`` is shown by Link, ``command`` and ``bundle`` by Command (``share``)."""

    provenance: gr.HTML
    link: gr.Button
    address: gr.Textbox
    share: gr.Button
    export: gr.Button
    file: gr.DownloadButton
    command: gr.Textbox
    bundle: gr.Button
    archive: gr.DownloadButton
    note: gr.HTML


DOWNLOAD = "() => {{ const link = document.querySelector('#{}'); if (link) link.click(); }}"
"""After Export: what a person would press next."""
COPY = """(text) => {
    const field = document.querySelector('#share-command textarea, #share-command input');
    if (field) { field.focus(); field.select(); }
    if (navigator.clipboard && text) navigator.clipboard.writeText(text).catch(() => {});
}"""
"""After Command: the line is in the clipboard where the browser allows that, and selected in any case."""


LINE = "Asks the same again without a browser, where the image files lie (answers that you gave are left to the model)"
RUN = "RUN stands for the folder that the run's export was unpacked into"


def show_line(line: str) -> Any:
    """An update of ``command``: the line, and what has to be put into it."""
    return gr.update(value=line, label=f"{LINE}; {RUN}" if RUN_MODEL in line else LINE, visible=True)


def build_title(title: str) -> gr.HTML:
    """The name of the page, and the chip of the model that answered, which an answer fills."""
    gr.HTML(
        '<a class="vi-skip" href="#viewer">Skip to the results</a>'
        f'<h1 title="what a vision-language model saw, token by token, and where it looked">{title}</h1>',
        elem_classes="vi-title",
    )
    return gr.HTML("", elem_id="provenance")


def build_header(provenance: gr.HTML) -> HeaderView:
    """The end of the row that begins with :func:`build_title`."""
    link = gr.Button("Link", size="sm", min_width=50, elem_id="link")
    share = gr.Button("Command", size="sm", min_width=64, elem_id="share")
    export = gr.Button("Export", size="sm", min_width=64, elem_id="export")
    file = gr.DownloadButton("inspection.json", visible="hidden", elem_id="export-file")
    note = gr.HTML(elem_id="header-note")
    shown: dict[str, Any] = {"lines": 1, "interactive": False, "buttons": ["copy"], "visible": False}
    opens = "Opens the page with what is asked and selected now"
    address = gr.Textbox(label=opens, max_lines=3, elem_id="link-text", **shown)
    command = gr.Textbox(label=LINE, max_lines=4, elem_id="share-command", **shown)
    bundle = gr.Button(
        "The same with its images, as a zip: commands, a notebook, all facts",
        size="sm",
        min_width=200,
        visible=False,
        elem_id="bundle",
    )
    archive = gr.DownloadButton(NAME, visible="hidden", elem_id="bundle-file")
    return HeaderView(provenance, link, address, share, export, file, command, bundle, archive, note)


@dataclass(frozen=True)
class HeaderHandlers:
    """What Export and Command call; ``page`` is what the page shows."""

    store: ModelStore
    bounds: Bounds

    def export(self, page: Shown | None) -> tuple[Any, str]:
        if page is None:
            return gr.skip(), _NOTHING
        try:
            with handed_over(self.bounds) as folder:
                return write_facts(self.store.get(page.model), page.inspection, page.attention, folder), ""
        except InputError as error:
            return gr.skip(), show_notes([str(error)])

    def make_bundle(self, page: Shown | None) -> tuple[Any, str]:
        if page is None:
            return gr.skip(), _NOTHING
        try:
            with handed_over(self.bounds) as folder:
                return write_bundle(
                    self.store.get(page.model),
                    page.inspection,
                    page.attention,
                    model=self.store.argument_of(page.model),
                    names=page.names,
                    settings=page.settings,
                    folder=folder,
                ), ""
        except InputError as error:
            return gr.skip(), show_notes([str(error)])

    def share(self, page: Shown | None) -> tuple[Any, str]:
        if page is None:
            return gr.skip(), _NOTHING
        model = self.store.argument_of(page.model)
        return show_line(write_inspect(page.inspection.prompt, model, page.names, page.settings)), ""


def wire_header(view: HeaderView, store: ModelStore, shown: gr.State, bounds: Bounds) -> None:
    """``shown`` holds a :class:`inspector.session.Shown`."""
    handlers = HeaderHandlers(store, bounds)
    free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    view.export.click(handlers.export, shown, [view.file, view.note], api_name="export", **free).success(
        None, None, None, js=DOWNLOAD.format("export-file"), api_visibility="private"
    )
    # An archive holds whole images: few are written at a time.
    view.bundle.click(
        handlers.make_bundle,
        shown,
        [view.archive, view.note],
        api_name="bundle",
        concurrency_limit=2,
        show_progress="minimal",
    ).success(None, None, None, js=DOWNLOAD.format("bundle-file"), api_visibility="private")
    shared = view.share.click(handlers.share, shown, [view.command, view.note], api_name="share", **free)
    shared.success(None, view.command, None, js=COPY, api_visibility="private")
    shared.success(
        lambda page: gr.update(visible=page is not None), shown, view.bundle, api_visibility="private", **free
    )
