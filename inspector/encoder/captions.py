"""Captions for images that nobody has written any for: the model says what it sees."""

from __future__ import annotations

from inspector.images.image_file import PromptImage
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn
from model import InspectableVLM

QUESTION = "describe the image."
"""As the embedded model was asked in training."""
LONGEST = 24
"""Tokens."""


def write_captions(vlm: InspectableVLM, images: tuple[PromptImage, ...]) -> tuple[str, ...]:
    """One for each, its answer's first line; each image is asked about alone."""
    settings = GenerationSettings(max_new_tokens=LONGEST)
    answers = (ask_and_inspect(vlm, Prompt((image,), (Turn(QUESTION),)), settings) for image in images)
    said = (answer.prompt.turns[-1].assistant.strip() for answer in answers)
    return tuple(text.splitlines()[0][:200] if text else "an image" for text in said)
