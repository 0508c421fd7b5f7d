"""Which image an answer rests on, test by test: each result as soon as it is there, the verdict growing with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.target import Case, open_case, read_row
from inspector.row.ask import Inspection, attend
from inspector.row.attention import AttentionMap
from inspector.row.layout import RowStructure, describe_structure
from inspector.which_image.counterfactuals import Counterfactual, measure_counterfactuals
from inspector.which_image.image_effects import Dependence, TurnMatrix, measure_dependence, measure_matrix
from inspector.which_image.question_contrast import Selection, measure_selection
from inspector.which_image.seen import SeenAnswer, measure_seen
from inspector.which_image.self_checks import PIXELS_CHECK, Check, run_checks
from inspector.which_image.verdict import Verdict, judge, name_leader, withhold
from model import InspectableVLM, OpenedImage

STEPS = ("structure", "dependence", "matrix", "selection", "swaps", "attention", "checks")
"""In the order they come."""


@dataclass(frozen=True)
class WhichImage:
    """What is known so far about one answer; fields are None until their step is done. ``attention``: the pattern of
    the position that chose the answer's first token. ``reference``: dependence of a reference answer, if one was
    given. ``greedy_answer``: what the model itself says to the unchanged row, which flips are told against.
    ``seen``: the answer token by token, with and without images. ``step``: the last of :data:`STEPS` that is done."""

    step: str
    structure: RowStructure
    turn: int
    case: Case | None = None
    dependence: Dependence | None = None
    reference: Dependence | None = None
    matrix: TurnMatrix | None = None
    selection: Selection | None = None
    swaps: tuple[Counterfactual, ...] | None = None
    attention: AttentionMap | None = None
    checks: tuple[Check, ...] | None = None
    verdict: Verdict | None = None
    greedy_answer: str | None = None
    seen: SeenAnswer | None = None

    @property
    def attended_image(self) -> tuple[int, float] | None:
        """(image from 1, share): the image that the answer's first token attends to most, and its share of all
        attention, mean over layers and heads."""
        if self.attention is None or not self.attention.image_shares.size:
            return None
        shares = self.attention.image_shares.mean(axis=0)
        return int(shares.argmax()) + 1, float(shares.max())

    def to_json(self) -> dict[str, Any]:
        """The contract of ``which-image --json``; images and turns count from 1, lists are in image order."""
        assert self.dependence is not None
        assert self.verdict is not None
        assert self.seen is not None
        attended = self.attended_image
        return {
            "answer": self.dependence.answer,
            "greedy_answer": self.greedy_answer,
            "turn": self.turn,
            "seen": self.seen.to_json()["tokens"],
            "verdict": self.verdict.to_json(),
            "dependence": self.dependence.to_json(),
            "reference": None if self.reference is None else self.reference.to_json(),
            "matrix": None if self.matrix is None else self.matrix.to_json(),
            "selection": None if self.selection is None else self.selection.to_json(),
            "swaps": None if self.swaps is None else [swap.to_json() for swap in self.swaps],
            "attention": None if attended is None else {"image": attended[0], "share": attended[1]},
            "checks": [check.to_json() for check in self.checks or ()],
            "structure": describe_structure(self.structure),
        }


def study_answer(
    vlm: InspectableVLM,
    inspection: Inspection,
    turn: int | None = None,
    *,
    reference: str = "",
    typed: Sequence[str] = (),
    twins: Mapping[int, tuple[OpenedImage, str]] | None = None,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> Iterator[WhichImage]:
    """Yields after each of :data:`STEPS`. ``turn`` (from 1): whose answer; ``reference``: another answer to measure
    beside it; ``typed``: further questions to contrast with; ``twins``: see
    :func:`inspector.which_image.counterfactuals.measure_counterfactuals`. InputError if the turn has no answer."""
    document_mask = inspection.prompt.keeps_samples_apart
    structure = read_row(vlm, inspection, document_mask)
    yield WhichImage("structure", structure, turn or len(structure.questions))
    case = open_case(vlm, inspection, turn, max_new_tokens=max_new_tokens, seed=seed)
    ablations, exchanges = ImageAblations(case), ImageExchanges(case)
    dependence = measure_dependence(case, ablations, exchanges)
    beside = None
    if reference:
        beside = measure_dependence(case, ablations, answer_ids=case.encode(reference))
    found = WhichImage(
        "dependence",
        structure,
        case.turn,
        case,
        dependence,
        beside,
        verdict=judge(case, dependence),
        greedy_answer=case.text(case.greedy_ids),
        seen=measure_seen(case, ablations, exchanges),
    )
    yield found
    matrix = measure_matrix(case, ablations, exchanges)
    yield (found := replace(found, step="matrix", matrix=matrix))
    selection = measure_selection(case, name_leader(dependence), ablations, exchanges, typed=typed)
    yield (found := replace(found, step="selection", selection=selection, verdict=judge(case, dependence, selection)))
    swaps = measure_counterfactuals(case, selection, exchanges, twins=twins)
    yield (found := replace(found, step="swaps", swaps=swaps, verdict=judge(case, dependence, selection, swaps)))
    position = case.target.question.chooser
    assert position is not None
    yield (found := replace(found, step="attention", attention=attend(vlm, inspection, position)))
    checks = run_checks(case, dependence, matrix, exchanges)
    verdict = found.verdict
    if verdict is not None and (failed := next((c for c in checks if c.name == PIXELS_CHECK and not c.ok), None)):
        verdict = withhold(verdict, failed.value)
    yield replace(found, step="checks", checks=checks, verdict=verdict)
