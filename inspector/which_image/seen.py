"""Seen or guessed: how much of each token of an answer is owed to the images.

The same answer is read twice behind the same question, with the images and with all of them taken away, as the verdict
takes them away (:mod:`inspector.interventions.image_ablation`). A token is *seen* where log p falls by at least
:data:`inspector.which_image.image_effects.STRONG` without them. The likeliest token without the images stands beside it
and decides nothing: where the images turned a bet of p = 0.2 into certainty they did say something, and argmax would
not notice.

What the model would bet on anyway doesn't fall without images, read off them or not. Where other pictures in their
places were tried too, as the verdict's exchange tries them (:mod:`inspector.interventions.image_exchange`), a token
that falls by as much with these *follows* the images. What does neither is *guessed*.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.target import Case, is_answered, open_case, target_of
from inspector.row.ask import Inspection
from inspector.which_image.exchange_effects import replace_all
from inspector.which_image.image_effects import STRONG
from model import InspectableVLM


@dataclass(frozen=True)
class SeenToken:
    """One token of an answer at ``position`` of the row. ``with_images`` and ``without_images``: its log p in nats,
    behind the same tokens; ``instead``: the likeliest token in its place without the images. ``replaced``: its log p
    with another picture in each image's place, mean over the pictures that were tried; None where none was."""

    text: str
    position: int
    with_images: float
    without_images: float
    instead: str
    replaced: float | None = None

    @property
    def gain(self) -> float:
        """What the images add to log p, nats."""
        return self.with_images - self.without_images

    @property
    def seen(self) -> bool:
        return self.gain >= STRONG

    @property
    def follows(self) -> bool:
        """Whether other pictures take it away."""
        return self.replaced is not None and self.with_images - self.replaced >= STRONG

    @property
    def word(self) -> str:
        """What the page calls it."""
        return "seen" if self.seen else "follows the images" if self.follows else "guessed"

    def to_json(self) -> dict[str, Any]:
        return {
            "token": self.text,
            "position": self.position,
            "with": self.with_images,
            "without": self.without_images,
            "instead": self.instead,
            "seen": self.seen,
            "replaced": self.replaced,
            "follows": None if self.replaced is None else self.follows,
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
        """Tokens that would have been said without the images, whether they follow them or not."""
        return sum(not token.seen for token in self.tokens)

    @property
    def following(self) -> int:
        """How many of those would not have been said with other pictures."""
        return sum(token.follows and not token.seen for token in self.tokens)

    @property
    def sentence(self) -> str:
        if not self.images:
            return "The question sees no image, so there is nothing that the answer could have been read off."
        total = len(self.tokens)
        if not self.guessed:
            tokens = "The answer's token" if total == 1 else f"None of the answer's {total} tokens"
            never = " not" if total == 1 else ""
            return f"{tokens} would{never} have been said without the images: log p falls by {STRONG:g} nat or more."
        said = (
            f"{self.guessed} of {total} {'token' if total == 1 else 'tokens'} would have been said without the "
            f"images: log p falls by less than {STRONG:g} nat"
        )
        if not self.following:
            return f"{said}."
        which = "It follows" if self.guessed == 1 else f"{self.following} of these {_follow(self.following)}"
        return f"{said}. {which} the images all the same: with other pictures in their places it falls by more."

    def to_json(self) -> dict[str, Any]:
        return {
            "turn": self.turn,
            "images": self.images,
            "guessed": self.guessed,
            "following": self.following,
            "sentence": self.sentence,
            "tokens": [token.to_json() for token in self.tokens],
        }


def _follow(count: int) -> str:
    return "follows" if count == 1 else "follow"


def measure_seen(
    case: Case, ablations: ImageAblations | None = None, exchanges: ImageExchanges | None = None
) -> SeenAnswer:
    """Of the answer under study; what ``ablations`` have read already is used again. With ``exchanges`` other pictures
    are tried, too."""
    ablations = ablations or ImageAblations(case)
    gone = frozenset(image.number for image in case.reachable)
    kept, ablated = case.prefix_cache.run([ablations.of_answer(frozenset()), ablations.of_answer(gone)])
    replaced = None if exchanges is None or not gone else replace_all(case, exchanges)
    tokens = tuple(
        SeenToken(
            case.vlm.token_text(token_id),
            case.target.scored[0] + n,
            kept.logprobs[n],
            ablated.logprobs[n],
            case.vlm.token_text(ablated.top_ids[n]),
            None if replaced is None else replaced[n],
        )
        for n, token_id in enumerate(case.answer_ids)
    )
    return SeenAnswer(case.turn, len(gone), tokens)


def measure_all_seen(vlm: InspectableVLM, inspection: Inspection, *, exchange: bool) -> tuple[SeenAnswer, ...]:
    """Of every answer of the row, in order; nothing where no turn has one. ``exchange``: other pictures are tried, too,
    which have to be encoded and read: some times what the rest takes."""
    if not any(turn.is_answered for turn in inspection.prompt.turns):
        return ()
    case = open_case(vlm, inspection)
    cases = (
        replace(case, target=target_of(case.structure, question))
        for question in case.structure.questions
        if is_answered(question)
    )
    return tuple(measure_seen(one, exchanges=ImageExchanges(one) if exchange else None) for one in cases)
