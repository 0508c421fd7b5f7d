"""What is slow to draw waits until somebody looks at it."""

from __future__ import annotations

import time
from typing import Any, Literal

import gradio as gr

from inspector.widgets.components import _Widget


class Sight(_Widget):
    """An empty line above something that is slow to draw. Triggers ``seen``, without data, when that comes near the
    window's visible part and the page has had a newer ``follows`` since the last time: the token strip's ``row``, or
    its ``heat`` (which is newer with every row, too). What was drawn before is dimmed until the event that draws sends
    :func:`answer_sight` to this component. ``named``: what ``vlmBus.inSight`` says of it on the page, for an event
    that would rather send along what is looked at than be asked for it."""

    _name = "sight"
    _shared = ("bus.js",)

    def __init__(self, follows: Literal["row", "heat"], named: str = "", **others: Any) -> None:
        super().__init__(told={"follows": follows, "named": named}, **others)


def answer_sight(along: bool = False) -> Any:
    """An update that tells a :class:`Sight` that what stands below it is drawn; ``along``: of the very row or heat that
    the same event sends, whatever it had asked for."""
    return gr.update(data=f"{time.monotonic_ns()}{' along' * along}")
