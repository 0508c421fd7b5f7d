"""Outlines of the shapes that the model can be taught: closed polygons in the unit square, y downwards."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
Outline = tuple[Point, ...]

_ARC = 24
"""Points of half a circle: at these sizes no corner is seen."""


def _fitted(points: Sequence[Point]) -> Outline:
    """Moved and stretched so that the points touch all four sides of the unit square."""
    low = [min(point[axis] for point in points) for axis in range(2)]
    span = [max(point[axis] for point in points) - low[axis] for axis in range(2)]
    return tuple(((x - low[0]) / span[0], (y - low[1]) / span[1]) for x, y in points)


def _regular(corners: int, turn: float = -0.25, inner: float | None = None) -> Outline:
    """A regular polygon whose first corner lies ``turn`` (in whole turns, clockwise) from the right; with ``inner`` a
    star whose inner corners lie at that part of the radius."""
    count = corners if inner is None else 2 * corners
    points = []
    for n in range(count):
        angle = 2 * math.pi * (n / count + turn)
        radius = inner if inner is not None and n % 2 else 1.0
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return _fitted(points)


def _arc(start: float, stop: float, centre: Point = (0.5, 0.5), radius: float = 0.5) -> list[Point]:
    """From angle ``start`` to ``stop``, in whole turns."""
    steps = max(2, round(abs(stop - start) * 2 * _ARC))
    angles = [2 * math.pi * (start + (stop - start) * n / steps) for n in range(steps + 1)]
    return [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in angles]


def _heart() -> Outline:
    points = []
    for n in range(2 * _ARC):
        t = math.pi * n / _ARC
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((16 * math.sin(t) ** 3, -y))
    return _fitted(points)


def _cross(arm: float = 0.34) -> Outline:
    low, high = (1 - arm) / 2, (1 + arm) / 2
    return (
        (low, 0),
        (high, 0),
        (high, low),
        (1, low),
        (1, high),
        (high, high),
        (high, 1),
        (low, 1),
        (low, high),
        (0, high),
        (0, low),
        (low, low),
    )


def _ring(inner: float = 0.28) -> Outline:
    """Round and back again inside, so that one polygon leaves the middle out."""
    return (*_arc(0.0, 1.0), *_arc(1.0, 0.0, radius=inner))


def _moon() -> Outline:
    """A crescent open to the right: the outer circle's left part, back along a circle further right."""
    return _fitted([*_arc(0.17, 0.83), *_arc(0.757, 0.243, centre=(0.72, 0.5), radius=0.44)])


OUTLINES: dict[str, Outline] = {
    "star": _regular(5, inner=0.42),
    "heart": _heart(),
    "cross": _cross(),
    "diamond": ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)),
    "ring": _ring(),
    "moon": _moon(),
    "hexagon": _regular(6, turn=0.0),
    "pentagon": _regular(5),
    "arrow": ((0, 0.32), (0.52, 0.32), (0.52, 0), (1, 0.5), (0.52, 1), (0.52, 0.68), (0, 0.68)),
}
