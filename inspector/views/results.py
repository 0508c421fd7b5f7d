"""What belongs to every tab: the answer above them, and the images, the selected token and the row of tokens, which the
page's style sheet lays out as the open tab needs them (``widgets/layout.css``)."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from inspector.figures.markup import show_answer, show_info
from inspector.widgets import ImageViewer, Readout, TokenStrip

ABOUT_ANSWER = (
    "The model reads the whole row and adds one token at a time, the likeliest unless a temperature is set; p is the "
    "softmax probability of each, before temperature and filters. A high p says that the model is sure, not that it is "
    "right and not what it relied on."
)

EARLIER = (
    '<p role="status"><b>for the earlier prompt</b> · <button type="button" class="vi-again">Ask again</button></p>'
)
"""Stands over what was drawn for a prompt that has been changed since."""


@dataclass(frozen=True)
class ResultsView:
    answer: gr.HTML
    looks: gr.HTML
    former: gr.HTML
    viewer: ImageViewer
    readout: Readout
    strip: TokenStrip


def build_answer() -> tuple[gr.HTML, gr.HTML, gr.HTML]:
    """Answer, the line of what it looks at and needs, and what is left of the last one."""
    with gr.Column(elem_classes="vi-answer-panel"):
        about = show_info("Answer", ABOUT_ANSWER)
        gr.HTML(f'<div class="vi-panel-head"><h2 class="vi-heading">Answer</h2>{about}</div>')
        answer = gr.HTML(show_answer([]), elem_id="answer")
        looks = gr.HTML("", elem_id="looks-needs")
        former = gr.HTML("", elem_id="former-answer")
    # Shown by the page's script; the button presses Ask.
    gr.HTML(EARLIER, elem_id="earlier")
    return answer, looks, former


def build_results(answer: gr.HTML, looks: gr.HTML, former: gr.HTML) -> ResultsView:
    """Behind the tabs, whose titles come before what they show for whoever goes through the page by key."""
    strip = TokenStrip(elem_id="strip")
    viewer = ImageViewer(elem_id="viewer")
    readout = Readout(elem_id="readout")
    return ResultsView(answer, looks, former, viewer, readout, strip)
