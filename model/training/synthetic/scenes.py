"""Drawn scenes of coloured shapes, and questions about them whose answers are known exactly.

Look-alikes of easy-VQA's pictures (its palette, shapes and pale backgrounds), with several shapes, several tiles and
several images. Everything is drawn from a ``numpy.random.Generator``: the same seed gives the same scenes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from model.chat import Conversation, Message
from model.training.data.example import Example, ExampleTurn
from model.training.synthetic.outlines import Outline

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
    "yellow": (255, 255, 0),
}
COLOUR_NAMES = tuple(COLOURS)
SHAPE_NAMES = ("circle", "rectangle", "triangle")
SINGLE_TILE = (64, 64)
CANVAS_SIZES = ((64, 64), (128, 64), (64, 128), (128, 128), (192, 128), (128, 192), (192, 64), (192, 192))
"""(width, height) in pixels; all are whole tiles, so that nothing is resized."""
MAX_IMAGES = 5
ORDINALS = ("first", "second", "third", "fourth", "fifth")
MAX_SHAPES = 3

_SUPERSAMPLING = 3
_CLEAR_OFFSET = 0.12
"""How far from the middle, as a fraction of the canvas, a shape's centre must lie for a side to be named."""
_CLEAR_STEP = 0.08
"""How far apart from left to right, as a fraction of the canvas, centres must lie for their order to be told."""

T = TypeVar("T")
Size = Literal["small", "large"]


@dataclass(frozen=True)
class Shape:
    """``centre`` and ``half_size`` (x, y) in pixels of the canvas."""

    colour: str
    kind: str
    size: Size
    centre: tuple[float, float]
    half_size: tuple[float, float]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def box(self) -> tuple[float, float, float, float]:
        (x, y), (a, b) = self.centre, self.half_size
        return x - a, y - b, x + a, y + b


@dataclass(frozen=True)
class Scene:
    """``canvas`` is (width, height) in pixels; ``shapes`` run from left to right and never touch."""

    canvas: tuple[int, int]
    background: tuple[int, int, int]
    shapes: tuple[Shape, ...]


def large_canvas(number: int) -> tuple[int, int]:
    """The canvases of several tiles in turn."""
    return CANVAS_SIZES[1 + number % (len(CANVAS_SIZES) - 1)]


def random_shape(
    rng: np.random.Generator,
    canvas: tuple[int, int],
    *,
    colour: str | None = None,
    kind: str | None = None,
    size: Size | None = None,
) -> Shape:
    """One shape that lies wholly on the canvas; what isn't given is drawn."""
    colour = colour or str(rng.choice(COLOUR_NAMES))
    kind = kind or str(rng.choice(SHAPE_NAMES))
    chosen: Size = size or ("small" if rng.random() < 0.5 else "large")
    radius = rng.uniform(5.0, 8.5) if chosen == "small" else rng.uniform(10.0, 16.0)
    half = (radius, radius)
    if kind == "rectangle":
        half = (radius * rng.uniform(0.65, 1.2), radius * rng.uniform(0.65, 1.2))
    elif kind == "triangle":
        half = (radius, radius * rng.uniform(0.8, 1.0))
    centre = tuple(rng.uniform(part + 1, whole - part - 1) for part, whole in zip(half, canvas, strict=True))
    return Shape(colour, kind, chosen, (float(centre[0]), float(centre[1])), (float(half[0]), float(half[1])))


def random_scene(
    rng: np.random.Generator,
    canvas: tuple[int, int] = SINGLE_TILE,
    n_shapes: int | None = None,
    *,
    colour: str | None = None,
    kind: str | None = None,
) -> Scene:
    """A scene of ``n_shapes`` (drawn from 1 to MAX_SHAPES if None) that don't touch. ``colour`` and ``kind`` hold for
    every shape where given. On a canvas where a shape finds no room there are fewer, but always one."""
    wanted = int(rng.integers(1, MAX_SHAPES + 1)) if n_shapes is None else n_shapes
    background = tuple(int(value) for value in rng.integers(228, 256, 3))
    shapes: list[Shape] = []
    for _ in range(wanted * 25):
        if len(shapes) == wanted:
            break
        crowded = wanted > 1 and canvas == SINGLE_TILE
        size: Size | None = "small" if crowded and rng.random() < 0.7 else None
        candidate = random_shape(rng, canvas, colour=colour, kind=kind, size=size)
        if all(_apart(candidate, other) for other in shapes):
            shapes.append(candidate)
    shapes.sort(key=lambda shape: shape.centre[0])
    return Scene(canvas, (background[0], background[1], background[2]), tuple(shapes))


