"""Prompts whose relevant image is known because they were drawn so: what every statement about images is tried on.

Each item has 2 to 5 pictures of one shape each, all of different colours, and asks for a colour. Item number n of every
cell shows the same pictures in the same slots as far as its cell allows, so cells can be compared item by item.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from inspector.row.prompt import Prompt, Turn
from model import Box, InputError, OpenedImage
from model.training.synthetic import scenes as sc

ItemGroup = Literal[
    "adjacent",
    "ordinal digit",
    "ordinal word",
    "ordinal from 0",
    "last",
    "content",
    "return",
    "adjacent vs ordinal",
    "adjacent vs content",
    "ordinal vs content",
    "packed",
    "packed, document mask",
    "guessed",
    "null",
    "null, own sample",
]
CELLS: tuple[ItemGroup, ...] = get_args(ItemGroup)
"""What the question goes by.

- *adjacent*: one picture per turn, the question of its turn names none;
- *ordinal digit*, *ordinal word*: all pictures first, “in image 2”, “in the second image”;
- *ordinal from 0*: as the renderer numbers them, “in <image: 1>”;
- *last*: “in the last image”; *content*: “the triangle”, which one picture alone has;
- *return*: one picture per turn, then a turn without one asks about an earlier picture by its number;
- the conflicts: two cues at once, each pointing at a picture of its own (see :attr:`Item.cues`);
- *packed*: a sample of each picture and its question, asked about its own, with and without the document mask;
- *guessed*: asked about the first picture, which is of the colour that the model says to this very question when it
  sees no picture: taking pictures away shows next to nothing then, and another picture in its place does;
- *null*: the answer stands in the question, no picture shows it; *null, own sample*: so too, in a packed sample of its
  own behind a document mask, in the words of the text that the embedded model learned to read before it saw pictures.
