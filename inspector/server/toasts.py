"""Messages that lie over the page for a while, and the errors that a client gets: nothing else in this package raises
or sends them.

Gradio draws their text as HTML. A name in a link (``?job=…``) or a key in a file would bring links and pictures of its
own onto the page, and a sentence about ``<image>`` would lose that word. So what the page is sent is escaped, also in
errors that are not of our making. A program reads text and gets it as it is.
"""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from inspector.runs.discretion import hide_paths

SECONDS = 10.0
"""A message goes away by itself after so long, unless it waits to be closed."""


def refuse(sentence: object, *, stays: bool = False, seen: bool = True) -> gr.Error:
    """The error to raise for what can't be done, an exception or its sentence. ``stays``: until it is closed. ``seen``
    False: only programs are told, the page says it in a place of its own. Of paths the last part alone is said."""
    return gr.Error(hide_paths(str(sentence)), duration=None if stays else SECONDS, visible=seen, print_exception=False)


def warn(sentence: object, *, stays: bool = False) -> None:
    """Says what was left out or went wrong while the event goes on."""
    gr.Warning(_write(hide_paths(str(sentence))), duration=None if stays else SECONDS)


def inform(sentence: object) -> None:
    """Says what was done, where the page itself shows no trace of it."""
    gr.Info(_write(str(sentence)), duration=SECONDS)


class PlainToasts(gr.Blocks):
    """Blocks whose errors come to the page as text: ours, gradio's own (they quote what a client sent), and those that
    nobody thought of."""

    @classmethod
    def get_block_name(cls) -> str:
        """Gradio's name: the browser knows no other."""
        return "blocks"

    async def process_api(
        self, block_fn: Any, inputs: list[Any], state: Any = None, request: Any = None, *others: Any, **named: Any
    ) -> dict[str, Any]:
        """As gradio's. Every event of the page and of the API passes here."""
        try:
            return await super().process_api(block_fn, inputs, state, request, *others, **named)
        except gr.Error as error:
            error.message = _write_for(request, error.message)
            raise
        except Exception as error:
            raise gr.Error(_write_for(request, str(error)), duration=SECONDS) from error


def _write(sentence: str) -> str:
    return _write_for(LocalContext.request.get(None), sentence)


def _write_for(request: Any, sentence: Any) -> Any:
    """The text as whoever sent ``request`` can take it. Gradio's clients say of themselves what they are, and a browser
    sends an origin whatever its page says; no request at all is a call in this process."""
    if request is None or not isinstance(sentence, str):
        return sentence
    from_page = request.headers.get("x-gradio-user") == "app" or request.headers.get("origin")
    return escape(sentence, quote=False) if from_page else sentence
