"""The lessons in their order: what is asked, the example that shows it, the place on the page, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inspector.lessons import encoder_parts, image_parts, model_parts, row_parts
from inspector.lessons.shown_prompt import ShownPrompt
from model import InputError


@dataclass(frozen=True)
class Lesson:
    """``key`` stands in links. ``example``: the name of the prompt that shows it; ``tab`` and ``target``: the tab that
    is opened and the ``id`` of what is outlined there. ``tell`` answers ``question`` with the shown prompt's own
    numbers. ``arrangement`` of the Batch tab, where it matters. ``stage``: of the picture of the pipeline,
    which is shown where there is one."""

    key: str
    question: str
    example: str
    tab: str
    target: str
    tell: Callable[[ShownPrompt], str]
    arrangement: str = "row"
    stage: str = ""


_PRESET = "train-preset"

LESSONS: tuple[Lesson, ...] = (
    Lesson("parts", "What is a VLM made of?", "three", "See", "viewer", model_parts.describe_pipeline, stage="asked"),
    Lesson(
        "projector",
        "What does the projector do?",
        "three",
        "See",
        "viewer",
        model_parts.describe_projector,
        stage="asked",
    ),
    Lesson(
        "stage-1",
        "Stage 1: what is trained first?",
        "single",
        "Train",
        "train-preset",
        model_parts.describe_first_stage,
        stage="stage-1",
    ),
    Lesson(
        "stage-2", "Stage 2: and then?", "single", "Train", _PRESET, model_parts.describe_second_stage, stage="stage-2"
    ),
    Lesson(
        "frozen",
        "Why is the encoder frozen?",
        "single",
        "Train",
        _PRESET,
        model_parts.describe_frozen_encoder,
        stage="stage-2",
    ),
    Lesson("tensors", "What is in a batch?", "three", "Batch", "tensors", row_parts.describe_tensors),
    Lesson("input-ids", "What do input_ids hold?", "three", "See", "strip", row_parts.describe_input_ids),
    Lesson(
        "padding",
        "Why so many <|im_end|> in front?",
        "uneven",
        "Batch",
        "batch-rows",
        row_parts.describe_padding,
        "padded",
    ),
    Lesson(
        "padding-side",
        "Why does the tokenizer say “right”?",
        "uneven",
        "Batch",
        "batch-rows",
        row_parts.describe_padding_side,
        "padded",
    ),
    Lesson("roles", "What are user and assistant?", "three", "See", "strip", row_parts.describe_roles),
    Lesson("turns", "One image, many questions?", "questions", "See", "strip", row_parts.describe_turns),
    Lesson("marker", "What is <row_1_col_1>?", "tiles", "See", "viewer", image_parts.describe_marker),
    Lesson("regions", "Why 16 regions?", "tiles", "See", "viewer", image_parts.describe_regions),
    Lesson("resizing", "How is an image resized and split?", "tiles", "See", "plans", image_parts.describe_resizing),
    Lesson(
        "image-string",
        "What is the image string?",
        "tiles",
        "See",
        "strip",
        image_parts.describe_image_string,
    ),
    Lesson("several", "Several images in one row?", "packed", "Which image?", "strip", image_parts.describe_several),
    Lesson(
        "which-image",
        "How does the model know which image?",
        "five",
        "Which image?",
        "which-start",
        image_parts.describe_which_image,
    ),
    Lesson("labels", "Which tokens have labels?", "three", "Batch", "batch-rows", row_parts.describe_labels),
    Lesson(
        "attention-mask",
        "What does attention_mask hide?",
        "uneven",
        "Batch",
        "batch-rows",
        row_parts.describe_attention_mask,
        "padded",
    ),
    Lesson("clip", "How did CLIP learn?", "three", "CLIP", "clip-matrix", encoder_parts.describe_contrast),
    Lesson(
        "zero-shot", "What is zero-shot transfer?", "three", "CLIP", "clip-zero-shot", encoder_parts.describe_zero_shot
    ),
    Lesson("heads", "Linear or non-linear projection?", "three", "CLIP", "clip-heads", encoder_parts.describe_heads),
)
_BY_KEY = {lesson.key: number for number, lesson in enumerate(LESSONS)}


def find_lesson(key: str) -> int:
    """Its place in :data:`LESSONS`. InputError for an unknown key."""
    if key not in _BY_KEY:
        raise InputError(f"There is no lesson “{key[:40]}”; choose one of {', '.join(_BY_KEY)}.")
    return _BY_KEY[key]
