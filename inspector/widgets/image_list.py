"""The list of the prompt's images, which can be put in another order by dragging or by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

_SCRIPT = Path(__file__).with_name("image_list.js")


class ImageList(gr.HTML):
    """Shows the HTML of :func:`inspector.figures.markup.show_plans`. Triggers ``move`` with ``{start, stop}``: the
    image at index ``start`` is to be at index ``stop``."""

    def __init__(self, value: str = "", **others: Any) -> None:
        super().__init__(value, js_on_load=_SCRIPT.read_text("utf-8"), **others)
