"""The model card of a run: how it was made, how its loss fell, how well it answers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.errors import InputError
from model.families.nanovlm import VLM
from model.training.cpu import processor_name
from model.training.evaluation.accuracy import Measurement
from model.training.recipe import Recipe
from model.training.runs import METRICS, RunFolder

CURVES = "curves.json"
_WIDTH, _HEIGHT, _MARGIN = 760, 260, 44
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6D1F", "#7F63B8")


@dataclass(frozen=True)
class StageCurve:
    """One stage as it ran: ``losses`` and ``held_out`` are (step, nats); ``seconds`` of it in all."""

    stage: str
    kind: str
    steps: int
    seconds: float
    trained: str
    losses: tuple[tuple[int, float], ...]
    held_out: tuple[tuple[int, float], ...]


def read_curves(metrics: Path, points: int = 120) -> list[StageCurve]:
    """The stages of a ``metrics.jsonl``, thinned to about ``points`` means of the training loss each."""
    events = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    curves = []
    for start in [event for event in events if event["event"] == "start" and not event["resumed_at"]]:
        own = [event for event in events if event.get("stage") == start["stage"]]
        steps = [event for event in own if event["event"] == "step"]
        width = max(1, len(steps) // points)
        losses = tuple(
            (
                steps[min(n + width, len(steps)) - 1]["step"],
                round(sum(e["loss"] for e in steps[n : n + width]) / len(steps[n : n + width]), 4),
            )
            for n in range(0, len(steps), width)
        )
        # null where nothing could be measured; a loss of 0 is one.
        held_out = tuple(
            (e["step"], round(e["loss"], 4)) for e in own if e["event"] == "eval" and e["loss"] is not None
        )
        trained = ", ".join(
            f"{size['module']} {size['trainable']:,}" for size in start["trainable"] if size["trainable"]
        )
        seconds = steps[-1]["seconds"] if steps else 0.0
        curves.append(StageCurve(start["stage"], start["kind"], start["steps"], seconds, trained, losses, held_out))
    return curves


def draw_curves(curves: Sequence[StageCurve]) -> str:
    """An SVG of the stages' losses one after the other, in nats on a logarithmic scale; dots are held-out losses."""
    total = sum(curve.steps for curve in curves) or 1
    values = [loss for curve in curves for _, loss in (*curve.losses, *curve.held_out) if loss > 0 and loss == loss]
    low, high = math.log10(min(values, default=0.1)), math.log10(max(values, default=10.0))
    span = max(high - low, 1e-6)

    def place(step: float, loss: float) -> str:
        x = _MARGIN + step / total * (_WIDTH - 2 * _MARGIN)
        y = _HEIGHT - _MARGIN - (math.log10(loss) - low) / span * (_HEIGHT - 2 * _MARGIN)
        return f"{x:.1f},{y:.1f}"

    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
    )
    parts = [head]
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        y = place(0, 10**exponent).split(",")[1]
        parts.append(
            f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{y}" y2="{y}" stroke="#ddd"/>'
            f'<text x="6" y="{y}" fill="#444">{10**exponent:g}</text>'
        )
    begin = 0
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(place(begin + step, loss) for step, loss in curve.losses if loss > 0)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for step, loss in curve.held_out:
            if loss > 0:
                x, y = place(begin + step, loss).split(",")
                parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="#fff" stroke="{colour}"/>')
        x = place(begin, 10**low).split(",")[0]
        parts.append(f'<text x="{x}" y="{20 + 13 * (number % 2)}" fill="{colour}">{curve.stage}</text>')
        begin += curve.steps
    parts.append(
        f'<text x="{_MARGIN}" y="{_HEIGHT - 10}" fill="#444">optimizer steps, {total:,} in all; loss in nats, '
        "lines training, circles held out</text></svg>"
    )
    return "\n".join(parts) + "\n"