def _apart(one: Shape, other: Shape, gap: float = 3.0) -> bool:
    return any(
        abs(one.centre[axis] - other.centre[axis]) > one.half_size[axis] + other.half_size[axis] + gap
        for axis in range(2)
    )


def outline_of(scene: Scene) -> tuple[object, ...]:
    """What two scenes that look alike have in common: other scenes may have it in common, too."""
    return scene.canvas, scene.background, tuple((shape.colour, shape.kind, shape.size) for shape in scene.shapes)


def draw(
    scene: Scene,
    colours: Mapping[str, tuple[int, int, int]] = COLOURS,
    outlines: Mapping[str, Outline] | None = None,
    *,
    enlarged: int = 1,
) -> Image.Image:
    """The scene as an RGB picture, edges smoothed. ``outlines`` says how kinds outside SHAPE_NAMES look. A pixel of the
    canvas becomes ``enlarged`` × ``enlarged``."""
    width, height = (side * enlarged for side in scene.canvas)
    image = Image.new("RGB", (width * _SUPERSAMPLING, height * _SUPERSAMPLING), scene.background)
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        _stroke(pen, shape, enlarged * _SUPERSAMPLING, colours[shape.colour], (outlines or {}).get(shape.kind))
    return image.resize((width, height), Image.Resampling.BOX)


def label_map(scene: Scene) -> np.ndarray:
    """``[height width]`` uint8: 0 where the background is, else 1 + the shape's place in ``scene.shapes``."""
    image = Image.new("L", scene.canvas, 0)
    pen = ImageDraw.Draw(image)
    for index, shape in enumerate(scene.shapes):
        _stroke(pen, shape, 1, index + 1)
    return np.asarray(image)


def _stroke(
    pen: ImageDraw.ImageDraw, shape: Shape, scale: int, fill: int | tuple[int, int, int], outline: Outline | None = None
) -> None:
    left, top, right, bottom = (value * scale for value in shape.box)
    if outline is not None:
        pen.polygon([(left + x * (right - left), top + y * (bottom - top)) for x, y in outline], fill=fill)
    elif shape.kind == "circle":
        pen.ellipse((left, top, right, bottom), fill=fill)
    elif shape.kind == "rectangle":
        pen.rectangle((left, top, right, bottom), fill=fill)
    else:
        pen.polygon(((left + right) / 2, top, right, bottom, left, bottom), fill=fill)


def side_of(scene: Scene, shape: Shape) -> tuple[str | None, str | None]:
    """("left" or "right", "top" or "bottom") for the half of the canvas that holds the shape's centre; None where the
    centre is too near the middle to say."""
    names = (("left", "right"), ("top", "bottom"))
    found: list[str | None] = []
    for axis in range(2):
        offset = shape.centre[axis] / scene.canvas[axis] - 0.5
        found.append(None if abs(offset) < _CLEAR_OFFSET else names[axis][offset > 0])
    return found[0], found[1]


def _unique(scene: Scene) -> list[tuple[Shape, str]]:
    """Shapes that a description names without doubt, with that description."""
    colours = Counter(shape.colour for shape in scene.shapes)
    kinds = Counter(shape.kind for shape in scene.shapes)
    names = Counter(shape.name for shape in scene.shapes)
    found = []
    for shape in scene.shapes:
        if len(scene.shapes) == 1:
            found.append((shape, "shape"))
        if kinds[shape.kind] == 1:
            found.append((shape, shape.kind))
        if colours[shape.colour] == 1:
            found.append((shape, f"{shape.colour} shape"))
        if names[shape.name] == 1:
            found.append((shape, shape.name))
    return found


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def with_article(name: str) -> str:
    return f"an {name}" if name[:1] in "aeiou" else f"a {name}"


def caption(scene: Scene) -> str:
    """“a red circle and a blue triangle”, from left to right."""
    names = [with_article(shape.name) for shape in scene.shapes]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _any(shape: Shape) -> bool:
    return True


