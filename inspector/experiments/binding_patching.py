"""Where the question's pointer is: states of one question put into the run of another, layer by layer.

Two questions about the same images, of equal length, differ in the image that they name. Before each layer the states
that the first one holds at some rows take the place of the second one's (activation patching, Meng et al. 2022, arXiv
2202.05262). The images' content is the same in both runs: what travels with the states is which image is meant, or, in
later layers, what was read there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from inspector.interventions.continuations import Continuation, StatePatch
from inspector.interventions.prefix_cache import PASS_POSITIONS
from inspector.interventions.target import Case
from inspector.row.numbers import say
from inspector.which_image.question_contrast import AskedQuestion, Selection

EXPLANATION = (
    "A question about another image was asked beside the prompt's own, and before each layer its internal states were "
    "put into the run of the prompt's own question: as long as the answer follows them, they say which image is meant. "
    "In later layers the states may already hold what was read from that image, and this can't tell the two apart."
)

PatchedRows = Literal["question", "chooser"]


@dataclass(frozen=True)
class AddressCurve:
    """``rows``: which states were put in place: those of the question (all rows from the question's turn on, up to
    the one that chooses the answer) or of the row that chooses the answer alone. ``source`` is the question that they
    are from, ``target`` the prompt's own, into whose run they were put, each with the image that it asks about and its
    ``answer``.

    ``source_logprobs [layer]`` and ``target_logprobs [layer]``: log p (nats) of the two answers in the patched run,
    from the first token on in which they differ; before layer 0, 1, …, and last after the last layer. ``not_done``:
    why there is no curve, "" if there is one.
    """

    rows: PatchedRows
    source: str = ""
    target: str = ""
    source_image: int | None = None
    target_image: int | None = None
    source_answer: str = ""
    target_answer: str = ""
    source_logprobs: tuple[float, ...] = ()
    target_logprobs: tuple[float, ...] = ()
    not_done: str = ""

    @property
    def follows(self) -> tuple[bool, ...]:
        """Whether the answer follows the states, by layer."""
        return tuple(a > b for a, b in zip(self.source_logprobs, self.target_logprobs, strict=True))

    @property
    def turning_layer(self) -> int | None:
        """For the question's rows: the last layer before which the answer still follows them, as before all earlier
        ones. For the choosing row: the first one from which on it follows to the end. The number of layers stands for
        “after the last”. None if the answer never follows."""
        follows = self.follows if self.rows == "question" else self.follows[::-1]
        run = next((n for n, on in enumerate(follows) if not on), len(follows))
        if not run:
            return None
        return run - 1 if self.rows == "question" else len(follows) - run

    @property
    def sentence(self) -> str:
        if self.not_done:
            return self.not_done
        where = "the question's rows" if self.rows == "question" else "the choosing row alone"
        begin = f"The states of “{self.source}” in {where}, put into “{self.target}”, carry the answer to"
        at = self.turning_layer
        if at is None:
            return f"{begin} “{self.source_answer}” at no layer."
        gap = self.source_logprobs[at] - self.target_logprobs[at]
        when = f"up to {self._place(at)}" if self.rows == "question" else f"from {self._place(at)} on"
        return f"{begin} “{self.source_answer}” {when} (by {say(gap)} nats there)."

    def _place(self, layer: int) -> str:
        return f"before layer {layer}" if layer < len(self.source_logprobs) - 1 else "after the last layer"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "source_logprobs": list(self.source_logprobs),
            "target_logprobs": list(self.target_logprobs),
            "follows": list(self.follows),
            "turning_layer": self.turning_layer,
            "sentence": self.sentence,
        }


def tell_address(curves: Sequence[AddressCurve]) -> str:
    """In which layers what decides the answer passes from the question's rows to the choosing one; "" where the
    curves of a pair don't say."""
    turning = {curve.rows: curve.turning_layer for curve in curves}
    leaves, arrives = turning.get("question"), turning.get("chooser")
    if leaves is None or arrives is None:
        return ""
    if arrives <= leaves:
        where = (
            f"Before layer {leaves}" if arrives == leaves else f"From before layer {arrives} to before layer {leaves}"
        )
        return f"{where} either of them holds what decides the answer (layers count from 0)."
    layers = f"layer {leaves}" if arrives - leaves == 1 else f"layers {leaves} to {arrives - 1}"
    return f"What decides the answer passes from the question's rows to the choosing row in {layers} (counted from 0)."


