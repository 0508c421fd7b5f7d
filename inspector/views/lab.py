"""The lab: a person cuts edges by hand and sees what becomes of the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from inspector.export.command_line import write_cut
from inspector.figures.lab import show_board, show_lab
from inspector.figures.markup import show_notes
from inspector.interventions.knockout import EXAMPLE, ROWS, compose_cut, name_position, run_lab
from inspector.interventions.target import open_case, read_row
from inspector.row.ask import Inspection
from inspector.row.layout import RowStructure
from inspector.server.blocks import GuardedBlocks
from inspector.server.inputs import read_event
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore, Shown
from inspector.widgets import ChoiceBoard
from model import InputError

_ROW_NAMES = {"question": "the question and its answer", "answer": "the answer alone", "later": "everything after it"}
_EMPTY = "Ask first: the images and runs of tokens that can be hidden appear here."


@dataclass(frozen=True)
class LabView:
    """``things``: what is chosen on the board; ``cuts``: the lines that are in place."""

    switch: gr.Checkbox
    group: gr.Group
    board: ChoiceBoard
    add: gr.Button
    rows: gr.Radio
    layers: gr.CheckboxGroup
    heads: gr.CheckboxGroup
    line: gr.Textbox
    cut: gr.Button
    undo: gr.Button
    clear: gr.Button
    note: gr.HTML
    result: gr.HTML
    things: gr.State
    cuts: gr.State
    facts: gr.JSON


def build_lab() -> LabView:
    with gr.Row(elem_classes="wi-scissors", equal_height=False):
        board = ChoiceBoard(f'<p class="vi-empty">{_EMPTY}</p>', elem_id="lab-board")
        with gr.Column(min_width=280):
            result = gr.HTML(show_lab(None), elem_id="lab-result")
            note = gr.HTML(elem_id="lab-note", elem_classes="wi-note")
            with gr.Row(elem_classes="wi-buttons"):
                undo = gr.Button("Undo", size="sm", min_width=70, scale=0, elem_id="lab-undo")
                clear = gr.Button("Clear", size="sm", min_width=70, scale=0, elem_id="lab-clear")
    switch = gr.Checkbox(
        False, label="cut single tiles and tokens, from whom, in which layers and heads", elem_id="lab-switch"
    )
    with gr.Column(visible=False, elem_id="lab", elem_classes="wi-lab") as group:
        gr.HTML(
            '<p class="vi-caption">Click what is to be hidden or drag across it, say from whom, and press Cut. Cuts '
            "add up; Undo takes the last one back.</p>"
        )
        with gr.Row(elem_classes="wi-controls"):
            rows = gr.Radio(
                [(_ROW_NAMES[name], name) for name in ROWS],
                value="question",
                label="Hidden from",
                min_width=260,
                elem_id="lab-rows",
            )
            layers = gr.CheckboxGroup([], label="In these layers only (none: all)", min_width=180, elem_id="lab-layers")
            heads = gr.CheckboxGroup([], label="In these heads only (none: all)", min_width=180, elem_id="lab-heads")
        with gr.Row(elem_classes="wi-controls", equal_height=False):
            line = gr.Textbox(
                "",
                label="The cut",
                placeholder=EXAMPLE,
                lines=1,
                max_lines=1,
                scale=3,
                min_width=260,
                elem_id="lab-line",
            )
            add = gr.Button("Add selected token", size="sm", min_width=120, scale=0, elem_id="lab-add")
            cut = gr.Button("Cut", variant="primary", size="sm", min_width=70, scale=0, elem_id="lab-cut")
        facts = gr.JSON(visible=False)
    things: gr.State = gr.State([])
    cuts: gr.State = gr.State([])
    return LabView(
        switch, group, board, add, rows, layers, heads, line, cut, undo, clear, note, result, things, cuts, facts
    )


def begin(view: LabView, store: ModelStore, model: str, inspection: Inspection) -> dict[Any, Any]:
    """The lab for a new answer: nothing chosen, nothing cut."""
    vlm = store.get(model)
    structure = _read(store, model, inspection)
    return {
        view.board: show_board(inspection, structure),
        view.layers: gr.update(choices=[str(n) for n in range(vlm.n_layers)], value=[]),
        view.heads: gr.update(choices=[str(n) for n in range(vlm.n_heads)], value=[]),
        view.line: "",
        view.note: "",
        view.result: show_lab(None),
        view.things: [],
        view.cuts: [],
    }


def _read(store: ModelStore, model: str, inspection: Inspection) -> RowStructure:
    apart = inspection.prompt.keeps_samples_apart
    return read_row(store.get(model), inspection, apart)


@dataclass(frozen=True)
class LabHandlers:
    """What the lab's events call; ``page`` is what the page shows."""

    store: ModelStore

    def choose(self, page: Shown | None, rows: str, layers: list[str], heads: list[str], event: gr.EventData) -> tuple:
        things = [thing for thing in read_event(event, "things", list) if isinstance(thing, str)][:200]
        return things, self.compose(page, things, rows, layers, heads)

    def compose(self, page: Shown | None, things: list[str], rows: str, layers: list[str], heads: list[str]) -> str:
        if page is None or not things:
            return ""
        vlm = self.store.get(page.model)
        return compose_cut(things, rows, [int(n) for n in layers], [int(n) for n in heads], vlm)

    def add_token(self, page: Shown | None, things: list[str], rows: str, layers: list[str], heads: list[str]) -> tuple:
        if page is None:
            raise refuse(_EMPTY)
        try:
            name = name_position(_read(self.store, page.model, page.inspection), page.selected)
        except InputError as error:
            raise refuse(error) from error
        things = things if name in things else [*things, name]
        return things, self.compose(page, things, rows, layers, heads)

    def cut(self, page: Shown | None, cuts: list[str], cut: str = "", turn: int | None = None) -> Iterator[list[Any]]:
        yield from self._rerun(page, lambda: _with_cut(cuts, cut), turn)

    def snip(
        self, page: Shown | None, cuts: list[str], cut: str, turn: int | None, event: gr.EventData
    ) -> Iterator[list[Any]]:
        """Hides a whole thing from everything behind it, or shows it again if that is what hides it."""
        line = f"{read_event(event, 'thing', str)} -> later"
        others = [one for one in cuts if one != line]
        yield from self._rerun(page, lambda: others if line in cuts else [*cuts, line], turn)

    # What is written in the line and not yet cut comes with every event of the lab; here it counts for nothing.
    def undo(self, page: Shown | None, cuts: list[str], cut: str = "", turn: int | None = None) -> Iterator[list[Any]]:
        yield from self._rerun(page, lambda: _without_last(cuts), turn)

    def clear(self, page: Shown | None, cuts: list[str], cut: str = "", turn: int | None = None) -> Iterator[list[Any]]:
        yield from self._rerun(page, list, turn)

    def _rerun(self, page: Shown | None, change: Callable[[], list[str]], turn: int | None) -> Iterator[list[Any]]:
        """Note, result, cuts and facts with the cuts that ``change`` gives; it is asked once there is an answer."""
        try:
            if page is None:
                raise InputError("There is no answer yet; press Ask first.")
            changed = change()
            case = open_case(
                self.store.get(page.model), page.inspection, turn, max_new_tokens=page.settings.max_new_tokens
            )
            lab = run_lab(case, changed)
            model = self.store.argument_of(page.model)
            command = write_cut(page.inspection.prompt, model, page.names, page.settings, lab.turn, changed)
            yield ["", show_lab(lab, command), [one.text for one in lab.cuts], lab.to_json() | {"command": command}]
        except InputError as error:
            yield [show_notes([str(error)]), gr.skip(), gr.skip(), gr.skip()]
            raise refuse(error, seen=False) from error