def ask_colour(rng: np.random.Generator, scene: Scene, about: Callable[[Shape], bool] = _any) -> ExampleTurn | None:
    """After the colour of a shape that ``about`` says yes to."""
    options = [(shape, how) for shape, how in _unique(scene) if how in (shape.kind, "shape") and about(shape)]
    if not options:
        return None
    shape, how = _pick(rng, options)
    word = _pick(rng, ("color", "colour"))
    form = _pick(rng, (f"what {word} is the {how}?", f"what is the {word} of the {how}?"))
    return form, shape.colour, "colour"


def ask_shape(rng: np.random.Generator, scene: Scene, about: Callable[[Shape], bool] = _any) -> ExampleTurn | None:
    """After the kind of a shape that ``about`` says yes to."""
    if len(scene.shapes) == 1 and rng.random() < 0.6:
        forms = (
            "what shape is in the image?",
            "what shape does the image contain?",
            "what shape is present?",
            "what shape is it?",
            "what is the shape?",
        )
        return _pick(rng, forms), scene.shapes[0].kind, "shape"
    options = [(shape, how) for shape, how in _unique(scene) if how == f"{shape.colour} shape" and about(shape)]
    if not options:
        return None
    shape, how = _pick(rng, options)
    return _pick(rng, (f"what is the {how}?", f"what shape is {shape.colour}?")), shape.kind, "shape"


def ask_count(rng: np.random.Generator, scene: Scene) -> ExampleTurn:
    which = rng.random()
    shapes = scene.shapes
    if which < 0.5:
        form = _pick(rng, ("how many shapes are there?", "how many shapes are in the image?"))
        return form, str(len(shapes)), "count"
    if which < 0.75:
        colour = _pick(rng, shapes).colour if rng.random() < 0.7 else _pick(rng, COLOUR_NAMES)
        return f"how many {colour} shapes are there?", str(sum(s.colour == colour for s in shapes)), "count"
    kind = _pick(rng, SHAPE_NAMES)
    return f"how many {kind}s are there?", str(sum(s.kind == kind for s in shapes)), "count"


def ask_yes_no(rng: np.random.Generator, scene: Scene) -> ExampleTurn:
    """Half of the answers are yes, with easy-VQA's wordings, its negated ones included."""
    present = rng.random() < 0.5
    what = int(rng.integers(3))
    having = {0: lambda s: f"{s.colour} shape", 1: lambda s: s.kind, 2: lambda s: s.name}[what]
    there = sorted({having(shape) for shape in scene.shapes})
    every = {
        0: [f"{colour} shape" for colour in COLOUR_NAMES],
        1: list(SHAPE_NAMES),
        2: [f"{colour} {kind}" for colour in COLOUR_NAMES for kind in SHAPE_NAMES],
    }[what]
    absent = [name for name in every if name not in there]
    if not absent:
        present = True
    if not present and what == 2 and rng.random() < 0.6:
        # Near misses: the colour or the kind is there, the pair is not.
        shape = _pick(rng, scene.shapes)
        absent = [name for name in absent if shape.colour in name or shape.kind in name] or absent
    name = _pick(rng, there) if present else _pick(rng, absent)
    return ask_presence(rng, name, present)


def ask_presence(rng: np.random.Generator, name: str, present: bool) -> ExampleTurn:
    """Whether the image shows a ``name``, three times of ten asked the other way round."""
    one = with_article(name)
    plain = (
        f"is there {one}?",
        f"is there {one} in the image?",
        f"does the image contain {one}?",
        f"is {one} present?",
    )
    negated = (
        f"is there not {one}?",
        f"is there not {one} in the image?",
        f"does the image not contain {one}?",
        f"is no {name} present?",
    )
    if rng.random() < 0.3:
        return _pick(rng, negated), "no" if present else "yes", "yes/no"
    return _pick(rng, plain), "yes" if present else "no", "yes/no"


def _position_questions(scene: Scene) -> list[tuple[Shape, str, str]]:
    """Every question after a place that has a clear answer: its shape, the question, the answer."""
    options = []
    for shape, how in _unique(scene):
        across, down = side_of(scene, shape)
        if across:
            options.append((shape, f"is the {how} on the left or on the right?", across))
        if down:
            options.append((shape, f"is the {how} at the top or at the bottom?", down))
    return options


