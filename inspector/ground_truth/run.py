"""The instrument tried on prompts whose truth is known: does it name the right image, and only then?

Every cell of :mod:`inspector.ground_truth.items` is first tried with its relevant image alone. A model that can't
answer that is not testable on the cell: what it says there would be about something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from inspector.experiments.image_order import permute_images, summarise_orders
from inspector.experiments.occlusion import measure_regions
from inspector.ground_truth.items import CELLS, WORDS, Item, ask_to_guess, build_items, name_colour
from inspector.ground_truth.scores import (
    GATE,
    MIN_ITEMS,
    Battery,
    ItemResult,
    Score,
    count,
    score_trials,
    sum_up_cell,
)
from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.target import Case, open_case
from inspector.row.ask import GenerationSettings, Inspection, ask_and_inspect, attend
from inspector.row.attention import AttentionMap
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.counterfactuals import Counterfactual, measure_counterfactuals
from inspector.which_image.image_effects import Dependence, measure_dependence
from inspector.which_image.question_contrast import Selection, measure_selection
from inspector.which_image.seen import measure_seen
from inspector.which_image.verdict import Verdict, judge, name_leader
from model import Box, InputError, InspectableVLM
from model.memory import format_bytes, measure_free_ram, refuse_shortage
from model.training.synthetic.scenes import SINGLE_TILE

PERMUTED_CELLS = ("adjacent", "ordinal digit", "content")
PERMUTED_ITEMS = 12
"""So many items of these cells are also asked with their images in other orders."""
STABILITY_CELL = "ordinal digit"
"""Whose items are also asked in other words and of random weights."""
WORDINGS = (
    "in image {image}, what color is the shape?",
    "in image {image}, what colour is the shape?",
    "In image {image}, what colour is the shape?",
    "what color is the shape in image {image}?",
    "what colour is the shape in image {image}?",
    "What colour is the shape in image {image}?",
)
PARAPHRASED_ITEMS = 12
HALVED_ITEMS = 16
"""So many items of every cell are also studied in bfloat16."""
REGION_ITEMS = 24
REGION_CANVAS = (128, 128)
"""Pixels (width, height) of the pictures, one at a time, on which the map of regions is tried: four tiles and a
thumbnail, so that no shape covers more than a quarter of the regions."""
MAX_CHANCE = 0.25
MAX_NEW_TOKENS = 16
"""Room for a colour in a whole sentence."""
MOST_ENLARGED = 8
"""Scenes become at most so many times as wide: 512 pixels."""
_FEWEST_TOKENS = 16
"""Of a picture that a shape can be made out in."""


@dataclass(frozen=True)
class SuiteProgress:
    """``done`` of ``total`` items; ``battery`` is the result so far."""

    cell: str
    done: int
    total: int
    battery: Battery


def run_battery(
    vlm: InspectableVLM, *, cells: Sequence[str] = CELLS, n_each: int = MIN_ITEMS, seed: int = 1
) -> Iterator[SuiteProgress]:
    """Yields after every gate and every item; the last one is the finished result. A cell that fails its gate is
    skipped, and what can't be tried on this model is left out with a note. Scenes are drawn as large as the model
    likes them. Stopping in between loses nothing of what was found. InputError for an unknown cell."""
    found = _Found(vlm, n_each, seed)
    enlarged = choose_size(vlm)

    def draw(cell: str, count: int = n_each) -> Iterator[Item]:
        return build_items([cell], count, seed, enlarged=enlarged, guesses=found.guesses)

    next(build_items(cells, n_each, seed))
    cells = [cell for cell in CELLS if cell in cells]
    if "guessed" in cells:
        found.guesses = ask_guesses(vlm)
        if len(found.guesses) < len(WORDS):
            cells.remove("guessed")
            found.notes.append("“guessed” is left out: asked without a picture, this model names no colour.")
    n_named = n_each if STABILITY_CELL in cells else 0
    n_halved = min(n_each, HALVED_ITEMS)
    n_pictures = REGION_ITEMS if n_named else 0
    total = len(cells) * (n_each + n_halved) + min(n_named, PARAPHRASED_ITEMS) + n_pictures + n_named
    done = 0
    for cell in cells:
        yield SuiteProgress(cell, done, total, found.sum_up())
        gate = found.gates[cell] = [_answer_alone(vlm, item) for item in draw(cell)]
        if sum(gate) < GATE * n_each:
            done += n_each
            continue
        for item in draw(cell):
            yield SuiteProgress(cell, done, total, found.sum_up())
            found.trials.append(try_item(vlm, item))
            done += 1
    for item in draw(STABILITY_CELL, min(n_named, PARAPHRASED_ITEMS)) if n_named else ():
        yield SuiteProgress("other wordings", done, total, found.sum_up())
        found.paraphrased += _compare_wordings(vlm, item)
        done += 1
    pictures = build_items([STABILITY_CELL], REGION_ITEMS, seed, canvas=REGION_CANVAS, enlarged=enlarged)
    for item in pictures if n_pictures else ():
        yield SuiteProgress("regions", done, total, found.sum_up())
        found.regions += _try_regions(vlm, item)
        done += 1
    verdicts = {(trial.cell, trial.number): (trial.kind, trial.verdict_image) for trial in found.trials}
    if verdicts and (half := found.copy("bfloat16", lambda: vlm.convert(torch.bfloat16))) is not None:
        for item in (item for cell in cells for item in draw(cell, n_halved)):
            yield SuiteProgress("in bfloat16", done, total, found.sum_up())
            if (item.cell, item.number) in verdicts:  # else its cell is not testable
                found.halved.append(_told(_study(half, item, item.prompt)) == verdicts[item.cell, item.number])
            done += 1
        del half
    if n_named and (random := found.copy("random weights", lambda: vlm.redraw(seed))) is not None:
        for item in draw(STABILITY_CELL):
            yield SuiteProgress("random weights", total - n_named + item.number, total, found.sum_up())
            study = _study(random, item, item.prompt)
            found.random.append(study is not None and study.verdict.image is not None)
    yield SuiteProgress("", total, total, found.sum_up(finished=True))


def choose_size(vlm: InspectableVLM) -> int:
    """How many times as wide as it is drawn a scene of one tile should be for this model: the least at which it isn't
    enlarged by much and gets some tokens, as the image processor says. At most :data:`MOST_ENLARGED`."""
    for enlarged in range(1, MOST_ENLARGED):
        width, height = (side * enlarged for side in SINGLE_TILE)
        plan = vlm.plan_image((width, height))
        across, down = plan.resized_size
        if across <= 1.25 * width and down <= 1.25 * height and plan.tokens >= _FEWEST_TOKENS:
            return enlarged
    return MOST_ENLARGED


def ask_guesses(vlm: InspectableVLM) -> dict[str, str]:
    """The colour that the model says without a picture to each of :func:`ask_to_guess`; none where it names none."""
    found = {}
    for word in WORDS:
        inspection = ask_and_inspect(vlm, Prompt((), (Turn(ask_to_guess(word)),)), GenerationSettings(MAX_NEW_TOKENS))
        if (colour := name_colour(inspection.prompt.turns[0].assistant)) is not None:
            found[word] = colour
    return found


@dataclass
class _Found:
    """What has been tried so far. ``paraphrased`` and ``halved``: was the verdict the same; ``random``: did random
    weights get a verdict that names an image; ``regions``: per picture (deletion curve below the mean of random orders,
    strongest region on the shape, share of regions that are). ``guesses``: see :func:`ask_guesses`; ``notes``: what
    can't be tried, and why."""

    vlm: InspectableVLM
    n_each: int
    seed: int
    gates: dict[str, list[bool]] = field(default_factory=dict)
    trials: list[ItemResult] = field(default_factory=list)
    paraphrased: list[bool] = field(default_factory=list)
    halved: list[bool] = field(default_factory=list)
    random: list[bool] = field(default_factory=list)
    regions: list[tuple[bool, bool, float]] = field(default_factory=list)
    guesses: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def copy(self, what: str, make: Callable[[], InspectableVLM]) -> InspectableVLM | None:
        """A copy of the model, if it can be had; else a note."""
        need, free = self.vlm.n_parameters * self.vlm.dtype.itemsize, measure_free_ram()
        if self.vlm.device.type == "cpu" and free is not None and need > free:
            self.notes.append(
                f"{what[0].upper()}{what[1:]} were not tried: a second copy of the model takes {format_bytes(need)} "
                f"and {format_bytes(free)} are free."
            )
            return None
        try:
            with refuse_shortage():
                return make()
        except InputError as error:
            self.notes.append(f"{what[0].upper()}{what[1:]} were not tried. {error}")
            return None

    def sum_up(self, finished: bool = False) -> Battery:
        cells = tuple(
            sum_up_cell(cell, gate, [t for t in self.trials if t.cell == cell]) for cell, gate in self.gates.items()
        )
        scores = (
            *score_trials(self.trials),
            Score("deletion curve of regions below random orders", count([r[0] for r in self.regions]), 0.9, True),
            Score(
                f"strongest region lies on the shape (by chance {self.chance:.2f})",
                count([r[1] for r in self.regions]),
                0.7,
                True,
            ),
            Score("the same verdict in other words", count(self.paraphrased), 0.9, True),
            Score("the same verdict in bfloat16", count(self.halved), 0.98, True),
            Score("an image named on random weights", count(self.random), 0.01, False),
        )
        return Battery(self.vlm.fingerprint, self.n_each, self.seed, finished, cells, scores, tuple(self.notes))

    @property
    def chance(self) -> float:
        """Mean share of a picture's regions that lie on its shape."""
        return sum(region[2] for region in self.regions) / len(self.regions) if self.regions else 0.0


