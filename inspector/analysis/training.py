"""What a run would train, what its data are, and what it changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inspector.analysis.inspection import GenerationSettings, Inspection, ask_and_inspect, attend
from inspector.analysis.prompt import Prompt
from model import VLM, InputError
from model.training.answering import answer_probes, probe_examples
from model.training.data_report import DataReport, report_data
from model.training.datasets import hold_out, open_captioned, open_examples
from model.training.events import Answered, ModuleSize
from model.training.example import Example
from model.training.recipe import Recipe, Stage
from model.training.stages import build_stage, module_sizes
from model.training.word import NEW_WORD, WordSpec, word_in, word_probes

CHECKED = 200
"""Examples that a data check renders."""


def size_modules(vlm: VLM, stage: Stage) -> tuple[ModuleSize, ...]:
    """What ``stage`` would train of a model like ``vlm``, by building it without memory: ``vlm`` stays as it is."""
    with torch.device("meta"):
        empty = VLM(vlm.config, vlm.tokenizer)
        if vlm.config.lm_tie_weights:
            empty.decoder.head.weight = empty.decoder.token_embedding.weight
        return module_sizes(build_stage(stage, empty, 0, vlm.tokenizer))


def check_data(vlm: VLM, recipe: Recipe) -> list[DataReport | dict[str, Any]]:
    """A report for each data table of the first stage; of pairs for the contrastive stage just name and count.
    InputError if they can't be read."""
    stage = recipe.stages[0]
    found: list[DataReport | dict[str, Any]] = []
    for table in stage.data:
        if stage.kind == "contrastive":
            pairs = open_captioned(table, recipe.folder, vlm.config)
            found.append({"name": str(getattr(pairs, "name", table["source"])), "examples": len(pairs)})
        else:
            examples = open_examples(table, recipe.folder)
            found.append(report_data(vlm, examples, stage.longest_sample, sample=CHECKED))
    return found


# --- before and after ---


@dataclass(frozen=True)
class Side:
    """One model's answers to a prompt; ``image_shares``: of the attention of the last answer's first token, per image,
    mean over layers and heads."""

    fingerprint: str
    answers: tuple[str, ...]
    probabilities: tuple[float, ...]
    image_shares: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """The same prompt, settings and seed to the model before a run and after it."""

    questions: tuple[str, ...]
    before: Side
    after: Side


@dataclass(frozen=True)
class Measured:
    """The same held-out questions to both: share right per family before and after, how many of each were asked, and
    the answers, in pairs. ``word``: the word taught, if that was the run's aim."""

    accuracy: dict[str, tuple[float, float, int]]
    answers: tuple[tuple[Answered, Answered], ...]
    word: str | None = None


def compare_answers(before: VLM, after: VLM, prompt: Prompt, settings: GenerationSettings) -> Comparison:
    """InputError if the prompt doesn't fit one of them. Answers that a person gave stay as given."""
    sides = [_side(vlm, ask_and_inspect(vlm, prompt, settings)) for vlm in (before, after)]
    return Comparison(tuple(turn.user for turn in prompt.turns), *sides)


def _side(vlm: VLM, inspection: Inspection) -> Side:
    found = attend(vlm, inspection, inspection.first_answer_position)
    odds = tuple(float(np.prod([token.probability for token in tokens])) if tokens else float("nan")
                 for tokens in inspection.answers)  # fmt: skip
    return Side(inspection.fingerprint, tuple(turn.assistant for turn in inspection.prompt.turns), odds,
                tuple(float(share) for share in found.image_shares.mean(axis=0)))  # fmt: skip


def word_of(recipe: Recipe) -> WordSpec | None:
    """The word that a run teaches; None for other runs."""
    for stage in recipe.stages:
        for table in stage.data:
            if table["source"] == "word":
                return word_in(table)
    return None


def measure_change(before: VLM, after: VLM, recipe: Recipe, count: int = 48) -> Iterator[Measured | str]:
    """Says what it is doing, then yields the :class:`Measured`. Questions are held out: the run never saw them. None
    comes after a contrastive stage, which answers nothing."""
    word = word_of(recipe)
    if word is None and recipe.stages[-1].kind == "contrastive":
        return
    yield "choosing held-out questions"
    if word is not None:
        probes = word_probes(before, word, count // 2)
    else:
        probes = probe_examples(before, held_out_examples(recipe, count), count, recipe.seed)
    if not probes:
        return
    yield f"{len(probes)} held-out questions to the model before"
    first = answer_probes(before, probes)
    yield f"{len(probes)} held-out questions to the model after"
    second = answer_probes(after, probes)
    yield Measured(_accuracy(first, second), tuple(zip(first, second, strict=True)), word.word if word else None)


def held_out_examples(recipe: Recipe, most: int) -> list[Example]:
    """Up to ``most`` examples that the last stage of ``recipe`` held out, as many from each table."""
    stage = recipe.stages[-1]
    seed = recipe.seed + 1000 * (len(recipe.stages) - 1)
    sources: list[Sequence[Example]] = []
    for table in stage.held_out or stage.data:
        whole = open_examples(table, recipe.folder)
        sources.append(whole if stage.held_out else hold_out(whole, seed)[1])
    filled = [source for source in sources if len(source)]
    each = max(1, most // max(1, len(filled)))
    found: list[Example] = []
    for number, source in enumerate(filled):
        order = np.random.default_rng((seed, 17, number)).permutation(len(source))[:each]
        found += [source[int(place)] for place in order]
    return found


def _accuracy(before: Sequence[Answered], after: Sequence[Answered]) -> dict[str, tuple[float, float, int]]:
    hits: dict[str, list[tuple[bool, bool]]] = {}
    for one, two in zip(before, after, strict=True):
        if (one.question, one.expected) != (two.question, two.expected):
            raise InputError("The two models were asked different questions.")
        right = (one.answered.strip() == one.expected.strip(), two.answered.strip() == two.expected.strip())
        hits.setdefault(one.family or "all", []).append(right)
        group = "the new word" if one.family.startswith(NEW_WORD) else "everything else"
        if any(a.family.startswith(NEW_WORD) for a in before):
            hits.setdefault(group, []).append(right)
    shares = {family: (sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs), len(pairs))
              for family, pairs in hits.items()}  # fmt: skip
    first = ("the new word", "everything else", NEW_WORD)
    return {family: shares[family] for family in sorted(shares, key=lambda f: (f not in first, f != NEW_WORD, f))}
