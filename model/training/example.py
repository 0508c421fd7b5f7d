"""What every data set hands to training: conversations, and pictures with captions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from model.chat import Conversation, Message, Picture

Turn = tuple[str, str, str]
"""Question, answer, and the question's family."""


@dataclass(frozen=True)
class Example:
    """A conversation with its answers. ``families`` names the kind of each answer in order, or is empty where nobody
    knows; ``source`` tells people where it came from (a file and line, a set's name)."""

    conversation: Conversation
    families: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class CaptionedImage:
    """A picture and what it shows, for the contrastive stage.

    ``phrases`` and ``phrase_of_patch`` may tell more: ``phrase_of_patch [tile patch]`` int64 is the number of the
    phrase that describes a patch, −1 where none does. Without them only the caption is used.
    """

    image: Picture
    caption: str
    phrases: tuple[str, ...] = ()
    phrase_of_patch: np.ndarray | None = None


def caption_of(example: Example) -> CaptionedImage | None:
    """The first picture of ``example`` with the first answer to it, as alignment data give them; None without both."""
    messages: Iterable[Message] = example.conversation.messages
    image = None
    for message in messages:
        if message.images and image is None:
            image = message.images[0]
        elif message.role == "assistant" and image is not None:
            return CaptionedImage(image, message.text)
    return None
