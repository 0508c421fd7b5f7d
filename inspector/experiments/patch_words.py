"""Words on patches: what the states of image tokens say in the language model's own terms, at any layer.

Two readings. The *logit lens* (nostalgebraist 2020) puts a state through the last norm and the head: what the model
would say there if it stopped at this layer. It reads early layers of image tokens badly, for what they hold isn't on
its way to be said. *Nearest contextual embeddings* (LatentLens, arXiv 2602.00462) compare the state with those that
the words of known sentences have at the same layer, by cosine; so it can name nothing that stands in no sentence.
Both say what a state resembles. Neither says that the model uses it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inspector.bounds import Bounds
from inspector.row.ask import Inspection, check_same_model
from inspector.row.embedded_row import read_row, read_states
from inspector.row.least_used import LeastUsedTable
from inspector.row.prompt import Prompt, Turn, prepare_row
from inspector.row.row_store import ROWS
from model import STREAMS, InputError, InspectableVLM, TokenGrid
from model.losses import unit
from model.memory import release_when_short
from model.training.synthetic.scenes import COLOUR_NAMES, SHAPE_NAMES
from model.values import is_whole, name_value

TOP = 5
"""So many words of each reading."""
CHUNK = 64
"""Cells whose logits are made at once (64 rows of a vocabulary of 150,000 are 38 MB), and whose states of all layers
are (32 of 4,096 numbers, 34 MB); of one layer as many more cells are read in a pass."""
SCENES = tuple(f"a {colour} {shape}" for colour in COLOUR_NAMES for shape in SHAPE_NAMES)
"""The drawn scenes' vocabulary: what the embedded model has words for."""
PHOTOGRAPHS = (
    "a man and a woman are standing on a street in front of a house",
    "a dog is lying on the grass beside a small tree",
    "a cat sits on a wooden table next to a window",
    "a plate of food with bread, meat and green leaves",
    "cars, a bus and a bicycle wait at the traffic light",
    "blue sky with clouds over mountains, water and sand",
    "the sign shows black letters and a number",
    "the hand of a child holds a round orange ball",
    "a face with two eyes, a nose, a mouth and dark hair",
    "a chart with lines, bars and an axis",
    "a page of printed text with a title",
    "the background is white, the border is dark",
)
"""What is often in photographs and documents, for models that have words for it."""
WHOLE_WORDS = 1.25
"""Tokens a word, at most, for a sentence to be in a model's words: pieces of words that it doesn't know mean nothing
to it, and would stand among the nearest all the same."""


def choose_sentences(vlm: InspectableVLM) -> tuple[str, ...]:
    """Those that the model's tokenizer has words for; all if there is none."""

    def is_known(sentence: str) -> bool:
        return len(vlm.encode_text(sentence)) <= WHOLE_WORDS * len(re.findall(r"\w+|[^\w\s]", sentence))

    sentences = (*SCENES, *PHOTOGRAPHS)
    return tuple(filter(is_known, sentences)) or sentences


@dataclass(frozen=True)
class Match:
    """A word and how near: a probability (logit lens) or a cosine; ``context``: the sentence that it stands in."""

    text: str
    value: float
    context: str = ""


@dataclass(frozen=True)
class CellWords:
    """One image token: cell (``row``, ``col``) of ``grid``, at ``position``. ``lens``: the likeliest tokens;
    ``nearest``: the nearest words, each once, where it is nearest."""

    grid: TokenGrid
    row: int
    col: int
    position: int
    lens: tuple[Match, ...]
    nearest: tuple[Match, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.grid.image,
            "tile": self.grid.tile,
            "row": self.row,
            "col": self.col,
            "position": self.position,
            "logit_lens": [{"text": one.text, "probability": one.value} for one in self.lens],
            "nearest": [{"text": one.text, "cosine": one.value, "context": one.context} for one in self.nearest],
        }


@dataclass(frozen=True)
class PatchWords:
    """Of every image token of a row, behind ``layer`` (from 0) of ``n_layers``."""

    layer: int
    n_layers: int
    stream: str
    cells: tuple[CellWords, ...]

    def count(self, word: str) -> tuple[int, int]:
        """Cells that hold ``word`` (a whole token, whatever its case) among their lens's and their nearest words."""
        return _count(self.cells, word)

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "layers": self.n_layers,
            "stream": self.stream,
            "cells": [cell.to_json() for cell in self.cells],
        }


def _count(cells: Sequence[CellWords], word: str) -> tuple[int, int]:
    wanted = word.strip().lower()
    return (
        sum(any(one.text.strip().lower() == wanted for one in cell.lens) for cell in cells),
        sum(any(one.text.strip().lower() == wanted for one in cell.nearest) for cell in cells),
    )


@dataclass(frozen=True)
class _Bank:
    """States of the sentences' words: ``states [layer word width]``, of length 1 each."""

    states: Tensor
    words: tuple[tuple[str, str], ...]


class BankStore:
    """The sentences' states by model and stream, for any number of threads; at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self.kept: LeastUsedTable[tuple[str, str, str], _Bank] = LeastUsedTable(limit, lambda bank: bank.states.nbytes)

    def get(self, vlm: InspectableVLM, stream: str) -> _Bank:
        key = vlm.fingerprint, vlm.placement, stream
        with self._lock:
            if (known := self.kept.find(key)) is not None:
                return known
        made = _build_bank(vlm, stream)
        with self._lock:
            return self.kept.keep(key, made)

    def release(self) -> None:
        """Lets go of all of them."""
        with self._lock:
            self.kept.clear()


BANKS = BankStore(Bounds().words_bytes)
"""The server's own."""
release_when_short(BANKS.release)


