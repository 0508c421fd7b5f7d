"""What a person types beside the images: captions, labels, templates; and the images as an encoder has read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from inspector.images.image_file import PromptImage, process_prompt_image
from model import InputError, ProcessedImage
from model.encoders.protocol import EncodedImage, ImageTextEncoder
from model.ranges import Range
from model.training.synthetic.scenes import COLOUR_NAMES
from model.values import name_value

CAPTION, LABEL = 1_000, 200
"""Characters of a caption and of a label or template, at most."""
LABELS, TEMPLATES, TEXTS, PHRASES = 48, 8, 64, 12
"""So many of each, at most."""
TEMPLATE = "a {}"
"""Where a label has an article before it, as in a caption."""
DEFAULT_LABELS = COLOUR_NAMES
TEMPERATURES = Range(0.001, 100, whole=False)


@dataclass(frozen=True, eq=False)
class ReadImages:
    """The images of a prompt as ``encoder`` cuts them (``processed``) and what it made of each (``encoded``)."""

    processed: tuple[ProcessedImage, ...]
    encoded: tuple[EncodedImage, ...]


def read_images(encoder: ImageTextEncoder, images: Sequence[PromptImage]) -> ReadImages:
    """InputError without any image, and for one that can't be opened."""
    if not images:
        raise InputError("There is no image to compare with texts; add one.")
    processed = tuple(process_prompt_image(image, encoder.reader) for image in images)
    return ReadImages(processed, tuple(encoder.encode_image(image) for image in processed))


def split_lines(text: str) -> tuple[str, ...]:
    """The lines that hold something, without blanks around them."""
    return tuple(line for line in map(str.strip, text.splitlines()) if line)


def check_captions(captions: Sequence[str], images: int) -> None:
    """InputError unless there is a caption for each image, none of them empty or too long, and not too many."""
    if len(captions) < images:
        have = "no caption" if not captions else f"{len(captions)} caption{'s' if len(captions) > 1 else ''}"
        raise InputError(
            f"There {'are' if len(captions) > 1 else 'is'} {have} for {images} image{'s' if images > 1 else ''}; give "
            "one for each, in their order. More than that are wrong answers to all images."
        )
    _check_texts(captions, "caption", CAPTION, TEXTS)


def check_labels(labels: Sequence[str]) -> None:
    """InputError unless there are two labels or more, each once, none too long."""
    if not labels:
        raise InputError("There is no label to choose from; give two or more.")
    _check_texts(labels, "label", LABEL, LABELS)
    if len(labels) == 1:
        raise InputError(
            f"There is one label, “{labels[0]}”, and with one the answer is certain whatever the image shows; give "
            "another."
        )
    if twice := [label for n, label in enumerate(labels) if label in labels[:n]]:
        raise InputError(f"The label “{twice[0]}” stands there twice, and each would get half; remove one of them.")


def check_templates(templates: Sequence[str]) -> None:
    """InputError unless each has one place for the label."""
    if not templates:
        raise InputError("There is no template; give one such as “a {}”, or “{}” for the label alone.")
    _check_texts(templates, "template", LABEL, TEMPLATES)
    for template in templates:
        if template.count("{}") != 1 or set(template.replace("{}", "")) & {"{", "}"}:
            raise InputError(f"The template “{template}” has no one place for the label; write {{}} there, once.")


def check_phrases(phrases: Sequence[str]) -> None:
    """InputError without any, and for one that is too long."""
    if not phrases:
        raise InputError("There is no phrase to look for in the patches; give one such as “red circle”.")
    _check_texts(phrases, "phrase", LABEL, PHRASES)


def check_temperature(temperature: float | None) -> None:
    """InputError for what can't divide a similarity; None is the encoder's own."""
    if temperature is not None and not TEMPERATURES.holds(temperature):
        raise InputError(f"The temperature {TEMPERATURES.refuse(temperature)}.")


def _check_texts(texts: Sequence[str], what: str, longest: int, most: int) -> None:
    if len(texts) > most:
        raise InputError(f"There are {len(texts):,} {what}s; at most {most} are compared, remove some.")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"A {what} is {name_value(text)}; it must be a text.")
        if len(text) > longest:
            raise InputError(
                f"The {what} “{text[:40]}…” has {len(text):,} characters; at most {longest:,} are allowed, shorten it."
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"A {what} holds half a character (a lone surrogate), which is no text; remove it.")


def suggest_phrases(captions: Sequence[str]) -> tuple[str, ...]:
    """The things that captions name, each once: parts between commas and “and”, without an article."""
    parts = (part for caption in captions for part in re.split(r",|\band\b", caption))
    return tuple(dict.fromkeys(phrase for part in parts if (phrase := re.sub(r"^(an?|the)\s+", "", part.strip(" .")))))
