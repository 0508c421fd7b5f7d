"""One sentence on what an answer rests on, with the numbers that it rests on itself.

A verdict speaks of one model and one prompt. It is built from interventions alone; attention has no say in it. Two
measures can carry it: images taken away, and images replaced by other pictures. Where they name different images, or
neither names one, it stays open.
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
from inspector.which_image.question_contrast import Measure, Selection

VerdictKind = Literal["mask", "selected", "dependent", "several", "none", "unclear"]

SURE = 0.2
"""Probability per answer token below which nothing is said about what the answer rests on."""


@dataclass(frozen=True)
class Verdict:
    """``image`` (from 1) is the one image that the answer depends on, None where there is none or more than one;
    ``images`` are all that it depends on. ``reasons`` say what was compared, each with its numbers. ``final``: all
    tests are in. ``carried_by``: the measures that it rests on, empty where it names no image."""

    kind: VerdictKind
    image: int | None
    images: tuple[int, ...]
    sentence: str
    reasons: tuple[str, ...]
    final: bool
    carried_by: tuple[Measure, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "image": self.image,
            "images": list(self.images),
            "sentence": self.sentence,
            "reasons": list(self.reasons),
            "final": self.final,
            "carried_by": list(self.carried_by),
        }


@dataclass(frozen=True)
class _Effects:
    """One measure's effects in nats, in image order. ``total``: of all images together. ``interaction``: sum over pairs
    of given images, None if it was not computed."""

    measure: Measure
    shapley: tuple[float, ...]
    leave_one_out: tuple[float, ...]
    total: float
    interactions: tuple[tuple[float, ...], ...] | None

    @property
    def strongest(self) -> float:
        return max(*self.shapley, *self.leave_one_out, self.total)

    def leader(self, floor: float) -> int | None:
        """The image that stands out by Shapley value, from 1; None if none does."""
        order = sorted(range(len(self.shapley)), key=lambda k: -self.shapley[k])
        if not order or self.shapley[order[0]] < max(floor, STRONG):
            return None
        first = self.shapley[order[0]]
        second = max((self.shapley[k] for k in order[1:]), default=0.0)
        return order[0] + 1 if first - second >= max(floor, 0.5 * first) else None

    def strong(self, bar: float) -> list[int]:
        """Images (from 1) with a Shapley value of at least ``bar``."""
        return [k + 1 for k, value in enumerate(self.shapley) if value >= bar]

    def phrase(self, k: int, noise: str = "") -> str:
        """What becomes of log p without image ``k``."""
        others = max((value for n, value in enumerate(self.shapley, start=1) if n != k), default=0.0)
        numbers = f"(Shapley {say(self.shapley[k - 1])}, the others at most {say(others)}{noise})"
        fall = say(self.leave_one_out[k - 1])
        if self.measure == "ablation":
            return f"without it log p falls by at least {fall} nats {numbers}"
        return f"with other pictures in its place log p falls by {fall} nats on average {numbers}"


def _read_effects(dependence: Dependence) -> tuple[_Effects, _Effects | None]:
    """Taken away, and replaced (None if that was not measured)."""
    one = dependence.exchange
    taken = _Effects(
        "ablation", dependence.shapley, dependence.leave_one_out, dependence.total, dependence.interactions
    )
    if one is None:
        return taken, None
    return taken, _Effects(
        "exchange", one.shapley, one.leave_one_out, dependence.logprob - one.replaced, one.interactions
    )


@dataclass(frozen=True)
class Leader:
    """The one image (from 1) that stands out, and the measures that say so."""

    image: int
    measures: tuple[Measure, ...]


def find_leader(dependence: Dependence) -> Leader | None:
    """None where no image stands out, where the measures name different ones, and where only taking images away names
    one while replacing them shows effects of several."""
    taken, replaced = _read_effects(dependence)
    floor = dependence.noise_floor
    first = taken.leader(floor)
    if replaced is None:
        return None if first is None else Leader(first, ("ablation",))
    second = replaced.leader(floor)
    if first is not None and second is not None:
        return Leader(first, ("ablation", "exchange")) if first == second else None
    if second is not None:
        return Leader(second, ("exchange",))
    if first is None or replaced.strongest >= max(floor, STRONG):
        return None
    return Leader(first, ("ablation",))


def name_leader(dependence: Dependence) -> int | None:
    """The image that stands out, from 1; see :func:`find_leader`."""
    leader = find_leader(dependence)
    return None if leader is None else leader.image


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


def withhold(verdict: Verdict, change: float) -> Verdict:
    """No verdict, whatever was found: with every image cut, other pixels still change log p by ``change`` nats."""
    sentence = (
        "Nothing can be told: with every image cut off from the text, other pixels still change log p of the answer by "
        f"{say(change)} nats, so images reach it past the attention that was cut."
    )
    return Verdict("unclear", None, (), sentence, verdict.reasons, True)


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
    taken, replaced = _read_effects(dependence)
    strong = tuple(one for one in (taken, replaced) if one is not None and one.strongest >= bar)
    if len(reachable) == 1 and (strong or flips):
        return _judge_only(case, (taken, replaced), strong, flips, noise, final)
    if not strong:
        return _judge_none(dependence, replaced, flips, answer, noise, final)
    leader = find_leader(dependence)
    if leader is None:
        return _judge_several(dependence, taken, replaced, answer, bar, noise, final)
    return _judge_leader(dependence, leader, selection, swaps, answer, noise, final)


def _judge_only(
    case: Case,
    effects: tuple[_Effects, _Effects | None],
    strong: tuple[_Effects, ...],
    flips: Sequence[Counterfactual],
    noise: str,
    final: bool,
) -> Verdict:
    k = case.target.question.reachable[0]
    taken, replaced = effects
    without = f"without it log p falls by at least {say(taken.leave_one_out[k - 1])} nats"
    if taken not in strong:
        without = f"without it log p falls by no more than {say(taken.leave_one_out[k - 1])} nats"
    if replaced is not None:
        without += f", with other pictures in its place by {say(replaced.leave_one_out[k - 1])} on average"
    sentence = (
        f"The mask alone decides: image {k} is the only one that question {case.turn} can see, and {without} ({noise})."
    )
    reasons = (f"Replacing it by {flips[0].partner} changes the answer to “{flips[0].answer}”.",) if flips else ()
    return Verdict("mask", k, (k,), sentence, reasons, final, tuple(one.measure for one in strong))


def _judge_none(
    dependence: Dependence,
    replaced: _Effects | None,
    flips: Sequence[Counterfactual],
    answer: str,
    noise: str,
    final: bool,
) -> Verdict:
    """Little falls by either measure: either no image is needed, or the pictures that were tried say too little."""
    bar, answer = max(dependence.noise_floor, STRONG), f"{answer[0].lower()}{answer[1:]}"
    fall = f"without any image log p of {answer} falls by {say(dependence.total)} nats"
    beside = "" if replaced is None else f", with other pictures in every place by {say(replaced.total)}"
    if not flips:
        sentence = f"No image needed: {fall}{beside}, less than the {say(bar)} that count ({noise})."
        return Verdict("none", None, (), sentence, (), final)
    guess = math.exp(dependence.text_only / dependence.tokens)
    told = f"replacing image {flips[0].image} by {flips[0].partner} changes the answer to “{flips[0].answer}”"
    sentence = (
        f"Cannot tell by taking images away: {fall} only{beside} ({noise}), for the model would guess the same without "
        f"them (p {guess:.2f} per token); yet {told}."
    )
    return Verdict("unclear", None, (), sentence, (), final)


def _judge_several(
    dependence: Dependence, taken: _Effects, replaced: _Effects | None, answer: str, bar: float, noise: str, final: bool
) -> Verdict:
    """No image is named by both measures, or by one with no word against it from the other."""
    floor = dependence.noise_floor
    if replaced is not None and (first := taken.leader(floor)) and (second := replaced.leader(floor)):
        sentence = (
            f"Cannot tell: taking images away names image {first} (Shapley {say(taken.shapley[first - 1])} nats), "
            f"replacing them by other pictures image {second} (Shapley {say(replaced.shapley[second - 1])}; {noise})."
        )
        return Verdict("unclear", None, (), sentence, (), final)
    # Replaced pictures stay within what the model knows, so that measure goes first.
    carrying = next((one for one in (replaced, taken) if one is not None and len(one.strong(bar)) > 1), None)
    if carrying is None:
        largest = f"largest Shapley value {say(max(taken.shapley))}"
        if replaced is not None:
            largest += f", with other pictures instead {say(max(replaced.shapley))}"
        sentence = (
            f"Cannot tell: all images together are worth {say(dependence.total)} nats, "
            f"but no image stands out ({largest}; {noise})."
        )
        return Verdict("unclear", None, (), sentence, (), final)
    strong = carrying.strong(bar)
    values = ", ".join(f"{k}: {say(carrying.shapley[k - 1])}" for k in strong)
    how = "; which of them are needed together was not computed"
    if carrying.interactions is not None:
        together = sum(carrying.interactions[a - 1][b - 1] for a in strong for b in strong if a < b)
        how = (
            f", and needs them together (interaction {say(together)})"
            if together > 0
            else f", and any of them does in part for another (interaction {say(together)})"
        )
    by = " with other pictures in their places" if carrying.measure == "exchange" else ""
    named = " and ".join([", ".join(map(str, strong[:-1])), str(strong[-1])])
    both = replaced is not None and taken.strong(bar) == replaced.strong(bar)
    carried: tuple[Measure, ...] = ("ablation", "exchange") if both else (carrying.measure,)
    return Verdict(
        "several",
        None,
        tuple(strong),
        f"{answer} depends on several images, {named}{how}: Shapley values{by} {values} nats, each at least ({noise}).",
        (),
        final,
        carried,
    )


def _judge_leader(
    dependence: Dependence,
    leader: Leader,
    selection: Selection | None,
    swaps: Sequence[Counterfactual] | None,
    answer: str,
    noise: str,
    final: bool,
) -> Verdict:
    k, measures = leader.image, leader.measures
    floor, bar = dependence.noise_floor, max(dependence.noise_floor, STRONG)
    taken, replaced = _read_effects(dependence)
    named = {"ablation": taken, "exchange": replaced}
    leading = named[measures[0]]
    assert leading is not None
    phrases = [leading.phrase(k, f"; {noise}")]
    phrases += [other.phrase(k) for name in measures[1:] if (other := named[name]) is not None]
    base = f"{answer} depends on image {k}: {', and '.join(phrases)}"
    if measures == ("exchange",):
        guess = math.exp(dependence.text_only / dependence.tokens)
        base += (
            f"; taking images away names none (log p falls by {say(taken.total)} nats without any, where the model "
            f"still gives the answer p {guess:.2f} per token)"
        )
    elif replaced is not None and "exchange" not in measures:
        base += f"; with other pictures in every place it falls by {say(replaced.total)}"
    if swaps is not None and (complaint := _swap_complaint(swaps, k, floor)) is not None:
        what = "knockout names" if leading is taken else "replacing images names"
        return Verdict(
            "unclear",
            None,
            (),
            f"Cannot tell: {what} image {k} (Shapley {say(leading.shapley[k - 1])} nats), but {complaint}.",
            (),
            final,
        )
    reasons: list[str] = []
    if swaps is not None and (swap := swap_of(swaps, k)) is not None:
        reasons.append(
            f"Replacing image {k} by {swap.partner} "
            + (f"changes the answer to “{swap.answer}”." if swap.flipped else f"lowers log p by {say(swap.fall)} nats.")
        )
    if replaced is not None:
        reasons.append(_CARRIED[measures])
    if selection is None:
        return Verdict("dependent", k, (k,), base + ".", tuple(reasons), False, measures)
    tried = [name for name in measures if selection.effects_otherwise_by(name) is not None]
    if not tried:
        return Verdict(
            "dependent",
            k,
            (k,),
            base + ". Whether the question selects it can't be said: no question about another image was tried.",
            tuple(reasons),
            final,
            measures,
        )
    asked = ", ".join(f"“{one.question}”" for one in selection.others[:2])
    contrasts = [_Contrast.read(selection, k, name, bar) for name in tried]
    for one in contrasts:
        reasons.append(
            f"Effect of image {k}{one.how} as asked {say(one.own)} nats; when another image is asked about ({asked}"
            f"{', …' if len(selection.others) > 2 else ''}) {say(one.otherwise)}."
        )
    about = selection.asked[0].image
    pointed = f" The question names image {about}, yet the answer rests on image {k}." if about not in (None, k) else ""
    # Of the answer that the model would guess, taking images away says little even where it names the image.
    shown = next((one for one in contrasts if one.contrast >= one.needed), None)
    if shown is not None:
        return Verdict(
            "selected",
            k,
            (k,),
            base + f", and the question selects it: asked about another image, its "
            f"effect{shown.how} is {say(shown.otherwise)} nats (contrast at least {say(shown.contrast)})." + pointed,
            tuple(reasons),
            final,
            measures,
        )
    one = contrasts[0]
    sentence = (
        base
        + f", whatever is asked: with the question about another image its effect{one.how} is {say(one.otherwise)} "
        f"nats on the answer then given and {say(one.same)} on this one (contrast {say(one.contrast)}, and "
        f"{say(one.needed)} would show that the question selects it)." + pointed
    )
    return Verdict("dependent", k, (k,), sentence, tuple(reasons), final, measures)


_CARRIED: dict[tuple[Measure, ...], str] = {
    ("ablation", "exchange"): "Both measures carry this: images taken away, and images replaced by other pictures.",
    ("exchange",): "This is carried by images replaced by other pictures, not by images taken away.",
    ("ablation",): "This is carried by images taken away, not by images replaced by other pictures.",
}


@dataclass(frozen=True)
class _Contrast:
    """Whether the question selects image k, by one measure: its effect as asked (``own``), when another image is asked
    about on the answer then given (``otherwise``) and on the answer under study (``same``), and the smaller difference
    (``contrast``) beside what would show it (``needed``); nats."""

    measure: Measure
    own: float
    otherwise: float
    same: float
    contrast: float
    needed: float

    @property
    def how(self) -> str:
        return "" if self.measure == "ablation" else " by exchange"

    @classmethod
    def read(cls, selection: Selection, k: int, measure: Measure, bar: float) -> _Contrast:
        effects, contrast = selection.effects_otherwise_by(measure), selection.contrast_by(measure)
        assert effects is not None
        assert contrast is not None
        own = selection.asked[0].effects_by(measure)[k - 1]
        return cls(measure, own, effects[0], effects[1], contrast, max(bar, 0.5 * own))


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
