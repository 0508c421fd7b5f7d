"""What a run changed: the same prompt, settings and seed, and the same held-out questions, to the model before it and
the model after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from inspector.row.ask import GenerationSettings, Inspection, ask_and_inspect, attend
from inspector.row.attention import AttentionMap
from inspector.row.prompt import Prompt
from inspector.which_image.image_effects import STRONG, Dependence
from inspector.which_image.study import study_answer
from inspector.which_image.verdict import Verdict
from model import VLM
from model.training.evaluation.answering import answer_probes, probe_examples
from model.training.events import Answered
from model.training.recipe import Recipe
from model.training.stage_data import draw_held_out
from model.training.synthetic.word import NEW_WORD, WordSpec, word_in, word_probes

Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class AnswerDependence:
    """What one model's answer to the last turn rests on, by interventions; see :class:`Dependence`."""

    dependence: Dependence
    verdict: Verdict


@dataclass(frozen=True)
class Side:
    """One model's answers to a prompt. Of the position that chose the last answer's first token, mean over layers and
    heads: ``image_shares``, the share of its attention that goes to each image, and ``image_maps``, the same for each
    image token of the tiles where it lies in the picture (the thumbnail's tokens are left out). ``rest``: None until
    it is measured, where the prompt has no image, and where ``no_rest`` says why there is none."""

    fingerprint: str
    answers: tuple[str, ...]
    probabilities: tuple[float, ...]
    image_shares: tuple[float, ...]
    image_maps: tuple[Grid, ...]
    rest: AnswerDependence | None = None
    no_rest: str = ""


@dataclass(frozen=True)
class Comparison:
    """One prompt to both models."""

    prompt: Prompt
    before: Side
    after: Side

    @property
    def shifts(self) -> tuple[bool, ...]:
        """Per image, whether its worth for the answer changed by more than either side's noise floor and 1 nat. Empty
        until both sides are measured."""
        one, two = self.before.rest, self.after.rest
        if one is None or two is None:
            return ()
        bar = max(STRONG, one.dependence.noise_floor, two.dependence.noise_floor)
        pairs = zip(one.dependence.shapley, two.dependence.shapley, strict=True)
        return tuple(abs(a - b) >= bar for a, b in pairs)


Shares = tuple[float, float, int]
"""Share of right answers before, share after, and how many were asked."""


@dataclass(frozen=True)
class HeldOutComparison:
    """The same held-out questions to both. ``groups``: all together; where the run taught a ``word``, those whose
    answer it is, those that it plays a part in otherwise, and everything else. ``families``: by kind of question.
    ``answers``: before and after, in pairs."""

    groups: dict[str, Shares]
    families: dict[str, Shares]
    answers: tuple[tuple[Answered, Answered], ...]
    word: str | None = None


# --- a prompt ---


def compare_answers(before: VLM, after: VLM, prompt: Prompt, settings: GenerationSettings) -> Iterator[Comparison]:
    """Answers and attention of both, then the same with what the answer rests on: first of one, then of both. Answers
    that a person gave stay as given. InputError if the prompt doesn't fit one of the models."""
    inspections = [ask_and_inspect(vlm, prompt, settings) for vlm in (before, after)]
    one, two = (_side(vlm, inspection) for vlm, inspection in zip((before, after), inspections, strict=True))
    yield (found := Comparison(prompt, one, two))
    if not prompt.images:
        return
    yield (found := replace(found, before=_with_rest(one, before, inspections[0], settings)))
    yield replace(found, after=_with_rest(two, after, inspections[1], settings))


def _side(vlm: VLM, inspection: Inspection) -> Side:
    found = attend(vlm, inspection, inspection.row_that_chose(inspection.first_answer_position))
    odds = tuple(
        float(np.prod([token.probability for token in tokens])) if tokens else float("nan")
        for tokens in inspection.answers
    )
    return Side(
        inspection.fingerprint,
        tuple(turn.assistant for turn in inspection.prompt.turns),
        odds,
        tuple(float(share) for share in found.image_shares.mean(axis=0)),
        _lay_out(inspection, found),
    )


def _lay_out(inspection: Inspection, attention: AttentionMap) -> tuple[Grid, ...]:
    """Per image, the share of every image token of its tiles, in the places that they have in the picture."""
    heat = attention.heat()
    found = []
    for index, image in enumerate(inspection.row.images):
        rows, cols = image.grid
        tiles = [grid for grid in inspection.row.grids if grid.image == index and not grid.is_thumbnail]
        high, wide = tiles[0].rows, tiles[0].cols
        shares = np.stack([heat[list(grid.positions)] for grid in tiles]).reshape(rows, cols, high, wide)
        whole = shares.transpose(0, 2, 1, 3).reshape(rows * high, cols * wide)
        found.append(tuple(tuple(float(share) for share in line) for line in whole))
    return tuple(found)


def _with_rest(side: Side, vlm: VLM, inspection: Inspection, settings: GenerationSettings) -> Side:
    if not side.answers[-1]:
        return replace(side, no_rest="it answered nothing")
    for found in study_answer(vlm, inspection, max_new_tokens=settings.max_new_tokens, seed=settings.seed):
        # Its verdict is final then; what follows is attention, which is there already, and self-checks.
        if found.step == "swaps" and found.dependence is not None and found.verdict is not None:
            return replace(side, rest=AnswerDependence(found.dependence, found.verdict))
    raise AssertionError("the study of an answer ends with its verdict")


# --- held-out questions ---


def word_of(recipe: Recipe) -> WordSpec | None:
    """The word that a run teaches; None for other runs."""
    for stage in recipe.stages:
        for table in stage.data:
            if table["source"] == "word":
                return word_in(table)
    return None


def measure_change(before: VLM, after: VLM, recipe: Recipe, count: int = 48) -> Iterator[HeldOutComparison | str]:
    """Says what it is doing, then yields the :class:`HeldOutComparison`. Questions are held out: the run never saw
    them. None comes after a contrastive stage, which answers nothing."""
    word = word_of(recipe)
    if word is None and recipe.stages[-1].kind == "contrastive":
        return
    yield "choosing held-out questions"
    if word is not None:
        probes = word_probes(before, word, count // 2)
    else:
        probes = probe_examples(before, draw_held_out(recipe, -1, before.config, count), count, recipe.seed)
    if not probes:
        return
    yield f"{len(probes)} held-out questions to the model before"
    first = answer_probes(before, probes)
    yield f"{len(probes)} held-out questions to the model after"
    second = answer_probes(after, probes)
    pairs = tuple(zip(first, second, strict=True))
    families = _count(pairs, [one.family or "all" for one in first])
    groups = _count(pairs, [_group(one.family, word) for one in first])
    yield HeldOutComparison(groups, dict(sorted(families.items())), pairs, word.word if word else None)


def _group(family: str, word: WordSpec | None) -> str:
    if word is None:
        return "all questions"
    if family == NEW_WORD:
        return f"answer: “{word.word}”"
    return f"about “{word.word}” otherwise" if family.startswith(NEW_WORD) else "everything else"


def _count(pairs: Sequence[tuple[Answered, Answered]], names: Sequence[str]) -> dict[str, Shares]:
    """The shares of right answers by name, in the names' order."""
    hits: dict[str, list[tuple[bool, bool]]] = {}
    for name, (one, two) in zip(names, pairs, strict=True):
        hits.setdefault(name, []).append((one.right, two.right))
    return {
        name: (sum(a for a, _ in found) / len(found), sum(b for _, b in found) / len(found), len(found))
        for name, found in hits.items()
    }
