"""The right column above the tabs: answer, image viewer, readout, token strip."""

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


@dataclass(frozen=True)
class ResultsView:
    answer: gr.HTML
    looks: gr.HTML
    former: gr.HTML
    viewer: ImageViewer
    readout: Readout
    strip: TokenStrip


def build_results() -> ResultsView:
    with gr.Column(elem_classes="vi-answer-panel"):
        about = show_info("Answer", ABOUT_ANSWER)
        gr.HTML(f'<div class="vi-panel-head"><h2 class="vi-heading">Answer</h2>{about}</div>')
        answer = gr.HTML(show_answer([]), elem_id="answer")
        looks = gr.HTML("", elem_id="looks-needs")
        former = gr.HTML("", elem_id="former-answer")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            viewer = ImageViewer(elem_id="viewer")
        with gr.Column(scale=3, min_width=280):
            readout = Readout(elem_id="readout")
    strip = TokenStrip(elem_id="strip")
    return ResultsView(answer, looks, former, viewer, readout, strip)
