"""“Teach it a word”: data for the name of one more colour or shape, and how well a model knows it.

Any scene becomes one with the word by giving the colour or kind of one of its shapes another name and look, so the
questions about it are those that the model knows already.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from model.chat import Conversation
from model.errors import InputError
from model.families.nanovlm import VLM
from model.training.data.example import Example, ExampleSet, ExampleTurn
from model.training.data.splits import Subset
from model.training.evaluation.answering import Probe, answer_probes, probe_example, score
from model.training.recipe import Recipe, read_recipe
from model.training.synthetic import scenes as sc
from model.training.synthetic.easy_vqa import EasySet
from model.training.synthetic.outlines import OUTLINES, Outline
from model.training.synthetic.scene_sets import HELD_MOST, HELD_OUT, check_numbers, read_image_range, read_scene_set
from model.values import name_value

RGB = tuple[int, int, int]
NEW_WORD = "new word"
"""The family of questions whose answer is the word."""
RECIPE_NAME, STAGE = "teach_word", "word"
LOOK_KEYS = ("word", "kind", "rgb", "shape")
"""Keys of a recipe's data table that say what the word is and what it looks like."""

COLOUR_LOOKS: dict[str, RGB] = {
    "purple": (128, 0, 128),
    "orange": (255, 140, 0),
    "pink": (255, 105, 180),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "lime": (190, 255, 0),
    "navy": (0, 0, 110),
    "olive": (128, 128, 0),
    "maroon": (110, 0, 0),
    "violet": (190, 110, 240),
    "gold": (218, 165, 32),
}
"""What colour words look like when no RGB is given."""

_NEAREST_KNOWN = 60.0
_NEAREST_BACKGROUND = 60.0
"""Distances in RGB: a colour nearer to one that the model knows, or to the pale backgrounds, can't be told apart."""
_BACKGROUND = (228, 255)
_RIVAL_SHARE = 0.3
"""So often the rival is drawn into a picture of a new colour's data, or into the pictures that are shown with one."""


@dataclass(frozen=True)
class WordSpec:
    """A word to teach. ``kind`` "colour" needs ``rgb`` (0 to 255 each) unless COLOUR_LOOKS has the word; kind "shape"
    takes ``shape``, a drawing of OUTLINES, unless the word itself is one. InputError for what can't be taught."""

    word: str
    kind: Literal["colour", "shape"] = "colour"
    rgb: RGB | None = None
    shape: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.word, str) or not re.fullmatch(r"[^\W\d_]{2,20}", self.word) or not self.word.islower():
            raise InputError(
                f"The word is {name_value(self.word)}; give one word of 2 to 20 small letters, such as “purple”."
            )
        if self.word in (*sc.COLOUR_NAMES, *sc.SHAPE_NAMES, "shape", "image"):
            raise InputError(f"The model knows “{self.word}” already; choose another word, such as “purple” or “star”.")
        if self.kind == "colour":
            if self.shape is not None:
                raise InputError("A colour takes an RGB value and no shape; leave the shape out.")
            object.__setattr__(self, "rgb", self._checked_rgb())
        elif self.kind == "shape":
            if self.rgb is not None:
                raise InputError("A shape takes a drawing and no RGB value; leave the RGB value out.")
            shape = self.shape or self.word
            if not isinstance(shape, str) or shape not in OUTLINES:
                raise InputError(f"There is no drawing of “{str(shape)[:40]}”; choose one of {', '.join(OUTLINES)}.")
            object.__setattr__(self, "shape", shape)
        else:
            raise InputError(f"The kind of the word is {name_value(self.kind)}; it must be “colour” or “shape”.")

    def _checked_rgb(self) -> RGB:
        rgb: Any = self.rgb if self.rgb is not None else COLOUR_LOOKS.get(self.word)
        if rgb is None:
            raise InputError(f"Nobody knows what “{self.word}” looks like; give its RGB value, such as 128, 0, 128.")
        values = list(rgb) if isinstance(rgb, Sequence) and not isinstance(rgb, str) else []
        if len(values) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in values):
            raise InputError(f"The RGB value is {name_value(rgb)}; it must be three whole numbers from 0 to 255.")
        colour = (values[0], values[1], values[2])
        name = _nearest_known(colour)
        if _distance(colour, sc.COLOURS[name]) < _NEAREST_KNOWN:
            raise InputError(
                f"RGB {colour} is too near to {name} {sc.COLOURS[name]} to be told apart; choose a colour further away."
            )
        low, high = _BACKGROUND
        paper = tuple(min(max(value, low), high) for value in colour)
        if _distance(colour, paper) < _NEAREST_BACKGROUND:
            raise InputError(f"RGB {colour} can't be seen on the pictures' pale backgrounds; choose a darker colour.")
        return colour

    @property
    def colours(self) -> Mapping[str, RGB]:
        """All colours by name, the new one among them."""
        return sc.COLOURS if self.rgb is None else {**sc.COLOURS, self.word: self.rgb}

    @property
    def rival(self) -> str | None:
        """The known colour nearest to the new one; None for a shape."""
        return None if self.rgb is None else _nearest_known(self.rgb)

    @property
    def outlines(self) -> Mapping[str, Outline]:
        return {} if self.shape is None else {self.word: OUTLINES[self.shape]}

    def draw(self, scene: sc.Scene) -> Image.Image:
        """The scene as a picture, the word's colour or shape included."""
        return sc.draw(scene, self.colours, self.outlines)

    def marked(self, shape: sc.Shape) -> sc.Shape:
        """The shape in the new colour or of the new kind."""
        if self.kind == "colour":
            return replace(shape, colour=self.word)
        side = min(shape.half_size)
        return replace(shape, kind=self.word, half_size=(side, side))

    def names(self, shape: sc.Shape) -> bool:
        return self.word in (shape.colour, shape.kind)

    def table(self) -> dict[str, Any]:
        """What a recipe's data table of this word says."""
        look: dict[str, Any] = {"rgb": list(self.rgb)} if self.rgb is not None else {"shape": self.shape}
        return {"source": "word", "word": self.word, "kind": self.kind, **look}