def _build_bank(vlm: InspectableVLM, stream: str) -> _Bank:
    layers = range(vlm.n_layers)
    states, words = [], []
    for sentence in choose_sentences(vlm):
        row = prepare_row(vlm, Prompt((), (Turn(sentence),)))
        places = [p for span in row.spans if span.kind == "text" for p in range(span.start, span.stop)]
        found = read_states(vlm, read_row(vlm, row, []), places, layers, stream)
        # Kept in half precision: a cosine needs no more, and all layers of a large model are many numbers.
        states.append(torch.stack([unit(found[layer]).half() for layer in layers]))
        words += [(vlm.token_text(int(row.input_ids[p])), sentence) for p in places]
    return _Bank(torch.cat(states, dim=1), tuple(words))


def measure_words(
    vlm: InspectableVLM, inspection: Inspection, layer: int | None = None, stream: str = "residual"
) -> PatchWords:
    """At one layer (from 0, the last if None). InputError for a layer or stream that isn't there, a row without
    images, and another model than answered."""
    layer = vlm.n_layers - 1 if layer is None else layer
    if not (is_whole(layer) and 0 <= layer < vlm.n_layers):
        raise InputError(f"The layer is {name_value(layer)}; this model has the layers 0 to {vlm.n_layers - 1}.")
    cells = tuple(cell for _, some in _read_cells(vlm, inspection, [layer], stream) for cell in some)
    return PatchWords(layer, vlm.n_layers, stream, cells)


def find_word(
    vlm: InspectableVLM, inspection: Inspection, word: str, stream: str = "residual"
) -> tuple[tuple[int, int], ...]:
    """By layer: in how many cells ``word`` is among the likeliest tokens, and among the nearest words. InputError as
    for :func:`measure_words`, and for no word at all."""
    if not word.strip():
        raise InputError("There is no word to look for; type one, as “red”.")
    counts = np.zeros((vlm.n_layers, 2), dtype=int)
    for layer, cells in _read_cells(vlm, inspection, range(vlm.n_layers), stream):
        counts[layer] += _count(cells, word)
    return tuple((lens, nearest) for lens, nearest in counts.tolist())


def describe_found(word: str, counts: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What :func:`find_word` found, as facts: layers from 0, the first with any cell None where no layer has one."""

    def first(reading: int) -> int | None:
        return next((layer for layer, cells in enumerate(counts) if cells[reading]), None)

    return {
        "word": word,
        "logit_lens": {"first_layer": first(0), "cells": [cells[0] for cells in counts]},
        "nearest": {"first_layer": first(1), "cells": [cells[1] for cells in counts]},
    }


def _read_cells(
    vlm: InspectableVLM, inspection: Inspection, layers: Sequence[int], stream: str
) -> Iterator[tuple[int, tuple[CellWords, ...]]]:
    """(layer, some of the cells), until every cell came at each of ``layers``."""
    check_same_model(vlm, inspection)
    if stream not in STREAMS:
        raise InputError(f"“{name_value(stream)}” can't be read; choose one of {', '.join(STREAMS)}.")
    places = [(grid, row, col) for grid in inspection.row.grids for row in range(grid.rows) for col in range(grid.cols)]
    if not places:
        raise InputError("The prompt has no image, so there is no patch to put words on; add one and ask.")
    read = ROWS.read(vlm, inspection.row, inspection.prompt.keeps_samples_apart)
    bank = BANKS.get(vlm, stream)
    at_once = CHUNK * vlm.n_layers // len(layers)
    for start in range(0, len(places), at_once):
        some = places[start : start + at_once]
        states = read_states(vlm, read, [grid.position(row, col) for grid, row, col in some], layers, stream)
        for layer in layers:
            known = bank.states[layer].float()
            for n in range(0, len(some), CHUNK):
                yield layer, tuple(_name_cells(vlm, bank, known, some[n : n + CHUNK], states[layer][n : n + CHUNK]))


def _name_cells(
    vlm: InspectableVLM, bank: _Bank, known: Tensor, places: Sequence[tuple[TokenGrid, int, int]], states: Tensor
) -> Iterator[CellWords]:
    likely = vlm.read_out(states).softmax(dim=-1).topk(TOP)
    cosines = unit(states) @ known.T
    for n, (grid, row, col) in enumerate(places):
        lens = tuple(
            Match(vlm.token_text(int(token_id)), float(p))
            for p, token_id in zip(likely.values[n], likely.indices[n], strict=True)
        )
        yield CellWords(grid, row, col, grid.position(row, col), lens, _name_nearest(bank, cosines[n]))


def _name_nearest(bank: _Bank, cosines: Tensor) -> tuple[Match, ...]:
    """The nearest words, each once: the same word in many sentences would fill the list."""
    found: dict[str, Match] = {}
    for place in cosines.argsort(descending=True).tolist():
        text, context = bank.words[place]
        found.setdefault(text.strip().lower(), Match(text, float(cosines[place]), context))
        if len(found) == TOP:
            break
    return tuple(found.values())
