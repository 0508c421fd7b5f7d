"""Images taken away from everything behind them, so that the row goes on as if they had never been there.

Cutting an image from the question alone is not enough to say that an answer doesn't need it: what comes after the image
has read it, later images and the marks between them included, and hands it on. So all that is read again without it.
Stretches of the row that are the same for several sets of images are computed once: a stretch depends only on which
images before it are gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from inspector.interventions.continuations import Continuation
from inspector.interventions.stretches import Stretch, cut_stretches
from inspector.interventions.target import Case, Target, image_keys, target_of
from inspector.row.layout import Question
from model import Cut


@dataclass
class ImageAblations:
    """Variants of a case's row without some of its images, which share their stretches while this object lives."""

    case: Case
    _stretches: tuple[Stretch, ...] = field(init=False)
    _nodes: dict[tuple[int, frozenset[int]], Continuation] = field(init=False, default_factory=dict)
    _turns: dict[tuple[int, frozenset[int], tuple[int, ...]], Continuation] = field(init=False, default_factory=dict)
    """Questions, which several answers stand behind: by the stretch, the images gone before it, and their ids."""

    def __post_init__(self) -> None:
        self._stretches = cut_stretches(self.case.structure)

    def of_answer(self, hidden: frozenset[int], question: Question | None = None) -> Continuation:
        """The turn of ``question`` (the case's own if None) as it stands, without the images ``hidden`` (numbers)."""
        target = self.case.target if question is None else target_of(self.case.structure, question)
        ids = self.case.prefix_cache.ids[target.start : target.scored[1]]
        return self.of_ending(hidden, target, ids, target.scored)

    def of_ending(
        self, hidden: frozenset[int], target: Target, ids: tuple[int, ...], scored: tuple[int, int]
    ) -> Continuation:
        """Other ``ids`` from ``target``'s start on, of which ``scored`` (start, stop) are the answer."""
        place = next(n for n, stretch in enumerate(self._stretches) if stretch.start == target.start)
        gone = self._before(place, hidden)
        first = scored[0]
        asked, answer = ids[: first - target.start], ids[first - target.start :]
        cuts = self._cuts(gone, range(first, target.start + len(ids)))
        return Continuation(first, answer, scored, cuts, parent=self._turn(place, gone, asked))

    def _turn(self, place: int, gone: frozenset[int], asked: tuple[int, ...]) -> Continuation | None:
        """The question ``asked`` at stretch ``place``; None where it is the row's as it was read."""
        start = self._stretches[place].start
        stop = start + len(asked)
        if not gone and asked == self.case.prefix_cache.ids[start:stop]:
            return None
        key = (place, gone, asked)
        if key not in self._turns:
            cuts = self._cuts(gone, range(start, stop))
            self._turns[key] = Continuation(start, asked, (stop, stop), cuts, parent=self._node_before(place, gone))
        return self._turns[key]

    def _before(self, place: int, hidden: frozenset[int]) -> frozenset[int]:
        return frozenset(s.image.number for s in self._stretches[:place] if s.image and s.image.number in hidden)

    def _node_before(self, place: int, hidden: frozenset[int]) -> Continuation | None:
        """The nearest stretch before ``place`` that is read again."""
        for n in range(place - 1, -1, -1):
            image = self._stretches[n].image
            if image is not None and image.number in hidden:
                continue
            return self._node(n, self._before(n, hidden))
        return None

    def _node(self, place: int, hidden: frozenset[int]) -> Continuation | None:
        """Stretch ``place`` with the images ``hidden``, all before it, gone; None where it is as it was read."""
        if not hidden:
            return None
        if (place, hidden) not in self._nodes:
            stretch = self._stretches[place]
            ids = self.case.prefix_cache.ids[stretch.start : stretch.stop]
            self._nodes[place, hidden] = Continuation(
                stretch.start,
                ids,
                (stretch.start, stretch.start),
                self._cuts(hidden, range(stretch.start, stretch.stop)),
                parent=self._node_before(place, hidden),
            )
        return self._nodes[place, hidden]

    def _cuts(self, hidden: frozenset[int], queries: range) -> tuple[Cut, ...]:
        return tuple(Cut(queries, image_keys(image)) for image in self.case.structure.images if image.number in hidden)