def _try_regions(vlm: InspectableVLM, item: Item) -> list[tuple[bool, bool, float]]:
    """See :class:`_Found`; nothing where the model answers wrongly about the picture alone, and nothing where its shape
    lies on more than a quarter of the regions."""
    inspection = ask_and_inspect(vlm, item.single_prompt, GenerationSettings(MAX_NEW_TOKENS))
    if item.box is None or name_colour(inspection.prompt.turns[-1].assistant) != item.answer:
        return []
    case = open_case(vlm, inspection, max_new_tokens=MAX_NEW_TOKENS, seed=item.number)
    steps = measure_regions(case, 1, measure_dependence(case).noise_floor)
    # The map of tokens comes last; when it begins, the map of pixels is complete.
    found = next(step.pixels for step in steps if step.tokens is not None)
    assert found is not None
    on = [_overlap(region.box, item.box) for region in found.regions]
    chance = sum(on) / len(on)
    if found.gap is None or chance > MAX_CHANCE:
        return []
    return [(found.gap > 0, _overlap(found.top.box, item.box), chance)]


def _overlap(one: Box, other: Box) -> bool:
    return one.left < other.right and other.left < one.right and one.top < other.bottom and other.top < one.bottom


def _told(study: _Study | None) -> tuple[str, int | None]:
    return ("unclear", None) if study is None else (study.verdict.kind, study.verdict.image)