def _with_cut(cuts: list[str], line: str) -> list[str]:
    if not line.strip():
        raise InputError(f"Nothing is chosen to be hidden; click something above, or write a cut such as “{EXAMPLE}”.")
    return [*cuts, line]


def _without_last(cuts: list[str]) -> list[str]:
    if not cuts:
        raise InputError("There is no cut to undo.")
    return cuts[:-1]


def wire_lab(view: LabView, store: ModelStore, shown: gr.State, turn: gr.Radio, demo: GuardedBlocks) -> None:
    handlers = LabHandlers(store)
    free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    view.switch.change(lambda on: gr.update(visible=on), view.switch, view.group, api_name="lab_switch", **free)
    opened: list[Any] = [view.switch, view.group]
    limits: list[Any] = [view.rows, view.layers, view.heads]
    chosen: list[Any] = [view.things, view.line]
    # None of several quick choices may be dropped, as gradio does while one is on its way.
    view.board.choose(
        handlers.choose,
        [shown, *limits],
        chosen,
        api_name="lab_choose",
        concurrency_limit=1,
        show_progress="hidden",
        trigger_mode="multiple",
    )
    # What says from whom and in which layers comes with the first choice.
    view.board.choose(lambda: (True, gr.update(visible=True)), None, opened, api_visibility="private", **free)
    gr.on(
        [control.input for control in limits],
        handlers.compose,
        [shown, view.things, *limits],
        view.line,
        api_name="lab_limits",
        trigger_mode="always_last",
        **free,
    )
    view.add.click(handlers.add_token, [shown, view.things, *limits], chosen, api_name="lab_add_token", **free)
    place: dict[str, Any] = {
        "concurrency_id": Rank.TEST.place,
        "concurrency_limit": 1,
        "show_progress": "minimal",
        "show_progress_on": [view.result],
    }
    inputs: list[Any] = [shown, view.cuts, view.line, turn]
    outputs: list[Any] = [view.note, view.result, view.cuts, view.facts]

    def rerun(handler: Callable[..., Any]) -> Callable[..., Any]:
        return demo.turns.run(Rank.TEST, handler, demo.bounds.study_s)

    view.board.snip(rerun(handlers.snip), inputs, outputs, api_name="lab_snip", trigger_mode="multiple", **place)
    gr.on([view.cut.click, view.line.submit], rerun(handlers.cut), inputs, outputs, api_name="lab_cut", **place)
    view.undo.click(rerun(handlers.undo), inputs, outputs, api_name="lab_undo", **place)
    view.clear.click(rerun(handlers.clear), inputs, outputs, api_name="lab_clear", **place)
