"""How the image encoder came to know what words mean: CLIP's loss, zero-shot answers, and its projection."""

from __future__ import annotations

import math

from inspector.encoder.captions import write_captions
from inspector.encoder.contrast import measure_contrast
from inspector.encoder.head_comparison import ROWS, STEPS
from inspector.encoder.inputs import DEFAULT_LABELS, TEMPLATE, read_images
from inspector.encoder.zero_shot import classify
from inspector.lessons.shown_prompt import ShownPrompt, count_of, list_of
from model.encoders.opening import encoder_of

CLIP_BATCH = 32_768


def describe_contrast(shown: ShownPrompt) -> str:
    told = (
        "CLIP learned from 400 million pairs of an image and its caption: which caption of the batch goes with which "
        f"image, and which image with which caption (InfoNCE in both directions, batches of {CLIP_BATCH:,}). "
    )
    encoder = encoder_of(shown.vlm)
    if not shown.images:
        return f"{told}This prompt has no image to compare; add one."
    if not encoder.has_text:
        return told + encoder.missing
    if shown.images == 1:
        return (
            f"{told}With one image and one caption there is nothing to choose between: every loss is 0. Add a second "
            f"image; among {CLIP_BATCH:,}, who knows nothing has ln {CLIP_BATCH:,} = {math.log(CLIP_BATCH):.2f} nats."
        )
    images = shown.inspection.prompt.images
    found = measure_contrast(encoder, read_images(encoder, images), write_captions(shown.vlm, images))
    return (
        f"{told}Here, with {count_of(len(images), 'image')} and the captions that the model itself gives them "
        f"({list_of([f'“{caption}”' for caption in found.captions])}) at the learned temperature "
        f"{found.temperature:.3f}: image → text {_nats(found.image_to_text)}, text → image "
        f"{_nats(found.text_to_image)}, InfoNCE, their mean, {_nats(found.loss)}. Who knows nothing has "
        f"ln {len(images)} = {found.guessing:.2f}, and among {CLIP_BATCH:,} "
        f"ln {CLIP_BATCH:,} = {math.log(CLIP_BATCH):.2f}: a larger batch is a harder question."
    )


def _nats(loss: float) -> str:
    return "under 0.001 nats" if loss < 0.001 else f"{loss:.2g} nats"


def describe_zero_shot(shown: ShownPrompt) -> str:
    told = (
        "A class is a text, such as its name in a template; the nearest text is the answer, and nothing was trained "
        "for these classes. "
    )
    encoder = encoder_of(shown.vlm)
    if not shown.images:
        return f"{told}This prompt has no image to classify; add one."
    if not encoder.has_text:
        return told + encoder.missing
    found = classify(encoder, read_images(encoder, shown.inspection.prompt.images), DEFAULT_LABELS, (TEMPLATE,))
    best = [max(range(len(row)), key=row.__getitem__) for row in found.probabilities]
    answers = [
        f"image {n + 1} is “{found.labels[label]}” with {row[label]:.1%}"
        for n, (row, label) in enumerate(zip(found.probabilities, best, strict=True))
    ]
    names = list_of([f"“{label}”" for label in found.labels])
    return f"{told}Here, with {names} in “{TEMPLATE}”: {list_of(answers)}. Type labels of your own."


def describe_heads(shown: ShownPrompt) -> str:
    width = encoder_of(shown.vlm).width
    here = f"Here both would end in {width:,} numbers. " if width else ""
    return (
        "CLIP projects images and texts into their space by a linear map, SimCLR by a small MLP, and CLIP's authors "
        "saw no big difference between the two; they suppose that the MLP helps where images alone teach. "
        f"{here}“Train both heads” tries it on drawn scenes: {STEPS} steps of {ROWS} pairs with either, the same pairs "
        "for both, then both matrices and how often the right caption is the nearest."
    )
