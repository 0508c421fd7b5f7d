"""From examples to the rows of an optimizer step."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.collator import Batch
from model.config import VLMConfig
from model.errors import InputError, TooLongError
from model.families.nanovlm import VLM
from model.image import ProcessedImage
from model.packing import pack_samples
from model.sample import Sample
from model.training.data.datasets import Mixture
from model.training.data.example import CaptionedImage, Example
from model.training.data.ledger import NO_LABEL, TOO_LONG, UNRENDERED, Entry
from model.training.recipe import Stage

MAX_DROPPED = 1000
"""So many useless examples in a row end the run: the data, not the luck, is at fault."""


class FeatureCache:
    """What the frozen image encoder made of each tile, kept by the tile's content, in the precision that it computes
    in. The least used go first when ``max_bytes`` are full."""

    def __init__(self, vlm: VLM, max_bytes: int = 4 << 30) -> None:
        self._vlm = vlm
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    @torch.no_grad()
    def features(self, tiles: Tensor, chunk: int = 64) -> Tensor:
        """``[tile patch vit_hidden_dim]`` of ``tiles [tile 3 tile_px tile_px]`` (float32, on the processor), on the
        model's device. Always without dropout: what is kept must not hold one draw of it for good."""
        self._vlm.vision_encoder.eval()
        keys = [hashlib.blake2b(tile.contiguous().numpy(), digest_size=16).digest() for tile in tiles]
        missing = {key: n for n, key in enumerate(keys) if key not in self._kept}
        found: dict[bytes, Tensor] = {key: self._kept[key] for key in keys if key in self._kept}
        fresh = list(missing.items())
        for start in range(0, len(fresh), chunk):
            part = fresh[start : start + chunk]
            encoded = self._vlm.vision_encoder(tiles[[n for _, n in part]].to(self._vlm.device))
            if torch.is_autocast_enabled(encoded.device.type):
                # The last norm gives float32, which the projector's product would round to this anyway.
                encoded = encoded.to(torch.get_autocast_dtype(encoded.device.type))
            encoded = encoded.cpu()
            for (key, _), value in zip(part, encoded, strict=True):
                found[key] = self._keep(key, value.clone())
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        return torch.stack([found[key] for key in keys]).to(self._vlm.device)

    def _keep(self, key: bytes, value: Tensor) -> Tensor:
        self._kept[key] = value
        self._bytes += value.nbytes
        while self._bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
        return value


def with_features(batch: Batch, cache: FeatureCache | None) -> Batch:
    """The batch with the frozen encoder's output in place of computing it again."""
    if cache is None or not len(batch.tiles):
        return batch
    return replace(batch, features=cache.features(batch.tiles.cpu()))


