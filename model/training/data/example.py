"""What every data set hands to training: conversations, and pictures with captions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.chat import Conversation, Message, Picture

ExampleTurn = tuple[str, str, str]
"""Question, answer, and the question's family."""


@dataclass(frozen=True)
class Example:
    """A conversation with its answers. ``families`` names the kind of each answer in order, or is empty where nobody
    knows; ``source`` tells people where it came from (a file and line, a set's name)."""

    conversation: Conversation
    families: tuple[str, ...] = ()
    source: str = ""


class ExampleSet(Sequence[Example]):
    """Examples that are made when they are taken, each from its number alone: number i is always the same one. A slice
    is a list; IndexError, with the number of examples, beyond the ends. ``name`` tells people which set it is."""

    name: str

    @abstractmethod
    def make(self, number: int) -> Example:
        """Example ``number``, from 0; the caller has checked that there is one."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.make(number) for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self):,} examples; there is no number {index}.")
        return self.make(int(index))


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
