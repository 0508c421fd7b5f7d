"""What a data set will be for a model, told before a run: how much, how long, what is dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from model.chat import ChatRenderer, Conversation
from model.collator import collate
from model.config import MOST_POSITIONS
from model.errors import InputError
from model.families.nanovlm import VLM
from model.families.nanovlm_chat import NanoVLMChat
from model.families.opened_vlm import OpenedVLM
from model.families.protocol import InspectableVLM
from model.lint import Finding, lint_batch
from model.sample import Sample
from model.tokenizer import decode
from model.training.data.datasets import as_pairs
from model.training.data.example import Example
from model.training.data.ledger import NO_LABEL, TOO_LONG, UNRENDERED, Entry, Ledger, choose_numbers, open_ledger
from model.training.data.readers.source import Problem

SHOWN = 4
"""How many of the samples are kept to be looked at."""
TOLD = 200
"""Problems, kinds of answers and letters of a text that are told one by one: beyond that nobody reads them."""
MAX_BINS = 20


@dataclass(frozen=True)
class Bin:
    """``count`` samples of ``start`` to ``stop − 1`` tokens."""

    start: int
    stop: int
    count: int


@dataclass(frozen=True)
class Drop:
    """``count`` of the examples looked at will be dropped for ``reason``: “too long”, “no label”, “too many images” or
    “can't be rendered”. ``example`` says what is wrong with the first of them, and where it is."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True)
class Lint:
    """A finding of :func:`model.lint.lint_batch` in ``count`` of the examples looked at; ``where`` is the first."""

    finding: Finding
    count: int
    where: str


@dataclass(frozen=True)
class ExampleLook:
    """One example as the model will get it."""

    where: str
    conversation: Conversation
    sample: Sample