def ask_position(rng: np.random.Generator, scene: Scene) -> ExampleTurn | None:
    options = _position_questions(scene)
    if not options:
        return None
    _, question, answer = _pick(rng, options)
    return question, answer, "position"


def has_clear_order(scene: Scene) -> bool:
    """Whether anybody would tell the shapes from left to right in the same order."""
    places = [shape.centre[0] / scene.canvas[0] for shape in scene.shapes]
    return all(right - left >= _CLEAR_STEP for left, right in pairwise(places))


def ask_caption(rng: np.random.Generator, scene: Scene) -> ExampleTurn | None:
    """None where which shape comes first can't be told."""
    if not has_clear_order(scene):
        return None
    return _pick(rng, ("describe the image.", "what is in the image?")), caption(scene), "caption"


_ASKERS = (ask_colour, ask_shape, ask_count, ask_yes_no, ask_position, ask_caption)
_WEIGHTS = (0.18, 0.16, 0.2, 0.18, 0.18, 0.1)


def scene_turns(rng: np.random.Generator, scene: Scene, n_turns: int) -> list[ExampleTurn]:
    """Up to ``n_turns`` different questions about one scene."""
    turns: list[ExampleTurn] = []
    for _ in range(n_turns * 3):
        asker = _ASKERS[int(rng.choice(len(_ASKERS), p=_WEIGHTS))]
        turn = asker(rng, scene)
        if turn is not None and all(turn[0] != other[0] for other in turns):
            turns.append(turn)
        if len(turns) == n_turns:
            break
    # Some questions don't suit some scenes; this one suits all.
    return turns or [ask_count(rng, scene)]


def place_turns(rng: np.random.Generator, scene: Scene, n_turns: int) -> list[ExampleTurn]:
    """Up to ``n_turns`` − 1 questions after places in one scene, then its caption, if it has one. No two questions are
    about the same side of the same shape and the caption comes last, for an answer that was read before needs no
    picture."""
    options = _position_questions(scene)
    chosen: dict[tuple[Shape, bool], ExampleTurn] = {}
    for n in rng.permutation(len(options)):
        shape, question, answer = options[int(n)]
        chosen.setdefault((shape, answer in ("left", "right")), (question, answer, "position"))
    turns = list(chosen.values())[: n_turns - 1]
    # Some scenes have neither; a count suits all.
    told = ask_caption(rng, scene)
    return [*turns, told] if told else turns or [ask_count(rng, scene)]


def different_scenes(rng: np.random.Generator, n_images: int, *, same_colour: bool = False) -> list[Scene]:
    """One-tile scenes of one shape each, no two of the same colour (or all of one colour, if ``same_colour``)."""
    colours = rng.permutation(COLOUR_NAMES)
    return [
        random_scene(rng, n_shapes=1, colour=str(colours[0] if same_colour else colours[index]))
        for index in range(n_images)
    ]


def ask_colour_by_index(rng: np.random.Generator, scenes: list[Scene], index: int) -> ExampleTurn:
    number, word = index + 1, _pick(rng, ("color", "colour"))
    forms = (f"in image {number}, what {word} is the shape?", f"what {word} is the shape in image {number}?")
    return _pick(rng, forms), scenes[index].shapes[0].colour, "colour by index"


def ask_shape_by_index(rng: np.random.Generator, scenes: list[Scene], index: int) -> ExampleTurn:
    number = index + 1
    forms = (
        f"in image {number}, what shape is it?",
        f"what shape is in image {number}?",
        f"in image {number}, what is the shape?",
    )
    return _pick(rng, forms), scenes[index].shapes[0].kind, "shape by index"


def ask_which(rng: np.random.Generator, scenes: list[Scene], index: int | None = None) -> ExampleTurn | None:
    """After the image ``index``, or any (None); no question where its shape is in another image too."""
    names = Counter(scene.shapes[0].name for scene in scenes)
    options = [
        place for place, scene in enumerate(scenes) if names[scene.shapes[0].name] == 1 and index in (None, place)
    ]
    if not options:
        return None
    index = _pick(rng, options)
    return f"which image has the {scenes[index].shapes[0].name}?", str(index + 1), "which image"


