"""The same images and questions written as other rows: every layout, with and without document mask and ordinals.

A row decides what a question can see and what it has to go by: images first puts all of them before every question, one
image per turn puts each beside its own, and packing makes samples of the turns that nothing but a document mask keeps
apart. ``<image: k>`` texts are nanoVLM's numbers for the images of one sample; here a row is also read without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from inspector.interventions.prefix_cache import PrefixCache
from inspector.interventions.target import Case, is_answered, target_of
from inspector.row.embedded_row import answer_row
from inspector.row.layout import read_structure
from inspector.row.prompt import Prompt, Turn, prepare_row
from inspector.row.row_store import ROWS
from inspector.which_image.image_effects import STRONG, TurnMatrix, measure_matrix
from model import InputError, InspectableVLM, Row, Sample, Span

EXPLANATION = (
    "The same images and questions were written as every layout, with and without the document mask and the "
    "`<image: k>` texts, and answered anew in each; then each image was taken away from each answer. "
    "A layout that the model was not trained on may fail for that reason alone, so a difference says nothing about "
    "which layout is better."
)


@dataclass(frozen=True)
class LayoutCell:
    """One way to write the row. ``ordinals``: False where its ``<image: k>`` texts were left out.
    ``length`` in positions.

    ``answers`` of the turns (greedy), with their ``probabilities`` per token; ``matrix``: what each answer loses
    without each image. ``not_done``: why there is no row, "" if there is one.
    """

    layout: str
    document_mask: bool
    ordinals: bool
    length: int = 0
    answers: tuple[str, ...] = ()
    probabilities: tuple[float | None, ...] = ()
    matrix: TurnMatrix | None = None
    not_done: str = ""

    @property
    def name(self) -> str:
        notes = [*["document mask"] * self.document_mask, *["no `<image: k>`"] * (not self.ordinals)]
        return f"{self.layout} ({', '.join(notes)})" if notes else self.layout

    @property
    def leakage(self) -> float | None:
        """Share of all effects that is of images another turn brought; None where nothing has an effect."""
        return None if self.matrix is None else self.matrix.leakage

    @property
    def leaders(self) -> tuple[int | None, ...]:
        """Per turn the image whose removal costs most, None where none costs :data:`STRONG` nats or more."""
        found: list[int | None] = []
        for row in () if self.matrix is None else self.matrix.effects:
            strongest = max(range(len(row)), key=lambda k: row[k]) if row else None
            found.append(None if not row or strongest is None or row[strongest] < STRONG else strongest + 1)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "layout": self.layout,
            "document_mask": self.document_mask,
            "ordinals": self.ordinals,
            "length": self.length,
            "answers": list(self.answers),
            "probabilities": list(self.probabilities),
            "images": list(self.leaders),
            "leave_one_out": None if self.matrix is None else self.matrix.to_json()["effects"],
            "reachable": None if self.matrix is None else self.matrix.to_json()["reachable"],
            "leakage": self.leakage,
            "not_done": self.not_done,
        }


def compare_layouts(vlm: InspectableVLM, prompt: Prompt, *, max_new_tokens: int = 32) -> Iterator[LayoutCell]:
    """Yields cell after cell; ``prompt``'s own layout, document mask and answers play no part. A layout that doesn't
    fit the model, or that differs in nothing from one before it, says so."""
    asked = replace(prompt, turns=tuple(Turn(turn.user) for turn in prompt.turns), document_mask=False)
    seen: dict[tuple[int, ...], str] = {}
    for layout in ("images-first", "per-turn", "packed"):
        for document_mask in (False, True) if layout == "packed" else (False,):
            for ordinals in (True, False):
                shown = replace(asked, layout=layout, document_mask=document_mask)
                yield _study(vlm, shown, ordinals, seen, max_new_tokens)


def _study(
    vlm: InspectableVLM, prompt: Prompt, ordinals: bool, seen: dict[tuple[int, ...], str], max_new_tokens: int
) -> LayoutCell:
    cell = LayoutCell(prompt.layout, prompt.document_mask, ordinals)
    try:
        row = _write(vlm, prompt, ordinals, answering=len(prompt.turns) - 1)
    except InputError as error:
        return replace(cell, not_done=str(error))
    # What the model is given to answer the last turn; a document mask matters where there is more than one sample.
    given = (*row.input_ids.tolist(), prompt.document_mask and bool(row.segment_ids.any()))
    if given in seen:
        missing = f"The same row as {seen[given]}." if ordinals else "The row has no `<image: k>` text to leave out."
        return replace(cell, not_done=missing)
    seen[given] = cell.name
    try:
        for turn in range(len(prompt.turns)):
            row = _write(vlm, prompt, ordinals, answering=turn)
            read = ROWS.read(vlm, row, prompt.keeps_samples_apart, keep=False)
            steps = [step for step, _ in answer_row(vlm, read, max_new_tokens=max_new_tokens)]
            ids = tuple(step.token_id for step in steps if step.token_id not in vlm.eos_ids)
            prompt = prompt.with_answer(turn, "".join(step.text for step in steps), ids)
        row = _write(vlm, prompt, ordinals)
    except InputError as error:
        return replace(cell, not_done=str(error))
    structure = read_structure(
        row, document_mask=prompt.document_mask, decode=vlm.decode_text, numbers_images=vlm.numbers_images
    )
    answered = [question for question in structure.questions if is_answered(question)]
    answers = tuple(turn.assistant for turn in prompt.turns)
    probabilities: list[float | None] = [None] * len(prompt.turns)
    if not answered:
        return replace(cell, length=len(row), answers=answers, probabilities=tuple(probabilities))
    case = Case(
        vlm,
        prompt,
        PrefixCache(vlm, ROWS.read(vlm, row, prompt.keeps_samples_apart, keep=False)),
        structure,
        target_of(structure, answered[-1]),
        max_new_tokens,
    )
    targets = [target_of(structure, question) for question in answered]
    outcomes = case.prefix_cache.run(
        [case.prefix_cache.continuation(t.start, t.scored, stop=t.scored[1]) for t in targets]
    )
    for question, outcome in zip(answered, outcomes, strict=True):
        probabilities[question.number - 1] = math.exp(outcome.logprob / len(outcome.logprobs))
    return replace(
        cell, length=len(row), answers=answers, probabilities=tuple(probabilities), matrix=measure_matrix(case)
    )


def _write(vlm: InspectableVLM, prompt: Prompt, ordinals: bool, answering: int | None = None) -> Row:
    row = prepare_row(vlm, prompt, answering=answering)
    return row if ordinals else vlm.place(drop_ordinals(row))


def drop_ordinals(sample: Sample) -> Sample:
    """The row without its ``<image: k>`` texts, everything behind them moved up."""
    dropped = [span for span in sample.spans if span.kind == "region" and span.image is not None and span.tile is None]
    gone = {p for span in dropped for p in range(span.start, span.stop)}
    kept = torch.tensor([p for p in range(len(sample)) if p not in gone], dtype=torch.long)
    spans: list[Span] = []
    for span in sample.spans:
        if span not in dropped:
            start = spans[-1].stop if spans else 0
            spans.append(replace(span, start=start, stop=start + len(span)))
    return Sample(
        input_ids=sample.input_ids[kept],
        loss_mask=sample.loss_mask[kept],
        spans=tuple(spans),
        images=sample.images,
        attention_mask=sample.attention_mask[kept],
        segment_ids=sample.segment_ids[kept],
    )


def tell_layouts(cells: Sequence[LayoutCell]) -> tuple[str, ...]:
    """A sentence for each turn on what the rows make of it, and one on leakage."""
    read = [cell for cell in cells if not cell.not_done]
    if not read:
        return ("None of the layouts fits the model; see what each says.",)
    sentences = []
    for turn in range(len(read[0].answers)):
        by_answer: dict[str, list[str]] = {}
        for cell in read:
            by_answer.setdefault(cell.answers[turn], []).append(cell.name)
        if len(by_answer) == 1:
            sentences.append(f"Turn {turn + 1} is answered “{next(iter(by_answer))}” in every row.")
        else:
            told = "; ".join(f"“{answer}” in {', '.join(names)}" for answer, names in by_answer.items())
            sentences.append(f"Turn {turn + 1} is answered {told}.")
    leaks = [
        f"{cell.leakage:.2f} in {cell.name}"
        for cell in read
        if cell.leakage is not None and cell.layout != "images-first" and len(cell.answers) > 1
    ]
    if leaks:
        sentences.append(f"Share of the effects that is of other turns' images: {', '.join(leaks)}.")
    return tuple(sentences)
