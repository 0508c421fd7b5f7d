"""Three ``gr.HTML`` subclasses that share one selection.

The templates are constant shells: Gradio redraws a template whenever a property changes, and a shell without data
stays as it is, so what the scripts have built survives and only the changed property travels. Update one from an event
with ``gr.update(data=…)`` or ``gr.update(heat=…)``. The shapes of ``data`` and ``heat`` are documented where they are
made, in :mod:`inspector.figures.payload`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

_FOLDER = Path(__file__).parent


def _script(name: str) -> str:
    return (_FOLDER / "selection.js").read_text(encoding="utf-8") + (_FOLDER / name).read_text(encoding="utf-8")


class _Widget(gr.HTML):
    """A shell, a script and a style sheet. ``data`` and ``heat`` are JSON or None."""

    script: str
    name: str

    def __init__(
        self, data: Any = None, heat: Any = None, *, elem_id: str | None = None, elem_classes: Any = None, **others: Any
    ) -> None:
        fixed = {
            "html_template": f'<div class="vlm-{self.name}"></div>',
            "css_template": (_FOLDER / "widgets.css").read_text(encoding="utf-8"),
            "js_on_load": _script(self.script),
            "apply_default_css": False,
        }
        super().__init__("", elem_id=elem_id, elem_classes=elem_classes, data=data, heat=heat, **(others | fixed))

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "description": "drawn in the browser; read the tokens with /tokens"}


class TokenStrip(_Widget):
    """The whole row of tokens. Triggers ``select`` with ``{position}`` when a person selects a token, here or on an
    image."""

    name, script = "strip", "token_strip.js"


class ImageViewer(_Widget):
    """Every image with its grids and, if there is one, the heat of the selected token."""

    name, script = "viewer", "image_viewer.js"


class Readout(_Widget):
    """All that is known of the selected token. ``data`` is the strip's, ``cells`` the viewer's without pixels."""

    name, script = "readout", "readout.js"

    def __init__(self, data: Any = None, heat: Any = None, *, cells: Any = None, **others: Any) -> None:
        super().__init__(data, heat, **(others | {"cells": cells}))