def word_in(table: Mapping[str, Any]) -> WordSpec:
    """The word that a recipe's data table names; the other way round is :meth:`WordSpec.table`. InputError as there."""
    return WordSpec(**{key: table[key] for key in LOOK_KEYS if key in table})


def parse_rgb(text: str) -> tuple[int, int, int]:
    """From “128,0,128” or “#800080”. InputError otherwise; whether the colour can be taught is for WordSpec to say."""
    plain = text.strip()
    try:
        if plain.startswith("#") and len(plain) == 7:
            values = [int(plain[place : place + 2], 16) for place in (1, 3, 5)]
        else:
            values = [int(part) for part in plain.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) != 3:
        raise InputError(f"The RGB value is {name_value(text)}; write it as 128,0,128 or #800080.")
    return values[0], values[1], values[2]


def parse_word(word: str, rgb: str | None = None, shape: str | None = None) -> WordSpec:
    """The word as people give it: a colour with ``rgb``, a shape with ``shape``, without both what the word is known
    to be. InputError for what can't be taught."""
    if rgb is not None and shape is not None:
        raise InputError("A word names a colour or a shape; give an RGB value or a drawing, not both.")
    if shape is not None or (rgb is None and word in OUTLINES):
        return WordSpec(word, "shape", shape=shape)
    return WordSpec(word, "colour", rgb=None if rgb is None else parse_rgb(rgb))


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5


def _nearest_known(rgb: RGB) -> str:
    return min(sc.COLOURS, key=lambda name: _distance(rgb, sc.COLOURS[name]))


def plural(kind: str) -> str:
    return f"{kind}es" if kind.endswith(("s", "x", "z", "ch", "sh")) else f"{kind}s"


@dataclass(frozen=True)
class WordSetSpec:
    """``count`` examples over ``pictures`` drawn scenes (half of them of one shape to be asked about together with
    others), from ``seed``. ``turns``: questions per example, at most. ``images``: how many pictures an example of
    several has, at least and at most; ``several_share`` of the examples have several."""

    word: WordSpec
    count: int = 20_000
    pictures: int = 1_200
    turns: int = 5
    images: tuple[int, int] = (2, 4)
    several_share: float = 0.45
    seed: int = 1
    source: str = field(default="word", repr=False)


