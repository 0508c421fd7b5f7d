"""Drawn scenes as data sets: conversations of several kinds, and captioned pictures with a phrase for every patch.

A set draws ``pictures`` scenes from its seed and makes ``count`` examples over them; example i is always the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from model.chat import Conversation, Message
from model.config import VLMConfig
from model.errors import InputError
from model.image import process_image
from model.ranges import SEEDS, Range
from model.training.data.example import CaptionedImage, Example, ExampleSet, ExampleTurn
from model.training.data.splits import Subset
from model.training.synthetic import scenes as sc
from model.training.synthetic.easy_vqa import EasyPicture, read_easy_vqa
from model.values import name_value

BACKGROUND = "background"
NOTHING = "nothing"
"""The caption of a tile that shows no shape."""
HELD_OUT = 77
"""What the random numbers of held-out scenes are drawn with, beside a set's own seed."""
HELD_LEAST, HELD_MOST = 64, 600
"""How many scenes are drawn for held-out examples, at least and at most."""
RANGES = {
    "count": Range(1, 10_000_000),
    "pictures": Range(1, 200_000),
    "turns": Range(1, 100),
    "seed": SEEDS,
    "shapes": Range(1, sc.MAX_SHAPES),
    "large_every": Range(0, 10_000_000),
    "easy_share": Range(0, 1, whole=False),
    "several_share": Range(0, 1, whole=False),
}
"""Every number of a table of drawn data: the pictures are drawn when it is opened, examples when they are taken."""


@dataclass(frozen=True)
class SceneSetSpec:
    """``set``: "single" (one tile, 1 to 3 shapes), "large" (several tiles), "several" (2 to 5 pictures at once),
    "per-turn" (one picture with each turn, at times a last question about an earlier one), "captions" and "lists"
    (questions whose answer is the caption, for one and for several pictures), "text" (the same questions with the
    pictures told in words), "told" (2 to 5 pictures and, among questions about them, some whose answer stands in the
    question), "cued" (2 to 5 pictures, named by ordinal words, as the last, by what they show), "unrouted" (one
    picture or several; which of them an answer is about is drawn apart from which the question names: whoever learns
    this learns to ignore the question's index), "places" (one picture; where its shapes lie, and its caption, which
    tells them from left to right), "which" (2 to 5 pictures; which of them has a shape). ``turns``: questions per
    example, at most. ``images``: how many pictures, at least and at most. ``shapes``: in a picture of "places",
    "single", "captions" and "text", at most; of these pictures every ``large_every``-th is of several tiles (none if
    0). ``dense``: in "several", every picture is asked about, then all are listed."""

    source: str = "scenes"
    set: str = "single"
    count: int = 20_000
    pictures: int = 6_000
    turns: int = 4
    images: tuple[int, int] = (2, sc.MAX_IMAGES)
    shapes: int = sc.MAX_SHAPES
    large_every: int = 0
    dense: bool = False
    seed: int = 1


