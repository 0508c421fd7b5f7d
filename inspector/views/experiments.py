"""Further tests of an answer, each run by a button of its own: what runs it, and how its result is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from inspector.analysis import permutations, routes
from inspector.analysis.case import Case
from inspector.analysis.which_image import WhichImage
from inspector.figures.experiments import TEXTS, show_permutations, show_routes
from inspector.figures.which_image import PanelText

Step = tuple[str, Any]
"""(HTML of the panel so far, the same as JSON)."""


@dataclass(frozen=True)
class Experiment:
    """``run`` yields after each part, so that a page can show it and stop. ``waiting`` stands in its panel before."""

    key: str
    button: str
    waiting: str
    run: Callable[[Case, WhichImage], Iterator[Step]]

    @property
    def text(self) -> PanelText:
        return TEXTS[self.key]


def _run_routes(case: Case, found: WhichImage) -> Iterator[Step]:
    assert found.dependence is not None
    for partial in routes.measure_routes(case, found.dependence.noise_floor):
        yield show_routes(partial), partial.to_json()


def _run_permutations(case: Case, found: WhichImage) -> Iterator[Step]:
    assert found.selection is not None
    tried: list[permutations.Permuted] = []
    yield show_permutations(tried, case.prompt.images), None
    for one in permutations.permute_images(case, found.selection):
        tried.append(one)
        facts = {
            "orders": [order.to_json() for order in tried],
            "summary": permutations.summarise_orders(tried).to_json(),
        }
        yield show_permutations(tried, case.prompt.images), facts


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("where", "Where", "By which edges, in which layers, does an image reach the answer? Press Where.",
               _run_routes),
    Experiment("permutations", "Other orders", "Does the answer follow the picture or the place? Press Other orders.",
               _run_permutations),
)  # fmt: skip
