"""The row in stretches: what a change to some images leaves alone, and what must be read again for it."""

from __future__ import annotations

from dataclasses import dataclass

from inspector.interventions.target import image_keys, is_answered, target_of
from inspector.row.layout import ImageBlock, RowStructure


@dataclass(frozen=True)
class Stretch:
    """A run of positions: an image's keys, a turn with its answer, or what stands between."""

    start: int
    stop: int
    image: ImageBlock | None = None


def cut_stretches(structure: RowStructure) -> tuple[Stretch, ...]:
    """The row up to its last answer, in order; what is behind it nobody reads again."""
    found = [Stretch(image_keys(image)[0], image_keys(image)[-1] + 1, image) for image in structure.images]
    turns = [target_of(structure, question) for question in structure.questions if is_answered(question)]
    found += [Stretch(turn.start, turn.scored[1]) for turn in turns]
    stretches: list[Stretch] = []
    at = 0
    for stretch in sorted(found, key=lambda stretch: stretch.start):
        if stretch.start > at:
            stretches.append(Stretch(at, stretch.start))
        stretches.append(stretch)
        at = stretch.stop
    return tuple(stretches)