"""

MIN_IMAGES, MAX_IMAGES = 2, sc.MAX_IMAGES
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
WORDS = ("color", "colour")
GUESSES = dict.fromkeys(WORDS, "green")
"""What the embedded model says without any picture when it is asked for the colour (in either spelling) in image 1."""
_COLOUR_WORDS = {**{name: name for name in sc.COLOUR_NAMES}, "grey": "gray"}


@dataclass(frozen=True)
class ItemCue:
    """What a question goes by, and the image (from 1) that it points at."""

    name: Literal["adjacent", "ordinal", "content"]
    image: int


@dataclass(frozen=True)
class Item:
    """One prompt with its truth.

    ``turn``: the asked turn's index, from 0; earlier turns have their answers, later ones none. ``image``: the relevant
    image, from 1, None for a null item. ``answer``: the right one; ``answers_by_image``: what each image would answer.
    ``twin``: the relevant picture with its shape in a colour that no other picture has, of the same size and layout;
    ``twin_answer`` is that colour. ``box``: where the shape lies, in pixels of the relevant picture.
    ``single_prompt`` asks the same about the relevant image alone, without the words that point at it (a null item's
    has no image at all): what a model must be able to do before the item says anything about it.

    ``cues``: where each cue points. In a conflict they differ, no answer is the right one, and ``image`` and ``answer``
    are those of the first.
    """

    cell: ItemGroup
    number: int
    prompt: Prompt
    turn: int
    image: int | None
    answer: str
    answers_by_image: tuple[str, ...]
    twin: OpenedImage | None
    twin_answer: str | None
    box: Box | None
    single_prompt: Prompt
    cues: tuple[ItemCue, ...]


@dataclass(frozen=True)
class _Drawing:
    """The pictures of an item. ``slot`` and ``other`` are places from 0; the picture at ``odd`` is the only one with
    its kind of shape; ``spare`` is a colour that none has; ``word`` is one of :data:`WORDS`."""

    scenes: tuple[sc.Scene, ...]
    slot: int
    other: int
    odd: int
    spare: str
    word: str
    enlarged: int

    @property
    def count(self) -> int:
        return len(self.scenes)

    @property
    def colours(self) -> tuple[str, ...]:
        return tuple(scene.shapes[0].colour for scene in self.scenes)

    @property
    def images(self) -> tuple[OpenedImage, ...]:
        return tuple(OpenedImage(sc.draw(scene, enlarged=self.enlarged)) for scene in self.scenes)

    @property
    def asked(self) -> str:
        return f"what {self.word} is the shape"

    @property
    def odd_asked(self) -> str:
        return f"what {self.word} is the {self.scenes[self.odd].shapes[0].kind}"


def name_colour(answer: str) -> str | None:
    """The one colour of the scenes that an answer names, in whatever sentence; None if it is none or several."""
    named = {_COLOUR_WORDS[word] for word in re.findall(r"[a-z]+", answer.lower()) if word in _COLOUR_WORDS}
    return named.pop() if len(named) == 1 else None


def ask_to_guess(word: str) -> str:
    """The question of a *guessed* item, with ``word`` of :data:`WORDS`."""
    return f"In image 1, what {word} is the shape?"


def build_items(
    cells: Sequence[str],
    n_each: int,
    seed: int,
    *,
    images: tuple[int, int] = (MIN_IMAGES, MAX_IMAGES),
    canvas: tuple[int, int] = sc.SINGLE_TILE,
    enlarged: int = 1,
    guesses: Mapping[str, str] = GUESSES,
) -> Iterator[Item]:
    """``n_each`` items of every cell, cell by cell.

    ``images``: how many pictures, at least and at most; each count as often as the next, and within a count each slot
    that the cell can ask about (both to within one item). ``canvas`` (width, height) in pixels, each of them drawn as
    ``enlarged`` × ``enlarged``. ``guesses``: what the model says without a picture to each of :func:`ask_to_guess`.
    The same ``seed`` gives the same items. InputError for an unknown cell or numbers out of range.
    """
    if unknown := [cell for cell in cells if cell not in CELLS]:
        raise InputError(f"The battery has no cell “{unknown[0]}”; choose from {', '.join(CELLS)}.")
    low, high = images
    if not MIN_IMAGES <= low <= high <= MAX_IMAGES:
        raise InputError(f"Items of {low} to {high} images were asked for; allowed are {MIN_IMAGES} to {MAX_IMAGES}.")
    if n_each < 1 or seed < 0:
        raise InputError(f"{n_each} items with seed {seed} were asked for; give at least 1 item and a seed from 0 up.")
    for cell in CELLS:
        if cell in cells:
            for number in range(n_each):
                yield _item(cell, number, seed, images, canvas, enlarged, guesses)


def _item(
    cell: ItemGroup,
    number: int,
    seed: int,
    images: tuple[int, int],
    canvas: tuple[int, int],
    enlarged: int,
    guesses: Mapping[str, str],
) -> Item:
    low, high = images
    counts = high - low + 1
    n_images, round_ = low + number % counts, number // counts
    draw = _draw(np.random.default_rng((seed, number)), cell, n_images, round_, canvas, enlarged, guesses)
    prompt, turn, cues = _ask(cell, draw)
    asked = prompt.turns[turn].user
    if cell in ("null", "null, own sample"):
        single = Prompt((), (Turn(asked),))
        return Item(cell, number, prompt, turn, None, draw.spare, draw.colours, None, None, None, single, ())
    place = cues[0].image - 1
    scene = draw.scenes[place]
    shape = scene.shapes[0]
    twin = replace(scene, shapes=(replace(shape, colour=draw.spare),))
    return Item(
        cell=cell,
        number=number,
        prompt=prompt,
        turn=turn,
        image=place + 1,
        answer=shape.colour,
        answers_by_image=draw.colours,
        twin=OpenedImage(sc.draw(twin, enlarged=enlarged)),
        twin_answer=draw.spare,
        box=Box(*(side * enlarged for side in shape.box)),
        single_prompt=Prompt((prompt.images[place],), (Turn(_alone(cell, draw, place)),)),
        cues=cues,
    )


def _draw(
    rng: np.random.Generator,
    cell: ItemGroup,
    n_images: int,
    round_: int,
    canvas: tuple[int, int],
    enlarged: int,
    guesses: Mapping[str, str],
) -> _Drawing:
    """Slots go round; what is left to chance comes from ``rng`` alone, in the same order for every cell."""
    colours = [str(colour) for colour in rng.permutation(sc.COLOUR_NAMES)]
    kinds = [str(kind) for kind in rng.permutation(sc.SHAPE_NAMES)]
    fill = [kinds[1 + int(n)] for n in rng.integers(2, size=n_images)]
    seeds = rng.integers(2**32, size=n_images)
    word = WORDS[int(rng.integers(2))]
    slot, other = _slots(cell, n_images, round_)
    if cell == "guessed":
        place = colours.index(guesses[word])
        colours[0], colours[place] = colours[place], colours[0]
    odd = other if cell == "ordinal vs content" else slot
    scenes = tuple(
        sc.random_scene(
            np.random.default_rng(seeds[n]), canvas, 1, colour=colours[n], kind=kinds[0] if n == odd else fill[n]
        )
        for n in range(n_images)
    )
    return _Drawing(scenes, slot, other, odd, colours[n_images], word, enlarged)


def _slots(cell: ItemGroup, n_images: int, round_: int) -> tuple[int, int]:
    """The relevant picture's place and, in a conflict, the other cue's."""
    last = n_images - 1
    if cell == "last":
        return last, last
    if cell == "guessed":
        return 0, 0
    if cell in ("return", "adjacent vs ordinal", "adjacent vs content"):
        return round_ % last, last  # the last picture is the turn's own
    slot = round_ % n_images
    if cell == "ordinal vs content":
        return slot, (slot + 1 + round_ // n_images % last) % n_images
    return slot, slot


def _ask(cell: ItemGroup, draw: _Drawing) -> tuple[Prompt, int, tuple[ItemCue, ...]]:
    """The prompt, the asked turn's index, and where the cues point."""
    number, asked, last = draw.slot + 1, draw.asked, draw.count - 1
    if cell in ("adjacent", "packed", "packed, document mask"):
        turns = [Turn(f"{asked}?", colour if n < draw.slot else "") for n, colour in enumerate(draw.colours)]
        if cell == "adjacent":
            return Prompt(draw.images, tuple(turns), "per-turn"), draw.slot, (ItemCue("adjacent", number),)
        masked = cell == "packed, document mask"
        return Prompt(draw.images, tuple(turns), "packed", masked), draw.slot, (ItemCue("adjacent", number),)
    if cell == "null, own sample":
        told = f"{draw.spare} circle what {draw.word} is the circle?"
        return _after_pictures(draw, draw.count, told, layout="packed"), draw.count, ()
    if cell in ("return", "adjacent vs ordinal", "adjacent vs content"):
        cue = ItemCue("content" if cell == "adjacent vs content" else "ordinal", number)
        question = f"{draw.odd_asked}?" if cue.name == "content" else f"in image {number}, {asked}?"
        if cell == "return":
            return _after_pictures(draw, draw.count, question), draw.count, (cue,)
        return _after_pictures(draw, last, question), last, (cue, ItemCue("adjacent", draw.count))
    ordinal = ItemCue("ordinal", number)
    questions: dict[str, tuple[str, tuple[ItemCue, ...]]] = {
        "ordinal digit": (f"in image {number}, {asked}?", (ordinal,)),
        "ordinal word": (f"{asked} in the {_ORDINALS[draw.slot]} image?", (ordinal,)),
        "ordinal from 0": (f"in <image: {draw.slot}>, {asked}?", (ordinal,)),
        "last": (f"{asked} in the last image?", (ordinal,)),
        "content": (f"{draw.odd_asked}?", (ItemCue("content", number),)),
        "ordinal vs content": (f"in image {number}, {draw.odd_asked}?", (ordinal, ItemCue("content", draw.odd + 1))),
        "guessed": (ask_to_guess(draw.word), (ordinal,)),
        "null": (f"the answer is {draw.spare}. what is the answer?", ()),
    }
    question, cues = questions[cell]
    return Prompt(draw.images, (Turn(question),)), 0, cues


def _after_pictures(
    draw: _Drawing, given: int, question: str, layout: Literal["per-turn", "packed"] = "per-turn"
) -> Prompt:
    """One picture per turn. The first ``given`` turns have a question and answer that give no picture away, then comes
    ``question``."""
    turns = tuple(Turn("how many shapes are there?", "1") for _ in range(given))
    return Prompt(draw.images, (*turns, Turn(question)), layout, layout == "packed")


def _alone(cell: ItemGroup, draw: _Drawing, place: int) -> str:
    """The question about the picture at ``place`` when it is the only one: nothing needs to point at it then."""
    if cell in ("content", "adjacent vs content", "ordinal vs content"):
        return f"what {draw.word} is the {draw.scenes[place].shapes[0].kind}?"
    return f"{draw.asked}?"
