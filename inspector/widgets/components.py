"""``gr.HTML`` subclasses that share one selection: the token strip, the image viewer, the readout and others.

Use::

    strip, viewer, readout = TokenStrip(elem_id="strip"), ImageViewer(elem_id="viewer"), Readout(elem_id="readout")
    strip.select(explain, outputs=[strip, viewer])     # explain(event: gr.EventData): event.position is an int
    return gr.update(data=encode(…), heat=encode(…))   # or TokenStrip(data=encode(…), …)
    return gr.update(heat=encode(…))                   # only the heat travels, the tokens stay as they are
    return TokenStrip(heat=None)                       # takes the heat away; gr.update drops None, so it can't

The shapes of ``data`` and ``heat`` are documented where they are made, in :mod:`inspector.figures.payload`.

Anything on the page may take part in the selection without Python: ``document`` gets the CustomEvent ``vlm:select``
with ``detail = {position, origin}`` (position null: nothing is selected), and ``window.vlmBus.position`` is the
current one for those who come late. Any element with a ``data-vlm-position`` attribute selects that position when it
is clicked. ``vlm:hover`` is the same for the token under the pointer and never reaches Python.

The templates are constant shells: Gradio draws a template again whenever a property changes, and a shell without data
stays as it is, so what the scripts have built survives.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

_FOLDER = Path(__file__).parent


def encode(value: Any) -> str | None:
    """JSON text of a widget's ``data`` or ``heat``, as it lies in the page; None stays None. ValueError for NaN.

    As an object, Gradio's framework would put every list and number in it under observation and compare all of them at
    every change of any property: a third of the time until 3,000 tokens are on the screen."""
    return None if value is None else json.dumps(value, allow_nan=False, separators=(",", ":"))


def read_lean(file: str) -> str:
    """A script or sheet without indentation and lines of comment: every page is sent all of them."""
    lines = map(str.strip, (_FOLDER / file).read_text("utf-8").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


@cache
def _script(name: str, shared: tuple[str, ...], dressed: bool) -> str:
    # The style sheet is put into the page once by the script: as a css_template Gradio would parse it again, once per
    # widget, at every change of a property.
    style = json.dumps(read_lean("widgets.css")) if dressed else "null"
    sheet = f"{name}.css"
    rules = f"const OWN_STYLE = {json.dumps(read_lean(sheet))};\n" if (_FOLDER / sheet).exists() else ""
    return f"const STYLE = {style};\n{rules}" + "\n".join(map(read_lean, (*shared, f"{name}.js")))


class _Widget(gr.HTML):
    """A shell and a script. ``data`` and ``heat`` are what :func:`encode` returns. Only the token strip, which is on
    every page, is ``_dressed``, that is, brings the style sheet: a sheet is a third of what a widget weighs."""

    _name: str
    _shared: tuple[str, ...] = ("bus.js", "selection.js")
    _dressed = False

    def __init__(
        self,
        data: str | None = None,
        heat: str | None = None,
        *,
        elem_id: str | None = None,
        elem_classes: list[str] | str | None = None,
        told: dict[str, str] | None = None,
        **others: Any,
    ) -> None:
        # What is ``told`` to the script once and for all stands in it: an update to a widget in a tab that wasn't open
        # yet takes other properties away.
        given = "" if told is None else f"const TOLD = {json.dumps(told)};\n"
        fixed = {
            "html_template": f'<div class="vlm vlm-{self._name}"></div>',
            "js_on_load": given + _script(self._name, self._shared, self._dressed),
            "apply_default_css": False,
        }
        super().__init__("", elem_id=elem_id, elem_classes=elem_classes, data=data, heat=heat, **(others | fixed))

    def api_info(self) -> dict[str, Any]:
        """What the API page says: an event neither takes nor returns anything of use here."""
        # Written out here because Gradio copies this body into a stub that has no module-level names.
        return {"type": "object", "description": "Drawn in the browser; events read tokens from the app's own state."}

    def example_payload(self) -> Any:
        return {}

    def example_value(self) -> Any:
        return {}


class TokenStrip(_Widget):
    """The whole row of tokens. Triggers ``select`` with ``{position, maps}`` when a person selects a token, wherever
    on the page that was; of several quick ones with the first and the last."""

    _name = "token_strip"
    _dressed = True


class ImageViewer(_Widget):
    """Every image with its grids and, if there is one, the heat of the selected token. Takes the heat of the page's
    token strip unless it is given its own."""

    _name = "image_viewer"


class HeadBoard(_Widget):
    """All layers × heads: a map of one number of each that is the control, and a small map of each over the images.
    ``data``: see :func:`inspector.figures.head_board.board_payload`. Triggers ``choose`` with ``{layer, head}``, −1 for
    the mean, when a person chooses one; of several quick ones with the first and the last."""

    _name = "head_board"


class Readout(_Widget):
    """All that is known of the selected token. Without ``data`` and ``heat`` of its own it reads those of the page's
    strip and viewer, so that nothing is sent twice."""

    _name = "readout"


class EditBoard(_Widget):
    """An image of the page's viewer with a rectangle on it, drawn, moved by keys or written into four fields, and what
    is to be done there. Triggers ``draw``, without data, when any of that changes; ``window.vlmBus.edit`` is then the
    edit in one line (see :mod:`inspector.experiments.image_edits`), "" without an image.

    ``data``: ``{edited}``, sources of images to be shown instead of the viewer's, by index."""

    _name = "edit_board"