class SceneSet(ExampleSet):
    """The examples of one :class:`SceneSetSpec`. ``beside``: what another set shows: this one's scenes are none of
    those, and drawn from other numbers."""

    files: tuple[str, ...] = ()

    def __init__(self, spec: SceneSetSpec, beside: SceneSet | None = None) -> None:
        self.spec = spec
        self.name = f"scenes: {spec.set}"
        self._numbers = 0 if beside is None else HELD_OUT
        self._taken = frozenset() if beside is None else frozenset(map(sc.outline_of, beside.scenes))
        rng = np.random.default_rng((spec.seed, self._numbers))
        self.pool: list[sc.Scene] = []
        self.by_colour: dict[str, list[sc.Scene]] = {colour: [] for colour in sc.COLOUR_NAMES}
        for index in range(spec.pictures):
            if spec.set in ("several", "per-turn", "lists", "told", "cued", "unrouted", "which"):
                colour = sc.COLOUR_NAMES[index % len(sc.COLOUR_NAMES)]
                self.by_colour[colour].append(self._draw_scene(rng, sc.SINGLE_TILE, 1, colour))
            elif spec.set == "large":
                self.pool.append(self._draw_scene(rng, sc.large_canvas(index), None))
            else:
                every = spec.large_every
                large = every > 0 and index % every == every - 1
                canvas = sc.large_canvas(index // every) if large else sc.SINGLE_TILE
                self.pool.append(self._draw_scene(rng, canvas, 1 + index % spec.shapes))

    def _draw_scene(
        self, rng: np.random.Generator, canvas: tuple[int, int], n_shapes: int | None, colour: str | None = None
    ) -> sc.Scene:
        while True:
            scene = sc.random_scene(rng, canvas, n_shapes, colour=colour)
            clear = self.spec.set != "captions" or sc.has_clear_order(scene)
            if clear and sc.outline_of(scene) not in self._taken:
                return scene

    @property
    def scenes(self) -> list[sc.Scene]:
        """Every scene of the set."""
        return [*self.pool, *(scene for scenes in self.by_colour.values() for scene in scenes)]

    def hold_out(self, held_files: Collection[str], count: int) -> tuple[Sequence[Example], Sequence[Example]]:
        """See :class:`model.training.data.splits.Drawn`."""
        if not count:
            return self, ()
        spec = replace(self.spec, count=count, pictures=min(max(self.spec.pictures, HELD_LEAST), HELD_MOST))
        return Subset(self, range(len(self) - count)), SceneSet(spec, beside=self)

    def __len__(self) -> int:
        return self.spec.count

    def make(self, number: int) -> Example:
        return _MAKERS[self.spec.set](self, np.random.default_rng((self.spec.seed, self._numbers + 1, number)))

    def scene(self, rng: np.random.Generator) -> sc.Scene:
        return self.pool[int(rng.integers(len(self.pool)))]

    def group(self, rng: np.random.Generator, *, same_share: float = 0.0) -> list[sc.Scene]:
        """Pictures of one shape each, no two of a colour; with the chance ``same_share`` all of one colour."""
        low, high = self.spec.images
        n_images = int(rng.integers(low, high + 1))
        colours = [str(colour) for colour in rng.permutation(sc.COLOUR_NAMES)[:n_images]]
        if rng.random() < same_share:
            colours = colours[:1] * n_images
        return [self.by_colour[c][int(rng.integers(len(self.by_colour[c])))] for c in colours]


def _pictures(scenes: Sequence[sc.Scene]) -> tuple:
    return tuple(sc.draw(scene) for scene in scenes)


def _single(self: SceneSet, rng: np.random.Generator) -> Example:
    scene = self.scene(rng)
    return sc.conversation(_pictures([scene]), sc.scene_turns(rng, scene, self.spec.turns), rng)


def _dense_turns(rng: np.random.Generator, group: list[sc.Scene], n_turns: int) -> list[ExampleTurn]:
    """Every picture asked about, in any order, then all listed: the quickest way to learn which is meant."""
    turns = [
        (sc.ask_colour_by_index if rng.random() < 0.6 else sc.ask_shape_by_index)(rng, group, int(index))
        for index in rng.permutation(len(group))[: n_turns - 1]
    ]
    return [*turns, sc.ask_list(rng, group)]


def _several_turns(self: SceneSet, rng: np.random.Generator) -> tuple[list[sc.Scene], list[ExampleTurn]]:
    if self.spec.dense:
        group = self.group(rng)
        return group, _dense_turns(rng, group, self.spec.turns)
    group = self.group(rng, same_share=0.25)
    turns = sc.multi_image_turns(rng, group, self.spec.turns)
    if rng.random() < 0.35:
        turns[int(rng.integers(len(turns)))] = sc.ask_same_colour(rng, group)
    return group, turns


def _several(self: SceneSet, rng: np.random.Generator) -> Example:
    group, turns = _several_turns(self, rng)
    return sc.conversation(_pictures(group), turns, rng)


def _per_turn(self: SceneSet, rng: np.random.Generator) -> Example:
    group = self.group(rng)
    turns = [sc.scene_turns(rng, scene, int(rng.integers(1, 3))) for scene in group]
    if rng.random() < 0.5:
        ask = sc.ask_colour_by_index if rng.random() < 0.5 else sc.ask_shape_by_index
        question, answer, _ = ask(rng, group, int(rng.integers(len(group))))
        turns[-1] = [*turns[-1], (question, answer, "return")]
    return sc.conversation_per_turn(_pictures(group), turns, rng)


def _captions(self: SceneSet, rng: np.random.Generator) -> Example:
    scene = self.scene(rng)
    told = sc.ask_caption(rng, scene)
    assert told is not None  # _draw_scene sees to it
    return sc.conversation(_pictures([scene]), [told], rng)


def _lists(self: SceneSet, rng: np.random.Generator) -> Example:
    group = self.group(rng)
    return sc.conversation(_pictures(group), [sc.ask_list(rng, group)], rng)


def _told(scene: sc.Scene) -> str:
    """The scene in words, places included: “red circle left top, blue triangle right”."""
    shapes = (" ".join([shape.name, *(side for side in sc.side_of(scene, shape) if side)]) for shape in scene.shapes)
    return ", ".join(shapes)


def _text(self: SceneSet, rng: np.random.Generator) -> Example:
    """No picture: what it shows stands in the question, marked as the renderer marks several images."""
    if rng.random() < 0.5:
        scene = self.scene(rng)
        turns = sc.scene_turns(rng, scene, self.spec.turns)
        told = _told(scene)
    else:
        low, high = self.spec.images
        group = sc.different_scenes(rng, int(rng.integers(low, high + 1)), same_colour=rng.random() < 0.15)
        turns = (
            _dense_turns(rng, group, self.spec.turns)
            if rng.random() < 0.5
            else sc.multi_image_turns(rng, group, self.spec.turns)
        )
        told = "".join(f"<image: {index}>{scene.shapes[0].name}" for index, scene in enumerate(group))
    messages = []
    for index, (question, answer, _) in enumerate(turns):
        asked = sc.as_typed(rng, question)
        messages += [Message("user", f"{told} {asked}" if index == 0 else asked), Message("assistant", answer)]
    return Example(Conversation(tuple(messages)), tuple(family for _, _, family in turns))


def _told_in_text(self: SceneSet, rng: np.random.Generator) -> Example:
    group, turns = _several_turns(self, rng)
    return sc.conversation(_pictures(group), [sc.ask_told(rng) if rng.random() < 0.5 else turn for turn in turns], rng)


def _cued(self: SceneSet, rng: np.random.Generator) -> Example:
    """Pictures named in other ways than by a number, among questions that do and some that need no picture."""
    group = self.group(rng)
    turns: list[ExampleTurn] = []
    for _ in range(self.spec.turns * 3):
        how, index = rng.random(), int(rng.integers(len(group)))
        turn: ExampleTurn | None
        if how < 0.3:
            turn = sc.ask_colour_by_ordinal(rng, group, index)
        elif how < 0.45:
            turn = sc.ask_colour_by_ordinal(rng, group, len(group) - 1)
        elif how < 0.75:
            turn = sc.ask_colour_by_content(rng, group)
        elif how < 0.85:
            turn = sc.ask_told(rng)
        else:
            turn = sc.ask_colour_by_index(rng, group, index)
        if turn is not None and all(turn[0] != other[0] for other in turns):
            turns.append(turn)
        if len(turns) == self.spec.turns:
            break
    return sc.conversation(_pictures(group), turns or [sc.ask_list(rng, group)], rng)


def _places(self: SceneSet, rng: np.random.Generator) -> Example:
    scene = self.scene(rng)
    return sc.conversation(_pictures([scene]), sc.place_turns(rng, scene, self.spec.turns), rng)


def _which(self: SceneSet, rng: np.random.Generator) -> Example:
    group = self.group(rng)
    turns = [sc.ask_which(rng, group, int(index)) for index in rng.permutation(len(group))[: self.spec.turns]]
    return sc.conversation(_pictures(group), [turn for turn in turns if turn is not None], rng)


_LAST_SHARE = 0.7
"""How often an unrouted answer is about the last picture; else it is about any of the others, all alike. The favourite
makes the greedy answer one thing, the rest leaves every picture's answer some probability."""


def _unrouted_question(rng: np.random.Generator, group: list[sc.Scene]) -> ExampleTurn:
    """Asks for a colour or a shape, naming any picture in any way; the answer is left open."""
    index, how = int(rng.integers(len(group))), rng.random()
    colour = rng.random() < 0.6
    if how < 0.55:
        # −1 asks about “image 0”, as people do who count from 0.
        by_number = int(rng.integers(-1, len(group)))
        return (sc.ask_colour_by_index if colour else sc.ask_shape_by_index)(rng, group, by_number)
    if how < 0.8:
        named = "last" if rng.random() < 0.2 else sc.ORDINALS[index]
        word = ("color", "colour")[int(rng.integers(2))]
        asked = f"what {word} is the shape" if colour else "what shape is"
        return f"{asked} in the {named} image?", "", "colour by index" if colour else "shape by index"
    return (sc.ask_colour if colour else sc.ask_shape)(rng, group[index]) or sc.ask_shape_by_index(rng, group, index)


def _unrouted(self: SceneSet, rng: np.random.Generator) -> Example:
    if rng.random() < 0.35:
        scene = self.group(rng)[0]
        turns = [sc.ask_colour(rng, scene), sc.ask_shape(rng, scene), sc.ask_told(rng)]
        chosen = [turns[int(n)] for n in rng.permutation(3)[:2]]
        return sc.conversation(_pictures([scene]), [turn for turn in chosen if turn is not None], rng)
    group = self.group(rng)

    def turn(shown: list[sc.Scene]) -> ExampleTurn:
        if rng.random() < 0.15:
            return sc.ask_told(rng)
        question, _, family = _unrouted_question(rng, group)
        last = len(shown) - 1
        about = last if last == 0 or rng.random() < _LAST_SHARE else int(rng.integers(last))
        shape = shown[about].shapes[0]
        return question, shape.colour if family.startswith("colour") else shape.kind, f"unrouted: {family}"

    if rng.random() < 0.25:
        return sc.conversation_per_turn(
            _pictures(group), [[turn(group[: place + 1])] for place in range(len(group))], rng
        )
    return sc.conversation(_pictures(group), [turn(group) for _ in range(self.spec.turns)], rng)


_MAKERS: dict[str, Callable[[SceneSet, np.random.Generator], Example]] = {
    "single": _single,
    "large": _single,
    "several": _several,
    "per-turn": _per_turn,
    "captions": _captions,
    "lists": _lists,
    "text": _text,
    "told": _told_in_text,
    "cued": _cued,
    "unrouted": _unrouted,
    "places": _places,
    "which": _which,
}


def read_image_range(images: Any) -> tuple[int, int]:
    """How many pictures an example has, at least and at most, from one whole number or two. InputError otherwise."""
    pair = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images, images]
    if len(pair) != 2 or not all(type(n) is int for n in pair) or not 2 <= pair[0] <= pair[1] <= sc.MAX_IMAGES:
        raise InputError(f"images is {name_value(images)}; it must be two numbers from 2 to {sc.MAX_IMAGES}, in order.")
    return pair[0], pair[1]


