"""Further tests of an answer, each run by a button of its own: what runs it and how it is drawn. No gradio here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from inspector.experiments import (
    binding_patching,
    heads,
    image_order,
    occlusion,
    pathways,
    prompt_layouts,
    reference_cues,
)
from inspector.figures.experiments import (
    TEXTS,
    show_cues,
    show_heads,
    show_layouts,
    show_permutations,
    show_regions,
    show_routes,
)
from inspector.figures.which_image import PanelText, show_waiting
from inspector.interventions.target import Case
from inspector.which_image.attention_agreement import AttentionAgreement, measure_attention_agreement
from inspector.which_image.study import WhichImage

ExperimentStep = tuple[str, Any]
"""(HTML of the panel so far, the same as JSON)."""


@dataclass(frozen=True)
class Experiment:
    """``run`` yields after each part, so that a page can show it and stop. ``waiting`` stands in its panel before."""

    key: str
    button: str
    waiting: str
    run: Callable[[Case, WhichImage], Iterator[ExperimentStep]]

    @property
    def text(self) -> PanelText:
        return TEXTS[self.key]


def _run_routes(case: Case, found: WhichImage) -> Iterator[ExperimentStep]:
    assert found.dependence is not None
    for partial in pathways.measure_routes(case, found.dependence.noise_floor):
        yield show_routes(partial), partial.to_json()


def _run_permutations(case: Case, found: WhichImage) -> Iterator[ExperimentStep]:
    assert found.selection is not None
    tried: list[image_order.Permuted] = []
    yield show_permutations(tried, case.prompt.images), None
    for one in image_order.permute_images(case, found.selection):
        tried.append(one)
        facts = {
            "orders": [order.to_json() for order in tried],
            "summary": image_order.summarise_orders(tried).to_json(),
        }
        yield show_permutations(tried, case.prompt.images), facts


def _run_cues(case: Case, found: WhichImage) -> Iterator[ExperimentStep]:
    assert found.selection is not None
    tried: list[reference_cues.Cue] = []
    for cue in reference_cues.measure_cues(case, found.selection):
        tried.append(cue)
        yield show_cues(tried, "", ()), None
    told = reference_cues.compare_cues(case, tried)
    patched: list[binding_patching.AddressCurve] = []
    for curve in binding_patching.patch_addresses(case, found.selection):
        patched.append(curve)
        yield show_cues(tried, told, patched), None
    address = binding_patching.tell_address(patched)
    facts = {
        "cues": [cue.to_json() for cue in tried],
        "sentence": told,
        "addresses": [curve.to_json() for curve in patched],
        "address_sentence": address,
    }
    yield show_cues(tried, told, patched, address), facts


def _run_layouts(case: Case, found: WhichImage) -> Iterator[ExperimentStep]:
    cells: list[prompt_layouts.LayoutCell] = []
    for cell in prompt_layouts.compare_layouts(case.vlm, case.prompt, max_new_tokens=case.max_new_tokens):
        cells.append(cell)
        yield show_layouts(cells), [one.to_json() for one in cells]


def _run_heads(case: Case, found: WhichImage) -> Iterator[ExperimentStep]:
    assert found.selection is not None
    assert found.dependence is not None
    for partial in heads.measure_heads(case, found.selection, found.dependence.noise_floor):
        yield show_heads(partial), partial.to_json()


def _run_regions(case: Case, found: WhichImage) -> Iterator[ExperimentStep]:
    assert found.dependence is not None
    if not case.reachable:
        yield (
            show_waiting("regions", "The question can see no image, so no part of one can matter.", TEXTS["regions"]),
            None,
        )
        return
    effects = found.dependence.shapley
    image = max(case.target.question.reachable, key=lambda number: effects[number - 1])
    for partial in occlusion.measure_regions(case, image, found.dependence.noise_floor):
        yield show_regions(partial, case.prompt.images), partial.to_json()


def look_beside(found: WhichImage) -> AttentionAgreement | None:
    """Attention beside the interventions; None without an image. ``found`` with its case, after “attention”."""
    if found.case is None or found.attention is None or found.dependence is None or not found.structure.images:
        return None
    return measure_attention_agreement(found.case, found.attention, found.dependence)


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "where", "Where", "By which edges, in which layers, does an image reach the answer? Press Where.", _run_routes
    ),
    Experiment(
        "cues",
        "Which cue",
        "The number in the question, the marks, the distance: which of them leads to the image? Press Which cue.",
        _run_cues,
    ),
    Experiment("heads", "Heads", "Do some heads turn to whichever image is asked about? Press Heads.", _run_heads),
    Experiment("regions", "Regions", "Which part of the image does the answer rest on? Press Regions.", _run_regions),
    Experiment(
        "permutations",
        "Other orders",
        "Does the answer follow the picture or the place? Press Other orders.",
        _run_permutations,
    ),
    Experiment(
        "layouts",
        "Layouts",
        "All images first, one per turn, packed: what becomes of the answers? Press Layouts.",
        _run_layouts,
    ),
)
