"""The right column above the tabs: answer, image viewer, readout, token strip."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from inspector.figures.markup import show_answer
from inspector.widgets import ImageViewer, Readout, TokenStrip


@dataclass(frozen=True)
class ResultsView:
    provenance: gr.HTML
    answer: gr.HTML
    viewer: ImageViewer
    readout: Readout
    strip: TokenStrip


def build_results() -> ResultsView:
    with gr.Row(elem_classes="vi-answer-row"):
        with gr.Column(scale=3, min_width=280):
            answer = gr.HTML(show_answer([]), elem_id="answer")
        with gr.Column(scale=2, min_width=280):
            provenance = gr.HTML("", elem_id="provenance")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            viewer = ImageViewer(elem_id="viewer")
        with gr.Column(scale=2, min_width=280):
            readout = Readout(elem_id="readout")
    strip = TokenStrip(elem_id="strip")
    return ResultsView(provenance, answer, viewer, readout, strip)
