"""The Batch tab: what the training code would see, its lint, and the files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from inspector.figures.markup import show_findings, show_info, show_rows, show_tensors
from inspector.row.ask import Inspection, lint, training_batch
from inspector.widgets import Sight, answer_sight
from model import InspectableVLM

ABOUT = (
    "The samples go through the same renderer and collator as in training: ids, labels and masks here are the ones "
    "that a loss would be computed on. It shows what would be learned from, not whether a model can learn it."
)
EXPLAIN = (
    "Rows are padded on the left with the padding token (nanoVLM's is <code>&lt;|im_end|&gt;</code>): that is why a "
    "printed batch begins with it. Labels are the ids where a token is trained on and −100 elsewhere; the loss "
    "compares each with the prediction of the position before it. In a packed row one masked "
    "padding token ends each sample, and nothing else keeps the samples apart."
)


@dataclass(frozen=True)
class BatchView:
    arrangement: gr.Radio
    sight: Sight
    lint: gr.HTML
    tensors: gr.HTML
    rows: gr.HTML
    make: gr.Button
    files: gr.File

    @property
    def outputs(self) -> list[Any]:
        return [self.sight, self.lint, self.tensors, self.rows]


def build_batch() -> BatchView:
    gr.HTML(
        '<div class="vi-panel-head"><p class="vi-caption">These samples as the training code would batch them.</p>'
        f"{show_info('Batch', ABOUT)}</div>"
        f'<details class="vi-caption"><summary>How to read it</summary><p>{EXPLAIN}</p></details>'
    )
    arrangement = gr.Radio(
        [
            ("the row as it is", "row"),
            ("one sample per turn, padded", "padded"),
            ("one sample per turn, packed", "packed"),
        ],
        value="row",
        label="Arrangement",
        elem_id="arrangement",
    )
    sight = Sight("row")
    findings = gr.HTML(elem_id="lint")
    tensors = gr.HTML(elem_id="tensors")
    rows = gr.HTML('<p class="vi-empty">Ask first: the batch of your prompt appears here.</p>', elem_id="batch-rows")
    make = gr.Button("Make files (JSON, safetensors)", size="sm", elem_id="make-files")
    files = gr.File(label="Files", file_count="multiple", interactive=False, visible=False, elem_id="batch-files")
    return BatchView(arrangement, sight, findings, tensors, rows, make, files)


def draw(vlm: InspectableVLM, inspection: Inspection, arrangement: str) -> list[Any]:
    """Values for :attr:`BatchView.outputs`."""
    batch, _ = training_batch(vlm, inspection, arrangement)
    texts = {**inspection.table.texts, vlm.pad_token_id: vlm.token_text(vlm.pad_token_id)}
    return [answer_sight(), show_findings(lint(vlm, inspection)), show_tensors(batch), show_rows(batch, texts)]
