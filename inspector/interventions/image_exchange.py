"""Images replaced by other pictures of the same token grid, so that the row keeps its length and all else its place.

An image that is hidden leaves a row such as the model never saw, and an answer that it would guess anyway doesn't fall
without it. Another picture in its place stays within what the model knows. Features are made once for each picture;
everything behind the first replaced image is read again behind the kept prefix, and stretches that are the same for
several sets of replaced images are computed once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inspector.images.full_size import Facts, PixelEdit, edit_image, read_preview, stretch_image
from inspector.images.image_file import PromptImage, run_at_full_size
from inspector.interventions.continuations import Continuation
from inspector.interventions.stretches import Stretch, cut_stretches
from inspector.interventions.target import Case, Target
from inspector.row.feature_store import FEATURES
from inspector.row.layout import ImageBlock
from model import OpenedImage
from model.training.synthetic.scenes import COLOUR_NAMES, SINGLE_TILE, Scene, draw, random_scene

_SCENES = 48
"""Of which partners are taken; every colour is among them as often as the next."""
_Key = tuple[int, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Partner:
    """What comes in an image's place, stretched to its size. ``number``: of the prompt's image that it is, None for a
    drawn picture. ``features [image token lm_hidden_dim]``. ``picture``: a preview."""

    name: str
    number: int | None
    features: Tensor = field(repr=False, compare=False)
    picture: Image.Image = field(repr=False, compare=False)


@dataclass
class ImageExchanges:
    """Variants of a case's row with some of its images replaced, which share their stretches, and the pictures that
    replace them, which are encoded once, while this object lives."""

    case: Case
    _stretches: tuple[Stretch, ...] = field(init=False)
    _nodes: dict[_Key, Continuation] = field(init=False, default_factory=dict)
    _turns: dict[tuple[_Key, tuple[int, ...]], Continuation] = field(init=False, default_factory=dict)
    _partners: dict[tuple[object, int], Partner] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._stretches = cut_stretches(self.case.structure)

    # --- pictures ---

    def partners(self, image: ImageBlock, count: int) -> list[Partner]:
        """``count`` pictures to replace ``image`` by: the next other picture of the prompt that has its grid, if there
        is one, then drawn scenes of one shape. Those of different images differ."""
        images = self.case.structure.images
        found = []
        for offset in range(1, len(images)):
            other = images[(image.number - 1 + offset) % len(images)]
            if self._have_one_grid(image, other) and not self._hold_the_same(image, other):
                found.append(self.of_prompt(image, other.number))
                break
        drawn = [self.drawn(image, image.number - 1 + n) for n in range(max(0, count - len(found)))]
        return [*found, *drawn][:count]

    def drawn(self, image: ImageBlock, index: int) -> Partner:
        """A scene of one shape, always the same for one seed and ``index`` (from 0). Its colours go round, and a scene
        whose colour or shape stands in the question or the answer is stepped over: it would be asked about as well, or
        call for the same answer."""
        key = (index, self.case.prompt.images[image.number - 1].size)
        if (key, 0) not in self._partners:
            scene = self._scenes[index]
            name = f"a drawn {scene.shapes[0].name}, stretched to its size"
            self._partners[key, 0] = self.fit(image, OpenedImage(draw(scene)), name)
        return self._partners[key, 0]

    @cached_property
    def _scenes(self) -> tuple[Scene, ...]:
        """At least as many as images and partners; all the same again where the answer names every colour."""
        case = self.case
        texts = (case.target.question.text, case.text(case.answer_ids), case.text(case.greedy_ids))
        said = set(re.findall(r"\w+", " ".join(texts).lower()))
        scenes = []
        for n in range(_SCENES):
            rng = np.random.default_rng([case.seed, n])
            scenes.append(random_scene(rng, SINGLE_TILE, 1, colour=COLOUR_NAMES[(case.seed + n) % len(COLOUR_NAMES)]))
        other = [scene for scene in scenes if not said & {scene.shapes[0].colour, scene.shapes[0].kind}]
        return tuple((other or scenes) * _SCENES)

    def of_prompt(self, image: ImageBlock, number: int) -> Partner:
        """The prompt's image ``number`` (from 1), stretched if it has another size."""
        key = ("image", image.number)
        if (key, number) not in self._partners:
            images = self.case.prompt.images
            other = self.case.structure.images[number - 1]
            fitted = images[number - 1].size != images[image.number - 1].size
            name = f"image {number}" + (", stretched to its size" if fitted else "")
            if fitted or not self._have_one_grid(image, other):
                self._partners[key, number] = self.fit(image, images[number - 1], name, number)
            else:
                features = self.case.prefix_cache.embeds[list(other.tokens)]
                self._partners[key, number] = Partner(name, number, features, images[number - 1].preview)
        return self._partners[key, number]

    def fit(self, image: ImageBlock, picture: PromptImage, name: str, number: int | None = None) -> Partner:
        """Any picture, stretched to the size of ``image`` and encoded."""
        size = self.case.prompt.images[image.number - 1].size
        facts, pictures = run_at_full_size(picture, stretch_image, size, self.case.vlm.geometry)
        return Partner(name, number, self._encode(pictures, image), read_preview(facts))

    def edit(self, image: ImageBlock, edits: Sequence[PixelEdit]) -> tuple[Tensor, Facts]:
        """The image itself with its pixels changed at full size: its features, and what is kept of it."""
        own = self.case.prompt.images[image.number - 1]
        facts, pictures = run_at_full_size(own, edit_image, edits, self.case.vlm.geometry)
        return self._encode(pictures, image), facts

    def _encode(self, pictures: Sequence[np.ndarray], image: ImageBlock) -> Tensor:
        processed = self.case.vlm.cut_image(pictures, self.case.prompt.images[image.number - 1].size)
        (features,) = FEATURES.encode(self.case.vlm, [processed])
        if len(features) != len(image.tokens):
            raise ValueError("A picture of the same size must leave every token in its place.")
        return features

    def _have_one_grid(self, one: ImageBlock, other: ImageBlock) -> bool:
        first, second = (self.case.prefix_cache.row.images[image.number - 1] for image in (one, other))
        return (first.grid, first.has_thumbnail, first.resized_size) == (
            second.grid,
            second.has_thumbnail,
            second.resized_size,
        )

    def _hold_the_same(self, one: ImageBlock, other: ImageBlock) -> bool:
        embeds = self.case.prefix_cache.embeds
        return torch.equal(embeds[list(one.tokens)], embeds[list(other.tokens)])

    def embed_replaced(self, replaced: Mapping[int, Tensor]) -> Tensor:
        """``[pos lm_hidden_dim]``: the whole row's embeddings with some images ``replaced``, to be read anew."""
        embeds = self.case.prefix_cache.embeds.clone()
        for image in self.case.structure.images:
            if image.number in replaced:
                embeds[list(image.tokens)] = replaced[image.number]
        return embeds

    # --- rows ---

    def of_ending(
        self, replaced: Mapping[int, Tensor], target: Target, ids: Sequence[int], scored: tuple[int, int]
    ) -> Continuation:
        """Other ``ids`` from ``target``'s start on, of which ``scored`` (start, stop) are the answer, behind the row
        with some images ``replaced`` (by number: what their tokens hold)."""
        first = scored[0]
        asked, answer = tuple(ids[: first - target.start]), tuple(ids[first - target.start :])
        return Continuation(first, answer, scored, parent=self._turn(replaced, target, asked))

    def of_question(self, replaced: Mapping[int, Tensor], target: Target, asked: Sequence[int]) -> Continuation:
        """The question ``asked`` alone, from ``target``'s start to where the model is to answer."""
        stop = target.start + len(asked)
        turn = self._turn(replaced, target, tuple(asked))
        return Continuation(target.start, tuple(asked), (stop, stop)) if turn is None else turn

    def _turn(self, replaced: Mapping[int, Tensor], target: Target, asked: tuple[int, ...]) -> Continuation | None:
        place = next(n for n, stretch in enumerate(self._stretches) if stretch.start == target.start)
        key = self._key(place, replaced)
        stop = target.start + len(asked)
        if not key[1] and asked == self.case.prefix_cache.ids[target.start : stop]:
            return None
        if (key, asked) not in self._turns:
            parent = self._node(place - 1, replaced)
            self._turns[key, asked] = Continuation(target.start, asked, (stop, stop), parent=parent)
        return self._turns[key, asked]

    def _key(self, place: int, replaced: Mapping[int, Tensor]) -> _Key:
        """What stretch ``place`` depends on: the images up to it (itself included) that are replaced, and by what."""
        before = [one.image.number for one in self._stretches[: place + 1] if one.image is not None]
        return place, tuple((number, id(replaced[number])) for number in before if number in replaced)

    def _node(self, place: int, replaced: Mapping[int, Tensor]) -> Continuation | None:
        """The stretches up to ``place``, read again; None where all are as they were read."""
        if place < 0:
            return None
        key = self._key(place, replaced)
        if not key[1]:
            return None
        if key not in self._nodes:
            stretch = self._stretches[place]
            start, image = stretch.start, stretch.image
            ids = self.case.prefix_cache.ids[start : stretch.stop]
            features = replaced.get(image.number) if image is not None else None
            parent = self._node(place - 1, replaced)
            self._nodes[key] = Continuation(start, ids, (start, start), parent=parent, features=features)
        return self._nodes[key]
