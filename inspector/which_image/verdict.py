"""One sentence on what an answer rests on, with the numbers that it rests on itself.

A verdict speaks of one model and one prompt. It is built from interventions alone; attention has no say in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from inspector.interventions.target import Case
from inspector.row.numbers import say
from inspector.which_image.counterfactuals import Counterfactual, swap_of
from inspector.which_image.image_effects import STRONG, Dependence
from inspector.which_image.question_contrast import Selection

VerdictKind = Literal["mask", "selected", "dependent", "several", "none", "unclear"]

SURE = 0.2
"""Probability per answer token below which nothing is said about what the answer rests on."""


@dataclass(frozen=True)
class Verdict:
    """``image`` (from 1) is the one image that the answer depends on, None where there is none or more than one;
    ``images`` are all that it depends on. ``reasons`` say what was compared, each with its numbers. ``final``: all
    tests are in."""

    kind: VerdictKind
    image: int | None
    images: tuple[int, ...]
    sentence: str
    reasons: tuple[str, ...]
    final: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "image": self.image,
            "images": list(self.images),
            "sentence": self.sentence,
            "reasons": list(self.reasons),
            "final": self.final,
        }


def name_leader(dependence: Dependence) -> int | None:
    """The image that stands out by Shapley value, from 1; None if none does."""
    bar = max(dependence.noise_floor, STRONG)
    order = sorted(range(len(dependence.shapley)), key=lambda k: -dependence.shapley[k])
    if not order or dependence.shapley[order[0]] < bar:
        return None
    first = dependence.shapley[order[0]]
    second = max((dependence.shapley[k] for k in order[1:]), default=0.0)
    return order[0] + 1 if first - second >= max(dependence.noise_floor, 0.5 * first) else None


def judge(
    case: Case,
    dependence: Dependence,
    selection: Selection | None = None,
    swaps: Sequence[Counterfactual] | None = None,
) -> Verdict:
    """The verdict as far as the tests at hand carry it; ``selection`` and ``swaps`` None: not run yet. Where the row's
    answer is not what the model says itself, that stands among the reasons."""
    verdict = _judge(case, dependence, selection, swaps)
    if case.gives_own_answer:
        return verdict
    note = (
        f"The model itself says “{case.text(case.greedy_ids)}” to this prompt, not “{case.text(case.answer_ids)}”; "
        "whether an answer changes is told against what it says itself."
    )
    return replace(verdict, reasons=(*verdict.reasons, note))


def _judge(
    case: Case,
    dependence: Dependence,
    selection: Selection | None,
    swaps: Sequence[Counterfactual] | None,
) -> Verdict:
    answer = f"The answer “{dependence.answer}”" if dependence.answer else "The empty answer"
    final = selection is not None and swaps is not None
    reachable = case.target.question.reachable
    floor, bar = dependence.noise_floor, max(dependence.noise_floor, STRONG)
    noise = f"noise floor {say(floor)}"
    if not reachable:
        return Verdict(
            "none",
            None,
            (),
            f"{answer} can't depend on an image: none stands where question {case.turn} can see it.",
            (),
            True,
        )
    if dependence.probability < SURE:
        return Verdict(
            "unclear",
            None,
            (),
            f"Cannot tell: the model gives {answer[0].lower()}{answer[1:]} a "
            f"probability of {dependence.probability:.2g} per token, and below {SURE} a fall means little.",
            (),
            True,
        )
    flips = [swap for swap in swaps or () if swap.flipped]
    if len(reachable) == 1 and (dependence.leave_one_out[reachable[0] - 1] >= bar or flips):
        return _judge_only(case, dependence, flips, noise, final)
    if max(*dependence.shapley, *dependence.leave_one_out, dependence.total) < bar:
        return _judge_none(dependence, flips, answer, noise, final)
    leader = name_leader(dependence)
    if leader is None:
        return _judge_several(dependence, answer, bar, noise, final)
    return _judge_leader(dependence, leader, selection, swaps, answer, noise, final)


def _judge_only(
    case: Case, dependence: Dependence, flips: Sequence[Counterfactual], noise: str, final: bool
) -> Verdict:
    k = case.target.question.reachable[0]
    fall = dependence.leave_one_out[k - 1]
    sentence = (
        f"The mask alone decides: image {k} is the only one that question {case.turn} can see, and without it "
        f"log p falls by at least {say(fall)} nats ({noise})."
    )
    reasons = (f"Replacing it by {flips[0].partner} changes the answer to “{flips[0].answer}”.",) if flips else ()
    return Verdict("mask", k, (k,), sentence, reasons, final)


def _judge_none(
    dependence: Dependence, flips: Sequence[Counterfactual], answer: str, noise: str, final: bool
) -> Verdict:
    """Little falls without any image: either none is needed, or the model would guess the same without them."""
    bar, answer = max(dependence.noise_floor, STRONG), f"{answer[0].lower()}{answer[1:]}"
    fall = f"without any image log p of {answer} falls by {say(dependence.total)} nats"
    if not flips:
        return Verdict(
            "none", None, (), f"No image needed: {fall}, less than the {say(bar)} that count ({noise}).", (), final
        )
    guess = math.exp(dependence.text_only / dependence.tokens)
    told = f"replacing image {flips[0].image} by {flips[0].partner} changes the answer to “{flips[0].answer}”"
    sentence = (
        f"Cannot tell by taking images away: {fall} only ({noise}), for the model would guess the same without "
        f"them (p {guess:.2f} per token); yet {told}."
    )
    return Verdict("unclear", None, (), sentence, (), final)


def _judge_several(dependence: Dependence, answer: str, bar: float, noise: str, final: bool) -> Verdict:
    strong = [k + 1 for k, value in enumerate(dependence.shapley) if value >= bar]
    values = ", ".join(f"{k}: {say(dependence.shapley[k - 1])}" for k in strong)
    if len(strong) < 2:
        return Verdict(
            "unclear",
            None,
            (),
            f"Cannot tell: all images together are worth {say(dependence.total)} nats, "
            f"but no image stands out (largest Shapley value {say(max(dependence.shapley))}; {noise}).",
            (),
            final,
        )
    together = 0.0
    if dependence.interactions is not None:
        together = sum(dependence.interactions[a - 1][b - 1] for a in strong for b in strong if a < b)
    how = "; which of them are needed together was not computed"
    if dependence.interactions is not None:
        how = (
            f", and needs them together (interaction {say(together)})"
            if together > 0
            else f", and any of them does in part for another (interaction {say(together)})"
        )
    named = " and ".join([", ".join(map(str, strong[:-1])), str(strong[-1])])
    return Verdict(
        "several",
        None,
        tuple(strong),
        f"{answer} depends on several images, {named}{how}: Shapley values {values} nats, each at least ({noise}).",
        (),
        final,
    )


def _judge_leader(
    dependence: Dependence,
    k: int,
    selection: Selection | None,
    swaps: Sequence[Counterfactual] | None,
    answer: str,
    noise: str,
    final: bool,
) -> Verdict:
    floor, bar = dependence.noise_floor, max(dependence.noise_floor, STRONG)
    others = [value for n, value in enumerate(dependence.shapley, start=1) if n != k]
    fall = dependence.leave_one_out[k - 1]
    base = (
        f"{answer} depends on image {k}: without it log p falls by at least {say(fall)} nats (Shapley "
        f"{say(dependence.shapley[k - 1])}, the others at most {say(max(others))}; {noise})"
    )
    reasons: list[str] = []
    if swaps is not None and (complaint := _swap_complaint(swaps, k, floor)) is not None:
        return Verdict(
            "unclear",
            None,
            (),
            f"Cannot tell: knockout names image {k} (Shapley {say(dependence.shapley[k - 1])} nats), but {complaint}.",
            (),
            final,
        )
    if swaps is not None and (swap := swap_of(swaps, k)) is not None:
        reasons.append(
            f"Replacing image {k} by {swap.partner} "
            + (f"changes the answer to “{swap.answer}”." if swap.flipped else f"lowers log p by {say(swap.fall)} nats.")
        )
    if selection is None:
        return Verdict("dependent", k, (k,), base + ".", tuple(reasons), False)
    effects = selection.effects_otherwise
    if selection.contrast is None or effects is None:
        return Verdict(
            "dependent",
            k,
            (k,),
            base + ". Whether the question selects it can't be said: no question about another image was tried.",
            tuple(reasons),
            final,
        )
    otherwise, same = effects
    own = selection.asked[0].effects[k - 1]
    asked = ", ".join(f"“{one.question}”" for one in selection.others[:2])
    reasons.append(
        f"Effect of image {k} as asked {say(own)} nats; when another image is asked about ({asked}"
        f"{', …' if len(selection.others) > 2 else ''}) {say(otherwise)}."
    )
    about = selection.asked[0].image
    pointed = f" The question names image {about}, yet the answer rests on image {k}." if about not in (None, k) else ""
    if selection.contrast >= max(bar, 0.5 * own):
        return Verdict(
            "selected",
            k,
            (k,),
            base + f", and the question selects it: asked about another image, its "
            f"effect is {say(otherwise)} nats (contrast at least {say(selection.contrast)})." + pointed,
            tuple(reasons),
            final,
        )
    sentence = (
        base + f", whatever is asked: with the question about another image its effect is {say(otherwise)} "
        f"nats on the answer then given and {say(same)} on this one (contrast {say(selection.contrast)}, and "
        f"{say(max(bar, 0.5 * own))} would show that the question selects it)." + pointed
    )
    return Verdict("dependent", k, (k,), sentence, tuple(reasons), final)


def _swap_complaint(swaps: Sequence[Counterfactual], k: int, floor: float) -> str | None:
    """Why the swaps don't bear out that the answer rests on image ``k``; None if they do."""
    own = swap_of(swaps, k)
    if own is None:
        return None
    if not own.flipped and own.fall < max(floor, STRONG):
        return f"replacing it by {own.partner} neither changes the answer nor lowers log p by more than {say(own.fall)}"
    for swap in swaps:
        if swap.image != k and (swap.flipped or swap.fall >= max(floor, STRONG, 0.5 * own.fall)):
            what = (
                f"changes the answer to “{swap.answer}”" if swap.flipped else f"lowers log p by {say(swap.fall)} nats"
            )
            return f"replacing image {swap.image} by {swap.partner} {what} too"
    return None
