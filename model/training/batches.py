"""From examples to the rows of an optimizer step."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from model.chat import Conversation
from model.collator import Batch
from model.config import VLMConfig
from model.errors import InputError, TooLongError
from model.families.nanovlm import VLM
from model.image import ProcessedImage
from model.packing import pack_samples
from model.sample import Sample, Span
from model.training.data.datasets import DataStopped, Mixture
from model.training.data.example import CaptionedImage, Example
from model.training.data.ledger import NO_LABEL, TOO_LONG, UNRENDERED, Entry
from model.training.feed import Draw, Feed
from model.training.recipe import Stage
from model.training.tuned import Trainee, TunedBatch, TunedVLM

MAX_DROPPED = 1000
"""So many useless examples in a row end the run: the data, not the luck, is at fault."""


class FeatureCache:
    """What the frozen image encoder made of each tile, kept by the tile's content, in the precision that it computes
    in. The least used go first when ``max_bytes`` are full."""

    def __init__(self, vlm: Trainee, max_bytes: int = 4 << 30) -> None:
        self._vlm = vlm
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    @torch.no_grad()
    def features(self, tiles: Tensor, chunk: int = 64) -> Tensor:
        """``[tile patch vit_hidden_dim]`` of ``tiles [tile 3 tile_px tile_px]`` (float32, on the processor), on the
        model's device. Always without dropout: what is kept must not hold one draw of it for good."""
        assert isinstance(self._vlm, VLM)
        self._vlm.vision_encoder.eval()
        keys = [hashlib.blake2b(tile.contiguous().numpy(), digest_size=16).digest() for tile in tiles]
        missing = {key: n for n, key in enumerate(keys) if key not in self._kept}
        found: dict[bytes, Tensor] = {key: self._kept[key] for key in keys if key in self._kept}
        fresh = list(missing.items())
        for start in range(0, len(fresh), chunk):
            part = fresh[start : start + chunk]
            encoded = _store(self._vlm.vision_encoder(tiles[[n for _, n in part]].to(self._vlm.device)))
            for (key, _), value in zip(part, encoded, strict=True):
                found[key] = self._keep(key, value.clone())
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        return torch.stack([found[key] for key in keys]).to(self._vlm.device)

    def read_images(self, images: Sequence[ProcessedImage]) -> tuple[Tensor, ...]:
        """``[part patch d]`` of each image, on the processor: as :meth:`features`, of another family's encoder, whose
        inputs needn't be of one size."""
        assert isinstance(self._vlm, TunedVLM)
        found = []
        for image in images:
            key = image.digest + repr(image.original_size).encode()
            if key in self._kept:
                self._kept.move_to_end(key)
            found.append(
                self._kept[key] if key in self._kept else self._keep(key, _store(self._vlm.read_patches(image)))
            )
        return tuple(found)

    def _keep(self, key: bytes, value: Tensor) -> Tensor:
        self._kept[key] = value
        self._bytes += value.nbytes
        while self._bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
        return value


def _store(encoded: Tensor) -> Tensor:
    """On the processor, in the precision that is computed in: where the last norm gives float32 the projector's product
    would round it to that anyway."""
    if torch.is_autocast_enabled(encoded.device.type):
        encoded = encoded.to(torch.get_autocast_dtype(encoded.device.type))
    return encoded.cpu()


def with_features(batch: Batch, cache: FeatureCache | None) -> Batch:
    """The batch with the frozen encoder's output in place of computing it again."""
    if cache is not None and isinstance(batch, TunedBatch):
        return replace(batch, patches=cache.read_images(batch.images))
    if cache is None or not len(batch.tiles):
        return batch
    return replace(batch, features=cache.features(batch.tiles.cpu()))