def write_card(
    vlm: VLM,
    recipe: Recipe,
    commands: Sequence[str],
    curves: Sequence[StageCurve],
    measured: Measurement,
    freezing: str = "",
    notes: Iterable[str] = (),
) -> str:
    """The card of the embedded model, in Markdown. ``commands``: what made model and card; ``freezing``: what
    :func:`compare_freezing` wrote; ``notes`` are paragraphs of their own."""
    weights = sum(parameter.numel() for parameter in vlm.parameters())
    minutes = sum(curve.seconds for curve in curves) / 60
    lines = [
        "# The embedded model",
        "",
        (
            f"A vision-language model of {weights / 1e6:.2f} million weights in nanoVLM's format, trained from nothing "
            "so that the app has something real to open up. It knows coloured circles, rectangles and triangles, in "
            "English questions of a few fixed forms, and nothing else."
        ),
        "",
        "## How it was made",
        "",
        "```",
        *commands,
        "```",
        "",
        (
            "Data: the training split of the pip package `easy-vqa` (4,000 pictures), and scenes that "
            "`model/training/synthetic/scenes.py` draws: 1 to 3 shapes on 64 × 64 up to 192 × 192 pixels, and up to 5 "
            "pictures in one prompt, all at once, one per turn, or packed. The loss is on the answers only."
        ),
        "",
        "| stage | kind | steps | minutes | trained | loss: first → last | held out |",
        "| --- | --- | ---: | ---: | --- | --- | ---: |",
        *(_stage_row(curve) for curve in curves),
        "",
        (
            f"In all {minutes:.0f} minutes of wall-clock time on {torch.get_num_threads()} threads of "
            f"{processor_name()}, other work beside it, torch {torch.__version__}, seed {recipe.seed}. "
            f"Fingerprint `{vlm.fingerprint[:16]}`."
        ),
        "",
        "![Loss curves](curves.svg)",
        "",
        "## How well it answers",
        "",
        "| goal | wanted | reached |",
        "| --- | ---: | ---: |",
        *(
            f"| {goal.name} | {goal.accuracy:.2f} | {reached:.3f}{'' if reached >= goal.accuracy else ' (missed)'} |"
            for goal, reached in measured.goals()
        ),
        "",
        (
            "On the same pictures, all of different colours, every “In image k, what colour …” is answered with its "
            "own picture's: " + _shares(measured.follows_index) + " of prompts."
        ),
        "",
        (
            "Greedy answers that equal the right one to the letter. easy-VQA: its official test split, no picture of "
            "which was trained on; the rest: freshly drawn scenes. Beside it, what always giving the family's "
            "commonest answer would reach, and what the model reaches when it gets the same prompt without the "
            "pictures."
        ),
        "",
        "| questions | asked | right | commonest answer | without pictures |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {s.family} | {s.questions:,} | {s.accuracy:.3f} | {s.commonest:.3f} | {s.text_only:.3f} |"
            for s in measured.scores
        ),
        "",
        "The app's examples:",
        "",
        "| example | expected | answered |",
        "| --- | --- | --- |",
        *(f"| {name} | {', '.join(expected)} | {', '.join(given)} |" for name, expected, given in measured.examples),
        "",
        *([freezing, ""] if freezing else []),
        *(line for note in notes for line in (note, "")),
        "## Limits",
        "",
        "- Photographs, other shapes and colours, and other questions get an answer too, and it means nothing.",
        "- At most 3 × 3 tiles of 64 px (larger pictures are shrunk to 192 px), 3 shapes to a picture, 5 pictures.",
        "- Questions by index were trained with pictures of one shape each.",
        "- One seed, one run: differences of a point or two between families say little.",
        "",
    ]
    return "\n".join(lines)


def compare_freezing(frozen: Path, trained: Path) -> str:
    """A section of the card on two runs of the recipe “freezing”, their folders given: the encoder frozen, and trained
    too. InputError if these are no two such runs."""
    rows, commands, losses, seconds = [], [], [], []
    for folder, name, shown in ((frozen, "frozen", "FROZEN"), (trained, "trained too", "TRAINED")):
        curves = read_curves(folder / METRICS)
        if len(curves) != 1 or not curves[0].held_out or ("vision_encoder" in curves[0].trained) != (folder == trained):
            raise InputError(f"{folder} is no finished run of the recipe “freezing” with the encoder {name}.")
        (curve,) = curves
        commands.append(RunFolder(folder).read_run()["command"].replace(str(folder), shown))
        losses.append(curve.held_out[-1][1])
        seconds.append(curve.seconds / curve.steps)
        rows.append(
            f"| {name} | {curve.trained} | {curve.steps} | {seconds[-1]:.2f} | {curve.held_out[0][1]:.4f} → "
            f"{losses[-1]:.4f} |"
        )
    return "\n".join(
        [
            "## What freezing the encoder costs",
            "",
            "The same steps on the same data, from the same weights:",
            "",
            "```",
            *commands,
            "```",
            "",
            "| encoder | trained | steps | seconds a step | held-out loss: first → last |",
            "| --- | --- | ---: | ---: | --- |",
            *rows,
            "",
            (
                f"Training the encoder too takes {seconds[1] / seconds[0]:.1f} times as long a step, and after the "
                f"same steps the held-out loss is {losses[1] / losses[0]:.2f} times that of the frozen one."
            ),
        ]
    )


def _stage_row(curve: StageCurve) -> str:
    first = curve.losses[0][1] if curve.losses else float("nan")
    last = curve.losses[-1][1] if curve.losses else float("nan")
    held = f"{curve.held_out[-1][1]:.4f}" if curve.held_out else "–"
    return (
        f"| {curve.stage} | {curve.kind} | {curve.steps:,} | {curve.seconds / 60:.1f} | {curve.trained} | "
        f"{first:.3f} → {last:.4f} | {held} |"
    )


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{share:.1%} ({family.split(', ')[-1]})" for family, share in shares.items())


def curves_json(curves: Sequence[StageCurve]) -> str:
    """What ``curves.svg`` is drawn from."""
    values: list[dict[str, Any]] = [vars(curve) for curve in curves]
    return json.dumps(values, ensure_ascii=False) + "\n"