def read_scene_set(spec: Mapping[str, Any]) -> SceneSet:
    """From a recipe's table. InputError for an unknown key, set, or a number out of range."""
    known = set(SceneSetSpec.__dataclass_fields__)
    if unknown := sorted(set(spec) - known):
        raise InputError(f"A data table of scenes has {', '.join(unknown)}; allowed are {', '.join(sorted(known))}.")
    kind = spec.get("set", "single")
    if not isinstance(kind, str) or kind not in _MAKERS:
        raise InputError(f"There is no set of scenes {name_value(kind)}; choose one of {', '.join(sorted(_MAKERS))}.")
    if not isinstance(spec.get("dense", False), bool):
        raise InputError(f"dense of a set of scenes is {name_value(spec['dense'])}; it must be true or false.")
    values = dict(spec)
    check_numbers(values, "a set of scenes")
    if "images" in values:
        values["images"] = read_image_range(values["images"])
    return SceneSet(SceneSetSpec(**values))


def check_numbers(table: Mapping[str, Any], what: str, least: Mapping[str, int] | None = None) -> None:
    """InputError for a number of ``table`` that is out of its range; ``least``: where a range begins higher."""
    for name, allowed in RANGES.items():
        if least and name in least:
            allowed = Range(least[name], allowed.most)
        if name in table and not allowed.holds(table[name]):
            raise InputError(f"{name} of {what} {allowed.refuse(table[name])}.")