def count_patches(config: VLMConfig) -> int:
    """The image encoder's positions for one tile."""
    return (config.tile_px // config.patch_px) ** 2


@dataclass(frozen=True)
class Rows:
    """The rows of one optimizer step, the next draw's number, and how many examples were dropped on the way."""

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


def usable_sample(vlm: VLM, example: Example) -> Sample | None:
    """The example rendered; None if it can't be, or is longer than the model, or has no label."""
    try:
        sample = vlm.prepare(example.conversation)
    except InputError:
        return None
    return sample if len(sample) <= vlm.config.lm_max_position_embeddings and bool(sample.loss_mask.any()) else None


class RowMaker:
    """Renders examples and packs them. The rows of a step depend on the draw's number alone, so a run goes on exactly
    where it stopped."""

    def __init__(self, vlm: VLM, stage: Stage, mixture: Mixture[Example], seed: int) -> None:
        self.passed_over: list[Entry] = []
        """What was drawn since somebody last took this list, and can't be used."""
        self._vlm, self._stage, self._mixture, self._seed = vlm, stage, mixture, seed
        limit = min(vlm.config.lm_max_position_embeddings, stage.batch_tokens)
        self._limit = min(limit, stage.row_tokens) if stage.packing != "off" else limit

    def take(self, position: int) -> Rows:
        """``batch_rows × accumulate`` rows from draw ``position`` on. InputError if nothing usable comes."""
        wanted = self._stage.batch_rows * self._stage.accumulate
        if self._stage.packing == "off":
            return self._take_single(position, wanted)
        rows: list[list[Sample]] = [[] for _ in range(wanted)]
        loads = [0] * wanted
        dropped = 0
        while True:
            sample, position_after, lost = self._document(position)
            length = len(sample) + 1
            # The first row with room: full enough, and the order of draws stays what it was.
            place = next((n for n in range(wanted) if loads[n] + length <= self._stage.row_tokens), None)
            if place is None:
                break
            dropped += lost
            rows[place].append(sample)
            loads[place] += length
            position = position_after
        pad = self._vlm.pad_token_id
        return Rows(tuple(pack_samples(parts, pad) for parts in rows if parts), position, dropped)

    def _take_single(self, position: int, wanted: int) -> Rows:
        samples: list[Sample] = []
        dropped = 0
        while len(samples) < wanted:
            sample, position, lost = self._next(position)
            dropped += lost
            samples.append(sample)
        return Rows(tuple(samples), position, dropped)

    def _document(self, position: int) -> tuple[Sample, int, int]:
        """One sample or, now and then, several in a row without a barrier, as nanoVLM packs."""
        sample, after, dropped = self._next(position)
        rng = np.random.default_rng((self._seed, 5, position))
        if self._stage.packing != "document" or rng.random() >= self._stage.leak_share:
            return sample, after, dropped
        parts = [sample]
        length = len(sample) + 1
        for _ in range(int(rng.integers(1, 4))):
            following, beyond, lost = self._next(after)
            # Half a row at most, or the rest of the row would stay empty too often.
            if length + len(following) + 1 > self._stage.row_tokens // 2:
                break
            parts.append(following)
            length += len(following) + 1
            after = beyond
            dropped += lost
        if len(parts) == 1:
            return sample, after, dropped
        return pack_samples(parts, self._vlm.pad_token_id, separate_last=False), after, dropped

    def _next(self, position: int) -> tuple[Sample, int, int]:
        for lost in range(MAX_DROPPED):
            place = ""
            try:
                example = self._mixture.draw(position + lost)
                place = example.source
                sample = self._vlm.prepare(example.conversation)
            except InputError as error:
                reason = str(error)
                kind = TOO_LONG if isinstance(error, TooLongError) else UNRENDERED
                self._pass_over(kind, f"{place}: {reason}" if place else reason)
                continue
            room = self._limit - (self._stage.packing != "off")
            if len(sample) <= room and bool(sample.loss_mask.any()):
                return sample, position + lost + 1, lost
            long = len(sample) > room
            reason = f"it has {len(sample):,} tokens where {room:,} fit" if long else "it has no label"
            self._pass_over(TOO_LONG if long else NO_LABEL, f"{place}: {reason}" if place else reason)
        raise InputError(f"{MAX_DROPPED:,} examples in a row can't be used (the last one: {reason}).")

    def _pass_over(self, reason: str, sentence: str) -> None:
        self.passed_over.append(Entry(reason, 1, sentence))


@dataclass(frozen=True)
class PairBatch:
    """Pairs of the contrastive stage: ``tiles [pair 3 h w]``, the different ``captions`` and which belongs to each
    picture; the different ``phrases`` and, for chosen patches, where they are (``pair``, ``patch``) and which phrase
    describes them."""

    tiles: Tensor
    captions: tuple[str, ...]
    caption_of_tile: Tensor
    phrases: tuple[str, ...]
    patch_places: Tensor
    phrase_of_place: Tensor

    def to(self, device: torch.device) -> PairBatch:
        """The same pairs with every tensor on ``device``."""
        return replace(
            self,
            tiles=self.tiles.to(device),
            caption_of_tile=self.caption_of_tile.to(device),
            patch_places=self.patch_places.to(device),
            phrase_of_place=self.phrase_of_place.to(device),
        )


BACKGROUND_SHARE = 0.3
"""Background patches, as a share of the others: most of a picture is background and teaches little."""


def make_pairs(vlm: VLM, items: Sequence[CaptionedImage], rng: np.random.Generator) -> PairBatch:
    """A picture of several tiles is represented by its first (the thumbnail, where there is one)."""
    tiles = []
    captions: dict[str, int] = {}
    phrases: dict[str, int] = {}
    owner: list[int] = []
    places: list[tuple[int, int]] = []
    described: list[int] = []
    for pair, item in enumerate(items):
        processed = item.image if isinstance(item.image, ProcessedImage) else vlm.process_image(item.image)
        tiles.append(processed.tiles[0])
        owner.append(captions.setdefault(item.caption, len(captions)))
        if item.phrase_of_patch is None:
            continue
        labels = item.phrase_of_patch[0]
        shown = np.flatnonzero(labels > 0)
        empty = np.flatnonzero(labels == 0)
        kept = rng.permutation(empty)[: max(2, int(len(shown) * BACKGROUND_SHARE))]
        for patch in (*shown, *kept):
            places.append((pair, int(patch)))
            described.append(phrases.setdefault(item.phrases[labels[patch]], len(phrases)))
    return PairBatch(
        torch.stack(tiles),
        tuple(captions),
        torch.tensor(owner),
        tuple(phrases),
        torch.tensor(places, dtype=torch.long).view(-1, 2),
        torch.tensor(described, dtype=torch.long),
    )
