"""Seen or guessed: how much of each token of an answer is owed to the images.

The same answer is read twice behind the same question, with the images and with all of them taken away, as the verdict
takes them away (:mod:`inspector.interventions.image_ablation`). A token is *seen* where log p falls by at least
:data:`inspector.which_image.image_effects.STRONG` without them, and *guessed* otherwise. The likeliest token without
the images stands beside it and decides nothing: where the images turned a bet of p = 0.2 into certainty they did say
something, and argmax would not notice. A token that the model looks up and would have been sure of anyway is told from
no guess by this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.target import Case, is_answered, open_case, target_of
from inspector.row.ask import Inspection
from inspector.which_image.image_effects import STRONG
from model import InspectableVLM


@dataclass(frozen=True)
class SeenToken:
    """One token of an answer at ``position`` of the row. ``with_images`` and ``without_images``: its log p in nats,
    behind the same tokens; ``instead``: the likeliest token in its place without the images."""

    text: str
    position: int
    with_images: float
    without_images: float
    instead: str

    @property
    def gain(self) -> float:
        """What the images add to log p, nats."""
        return self.with_images - self.without_images

    @property
    def said_anyway(self) -> bool:
        """Whether it is the likeliest without the images, too."""
        return self.instead == self.text

    @property
    def seen(self) -> bool:
        return self.gain >= STRONG

    def to_json(self) -> dict[str, Any]:
        return {
            "token": self.text,
            "position": self.position,
            "with": self.with_images,
            "without": self.without_images,
            "instead": self.instead,
            "seen": self.seen,
        }


@dataclass(frozen=True)
class SeenAnswer:
    """The answer of ``turn`` (from 1), its end token left out unless it is all that was said. ``images``: how many the
    question can see; without any there is nothing to take away."""

    turn: int
    images: int
    tokens: tuple[SeenToken, ...]

    @property
    def guessed(self) -> int:
        return sum(not token.seen for token in self.tokens)

    @property
    def sentence(self) -> str:
        if not self.images:
            return "The question sees no image, so there is nothing that the answer could have been read off."
        total = len(self.tokens)
        return (
            f"{self.guessed} of {total} {'token' if total == 1 else 'tokens'} would have been said without the "
            f"images: log p falls by less than {STRONG:g} nat."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "turn": self.turn,
            "images": self.images,
            "guessed": self.guessed,
            "sentence": self.sentence,
            "tokens": [token.to_json() for token in self.tokens],
        }


def measure_seen(case: Case, ablations: ImageAblations | None = None) -> SeenAnswer:
    """Of the answer under study; what ``ablations`` have read already is used again."""
    ablations = ablations or ImageAblations(case)
    gone = frozenset(image.number for image in case.reachable)
    kept, ablated = case.prefix_cache.run([ablations.of_answer(frozenset()), ablations.of_answer(gone)])
    tokens = tuple(
        SeenToken(case.vlm.token_text(token_id), case.target.scored[0] + n, kept.logprobs[n], ablated.logprobs[n], top)
        for n, token_id in enumerate(case.answer_ids)
        for top in [case.vlm.token_text(ablated.top_ids[n])]
    )
    return SeenAnswer(case.turn, len(gone), tokens)


def measure_all_seen(vlm: InspectableVLM, inspection: Inspection) -> tuple[SeenAnswer, ...]:
    """Of every answer of the row, in order; nothing where no turn has one."""
    if not any(turn.is_answered for turn in inspection.prompt.turns):
        return ()
    case = open_case(vlm, inspection)
    return tuple(
        measure_seen(replace(case, target=target_of(case.structure, question)))
        for question in case.structure.questions
        if is_answered(question)
    )