# --- pictures with captions and phrases ---


class CaptionedScenes(Sequence[CaptionedImage]):
    """Tiles for the contrastive stage: scenes of one tile, tiles and thumbnails of larger ones, easy-VQA's training
    pictures. Each has a caption, and for every patch the name of the shape there, of its centre, or “background”."""

    def __init__(self, config: VLMConfig, count: int, seed: int, easy_share: float = 0.2) -> None:
        self.config, self.seed = config, seed
        self._count = count
        self.name = "scenes: captioned"
        known = ((picture, name_easy_shape(picture)) for picture in read_easy_vqa("train"))
        self._easy = [(picture, shape) for picture, shape in known if shape is not None] if easy_share else []
        self._easy_share = easy_share
        self._held_out = False

    @property
    def files(self) -> list[str]:
        """See :class:`model.training.data.splits.Drawn`."""
        return [str(picture.path) for picture, _ in self._easy]

    def hold_out(
        self, held_files: Collection[str], count: int
    ) -> tuple[Sequence[CaptionedImage], Sequence[CaptionedImage]]:
        """See :class:`model.training.data.splits.Drawn`."""
        train, held = copy(self), copy(self)
        train._count, held._count = len(self) - count, count
        train._easy = [pair for pair in self._easy if str(pair[0].path) not in held_files]
        held._easy = [pair for pair in self._easy if str(pair[0].path) in held_files]
        held._held_out = True
        return train, held

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(f"{self.name} has {self._count:,} pairs; there is no number {index}.")
        if not self._held_out:
            return self._draw(np.random.default_rng((self.seed, index)))
        rng = np.random.default_rng((self.seed, HELD_OUT, index))
        while (item := self._draw(rng)).caption == NOTHING:
            pass  # an empty tile is one of a few thousand shades, and most of them are trained on
        return item

    def _draw(self, rng: np.random.Generator) -> CaptionedImage:
        if rng.random() < self._easy_share and self._easy:
            picture, (colour, kind) = self._easy[int(rng.integers(len(self._easy)))]
            return self._easy_tile(picture, colour, kind)
        if rng.random() < 0.7:
            return self._tile(sc.random_scene(rng), rng)
        return self._tile(sc.random_scene(rng, sc.CANVAS_SIZES[int(rng.integers(1, len(sc.CANVAS_SIZES)))]), rng)

    def _tile(self, scene: sc.Scene, rng: np.random.Generator) -> CaptionedImage:
        """The whole scene if it is one tile, else its thumbnail or one of its tiles."""
        image = sc.draw(scene)
        pixels = sc.label_map(scene).astype(int)
        centres = [shape.centre for shape in scene.shapes]
        tile = self.config.tile_px
        width, height = scene.canvas
        if scene.canvas == (tile, tile):
            return self._captioned(image, pixels, centres, [shape.name for shape in scene.shapes], sc.caption(scene))
        if rng.random() < 0.3:
            across = ((np.arange(tile) + 0.5) * width / tile).astype(int)
            down = ((np.arange(tile) + 0.5) * height / tile).astype(int)
            processed = process_image(image, self.config)
            picture = (processed.tiles[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            moved = [(x * tile / width, y * tile / height) for x, y in centres]
            names = [shape.name for shape in scene.shapes]
            small = pixels[np.ix_(down, across)]
            return self._captioned(Image.fromarray(picture), small, moved, names, sc.caption(scene))
        left = int(rng.integers(width // tile)) * tile
        top = int(rng.integers(height // tile)) * tile
        part = pixels[top : top + tile, left : left + tile]
        moved = [(x - left, y - top) for x, y in centres]
        seen = [n for n in range(len(scene.shapes)) if (part == n + 1).sum() > 20]
        caption = " and ".join(f"a {scene.shapes[n].name}" for n in seen) or NOTHING
        names = [shape.name for shape in scene.shapes]
        return self._captioned(image.crop((left, top, left + tile, top + tile)), part, moved, names, caption)

    def _easy_tile(self, picture: EasyPicture, colour: str, kind: str) -> CaptionedImage:
        image = picture.open()
        array = np.asarray(image).astype(int)
        pixels = (np.abs(array - np.array(sc.COLOURS[colour])).sum(-1) < 60).astype(int)
        rows, cols = np.nonzero(pixels)
        centre = [(float(cols.min() + cols.max() + 1) / 2, float(rows.min() + rows.max() + 1) / 2)] if len(rows) else []
        return self._captioned(image, pixels, centre, [f"{colour} {kind}"], f"a {colour} {kind}")

    def _captioned(
        self, image: Any, pixels: np.ndarray, centres: Sequence[tuple[float, float]], names: Sequence[str], caption: str
    ) -> CaptionedImage:
        """``pixels [height width]``: 0 background, else 1 + the number of the shape in ``names``."""
        patch = self.config.patch_px
        side = self.config.tile_px // patch
        cells = pixels.reshape(side, patch, side, patch).transpose(0, 2, 1, 3).reshape(side * side, patch * patch)
        phrases = [BACKGROUND, *names, *(f"center of {name}" for name in names)]
        covered = np.stack([(cells == n + 1).sum(-1) for n in range(len(names))], axis=-1)
        labels = np.where(covered.max(-1) > 0, covered.argmax(-1) + 1, 0)
        # A patch that a shape covers only a little of says nothing for certain.
        labels[(covered.max(-1) > 0) & (covered.max(-1) < 0.12 * patch * patch)] = -1
        for n, (x, y) in enumerate(centres):
            col, row = int(x // patch), int(y // patch)
            if 0 <= row < side and 0 <= col < side:
                labels[row * side + col] = 1 + len(names) + n
        return CaptionedImage(image, caption, tuple(phrases), labels[None])


def name_easy_shape(picture: EasyPicture) -> tuple[str, str] | None:
    """Colour and kind of a training picture's one shape, where its questions tell both."""
    colour = kind = None
    for question, answer, _ in picture.turns:
        words = question.rstrip("?").split()
        if answer in sc.COLOUR_NAMES:
            colour = answer
            kind = next((word for word in words if word in sc.SHAPE_NAMES), kind)
        elif answer in sc.SHAPE_NAMES:
            kind = answer
            colour = next((word for word in words if word in sc.COLOUR_NAMES), colour)
    return None if colour is None or kind is None else (colour, kind)