def _compare_wordings(vlm: InspectableVLM, item: Item) -> list[bool]:
    """Whether each other wording of the question gets the verdict of the item's own."""
    own = _told(_study(vlm, item, item.prompt))
    found = []
    for wording in WORDINGS:
        question = wording.format(image=item.image)
        if question != item.prompt.turns[item.turn].user:
            prompt = replace(item.prompt, turns=(Turn(question),))
            found.append(_told(_study(vlm, item, prompt)) == own)
    return found


def _answer_alone(vlm: InspectableVLM, item: Item) -> bool:
    inspection = ask_and_inspect(vlm, item.single_prompt, GenerationSettings(MAX_NEW_TOKENS))
    return name_colour(inspection.prompt.turns[-1].assistant) == item.answer


@dataclass(frozen=True)
class _Study:
    """A prompt's experiments as a person's are run."""

    inspection: Inspection
    case: Case
    ablations: ImageAblations
    exchanges: ImageExchanges
    dependence: Dependence
    selection: Selection
    swaps: tuple[Counterfactual, ...]
    verdict: Verdict


def _study(vlm: InspectableVLM, item: Item, prompt: Prompt) -> _Study | None:
    """The item, or another wording of it, with its twin as the relevant image's partner; None for an empty answer."""
    inspection = ask_and_inspect(vlm, prompt, GenerationSettings(MAX_NEW_TOKENS))
    if not inspection.prompt.turns[item.turn].assistant.strip():
        return None
    case = open_case(vlm, inspection, item.turn + 1, max_new_tokens=MAX_NEW_TOKENS, seed=item.number)
    ablations, exchanges = ImageAblations(case), ImageExchanges(case)
    dependence = measure_dependence(case, ablations, exchanges)
    selection = measure_selection(case, name_leader(dependence), ablations, exchanges)
    twins = {item.image: (item.twin, item.twin_answer or "")} if item.image and item.twin else None
    swaps = measure_counterfactuals(case, selection, exchanges, twins=twins)
    verdict = judge(case, dependence, selection, swaps)
    return _Study(inspection, case, ablations, exchanges, dependence, selection, swaps, verdict)


