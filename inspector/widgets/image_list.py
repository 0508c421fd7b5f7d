"""The list of the prompt's images, put in another order by dragging or by key, and the way in for files."""

from __future__ import annotations

from typing import Any

import gradio as gr

from inspector.widgets.components import read_lean


class ImageList(gr.HTML):
    """Shows the HTML of :func:`inspector.figures.markup.show_plans`. Triggers ``move`` with ``{start, stop}``: the
    image at index ``start`` is to be at index ``stop``; and ``remove`` with ``{index}``.

    Files that are chosen in the column around it (class ``vi-images``) or dropped anywhere on the page come through
    here. ``refuse`` is triggered with ``{files}``, each a name and a size, for those that are no pictures or larger
    than ``limit`` bytes, and with an empty list once there is none; the others go on to Gradio."""

    def __init__(self, value: str = "", *, limit: int = 0, **others: Any) -> None:
        super().__init__(value, js_on_load=read_lean("image_list.js"), **(others | {"limit": limit}))