def ask_same_colour(rng: np.random.Generator, scenes: list[Scene]) -> ExampleTurn:
    same = len({scene.shapes[0].colour for scene in scenes}) == 1
    word = _pick(rng, ("color", "colour"))
    return f"are the images the same {word}?", "yes" if same else "no", "same colour"


def ask_list(rng: np.random.Generator, scenes: list[Scene]) -> ExampleTurn:
    question = _pick(rng, ("list all images.", "list the images."))
    return question, ", ".join(scene.shapes[0].name for scene in scenes), "list"


def ask_colour_by_ordinal(rng: np.random.Generator, scenes: list[Scene], index: int) -> ExampleTurn:
    """“In the second image, …”; half of the time “last” for the last one."""
    last = index == len(scenes) - 1 and rng.random() < 0.5
    where, word = "last" if last else ORDINALS[index], _pick(rng, ("color", "colour"))
    forms = (f"what {word} is the shape in the {where} image?", f"in the {where} image, what {word} is the shape?")
    return _pick(rng, forms), scenes[index].shapes[0].colour, "colour by last" if last else "colour by ordinal"


def ask_colour_by_content(rng: np.random.Generator, scenes: list[Scene]) -> ExampleTurn | None:
    """By the kind of shape that one image alone has; None if no kind is alone."""
    kinds = Counter(scene.shapes[0].kind for scene in scenes)
    options = [scene.shapes[0] for scene in scenes if kinds[scene.shapes[0].kind] == 1]
    if not options:
        return None
    shape, word = _pick(rng, options), _pick(rng, ("color", "colour"))
    return f"what {word} is the {shape.kind}?", shape.colour, "colour by content"


def ask_told(rng: np.random.Generator) -> ExampleTurn:
    """Needs no picture: the answer stands in the question."""
    told = _pick(rng, (*COLOUR_NAMES, *SHAPE_NAMES))
    return f"the answer is {told}. what is the answer?", told, "told"


def multi_image_turns(rng: np.random.Generator, scenes: list[Scene], n_turns: int) -> list[ExampleTurn]:
    """Up to ``n_turns`` different questions that need the right one of several images."""
    turns: list[ExampleTurn] = []
    for _ in range(n_turns * 3):
        which = rng.random()
        index = int(rng.integers(len(scenes)))
        turn: ExampleTurn | None
        if which < 0.36:
            turn = ask_colour_by_index(rng, scenes, index)
        elif which < 0.68:
            turn = ask_shape_by_index(rng, scenes, index)
        elif which < 0.82:
            turn = ask_which(rng, scenes)
        elif which < 0.9:
            turn = ask_same_colour(rng, scenes)
        else:
            turn = ask_list(rng, scenes)
        if turn is not None and all(turn[0] != other[0] for other in turns):
            turns.append(turn)
        if len(turns) == n_turns:
            break
    return turns or [ask_list(rng, scenes)]


def as_typed(rng: np.random.Generator, question: str) -> str:
    """As a person may type it: sometimes with a capital, seldom without the last mark."""
    if rng.random() < 0.5:
        question = question[0].upper() + question[1:]
    if rng.random() < 0.1:
        question = question[:-1]
    return question


def conversation(images: tuple, turns: list[ExampleTurn], rng: np.random.Generator | None = None) -> Example:
    """All images with the first question, then the turns. With ``rng`` the questions go through :func:`as_typed`."""
    messages = []
    for index, (question, answer, _) in enumerate(turns):
        text = question if rng is None else as_typed(rng, question)
        messages += [Message("user", text, images if index == 0 else ()), Message("assistant", answer)]
    return Example(Conversation(tuple(messages)), tuple(family for _, _, family in turns))


def conversation_per_turn(
    images: tuple, turns_of_image: list[list[ExampleTurn]], rng: np.random.Generator | None = None
) -> Example:
    """One image with each group of turns; the first turn of a group brings it."""
    messages = []
    families = []
    for image, turns in zip(images, turns_of_image, strict=True):
        for index, (question, answer, family) in enumerate(turns):
            text = question if rng is None else as_typed(rng, question)
            messages += [Message("user", text, (image,) if index == 0 else ()), Message("assistant", answer)]
            families.append(family)
    return Example(Conversation(tuple(messages)), tuple(families))
