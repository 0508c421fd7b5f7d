"""Measuring a model of the embedded kind: accuracy per family of questions beside two baselines.

Greedy answers that equal the right one to the letter, on easy-VQA's official test split and on freshly drawn scenes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from model.chat import Conversation, Message
from model.families.nanovlm import VLM
from model.packing import pack_samples
from model.sample import Sample
from model.training.data.example import ExampleTurn
from model.training.evaluation.answering import answer_samples
from model.training.synthetic import scenes as sc
from model.training.synthetic.easy_vqa import read_easy_vqa
from model.training.synthetic.examples import EXAMPLES, ExamplePrompt


@dataclass(frozen=True)
class EvaluationItem:
    """One question: conversations packed in one row, the last of which ends with it; its family; the right answer.
    Questions about the same pictures share a ``group``."""

    family: str
    parts: tuple[Conversation, ...]
    answer: str
    group: int = -1


@dataclass(frozen=True)
class FamilyScore:
    """Shares of ``questions`` that are answered right: by the model, by always giving the family's commonest answer,
    and by the model without the pictures."""

    family: str
    questions: int
    accuracy: float
    commonest: float
    text_only: float


@dataclass(frozen=True)
class Goal:
    """What a group of families is to reach, weighted by its questions."""

    name: str
    prefixes: tuple[str, ...]
    accuracy: float


GOALS = (
    Goal("easy-VQA, official test", ("easy-VQA",), 0.97),
    Goal("single-image scenes", ("scene:",), 0.95),
    Goal("“In image k, what …”, 2 images", ("by index, 2 images",), 0.95),
    Goal("“In image k, what …”, 3 images", ("by index, 3 images",), 0.92),
    Goal("“In image k, what …”, 4 images", ("by index, 4 images",), 0.90),
    Goal("“Which image has …”", ("which image",), 0.90),
    Goal("same or different", ("same colour",), 0.85),
    Goal("one image per turn, own image", ("per turn",), 0.95),
    Goal("packed, own image", ("packed",), 0.95),
    Goal("return to an earlier image", ("return",), 0.80),
)


@dataclass(frozen=True)
class Measurement:
    """``follows_index``: of prompts whose pictures all differ, the share in which every k gets its own picture's
    answer, per number of pictures. ``examples``: name, right answers, the model's, of the app's examples."""

    scores: tuple[FamilyScore, ...]
    follows_index: dict[str, float]
    examples: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]

    def goals(self) -> list[tuple[Goal, float]]:
        """Every goal with what was reached."""
        reached = []
        for goal in GOALS:
            chosen = [s for s in self.scores if any(prefix in s.family for prefix in goal.prefixes)]
            total = sum(s.questions for s in chosen)
            reached.append((goal, sum(s.accuracy * s.questions for s in chosen) / total if total else float("nan")))
        return reached

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _ask(family: str, images: tuple, turn: ExampleTurn, group: int = -1) -> EvaluationItem:
    return EvaluationItem(family, (Conversation((Message("user", turn[0], images),)),), turn[1], group)


def easy_questions(limit: int) -> Iterator[EvaluationItem]:
    """The test split's; of ``limit`` pictures, spread evenly, if it is not 0."""
    pictures = read_easy_vqa("test")
    for picture in pictures[:: max(1, len(pictures) // limit) if limit else 1]:
        image = picture.open()
        for turn in picture.turns:
            yield _ask(turn[2], (image,), turn)


def scene_questions(n_each: int, seed: int) -> Iterator[EvaluationItem]:
    """About one picture: every kind of question, on one tile and on several."""
    rng = np.random.default_rng(seed)
    askers: tuple[Callable[[np.random.Generator, sc.Scene], ExampleTurn | None], ...] = (
        sc.ask_colour,
        sc.ask_shape,
        sc.ask_count,
        sc.ask_yes_no,
        sc.ask_position,
        sc.ask_caption,
    )
    for asker in askers:
        for place in ("one tile", "several tiles"):
            found = 0
            while found < n_each:
                canvas = sc.SINGLE_TILE if place == "one tile" else sc.large_canvas(found)
                scene = sc.random_scene(rng, canvas)
                turn = asker(rng, scene)
                if turn is not None:
                    found += 1
                    yield _ask(f"scene: {turn[2]}, {place}", (sc.draw(scene),), turn)


def several_questions(n_each: int, seed: int) -> Iterator[EvaluationItem]:
    """About several pictures at once; questions by index are put for every picture of a prompt."""
    rng = np.random.default_rng(seed)
    for n_images in range(2, sc.MAX_IMAGES + 1):
        where = f"{n_images} images"
        for number in range(-(-n_each // n_images)):
            scenes = sc.different_scenes(rng, n_images)
            images = tuple(sc.draw(scene) for scene in scenes)
            for k in range(n_images):
                turn = sc.ask_colour_by_index(rng, scenes, k)
                yield _ask(f"colour by index, {where}", images, turn, n_images * 100_000 + number)
        for _ in range(-(-n_each // n_images)):
            scenes = sc.different_scenes(rng, n_images)
            if n_images <= len(sc.SHAPE_NAMES):
                kinds = rng.permutation(sc.SHAPE_NAMES)[:n_images]
                scenes = [
                    sc.random_scene(rng, n_shapes=1, colour=scene.shapes[0].colour, kind=str(kind))
                    for scene, kind in zip(scenes, kinds, strict=True)
                ]
            images = tuple(sc.draw(scene) for scene in scenes)
            for k in range(n_images):
                yield _ask(f"shape by index, {where}", images, sc.ask_shape_by_index(rng, scenes, k))
        for number in range(n_each):
            for ask in (sc.ask_which, sc.ask_same_colour, sc.ask_list):
                same = ask is sc.ask_same_colour and number % 2 == 0
                scenes = sc.different_scenes(rng, n_images, same_colour=same)
                found = ask(rng, scenes)
                if found is not None:
                    yield _ask(f"{found[2]}, {where}", tuple(sc.draw(scene) for scene in scenes), found)


def layout_questions(n_each: int, seed: int) -> Iterator[EvaluationItem]:
    """One picture per turn and packed samples of 2 to 4 pictures, asked about a picture of their own turn or sample;
    and questions about an earlier picture after the last."""
    rng = np.random.default_rng(seed)
    for number in range(n_each):
        n_images = 2 + number % 3
        scenes = sc.different_scenes(rng, n_images)
        images = [sc.draw(scene) for scene in scenes]
        turns = [sc.scene_turns(rng, scene, 1)[0] for scene in scenes]
        history: list[Message] = []
        for image, turn in zip(images[:-1], turns[:-1], strict=True):
            history += [Message("user", turn[0], (image,)), Message("assistant", turn[1])]
        last = Message("user", turns[-1][0], (images[-1],))
        yield EvaluationItem("per turn, own image", (Conversation((*history, last)),), turns[-1][1])
        parts = [Conversation(tuple(history[n : n + 2])) for n in range(0, len(history), 2)]
        yield EvaluationItem("packed, own image", (*parts, Conversation((last,))), turns[-1][1])
        question, answer, _ = (sc.ask_colour_by_index if number % 2 else sc.ask_shape_by_index)(
            rng, scenes, int(rng.integers(n_images - 1))
        )
        given = (*history, last, Message("assistant", turns[-1][1]), Message("user", question))
        yield EvaluationItem("return to an earlier image", (Conversation(given),), answer)


def render(vlm: VLM, asked: EvaluationItem, *, pictures: bool = True) -> Sample:
    """The prompt's row, up to where the model is to answer."""
    parts = asked.parts if pictures else tuple(_without_pictures(part) for part in asked.parts)
    samples = [vlm.prepare(part, add_generation_prompt=part is parts[-1]) for part in parts]
    return samples[0] if len(samples) == 1 else pack_samples(samples, vlm.pad_token_id, separate_last=False)


def _without_pictures(conversation: Conversation) -> Conversation:
    return Conversation(tuple(replace(message, images=()) for message in conversation.messages))


def measure_questions(vlm: VLM, questions: Sequence[EvaluationItem]) -> tuple[list[FamilyScore], dict[str, float]]:
    """Scores per family in the order of the questions, and how often all questions of a group are right, by the first
    family's name."""
    seen = answer_samples(vlm, [render(vlm, asked) for asked in questions])
    blind = answer_samples(vlm, [render(vlm, asked, pictures=False) for asked in questions])
    right: defaultdict[str, list[bool]] = defaultdict(list)
    right_blind: defaultdict[str, list[bool]] = defaultdict(list)
    golds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    groups: defaultdict[tuple[str, int], list[bool]] = defaultdict(list)
    for asked, with_pictures, without in zip(questions, seen, blind, strict=True):
        hit = with_pictures.strip() == asked.answer
        right[asked.family].append(hit)
        right_blind[asked.family].append(without.strip() == asked.answer)
        golds[asked.family][asked.answer] += 1
        if asked.group >= 0:
            groups[asked.family, asked.group].append(hit)
    scores = [
        FamilyScore(
            family,
            len(hits),
            sum(hits) / len(hits),
            golds[family].most_common(1)[0][1] / len(hits),
            sum(right_blind[family]) / len(hits),
        )
        for family, hits in right.items()
    ]
    whole: defaultdict[str, list[bool]] = defaultdict(list)
    for (family, _), hits in groups.items():
        whole[family].append(all(hits))
    return scores, {family: sum(hits) / len(hits) for family, hits in whole.items()}


def example_answers(vlm: VLM, example: ExamplePrompt) -> tuple[str, ...]:
    """What the model answers to each turn of an app's example, earlier turns answered by itself."""
    images = example.draw_images()
    given: list[str] = []
    for turn in range(len(example.turns)):
        if example.layout == "packed":
            done = [
                Conversation((Message("user", example.turns[n], (images[n],)), Message("assistant", given[n])))
                for n in range(turn)
            ]
            parts = (*done, Conversation((Message("user", example.turns[turn], (images[turn],)),)))
        else:
            messages: list[Message] = []
            for n in range(turn + 1):
                own = (images[n],) if example.layout == "per-turn" else images if n == 0 else ()
                messages.append(Message("user", example.turns[n], own))
                if n < turn:
                    messages.append(Message("assistant", given[n]))
            parts = (Conversation(tuple(messages)),)
        given += answer_samples(vlm, [render(vlm, EvaluationItem("", parts, ""))])
    return tuple(given)


def measure(vlm: VLM, *, easy_limit: int = 0, n_each: int = 200, seed: int = 90_001) -> Measurement:
    """Everything. ``n_each``: questions per family of drawn scenes, about."""
    questions = [
        *easy_questions(easy_limit),
        *scene_questions(n_each, seed),
        *several_questions(n_each, seed + 1),
        *layout_questions(n_each, seed + 2),
    ]
    scores, whole = measure_questions(vlm, questions)
    examples = tuple((example.name, example.expected, example_answers(vlm, example)) for example in EXAMPLES)
    return Measurement(tuple(scores), whole, examples)
