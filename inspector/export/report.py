"""One prompt studied whole and written down as a page that stands for itself. No gradio here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inspector.export.experiments import EXPERIMENTS, look_beside
from inspector.figures.head_board import show_head_table
from inspector.figures.report import write_report
from inspector.figures.which_image import draw_panels, show_verdict
from inspector.interventions.target import open_case
from inspector.row.ask import Inspection
from inspector.which_image.attention_agreement import AttentionAgreement
from inspector.which_image.study import WhichImage, study_answer
from model import InspectableVLM


@dataclass(frozen=True)
class ShownStudy:
    """What has been found out about one answer: ``found`` without its case, ``drawn`` the panels as HTML by their
    keys, ``facts`` the same for a program."""

    found: WhichImage
    drawn: dict[str, str]
    facts: dict[str, Any]

    def adding(self, key: str, html: str, facts: Any) -> ShownStudy:
        """With the result of one experiment more."""
        return ShownStudy(self.found, {**self.drawn, key: html}, {**self.facts, key: facts})

    def joined(self, other: ShownStudy, keys: Sequence[str]) -> ShownStudy:
        """With those of the experiments ``keys`` that ``other`` has."""
        joined = self
        for key in keys:
            if key in other.drawn:
                joined = joined.adding(key, other.drawn[key], other.facts[key])
        return joined


def study(
    vlm: InspectableVLM,
    inspection: Inspection,
    turn: int | None = None,
    *,
    reference: str = "",
    typed: Sequence[str] = (),
    max_new_tokens: int = 32,
    seed: int = 0,
) -> Iterator[ShownStudy]:
    """Yields after each step; see :func:`inspector.which_image.study.study_answer`."""
    agreement: AttentionAgreement | None = None
    for found in study_answer(
        vlm, inspection, turn, reference=reference, typed=typed, max_new_tokens=max_new_tokens, seed=seed
    ):
        if found.step == "attention":
            agreement = look_beside(found)
        facts = {} if found.verdict is None else found.to_json()
        if agreement is not None:
            facts["gaze"] = agreement.to_json()
        yield ShownStudy(replace(found, case=None), draw_panels(found, inspection.prompt.images, agreement), facts)


def report(
    vlm: InspectableVLM, inspection: Inspection, model: str, names: Sequence[str], known: ShownStudy, command: str
) -> str:
    """The page, with what is ``known``; ``command`` repeats the tests from a shell."""
    weights = vlm.n_parameters
    attention = known.found.attention
    dtype = str(vlm.dtype).removeprefix("torch.")
    return write_report(
        inspection,
        model=f"{model}, {weights / 1e6:.1f} M weights, {dtype}",
        names=names,
        turn=known.found.turn,
        seen=known.found.seen,
        verdict=show_verdict(known.found.verdict, command=command),
        panels=[*known.drawn.values(), *([] if attention is None else [show_head_table(attention)])],
        facts=known.facts if attention is None else {**known.facts, "attention_map": attention.to_json()},
    )


def study_whole(vlm: InspectableVLM, inspection: Inspection, turn: int | None = None, **options: Any) -> ShownStudy:
    """:func:`study`, then every experiment."""
    *_, known = study(vlm, inspection, turn, **options)
    for one in EXPERIMENTS:
        case = open_case(
            vlm,
            inspection,
            known.found.turn,
            max_new_tokens=options.get("max_new_tokens", 32),
            seed=options.get("seed", 0),
        )
        *_, (html, facts) = one.run(case, known.found)
        known = known.adding(one.key, html, facts)
    return known