def count_patches(config: VLMConfig) -> int:
    """The image encoder's positions for one tile."""
    return (config.tile_px // config.patch_px) ** 2


def batched_patches(vlm: Trainee) -> int:
    """The image encoder's positions for one tile that stand in a batch: none where each image is read by itself."""
    return 0 if isinstance(vlm, TunedVLM) else count_patches(vlm.config)


@dataclass(frozen=True)
class Rows:
    """This process's rows of one optimizer step, the next draw's number, and how many examples were dropped on the way,
    by all processes."""

    samples: tuple[Sample, ...]
    position: int
    dropped: int


def split_rows(
    samples: Sequence[Sample], most_rows: int, most_tokens: int, tile_patches: int
) -> Iterator[Sequence[Sample]]:
    """The samples in order, in parts of ``most_rows`` at most, none of which has more than ``most_tokens``: as many
    times the longest row as it has rows, and ``tile_patches`` for each tile of its pictures. A single row is a part
    whatever it has. Parts depend on the samples alone, so every process makes the same."""
    start, longest, patches = 0, 0, 0
    for place, sample in enumerate(samples):
        own = tile_patches * sum(len(image.tiles) for image in sample.images)
        rows = place - start + 1
        full = rows * max(longest, len(sample)) + patches + own > most_tokens
        if rows > 1 and (full or rows > most_rows):
            yield samples[start:place]
            start, longest, patches = place, 0, 0
        longest, patches = max(longest, len(sample)), patches + own
    if start < len(samples):
        yield samples[start:]


def blank_sample(pad_token_id: int) -> Sample:
    """A row that nothing is learnt from."""
    ids = torch.full((2,), pad_token_id)
    none = torch.zeros(2, dtype=torch.bool)
    return Sample(ids, none, (Span("padding", 0, 2),), (), none, torch.zeros_like(ids))


def usable_sample(vlm: Trainee, example: Example) -> Sample | None:
    """The example rendered; None if it can't be, or is longer than the model, or has no label."""
    try:
        sample = vlm.prepare(example.conversation)
    except InputError:
        return None
    return sample if len(sample) <= vlm.max_positions and bool(sample.loss_mask.any()) else None


class Renderer(Protocol):
    """What makes rows of examples: a model, whatever its family, with or without weights."""

    @property
    def pad_token_id(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    def prepare(self, conversation: Conversation, add_generation_prompt: bool = False) -> Sample: ...


class RowMaker:
    """Renders examples and packs them. The samples of a step depend on the draw's number alone, so a run goes on
    exactly where it stopped, and so does one of several processes: each has the rows of what it rendered itself. A row
    is then packed of one process's samples, so what “leak” lets a sample see depends on their number."""

    def __init__(
        self,
        vlm: Renderer,
        stage: Stage,
        mixture: Mixture[Example],
        seed: int,
        *,
        accelerator: Accelerator | None = None,
        workers: int | str = 0,
    ) -> None:
        self.passed_over: list[Entry] = []
        """What was drawn since somebody last took this list, and can't be used."""
        self._vlm, self._stage, self._mixture, self._seed = vlm, stage, mixture, seed
        limit = min(vlm.max_positions, stage.batch_tokens)
        self._limit = min(limit, stage.row_tokens) if stage.packing != "off" else limit
        self._wanted = stage.batch_rows * stage.accumulate
        self.feed = Feed(self._render, stage.steps, self._wanted, accelerator=accelerator, workers=workers)

    def take(self, position: int) -> Rows:
        """This process's share of ``batch_rows × accumulate`` rows from draw ``position`` on. InputError if nothing
        usable comes."""
        self.feed.seek(position)
        rows, end = self._fill(self._next, position, self._wanted)
        draws = self.feed.take(end)
        unusable = [draw.passed_over for draw in draws if draw.passed_over is not None]
        self.passed_over += unusable
        own = {draw.number: draw.item for draw in draws if draw.item is not None}
        if self.feed.processes > 1:
            rows, _ = self._fill(partial(_next_of, own), position, len(own))
        return Rows(tuple(self._join(row, own) for row in rows if row), end, len(unusable))

    def _join(self, row: Sequence[Sequence[int]], samples: Mapping[int, Sample]) -> Sample:
        if self._stage.packing == "off":
            return samples[row[0][0]]
        pad = self._vlm.pad_token_id
        parts = [
            pack_samples([samples[n] for n in unit], pad, separate_last=False) if len(unit) > 1 else samples[unit[0]]
            for unit in row
        ]
        return pack_samples(parts, pad)

    def _fill(
        self, find: Callable[[int], tuple[int, int] | None], position: int, wanted: int
    ) -> tuple[list[list[list[int]]], int]:
        """The numbers of the draws that make up ``wanted`` rows, and the draw behind the last of them: row by row what
        stands there, one draw or several in a row without a barrier. ``find``: the first draw that can be used from a
        number on, and its tokens; None if there is none."""
        rows: list[list[list[int]]] = [[] for _ in range(wanted)]
        loads = [0] * wanted
        single = self._stage.packing == "off"
        first = 0
        while (unit := self._choose_unit(find, position)) is not None:
            numbers, length = unit
            # The first row with room: full enough, and the order of draws stays what it was.
            room = self._stage.row_tokens - length
            place = next((n for n in range(first, wanted) if not loads[n] or (not single and loads[n] <= room)), None)
            if place is None:
                break
            rows[place].append(numbers)
            loads[place] += length
            position = numbers[-1] + 1
            if single:
                first = place + 1
                if first == wanted:
                    break
        return rows, position

    def _choose_unit(
        self, find: Callable[[int], tuple[int, int] | None], position: int
    ) -> tuple[list[int], int] | None:
        """One draw or, now and then, several in a row without a barrier, as nanoVLM packs; and its tokens."""
        found = find(position)
        if found is None:
            return None
        numbers, length = [found[0]], found[1] + 1
        rng = np.random.default_rng((self._seed, 5, position))
        if self._stage.packing != "document" or rng.random() >= self._stage.leak_share:
            return numbers, length
        for _ in range(int(rng.integers(1, 4))):
            following = find(numbers[-1] + 1)
            # Half a row at most, or the rest of the row would stay empty too often.
            if following is None or length + following[1] + 1 > self._stage.row_tokens // 2:
                break
            numbers.append(following[0])
            length += following[1] + 1
        return numbers, length

    def _next(self, position: int) -> tuple[int, int]:
        for number in range(position, position + MAX_DROPPED):
            draw = self.feed.know(number)
            if draw.passed_over is None:
                return number, int(draw.summary)
            reason = draw.passed_over.first.rstrip(".")
        raise InputError(f"{MAX_DROPPED:,} examples in a row can't be used (the last one: {reason}).")

    def _render(self, number: int) -> Draw:
        """The sample of draw ``number``; its summary is its length."""
        place = ""
        try:
            example = self._mixture.draw(number)
            place = example.source
            sample = self._vlm.prepare(example.conversation)
        except DataStopped as error:
            return Draw(number, stops=str(error))
        except InputError as error:
            kind = TOO_LONG if isinstance(error, TooLongError) else UNRENDERED
            return pass_over(number, kind, place, str(error))
        room = self._limit - (self._stage.packing != "off")
        if len(sample) > room:
            return pass_over(number, TOO_LONG, place, f"it has {len(sample):,} tokens where {room:,} fit")
        if not bool(sample.loss_mask.any()):
            return pass_over(number, NO_LABEL, place, "it has no label")
        return Draw(number, sample, len(sample))


def pass_over(number: int, reason: str, place: str, sentence: str) -> Draw:
    """A draw that can't be used."""
    return Draw(number, passed_over=Entry(reason, 1, f"{place}: {sentence}" if place else sentence))


def _next_of(samples: Mapping[int, Sample], position: int) -> tuple[int, int] | None:
    number = min((number for number in samples if number >= position), default=None)
    return None if number is None else (number, len(samples[number]))


@dataclass(frozen=True)
class PairBatch:
    """Pairs of the contrastive stage: ``tiles [pair 3 h w]``, the different ``captions`` and which belongs to each
    picture; the different ``phrases`` and, for chosen patches, where they are (``pair``, ``patch``) and which phrase
    describes them. Where several processes share the pairs, ``process_of_pair [pair]`` says which has a pair's tile,
    and ``tiles`` are this one's; all else is the same everywhere."""

    tiles: Tensor
    captions: tuple[str, ...]
    caption_of_tile: Tensor
    phrases: tuple[str, ...]
    patch_places: Tensor
    phrase_of_place: Tensor
    process_of_pair: Tensor | None = None

    def __len__(self) -> int:
        """Pairs, of all processes."""
        return len(self.caption_of_tile)

    def to(self, device: torch.device) -> PairBatch:
        """The same pairs with every tensor on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class PairText:
    """A pair without its picture: see :class:`model.training.data.example.CaptionedImage`. ``labels [patch]``: the
    phrase of each patch of its first tile."""

    caption: str
    phrases: tuple[str, ...] = ()
    labels: np.ndarray | None = None


BACKGROUND_SHARE = 0.3
"""Background patches, as a share of the others: most of a picture is background and teaches little."""


def render_pair(vlm: VLM, item: CaptionedImage) -> tuple[Tensor, PairText]:
    """The tile that stands for a picture, and what is said of it. A picture of several tiles is represented by its
    first (the thumbnail, where there is one)."""
    processed = item.image if isinstance(item.image, ProcessedImage) else vlm.process_image(item.image)
    labels = None if item.phrase_of_patch is None else item.phrase_of_patch[0]
    return processed.tiles[0], PairText(item.caption, item.phrases, labels)


def join_pairs(
    tiles: Sequence[Tensor], texts: Sequence[PairText], rng: np.random.Generator, processes: Tensor | None = None
) -> PairBatch:
    """The batch of ``texts`` with the ``tiles [3 h w]`` that are here; ``processes``: see :class:`PairBatch`."""
    captions: dict[str, int] = {}
    phrases: dict[str, int] = {}
    owner: list[int] = []
    places: list[tuple[int, int]] = []
    described: list[int] = []
    for pair, text in enumerate(texts):
        owner.append(captions.setdefault(text.caption, len(captions)))
        if text.labels is None:
            continue
        shown = np.flatnonzero(text.labels > 0)
        empty = np.flatnonzero(text.labels == 0)
        kept = rng.permutation(empty)[: max(2, int(len(shown) * BACKGROUND_SHARE))]
        for patch in (*shown, *kept):
            places.append((pair, int(patch)))
            described.append(phrases.setdefault(text.phrases[text.labels[patch]], len(phrases)))
    return PairBatch(
        torch.stack(list(tiles)) if tiles else torch.zeros(0, 3, 0, 0),
        tuple(captions),
        torch.tensor(owner),
        tuple(phrases),
        torch.tensor(places, dtype=torch.long).view(-1, 2),
        torch.tensor(described, dtype=torch.long),
        processes,
    )


def make_pairs(vlm: VLM, items: Sequence[CaptionedImage], rng: np.random.Generator) -> PairBatch:
    """The batch of all ``items``."""
    rendered = [render_pair(vlm, item) for item in items]
    return join_pairs([tile for tile, _ in rendered], [text for _, text in rendered], rng)
