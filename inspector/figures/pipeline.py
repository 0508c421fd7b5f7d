"""The way of an image through the model, as boxes, with a switch for what each training stage changes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from inspector.lessons.pipeline import STAGES, PipelineStep


def show_pipeline(steps: Sequence[PipelineStep], stage: str) -> str:
    """``stage``: the key of the one that is shown first. The style sheet lights what is trained; without it every box
    still says its shapes."""
    switch = "".join(
        f'<label><input type="radio" name="vi-stage" value="{key}"{" checked" if key == stage else ""}>'
        f"<span>{escape(name)}</span></label>"
        for key, name, _ in STAGES
    )
    boxes = "".join(_box(step) for step in steps)
    return (
        f'<div class="vi-pipeline"><fieldset><legend class="vlm-spoken">What is trained</legend>{switch}</fieldset>'
        f"<ol>{boxes}</ol></div>"
    )


def _box(step: PipelineStep) -> str:
    trained = " ".join(f"vi-in-{key}" for key, _, parts in STAGES if step.part in parts)
    also = f" <small>({escape(step.also)})</small>" if step.also else ""
    weights = f"<small>{step.weights:,} weights</small>" if step.part else ""
    state = '<small class="vi-trains">trained</small><small class="vi-frozen">frozen</small>' if step.part else ""
    kind = f"vi-part {trained}" if step.part else "vi-data"
    return f'<li class="{kind}"><b>{escape(step.name)}</b>{also}<span>{escape(step.shape)}</span>{weights}{state}</li>'