@dataclass(frozen=True)
class DataReport:
    """``examples`` are all of the source; every other number is of the ``measured`` ones, drawn by a seed.

    ``turns``, ``images``, ``tokens`` and ``trained_tokens`` (those with a label) are sums over the ``usable`` ones, and
    so are the distributions: ``token_histogram``, ``images_per_sample`` and ``tiles_per_image`` (value → how many).
    ``problems`` were found by the reader in the whole source, ``more_problems`` are further ones that nobody kept.
    ``looks`` are a few usable samples, in no order.
    """

    name: str
    max_length: int
    examples: int
    measured: int
    usable: int
    turns: int
    images: int
    tokens: int
    trained_tokens: int
    longest: int
    token_histogram: tuple[Bin, ...]
    images_per_sample: dict[int, int]
    tiles_per_image: dict[int, int]
    families: dict[str, int]
    drops: tuple[Drop, ...]
    lint: tuple[Lint, ...]
    problems: tuple[Problem, ...]
    looks: tuple[ExampleLook, ...]
    text_of_looks: tuple[str, ...]
    ledger: Ledger
    more_problems: int = 0

    def with_ledger(self, ledger: Ledger) -> DataReport:
        """The report with the table's account, what was looked at for the report among it."""
        looked = replace(ledger, looked_at=self.measured, dropped=_entries(self.drops))
        return replace(self, ledger=looked)

    @property
    def trained_share(self) -> float:
        """Tokens with a label, of all tokens; 0 if there is none."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values; of the looks their place, length and text."""
        names = (
            "name",
            "max_length",
            "examples",
            "measured",
            "usable",
            "turns",
            "images",
            "tokens",
            "trained_tokens",
            "trained_share",
            "longest",
            "more_problems",
        )
        return {
            **{name: getattr(self, name) for name in names},
            "token_histogram": [asdict(part) for part in self.token_histogram],
            **{
                name: {str(key): count for key, count in getattr(self, name).items()}
                for name in ("images_per_sample", "tiles_per_image", "families")
            },
            "drops": [asdict(drop) for drop in self.drops],
            "lint": [asdict(lint.finding) | {"count": lint.count, "where": lint.where} for lint in self.lint],
            "problems": [problem.to_json() for problem in self.problems],
            "looks": [
                {"where": look.where, "tokens": len(look.sample), "text": text}
                for look, text in zip(self.looks, self.text_of_looks, strict=True)
            ],
            "ledger": self.ledger.to_json(),
        }

    def shorten(self) -> DataReport:
        """The report without what grows with the data, as it is told to another process."""
        return replace(
            self,
            families=dict(list(self.families.items())[:TOLD]),
            problems=self.problems[:TOLD],
            more_problems=self.more_problems + len(self.problems[TOLD:]),
            text_of_looks=tuple(
                text if len(text) <= 100 * TOLD else text[: 100 * TOLD] + "…" for text in self.text_of_looks
            ),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DataReport:
        """What :meth:`to_json` wrote, but for the samples themselves: their text is all that is left."""
        names = (
            "name",
            "max_length",
            "examples",
            "measured",
            "usable",
            "turns",
            "images",
            "tokens",
            "trained_tokens",
            "longest",
            "more_problems",
        )
        return cls(
            **{name: values[name] for name in names},
            token_histogram=tuple(Bin(**part) for part in values["token_histogram"]),
            images_per_sample={int(key): count for key, count in values["images_per_sample"].items()},
            tiles_per_image={int(key): count for key, count in values["tiles_per_image"].items()},
            families=dict(values["families"]),
            drops=tuple(Drop(**drop) for drop in values["drops"]),
            lint=tuple(
                Lint(Finding(lint["severity"], lint["rule"], lint["sentence"]), lint["count"], lint["where"])
                for lint in values["lint"]
            ),
            problems=tuple(Problem(**problem) for problem in values["problems"]),
            looks=(),
            text_of_looks=tuple(look["text"] for look in values["looks"]),
            ledger=Ledger.from_json(values["ledger"]),
        )


def report_data(
    vlm: InspectableVLM,
    source: Sequence[Example],
    max_length: int | None = None,
    *,
    sample: int = 1000,
    seed: int = 0,
    max_images: int | None = None,
) -> DataReport:
    """Renders ``sample`` examples of ``source`` (0: all), drawn by ``seed``, and measures them; ``vlm`` needs no
    weights. ``max_length``: tokens of a sample at most (None, or more than the model reads: what the model reads);
    ``max_images``: images at most. InputError if the source is empty or a number makes no sense."""
    if not len(source):
        raise InputError("The data hold no example, so there is nothing to report; choose other data.")
    if sample < 0 or (max_length is not None and max_length < 1) or (max_images is not None and max_images < 0):
        raise InputError(
            f"sample is {sample}, max_length {max_length}, max_images {max_images}; they must be 0 or more (length: 1)."
        )
    limit = vlm.max_positions
    limit = limit if max_length is None else min(limit, max_length)
    numbers = choose_numbers(len(source), sample, seed)
    looked = set(np.random.default_rng((seed, 1)).permutation(len(numbers)).tolist()[: 4 * SHOWN])

    lengths: list[int] = []
    usable = turns = trained = n_images = longest = 0
    per_sample: Counter[int] = Counter()
    per_image: Counter[int] = Counter()
    families: Counter[str] = Counter()
    drops = _DropTable()
    lints: dict[tuple[str, str], Lint] = {}
    looks: list[ExampleLook] = []

    for order, look in enumerate(_render(vlm, source, numbers, limit, max_images)):
        longest = max(longest, look.tokens)
        if look.reason and look.reason != NO_LABEL:
            drops.add(look)
            continue
        example, rendered, where = look.example, look.sample, look.where
        if example is None or rendered is None:
            continue  # dropped above
        messages = example.conversation.messages
        typed = tuple(message.text for message in messages)
        batch = collate([rendered], pad_token_id=vlm.pad_token_id)
        for finding in lint_batch(vlm, (rendered,), batch, typed):
            key = finding.severity, finding.rule
            found = lints.get(key)
            lints[key] = Lint(finding, 1, where) if found is None else replace(found, count=found.count + 1)
        if look.reason:
            drops.add(look)
            continue
        usable += 1
        lengths.append(len(rendered))
        trained += int(rendered.loss_mask.sum())
        turns += sum(message.role == "assistant" for message in messages)
        families.update(example.families)
        n_images += len(rendered.images)
        per_sample[len(rendered.images)] += 1
        per_image.update(len(image.boxes) for image in rendered.images)
        if order in looked and len(looks) < SHOWN:
            looks.append(ExampleLook(where, example.conversation, rendered))
    name = str(getattr(source, "name", "data"))
    return DataReport(
        name=name,
        max_length=limit,
        examples=len(source),
        measured=len(numbers),
        usable=usable,
        turns=turns,
        images=n_images,
        tokens=sum(lengths),
        trained_tokens=trained,
        longest=longest,
        token_histogram=_histogram(lengths),
        images_per_sample=dict(sorted(per_sample.items())),
        tiles_per_image=dict(sorted(per_image.items())),
        families=dict(families.most_common()),
        drops=drops.sorted(),
        lint=tuple(lints.values()),
        problems=tuple(getattr(source, "problems", ())),
        looks=tuple(looks),
        text_of_looks=tuple(write_text(vlm, look.sample) for look in looks),
        ledger=replace(open_ledger(name, source), looked_at=len(numbers), dropped=_entries(drops.sorted())),
    )


@dataclass(frozen=True)
class Looked:
    """What a look at some examples found: how many, the images of usable ones, what a run would drop of them,
    and the first that can't be opened."""

    measured: int
    images: int
    entries: tuple[Entry, ...]
    unopened: InputError | None


def look_at(
    vlm: InspectableVLM, source: Sequence[Any], max_length: int, *, sample: int, seed: int, pairs: bool = False
) -> Looked:
    """The drops of :func:`report_data`, and nothing else of it. ``pairs``: the examples are taken as pictures with
    captions, and rendered as such."""
    numbers = choose_numbers(len(source), sample, seed)
    limit = min(vlm.max_positions, max_length)
    drops = _DropTable()
    looks = _open_pairs(as_pairs(source), numbers) if pairs else _render(vlm, source, numbers, limit, None)
    images = 0
    for look in looks:
        if look.reason:
            drops.add(look)
        elif look.sample is not None:
            images += len(look.sample.images)
    return Looked(len(numbers), images, _entries(drops.sorted()), drops.unopened)


@dataclass(frozen=True)
class _Look:
    """One example, and the ``reason`` and ``sentence`` of its being dropped, if it is. ``unopened``: it can't even be
    opened."""

    where: str
    example: Example | None = None
    sample: Sample | None = None
    tokens: int = 0
    reason: str = ""
    sentence: str = ""
    unopened: InputError | None = None


class _DropTable:
    def __init__(self) -> None:
        self._drops: dict[str, Drop] = {}
        self.unopened: InputError | None = None

    def add(self, look: _Look) -> None:
        found = self._drops.get(look.reason)
        one = Drop(look.reason, 1, look.sentence)
        self._drops[look.reason] = one if found is None else replace(found, count=found.count + 1)
        self.unopened = self.unopened or look.unopened

    def sorted(self) -> tuple[Drop, ...]:
        return tuple(sorted(self._drops.values(), key=lambda drop: -drop.count))


def _entries(drops: Sequence[Drop]) -> tuple[Entry, ...]:
    return tuple(Entry(drop.reason, drop.count, drop.example) for drop in drops)


def _render(
    vlm: InspectableVLM, source: Sequence[Example], numbers: Sequence[int], limit: int, max_images: int | None
) -> Iterator[_Look]:
    # The model's own renderer refuses what is too long; here its length is what people want to know.
    renderer = _render_longer(vlm)
    for number in numbers:
        try:
            example = source[number]
        except InputError as error:  # a reader's sentence begins with the place
            yield _Look("", reason=UNRENDERED, sentence=str(error), unopened=error)
            continue
        where = example.source or f"example {number + 1}"
        try:
            images = sum(len(message.images) for message in example.conversation.messages)
            seen: Any = vlm.for_images(images)
            rendered = renderer.render(example.conversation, seen.process_image)
        except InputError as error:
            yield _Look(where, example, reason=UNRENDERED, sentence=f"{where}: {error}")
            continue
        tokens, images = len(rendered), len(rendered.images)
        reason = sentence = ""
        if max_images is not None and images > max_images:
            reason, sentence = "too many images", f"{where} has {images} images; at most {max_images} are allowed"
        elif tokens > limit:
            reason, sentence = TOO_LONG, f"{where} has {tokens:,} tokens; at most {limit:,} are read"
        elif not bool(rendered.loss_mask.any()):
            reason, sentence = NO_LABEL, f"{where} has no answer to learn from"
        yield _Look(where, example, rendered, tokens, reason, sentence)


def _render_longer(vlm: InspectableVLM) -> ChatRenderer:
    if isinstance(vlm, VLM):
        longer = replace(vlm.config, lm_max_position_embeddings=MOST_POSITIONS)
        return ChatRenderer(vlm.tokenizer, NanoVLMChat(longer, vlm.tokenizer))
    assert isinstance(vlm, OpenedVLM)
    chat: Any = copy(vlm.renderer.format)
    chat.max_positions = MOST_POSITIONS
    return ChatRenderer(vlm.tokenizer, chat)


def _open_pairs(source: Sequence[Any], numbers: Sequence[int]) -> Iterator[_Look]:
    for number in numbers:
        try:
            source[number]
        except InputError as error:
            yield _Look("", reason=UNRENDERED, sentence=str(error), unopened=error)
        else:
            yield _Look("")


def _histogram(lengths: Sequence[int]) -> tuple[Bin, ...]:
    """At most :data:`MAX_BINS` bins of one width, a round number of tokens, from the shortest to the longest."""
    if not lengths:
        return ()
    reach = max(lengths) - min(lengths) + 1
    width = next(
        step * scale
        for scale in (10**power for power in range(18))
        for step in (1, 2, 5)
        if reach <= step * scale * (MAX_BINS - 1)
    )
    counts = Counter(length // width for length in lengths)
    return tuple(
        Bin(index * width, (index + 1) * width, counts[index]) for index in range(min(counts), max(counts) + 1)
    )


def write_text(vlm: InspectableVLM, sample: Sample) -> str:
    """The sample's text with every run of image tokens written once with its length."""
    parts = []
    for span in sample.spans:
        if span.kind == "image":
            parts.append(f"⟨{len(span)} image tokens⟩")
        else:
            parts.append(decode(vlm.tokenizer, sample.input_ids[span.start : span.stop].tolist()))
    return "".join(parts)