class WordSet(ExampleSet):
    """The examples of one :class:`WordSetSpec`; example i is always the same one. Two thirds of the pictures show the
    word; the others don't, and are asked about it too. Of what is drawn beside a new colour much has its *rival*, the
    known colour nearest to it: the two are what gets confused."""

    files: tuple[str, ...] = ()

    def __init__(self, spec: WordSetSpec, beside: WordSet | None = None) -> None:
        self.spec = spec
        self.name = f"word: {spec.word.word}"
        self._numbers = 0 if beside is None else HELD_OUT
        self._taken = frozenset() if beside is None else frozenset(map(sc.outline_of, beside.scenes))
        rng = np.random.default_rng((spec.seed, self._numbers))
        self.pool: list[sc.Scene] = []
        self.with_word: list[sc.Scene] = []
        self.without: dict[str, list[sc.Scene]] = {colour: [] for colour in sc.COLOUR_NAMES}
        for index in range(spec.pictures):
            colour = sc.COLOUR_NAMES[index // 4 % len(sc.COLOUR_NAMES)]
            scene = self._draw_scene(rng, index, colour)
            while sc.outline_of(scene) in self._taken:
                scene = self._draw_scene(rng, index, colour)
            (self.pool if index % 2 == 0 else self.with_word if index % 4 == 1 else self.without[colour]).append(scene)

    def _draw_scene(self, rng: np.random.Generator, index: int, colour: str) -> sc.Scene:
        """Picture ``index``: any, one shape that shows the word, any, one shape that doesn't, by turns."""
        if index % 2:
            scene = sc.random_scene(rng, n_shapes=1, colour=colour)
            return self._marked(scene, 0) if index % 4 == 1 else scene
        scene = sc.random_scene(rng, n_shapes=1 + int(rng.choice(sc.MAX_SHAPES, p=(0.5, 0.25, 0.25))))
        marked = int(rng.integers(len(scene.shapes))) if rng.random() < 0.7 else None
        if rng.random() < _RIVAL_SHARE:
            scene = self._with_rival(scene, int(rng.integers(len(scene.shapes))))
        return scene if marked is None else self._marked(scene, marked)

    def _marked(self, scene: sc.Scene, which: int) -> sc.Scene:
        return _with_shape(scene, which, self.spec.word.marked(scene.shapes[which]))

    def _with_rival(self, scene: sc.Scene, which: int) -> sc.Scene:
        """The scene with one shape in the rival's colour, unless there is no rival or it is there already."""
        rival = self.spec.word.rival
        if rival is None or any(shape.colour == rival for shape in scene.shapes):
            return scene
        return _with_shape(scene, which, replace(scene.shapes[which], colour=rival))

    @property
    def scenes(self) -> list[sc.Scene]:
        """Every scene of the set."""
        return [*self.pool, *self.with_word, *(scene for scenes in self.without.values() for scene in scenes)]

    def hold_out(self, held_files: Collection[str], count: int) -> tuple[Sequence[Example], Sequence[Example]]:
        """See :class:`model.training.data.splits.Drawn`."""
        if not count:
            return self, ()
        spec = replace(self.spec, count=count, pictures=min(self.spec.pictures, HELD_MOST))
        return Subset(self, range(len(self) - count)), WordSet(spec, beside=self)

    def __len__(self) -> int:
        return self.spec.count

    def make(self, number: int) -> Example:
        rng = np.random.default_rng((self.spec.seed, self._numbers + 1, number))
        return self._several(rng) if rng.random() < self.spec.several_share else self._single(rng)

    def _single(self, rng: np.random.Generator) -> Example:
        scene = self.pool[int(rng.integers(len(self.pool)))]
        word = self.spec.word
        ask, ask_other = sc.ask_colour, sc.ask_shape
        if word.kind == "shape":
            ask, ask_other = ask_other, ask
        shown = any(word.names(shape) for shape in scene.shapes)
        asked = ask(rng, scene, word.names) if shown else ask(rng, scene)
        first = [asked if asked is not None and rng.random() < 0.6 else self._ask_presence(rng, scene)]
        turns: list[ExampleTurn] = []
        if shown:
            more = (
                (0.3, lambda: self._ask_count(rng, scene)),
                (0.2, lambda: sc.ask_caption(rng, scene)),
                (0.4, lambda: ask_other(rng, scene, word.names)),
            )
            turns = [turn for share, ask_more in more if rng.random() < share and (turn := ask_more()) is not None]
        turns += sc.scene_turns(rng, scene, max(1, self.spec.turns - len(first) - len(turns)))
        return self._conversation(rng, [scene], first, turns)

    def _several(self, rng: np.random.Generator) -> Example:
        low, high = self.spec.images
        count = int(rng.integers(low, high + 1))
        colours = [str(colour) for colour in rng.permutation(sc.COLOUR_NAMES)[:count]]
        place = int(rng.integers(count))
        rival = self.spec.word.rival
        if rival is not None and rival not in colours and rng.random() < _RIVAL_SHARE:
            colours[(place + 1) % count] = rival  # asked about below
        group = [self.without[colour][int(rng.integers(len(self.without[colour])))] for colour in colours]
        if rng.random() < 0.85:
            shown = self.with_word[int(rng.integers(len(self.with_word)))]
            # All colours stay different, so that each question has one answer.
            others = {scene.shapes[0].colour for n, scene in enumerate(group) if n != place}
            if shown.shapes[0].colour in others:
                shown = replace(shown, shapes=(replace(shown.shapes[0], colour=colours[place]),))
            group[place] = shown
        by_index = (sc.ask_colour_by_index, sc.ask_shape_by_index)[self.spec.word.kind == "shape"]
        # The word's picture and another one, so that the word is no habit; then whatever comes.
        first, turns = [by_index(rng, group, place), by_index(rng, group, (place + 1) % count)], []
        if rng.random() < 0.5:
            turns.append((f"which image has the {group[place].shapes[0].name}?", str(place + 1), "which image"))
        turns += sc.multi_image_turns(rng, group, max(1, self.spec.turns - len(first) - len(turns)))
        return self._conversation(rng, group, first, turns)

    def _ask_presence(self, rng: np.random.Generator, scene: sc.Scene) -> ExampleTurn:
        """Whether there is something of the new colour or kind, by the word alone or with a kind or colour: half of
        the names are there where the picture shows the word."""
        word = self.spec.word
        if word.kind == "colour":
            names = {f"{word.word} shape", *(f"{word.word} {kind}" for kind in sc.SHAPE_NAMES)}
        else:
            names = {word.word, *(f"{colour} {word.word}" for colour in sc.COLOUR_NAMES)}
        shown = {
            name
            for shape in scene.shapes
            if word.names(shape)
            for name in (shape.name, f"{word.word} shape" if word.kind == "colour" else word.word)
        }
        choice = sorted(shown) if shown and rng.random() < 0.5 else sorted(names - shown)
        name = choice[int(rng.integers(len(choice)))]
        return sc.ask_presence(rng, name, name in shown)

    def _ask_count(self, rng: np.random.Generator, scene: sc.Scene) -> ExampleTurn:
        word = self.spec.word
        what = f"{word.word} shapes" if word.kind == "colour" else plural(word.word)
        return f"how many {what} are there?", str(sum(word.names(shape) for shape in scene.shapes)), "count"

    def _conversation(
        self, rng: np.random.Generator, scenes: list[sc.Scene], first: list[ExampleTurn], turns: list[ExampleTurn]
    ) -> Example:
        """The turns of ``first`` in any order, then the others in any order, no question twice."""
        word = self.spec.word
        mixed = [part[int(n)] for part in (first, turns) for n in rng.permutation(len(part))]
        chosen = list({question: (question, answer, family) for question, answer, family in reversed(mixed)}.values())
        chosen = chosen[::-1][: self.spec.turns]
        example = sc.conversation(
            tuple(word.draw(scene) for scene in scenes), [(q, a, self._family(q, a, f)) for q, a, f in chosen], rng
        )
        return replace(example, source=self.name)

    def _family(self, question: str, answer: str, family: str) -> str:
        """“new word” where the answer is the word, “new word: yes/no” and so on where the word is in play otherwise."""
        word = self.spec.word.word
        if answer == word:
            return NEW_WORD
        return f"{NEW_WORD}: {family}" if re.search(rf"\b{word}", f"{question} {answer}") else family


def _with_shape(scene: sc.Scene, which: int, shape: sc.Shape) -> sc.Scene:
    return replace(scene, shapes=(*scene.shapes[:which], shape, *scene.shapes[which + 1 :]))


def read_word_set(table: Mapping[str, Any]) -> WordSet:
    """From a recipe's table. InputError for an unknown key, a word that can't be taught, a number out of range."""
    known = set(LOOK_KEYS) | set(WordSetSpec.__dataclass_fields__)
    if unknown := sorted(set(table) - known):
        raise InputError(f"A data table of a word has {', '.join(unknown)}; allowed are {', '.join(sorted(known))}.")
    if "word" not in table:
        raise InputError('A data table of a word names no word; add word = "purple".')
    word = word_in(table)
    values = {key: value for key, value in table.items() if key not in LOOK_KEYS}
    if "images" in values:
        values["images"] = read_image_range(values["images"])
    check_numbers(values, "a word's data", {"turns": 2, "pictures": 64})
    return WordSet(WordSetSpec(word, **values))


def teaching_recipe(spec: WordSpec, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe “teach_word” for this word. ``overrides`` as :func:`model.training.recipe.read_recipe` takes them
    (``base=RUN/model``, ``stages.word.steps=40``)."""
    recipe = read_recipe(RECIPE_NAME, overrides)

    def taught(tables: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
        return tuple(
            {**{key: value for key, value in table.items() if key not in LOOK_KEYS}, **spec.table()}
            if table["source"] == "word"
            else table
            for table in tables
        )

    stages = tuple(replace(stage, data=taught(stage.data), held_out=taught(stage.held_out)) for stage in recipe.stages)
    return replace(recipe, title=f"Teach it “{spec.word}”", stages=stages)


# --- measuring ---

_HELD_OUT_SEED = 90_001
_MOST_EXAMPLES = 20_000


def word_probes(vlm: VLM, spec: WordSpec, count: int = 60, seed: int = 0) -> list[Probe]:
    """Up to ``count`` held-out prompts of every family: “new word” (half with one picture, half with several), the
    word's other families, and the old ones. Their pictures are in no training set."""
    word_set = {"count": _MOST_EXAMPLES, "pictures": 1_600, "seed": _HELD_OUT_SEED + seed}
    chosen = []
    for share, most in ((0.0, count - count // 2), (1.0, count // 2)):
        words = read_word_set({**spec.table(), **word_set, "several_share": share})
        # Asked alone: an earlier turn could give the word away.
        chosen += [(_alone(example, place), 0) for example, place in _choose(words, most, NEW_WORD)]
    for kind in ("single", "several", "per-turn"):
        old = read_scene_set({"set": kind, "count": _MOST_EXAMPLES, "pictures": 1_600, "seed": _HELD_OUT_SEED + seed})
        chosen += _choose(old, count)
    chosen += _choose(EasySet("test", seed=seed), count)
    return [probe_example(vlm, example, place) for example, place in chosen]


def _alone(example: Example, place: int) -> Example:
    """Only question number ``place``, with all the pictures."""
    messages = example.conversation.messages
    images = tuple(image for message in messages for image in message.images)
    question = replace(messages[2 * place], images=images)
    conversation = Conversation((question, messages[2 * place + 1]))
    return Example(conversation, (example.families[place],), example.source)


def _choose(examples: Sequence[Example], count: int, prefix: str = "") -> list[tuple[Example, int]]:
    """Up to ``count`` answers of every family that begins with ``prefix``, one of an example at most: each as the
    example and the answer's number in it."""
    found: dict[str, list[tuple[Example, int]]] = {}
    misses = 0
    for number in np.random.default_rng(len(examples)).permutation(len(examples)):
        example = examples[int(number)]
        places = [
            n
            for n, family in enumerate(example.families)
            if family.startswith(prefix) and len(found.get(family, ())) < count
        ]
        if places:
            # The rarest first, or the common ones would take all examples.
            place = min(places, key=lambda n: len(found.get(example.families[n], ())))
            found.setdefault(example.families[place], []).append((example, place))
        misses = 0 if places else misses + 1
        if misses == 30:
            break
    return [one for chosen in found.values() for one in chosen]


def measure_word(vlm: VLM, spec: WordSpec, count: int = 60, seed: int = 0) -> dict[str, float]:
    """Shares of greedy answers that are right to the letter on held-out prompts, up to ``count`` of a family.

    “new word”: questions whose answer is the word; “new word: yes/no”, “new word: which image” and so on: questions in
    which it is in play otherwise; then every old family, and “old” over all prompts of the old families. The same
    ``seed`` asks the same questions, so before and after can be compared."""
    answered = answer_probes(vlm, word_probes(vlm, spec, count, seed))
    shares = score(answered)
    old = score(one for one in answered if not one.family.startswith(NEW_WORD))
    ordered = sorted(shares, key=lambda family: (not family.startswith(NEW_WORD), family))
    return {family: shares[family] for family in ordered if family != "all"} | {"old": old["all"]}
