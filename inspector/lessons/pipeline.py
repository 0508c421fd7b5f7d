"""The way of an image through a vision-language model, with the shapes that one prompt has on it."""

from __future__ import annotations

from dataclasses import dataclass

from inspector.lessons.shown_prompt import ShownPrompt, count_of, size_of

STAGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("asked", "asked: nothing is trained", ()),
    ("stage-1", "stage 1: the projector", ("projector",)),
    ("stage-2", "stage 2: projector and language model", ("projector", "language model")),
    ("all", "nanoVLM: all three", ("image encoder", "projector", "language model")),
)
"""Key, name, and the parts that are trained, as the model counts them."""


@dataclass(frozen=True)
class PipelineStep:
    """``name`` and the post's word for it where that is another one; ``shape`` of what leaves it; ``part``: which
    weights it has, "" for none."""

    name: str
    also: str
    shape: str
    part: str = ""
    weights: int = 0


def list_pipeline(shown: ShownPrompt) -> tuple[PipelineStep, ...]:
    """Without images it begins at the row."""
    vlm, row, parts = shown.vlm, shown.inspection.row, shown.parts
    width = shown.embeds.shape[-1]
    steps: list[PipelineStep] = []
    if shown.images:
        inputs = [part for image in row.images for part in vlm.encoder_inputs(image)]
        given = tuple(inputs[0].shape)
        tokens, patch = shown.kinds["image"], vlm.patch_px
        patches = ""
        if len(given) == 3:
            count = (given[1] // patch) * (given[2] // patch)
            patches = f"{count_of(count, 'patch', 'patches')} of {patch} × {patch} px each"
        steps += [
            PipelineStep("images", "", f"{shown.images}, the first {size_of(row.images[0].original_size)}"),
            PipelineStep("tiles", "regions", f"{len(inputs)} × [{' '.join(f'{side:,}' for side in given)}]"),
            PipelineStep("image encoder", "vision module", patches, "image encoder", parts["image encoder"]),
            PipelineStep(
                "projector",
                "multimodal projector",
                f"{count_of(tokens, 'image token')} of {width:,} numbers",
                "projector",
                parts["projector"],
            ),
        ]
    said = shown.token(shown.inspection.table.ids[shown.inspection.first_answer_position])
    steps += [
        PipelineStep("row of tokens", "text and image tokens", f"[{len(row):,} {width:,}]"),
        PipelineStep(
            "language model",
            "LLM",
            f"{vlm.n_layers} layers × {vlm.n_heads} heads",
            "language model",
            parts["language model"],
        ),
        PipelineStep("next token", "", said),
    ]
    return tuple(steps)
