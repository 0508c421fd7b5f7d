"""A list of contents whose items are folded, one open at a time: a tab of many tables stays as tall as its titles. The
page's script opens and closes them (``widgets/page.js``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import gradio as gr


@contextmanager
def build_item(key: str, title: str, opened: bool = False) -> Iterator[None]:
    """What is built within is shown when ``title`` is pressed. A button that is built first stands beside the title."""
    with gr.Column(elem_id=f"item-{key}", elem_classes=["wi-item", "wi-first"] if opened else "wi-item"):
        gr.HTML(
            f'<button type="button" class="wi-fold" aria-expanded="{str(opened).lower()}" aria-controls="item-{key}">'
            f"{escape(title)}</button>",
            elem_classes="wi-title",
        )
        yield