def try_item(vlm: InspectableVLM, item: Item) -> ItemResult:
    """One item through the same experiments as a person's prompt."""
    study = _study(vlm, item, item.prompt)
    if study is None:
        return ItemResult(
            item.cell,
            item.number,
            item.image,
            item.answer,
            "",
            False,
            0.0,
            "unclear",
            None,
            0,
            0,
            0,
            None,
            None,
            0,
            0,
            "",
            False,
            0,
            0,
        )
    answer = study.inspection.prompt.turns[item.turn].assistant.strip()
    colour = name_colour(answer)
    gold = measure_dependence(study.case, study.ablations, answer_ids=study.case.encode(item.answer))
    others = [swap for swap in study.swaps if swap.image != item.image]
    twin = next((swap for swap in study.swaps if swap.image == item.image), None)
    orders = (0, 0)
    if item.cell in PERMUTED_CELLS and item.number < PERMUTED_ITEMS:
        summary = summarise_orders(list(permute_images(study.case, study.selection)))
        orders = summary.right, summary.predicted
    chooser = study.case.target.question.chooser
    assert chooser is not None
    words = measure_seen(study.case, study.ablations, study.exchanges)
    followed = [cue.name for cue in item.cues if item.answers_by_image[cue.image - 1] == colour]
    return ItemResult(
        cell=item.cell,
        number=item.number,
        image=item.image,
        gold=item.answer,
        answer=answer,
        right=colour == item.answer,
        probability=study.dependence.probability,
        kind=study.verdict.kind,
        verdict_image=study.verdict.image,
        named=_largest(study.dependence.shapley),
        attended=_attended(attend(vlm, study.inspection, chooser)),
        gold_named=_largest(gold.leave_one_out),
        contrast=study.selection.contrast,
        twin_right=None if twin is None else name_colour(twin.answer) == item.twin_answer,
        others_flipped=sum(swap.flipped for swap in others),
        others=len(others),
        followed=followed[0] if followed else "",
        asked_right=_all_right(study.selection, item),
        orders_right=orders[0],
        orders_predicted=orders[1],
        seen=len(words.tokens) - words.guessed,
        tokens=len(words.tokens),
        following=words.following,
        exchange_named=0 if study.dependence.exchange is None else _largest(study.dependence.exchange.shapley),
    )


def _all_right(selection: Selection, item: Item) -> bool:
    return all(
        name_colour(asked.answer) == item.answers_by_image[asked.image - 1]
        for asked in selection.asked
        if asked.image is not None and asked.source != "image named"
    )


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda k: values[k]) + 1 if values else 0


def _attended(attention: AttentionMap) -> int:
    return _largest(attention.image_shares.mean(axis=0).tolist())
