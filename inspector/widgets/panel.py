"""Parts of a tab that fill step by step, and things on the page that can be chosen by clicking them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from inspector.widgets.components import read_lean


class Panel(gr.HTML):
    """A result that stays while the next one is computed: ``gr.update(busy="…")`` says what is running above it and
    leaves the result as it is; ``note`` is said there for good."""

    def __init__(self, value: str = "", *, busy: str = "", note: str = "", **others: Any) -> None:
        # An update of other properties can come without these, as to a panel in a tab that wasn't open yet.
        busy_of, note_of = (f'${{typeof {name} === "undefined" ? "" : {name}}}' for name in ("busy", "note"))
        fixed = {
            "html_template": f'<p class="wi-busy" role="status">{busy_of}</p><p class="vi-caption">{note_of}</p>'
            "${value}",
            "js_on_load": None,
            "apply_default_css": False,
        }
        super().__init__(value, **(others | fixed | {"busy": busy, "note": note}))


class ChoiceBoard(gr.HTML):
    """HTML whose buttons with a ``data-thing`` can be switched on and off. Triggers ``choose`` with ``{things}``, the
    list of all that are on, in the order of the page. A button with a ``data-snip`` triggers ``snip`` with ``{thing}``
    and is pressed while the result beside it says in its ``data-cuts`` that this is cut from all behind it."""

    def __init__(self, value: str = "", **others: Any) -> None:
        super().__init__(value, js_on_load=read_lean("choice_board.js"), apply_default_css=False, **others)


class PatchPicker(gr.HTML):
    """HTML with grids of patches over images (see :func:`inspector.figures.clip.show_board`). Triggers ``pick`` with
    ``{image, patch}``, both from 0, when one is chosen."""

    def __init__(self, value: str = "", **others: Any) -> None:
        super().__init__(value, js_on_load=read_lean("patch_picker.js"), apply_default_css=False, **others)
