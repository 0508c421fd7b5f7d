"""What a run changed: the same held-out questions to the model before it and the model after it. One prompt to both is
compared as any two models are: :mod:`inspector.which_image.model_comparison`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from model import VLM, InspectableVLM
from model.image import ProcessedImage
from model.training.evaluation.answering import Probe, answer_probes, probe_examples
from model.training.events import Answered
from model.training.recipe import Recipe
from model.training.stage_data import draw_held_out
from model.training.synthetic.word import NEW_WORD, WordSpec, word_in, word_probes

Shares = tuple[float, float, int]
"""Share of right answers before, share after, and how many were asked."""


@dataclass(frozen=True)
class HeldOutComparison:
    """The same held-out questions to both. ``groups``: all together; where the run taught a ``word``, those whose
    answer it is, those that it plays a part in otherwise, and everything else. ``families``: by kind of question.
    ``answers``: before and after, in pairs, each about its ``pictures``."""

    groups: dict[str, Shares]
    families: dict[str, Shares]
    answers: tuple[tuple[Answered, Answered], ...]
    word: str | None = None
    pictures: tuple[tuple[Image.Image, ...], ...] = ()

    @property
    def headline(self) -> tuple[str, Shares]:
        """What the run was for, and how it went: the word's own questions where it taught one, else all."""
        if self.word is None:
            right = [(one.right, two.right) for one, two in self.answers]
            before, after = (sum(side) / len(right) for side in zip(*right, strict=True))
            return "all questions", (before, after, len(right))
        own = f"answer: “{self.word}”"
        name = own if own in self.groups else next(iter(self.groups))
        return (f"“{self.word}”" if name == own else name), self.groups[name]


def word_of(recipe: Recipe) -> WordSpec | None:
    """The word that a run teaches; None for other runs."""
    for stage in recipe.stages:
        for table in stage.data:
            if table["source"] == "word":
                return word_in(table)
    return None


def measure_change(
    before: InspectableVLM, after: InspectableVLM, recipe: Recipe, count: int = 48
) -> Iterator[HeldOutComparison | str]:
    """Says what it is doing, then yields the :class:`HeldOutComparison`. Questions are held out: the run never saw
    them. None comes after a contrastive stage, which answers nothing."""
    word = word_of(recipe)
    if word is None and recipe.stages[-1].kind == "contrastive":
        return
    yield "choosing held-out questions"
    nanovlm = before if isinstance(before, VLM) else None
    if word is not None and nanovlm is not None:
        probes = word_probes(nanovlm, word, count // 2)
    else:
        held_out = draw_held_out(recipe, -1, None if nanovlm is None else nanovlm.config, count)
        probes = probe_examples(before, held_out, count, recipe.seed)
    if not probes:
        return
    yield f"{len(probes)} held-out questions to the model before"
    first = answer_probes(before, probes)
    yield f"{len(probes)} held-out questions to the model after"
    second = answer_probes(after, probes)
    pairs = tuple(zip(first, second, strict=True))
    families = _count(pairs, [one.family or "all" for one in first])
    groups = _count(pairs, [_group(one.family, word) for one in first])
    name = word.word if word else None
    yield HeldOutComparison(groups, dict(sorted(families.items())), pairs, name, tuple(map(_draw_pictures, probes)))


def _draw_pictures(probe: Probe) -> tuple[Image.Image, ...]:
    """As the model reads them, each whole: its thumbnail, or its first tile where that is all."""
    return tuple(map(_draw_picture, probe.sample.images))


def _draw_picture(image: ProcessedImage) -> Image.Image:
    tile = image.tiles[-1 if image.has_thumbnail else 0]
    return Image.fromarray((tile.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy())


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