def patch_addresses(case: Case, selection: Selection) -> Iterator[AddressCurve]:
    """One curve for the question's rows, one for the choosing row. The source is the first question of ``selection``
    that has as many tokens as the prompt's own and another answer."""
    # Its own greedy answer, as the others': the row's may be anything.
    own = replace(selection.asked[0], answer=selection.asked[0].greedy_answer, answer_ids=selection.asked[0].greedy_ids)
    equal = [
        asked for asked in selection.asked[1:] if asked.is_contrast and len(asked.prompt_ids) == len(own.prompt_ids)
    ]
    other = next((asked for asked in equal if asked.answer_ids != own.answer_ids), None)
    for rows in ("question", "chooser"):
        if other is None:
            yield AddressCurve(rows, target=own.question, not_done=_why_not(selection, equal))
        else:
            yield patch_between(case, other, own, rows)


def _why_not(selection: Selection, equal: Sequence[AskedQuestion]) -> str:
    if not any(asked.is_contrast for asked in selection.asked):
        return "The pointer was not patched: there is no question about another image."
    if not equal:
        return (
            "The pointer was not patched: no question about another image has as many tokens as the prompt's own, "
            f"{len(selection.asked[0].prompt_ids)}."
        )
    return "The pointer was not patched: every question of equal length gets the same answer."


def patch_between(case: Case, source: AskedQuestion, target: AskedQuestion, rows: PatchedRows) -> AddressCurve:
    """States of ``source`` at ``rows`` put into the run of ``target``; ValueError if their lengths differ or their
    answers don't."""
    if len(source.prompt_ids) != len(target.prompt_ids) or source.answer_ids == target.answer_ids:
        raise ValueError("Patching needs two questions of equal length with different answers.")
    start, ends = case.target.start, case.vlm.eos_ids
    answers: tuple[tuple[int, ...], tuple[int, ...]] = (source.answer_ids, target.answer_ids)
    shared = next((n for n, (a, b) in enumerate(zip(*answers, strict=False)) if a != b), None)
    if shared is None:  # one answer is how the other begins; its end is what tells them apart
        shared = min(len(answer) for answer in answers)
        answers = (_ended(answers[0], ends), _ended(answers[1], ends))
    # What both answers begin with is given; the row behind it chooses between them.
    chooser = start + len(target.prompt_ids) + shared - 1
    places = (chooser,) if rows == "chooser" else tuple(range(start, chooser))
    layers = case.vlm.n_layers + 1

    def continuation(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Continuation:
        ids = (*prompt, *answer)
        return Continuation(start, ids, (chooser + 1, start + len(ids)))

    giving = continuation(source.prompt_ids, answers[0])
    taking = [continuation(target.prompt_ids, answer) for answer in answers]
    size = sum(len(one.ids) for one in taking)
    at_once = max(1, (PASS_POSITIONS - len(giving.ids)) // size)
    logprobs: list[tuple[float, float]] = []
    for first in range(0, layers, at_once):
        group = range(first, min(first + at_once, layers))
        continuations = [giving, *(one for _ in group for one in taking)]
        patches = [StatePatch(layer, 0, 1 + 2 * n + k, places) for n, layer in enumerate(group) for k in range(2)]
        found = [outcome.logprob for outcome in case.prefix_cache.run(continuations, patches)[1:]]
        logprobs += zip(found[::2], found[1::2], strict=True)
    return AddressCurve(
        rows,
        source.question,
        target.question,
        source.image,
        target.image,
        source.answer,
        target.answer,
        tuple(one for one, _ in logprobs),
        tuple(other for _, other in logprobs),
    )


def _ended(answer: tuple[int, ...], ends: tuple[int, ...]) -> tuple[int, ...]:
    return answer if answer[-1] in ends else (*answer, ends[0])
