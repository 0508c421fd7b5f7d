"""Edits of a picture: a rectangle is drawn, and the answer to the edited picture comes beside the old one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from inspector.experiments.image_edits import EXAMPLE, EditStudy, run_edits
from inspector.export.command_line import write_edit
from inspector.figures.image_edits import ABOUT, WAITING, board_payload, show_edits
from inspector.figures.markup import show_info, show_notes
from inspector.interventions.target import open_case
from inspector.row.ask import Inspection
from inspector.server.blocks import GuardedBlocks
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore, Shown
from inspector.views.which_image import list_answers, read_structure
from inspector.widgets import EditBoard, Panel, encode
from model import InputError

READ_LINE = "() => window.vlmBus.edit || ''"


@dataclass(frozen=True)
class ImageEditsView:
    """``study``: an :class:`inspector.experiments.image_edits.EditStudy`, what was done on this prompt."""

    board: EditBoard
    turn: gr.Radio
    line: gr.Textbox
    start: gr.Button
    undo: gr.Button
    clear: gr.Button
    note: gr.HTML
    panel: Panel
    study: gr.State
    facts: gr.JSON

    @property
    def outputs(self) -> list[Any]:
        """Of every event that changes the edits."""
        return [self.note, self.board, self.panel, self.study, self.facts]

    @property
    def fresh(self) -> list[Any]:
        """What :func:`begin` fills."""
        return [*self.outputs, self.turn]


def begin(store: ModelStore, model: str, inspection: Inspection) -> list[Any]:
    """Values for :attr:`ImageEditsView.fresh` when something new was asked: the edits of another answer go."""
    answers = list_answers(read_structure(store, model, inspection))
    turn = gr.update(choices=answers, value=answers[-1][1] if answers else None, visible=len(answers) > 1)
    return ["", gr.update(data=encode(board_payload(None))), gr.update(value=WAITING), None, None, turn]


def build_image_edits() -> ImageEditsView:
    about = show_info("Edit the picture", ABOUT)
    gr.HTML(f'<div class="vi-panel-head"><h3 class="vi-heading">Edit the picture</h3>{about}</div>')
    board = EditBoard(elem_id="edit-board")
    with gr.Row(elem_classes="wi-controls", equal_height=False):
        turn = gr.Radio([], label="Answer to explain", visible=False, min_width=220, elem_id="edit-turn")
        line = gr.Textbox(
            "", label="The edit", placeholder=EXAMPLE, max_lines=1, scale=3, min_width=260, elem_id="edit-line"
        )
        start = gr.Button("Edit", variant="primary", size="sm", min_width=70, scale=0, elem_id="edit-start")
        undo = gr.Button("Undo", size="sm", min_width=70, scale=0, elem_id="edit-undo")
        clear = gr.Button("Clear", size="sm", min_width=70, scale=0, elem_id="edit-clear")
    note = gr.HTML(elem_id="edit-note", elem_classes="wi-note")
    panel = Panel(WAITING, elem_id="edit-panel")
    study: gr.State = gr.State(None)
    return ImageEditsView(board, turn, line, start, undo, clear, note, panel, study, gr.JSON(visible=False))


@dataclass(frozen=True)
class ImageEditsHandlers:
    """What the events call; ``page`` is what the page shows, ``study`` the edits in place."""

    store: ModelStore

    def edit(
        self, page: Shown | None, study: EditStudy | None, edit: str, turn: int | None = None
    ) -> Iterator[list[Any]]:
        yield from self._change(page, lambda shown: self._add(shown, study, edit, turn))

    def undo(self, page: Shown | None, study: EditStudy | None) -> Iterator[list[Any]]:
        yield from self._change(page, lambda _: _without_last(study))

    def clear(self, page: Shown | None) -> Iterator[list[Any]]:
        yield from self._change(page, lambda _: None)

    def _add(self, page: Shown, study: EditStudy | None, edit: str, turn: int | None) -> EditStudy:
        if not edit.strip():
            raise InputError(f"There is no edit; draw a rectangle on an image, or write one as “{EXAMPLE}”.")
        vlm = self.store.get(page.model)
        case = open_case(vlm, page.inspection, turn, max_new_tokens=page.settings.max_new_tokens)
        return run_edits(case, [*(study.texts if study else ()), edit], study)

    def _change(self, page: Shown | None, change: Callable[[Shown], EditStudy | None]) -> Iterator[list[Any]]:
        """Values for :attr:`ImageEditsView.outputs` with the edits that ``change`` gives."""
        try:
            if page is None:
                raise InputError("There is no answer yet; press Ask first.")
            study = change(page)
            commands = [] if study is None else self._repeat(page, study)
            facts = None if study is None else study.to_json() | {"command": commands[-1]}
            shown = show_edits(study, page.inspection, commands)
            yield ["", gr.update(data=encode(board_payload(study))), gr.update(value=shown), study, facts]
        except InputError as error:
            yield [show_notes([str(error)]), gr.skip(), gr.skip(), gr.skip(), gr.skip()]
            raise refuse(error, seen=False) from error

    def _repeat(self, page: Shown, study: EditStudy) -> list[str]:
        """The commands for the first edit, the first two, and so on."""
        prompt, model = page.inspection.prompt, self.store.argument_of(page.model)
        texts = [study.texts[:count] for count in range(1, len(study.texts) + 1)]
        return [write_edit(prompt, model, page.names, page.settings, study.turn, some) for some in texts]


def _without_last(study: EditStudy | None) -> EditStudy | None:
    if study is None:
        raise InputError("There is no edit to undo; draw a rectangle and press Edit first.")
    return study.without_last if len(study.steps) > 1 else None


def wire_image_edits(view: ImageEditsView, store: ModelStore, shown: gr.State, demo: GuardedBlocks) -> None:
    """``shown`` holds a :class:`inspector.session.Shown`."""
    handlers = ImageEditsHandlers(store)
    view.board.draw(None, None, view.line, js=READ_LINE, api_visibility="private", show_progress="hidden")
    gr.on(
        [view.start.click, view.line.submit],
        demo.turns.run(Rank.TEST, handlers.edit, demo.bounds.study_s),
        [shown, view.study, view.line, view.turn],
        view.outputs,
        api_name="edit",
        concurrency_id=Rank.TEST.place,
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=[view.panel],
    )
    free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    view.undo.click(handlers.undo, [shown, view.study], view.outputs, api_name="edit_undo", **free)
    view.clear.click(handlers.clear, [shown], view.outputs, api_name="edit_clear", **free)
