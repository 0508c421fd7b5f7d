"""Asking a model, then looking at everything that it saw: a prompt in, an :class:`Inspection` out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from inspector.bounds import Bounds
from inspector.row.attention import AttentionMap, ReaderMap, read_attention, read_readers
from inspector.row.embedded_row import EmbeddedRow, answer_row
from inspector.row.prompt import Prompt, first_turns, prepare_row, prepare_samples
from inspector.row.row_store import ROWS
from inspector.row.token_table import Finding, TokenTable, lint_batch, tabulate_tokens
from model import Batch, InputError, InspectableVLM, Row, Sample, collate
from model.generate import check_sampling
from model.values import is_number, is_whole, name_value

MAX_TEMPERATURE = 5
"""Beyond it every answer is noise."""


@dataclass(frozen=True)
class GenerationSettings:
    """``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off; ``seed`` matters only when sampling. InputError
    for more than the server's ``bounds``, and for what is no such number."""

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    bounds: Bounds = field(default=Bounds(), repr=False, compare=False)

    def __post_init__(self) -> None:
        longest = self.bounds.answer_tokens
        if not (is_whole(self.max_new_tokens) and 1 <= self.max_new_tokens <= longest):
            raise InputError(
                f"The answer may be {name_value(self.max_new_tokens)} tokens long; allowed are 1 to {longest}."
            )
        if not (is_number(self.temperature) and 0 <= self.temperature <= MAX_TEMPERATURE):
            raise InputError(
                f"The temperature is {name_value(self.temperature)}; allowed are 0 (greedy) to {MAX_TEMPERATURE}."
            )
        check_sampling(self.temperature, self.top_k, self.top_p, self.seed)
        if self.top_p == 0:
            raise InputError("top-p is 0; it must be above 0 and at most 1 (off).")

    @classmethod
    def of_checkpoint(cls, vlm: InspectableVLM, bounds: Bounds) -> GenerationSettings:
        """As the model's checkpoint asks to be asked, within what is allowed; where it says nothing, the usual."""
        asked = dict(vlm.generation_defaults)
        for name, most in (("max_new_tokens", bounds.answer_tokens), ("temperature", MAX_TEMPERATURE)):
            if name in asked:
                asked[name] = min(asked[name], most)
        return cls(**asked, bounds=bounds)  # type: ignore[arg-type]


@dataclass(frozen=True)
class AnswerToken:
    """One generated token: its ``probability`` is untempered and unfiltered."""

    token_id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Inspection:
    """Everything that one teacher-forced pass over the finished row showed.

    ``row`` is what the model read, ``samples`` the same as separate training samples.
    ``answers`` per turn: the generated tokens, empty for a turn whose answer the person gave. ``faithful``: the
    generated ids are in the row exactly (text that is encoded again may split otherwise).
    """

    prompt: Prompt
    row: Row
    samples: tuple[Sample, ...]
    table: TokenTable
    answers: tuple[tuple[AnswerToken, ...], ...]
    faithful: bool
    fingerprint: str

    @property
    def batch(self) -> Batch:
        """The row as a batch on the processor, made anew each time: most of it are pixels that the row has anyway."""
        # A single row is never padded, so it doesn't matter with what.
        return collate([self.row], pad_token_id=0, document_mask=self.prompt.document_mask)

    @property
    def first_answer_position(self) -> int:
        """Of the last answer: what a person looks at first. The last position if there is no answer."""
        starts = [span.start for span in self.row.spans if span.kind == "answer"]
        return starts[-1] if starts else len(self.row) - 1

    def row_that_chose(self, position: int) -> int:
        """The position whose output the token at ``position`` was chosen by: the one before, for a token of an answer
        (its end token too). Any other token was given and not chosen: for it, the position itself."""
        chosen = self.table.trained[position] and position > 0 and self.table.attended[position - 1]
        return position - 1 if chosen else position

    def check_stretch(self, first: int, last: int) -> None:
        """InputError for one that isn't in the row, or ends before it begins."""
        if not 0 <= first <= last < len(self.row):
            raise InputError(
                f"The stretch goes from token {first} to token {last}; the row has the tokens 0 to "
                f"{len(self.row) - 1}, give the earlier one first."
            )

    @property
    def answer_positions(self) -> tuple[tuple[int, ...], ...]:
        """Per turn, where each generated token is in the row; empty for a turn whose answer the person gave."""
        starts: dict[int, int] = {}
        for span in self.row.spans:
            if span.role == "assistant" and span.message is not None and self.table.trained[span.start]:
                starts.setdefault(span.message, span.start)
        begin = iter(sorted(starts.values()))
        found: list[tuple[int, ...]] = []
        for turn, tokens in zip(self.prompt.turns, self.answers, strict=True):
            start = next(begin, 0) if turn.is_answered else 0
            found.append(tuple(range(start, start + len(tokens))))
        return tuple(found)


def ask(
    vlm: InspectableVLM, prompt: Prompt, settings: GenerationSettings
) -> Iterator[tuple[int, AnswerToken | None] | Inspection]:
    """Answers every turn that has no answer yet, in order, then looks at the whole. Yields (turn, None) once it is
    known that the turn fits, (turn, token) for each generated token and the :class:`Inspection` last. InputError
    before anything runs if the prompt doesn't fit."""
    generated: list[list[AnswerToken]] = [[] for _ in prompt.turns]
    read: EmbeddedRow | None = None
    for turn, given in enumerate(prompt.turns):
        if given.is_answered:
            continue
        row = prepare_row(vlm, prompt, answering=turn)
        yield turn, None
        read = ROWS.read(vlm, row, prompt.keeps_samples_apart, read, keep=False)
        text = ""
        for step, grown in answer_row(
            vlm,
            read,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=settings.seed,
        ):
            text, read = text + step.text, grown
            token = AnswerToken(step.token_id, step.text, math.exp(step.logprob))
            generated[turn].append(token)
            yield turn, token
        prompt = prompt.with_answer(turn, text, _answer_ids(vlm, generated[turn]))
    yield inspect(vlm, prompt, tuple(tuple(tokens) for tokens in generated), read)


def _answer_ids(vlm: InspectableVLM, tokens: Sequence[AnswerToken]) -> tuple[int, ...]:
    return tuple(token.token_id for token in tokens if token.token_id not in vlm.eos_ids)


def inspect_unfinished(vlm: InspectableVLM, prompt: Prompt, tokens: Sequence[Sequence[AnswerToken]]) -> Inspection:
    """What :func:`ask` had told when it was stopped, looked at: the turns up to the last one that has ``tokens``, its
    answer as far as it came. InputError if there is no token."""
    begun = [turn for turn, answer in enumerate(tokens) if answer]
    if not begun:
        raise InputError("Stopped before the first token; there is nothing new to look at.")
    for turn in begun:
        text = "".join(token.text for token in tokens[turn])
        prompt = prompt.with_answer(turn, text, _answer_ids(vlm, tokens[turn]))
    count = begun[-1] + 1
    return inspect(vlm, first_turns(prompt, count), tuple(tuple(answer) for answer in tokens[:count]))


def ask_and_inspect(vlm: InspectableVLM, prompt: Prompt, settings: GenerationSettings) -> Inspection:
    """:func:`ask` for those who don't watch the tokens come."""
    *_, inspection = ask(vlm, prompt, settings)
    assert isinstance(inspection, Inspection)
    return inspection


def inspect(
    vlm: InspectableVLM,
    prompt: Prompt,
    answers: tuple[tuple[AnswerToken, ...], ...] = (),
    before: EmbeddedRow | None = None,
) -> Inspection:
    """The prompt as it stands, answers included; ``before``: what was read of it already."""
    row = prepare_row(vlm, prompt)
    read = ROWS.read(vlm, row, prompt.keeps_samples_apart, before)
    samples = (row,) if prompt.layout != "packed" else prepare_samples(vlm, prompt)
    answers = answers or tuple(() for _ in prompt.turns)
    found = Inspection(prompt, row, samples, tabulate_tokens(vlm, row, read.losses), answers, True, vlm.fingerprint)
    faithful = all(
        # Some templates write another end than the token that ended the answer, or none.
        [found.table.ids[place] for place in places if place < len(row)][: len(said)] == said
        for tokens, places in zip(answers, found.answer_positions, strict=True)
        for said in [list(_answer_ids(vlm, tokens))]
    )
    return replace(found, faithful=faithful)


def check_same_model(vlm: InspectableVLM, inspection: Inspection) -> None:
    """InputError if the model is another one than answered: what is found out would be about two models at once."""
    if (now := vlm.fingerprint) != inspection.fingerprint:
        raise InputError(
            f"The model is #{now[:8]} now, and the answer was given by #{inspection.fingerprint[:8]}; press Ask again."
        )


def attend(
    vlm: InspectableVLM,
    inspection: Inspection,
    position: int,
    *,
    first: int | None = None,
    exclude_sinks: bool = False,
) -> AttentionMap:
    """See :func:`inspector.row.attention.read_attention`. InputError if ``vlm`` is no longer the model that was
    inspected."""
    check_same_model(vlm, inspection)
    read = ROWS.read(vlm, inspection.row, inspection.prompt.keeps_samples_apart)
    return read_attention(vlm, read, position, first=first, exclude_sinks=exclude_sinks)


def attend_tokens(
    vlm: InspectableVLM, inspection: Inspection, first: int, last: int, *, own_row: bool, exclude_sinks: bool = False
) -> AttentionMap:
    """:func:`attend` for the tokens from ``first`` to ``last``: for the positions whose outputs chose them, or for
    their own (``own_row``). InputError for a stretch that isn't in the row."""
    inspection.check_stretch(first, last)
    if not own_row:
        first, last = inspection.row_that_chose(first), inspection.row_that_chose(last)
    return attend(vlm, inspection, last, first=min(first, last), exclude_sinks=exclude_sinks)


def find_readers(vlm: InspectableVLM, inspection: Inspection, position: int, *, first: int | None = None) -> ReaderMap:
    """See :func:`inspector.row.attention.read_readers`. InputError as for :func:`attend`."""
    check_same_model(vlm, inspection)
    read = ROWS.read(vlm, inspection.row, inspection.prompt.keeps_samples_apart)
    return read_readers(vlm, read, position, first=first)


def training_batch(vlm: InspectableVLM, inspection: Inspection, arrangement: str) -> tuple[Batch, tuple[Sample, ...]]:
    """The samples as the training code would batch them. ``arrangement``: ``"row"`` is the one row that was read,
    ``"padded"`` and ``"packed"`` make a sample of each turn with its images, side by side or in one row."""
    if arrangement == "row":
        return vlm.collate([inspection.row], document_mask=inspection.prompt.document_mask), (inspection.row,)
    apart = replace(inspection.prompt, layout="packed")
    if arrangement == "padded":
        samples = prepare_samples(vlm, apart)
        return vlm.collate(list(samples)), samples
    if arrangement == "packed":
        row = prepare_row(vlm, apart)
        return vlm.collate([row], document_mask=apart.document_mask), (row,)
    raise InputError(f"The arrangement is “{arrangement}”; choose row, padded or packed.")


def lint(vlm: InspectableVLM, inspection: Inspection) -> tuple[Finding, ...]:
    """Problems of the training batch; see :func:`inspector.row.token_table.lint_batch`."""
    batch = vlm.collate(list(inspection.samples))
    texts = tuple(text for turn in inspection.prompt.turns for text in (turn.user, turn.assistant))
    return lint_batch(vlm, inspection.samples, batch, texts)


def describe(vlm: InspectableVLM, inspection: Inspection, attention: AttentionMap) -> dict[str, Any]:
    """The facts that ``python -m inspector inspect`` prints; images and turns in order, indices from 0."""
    batch, samples = training_batch(vlm, inspection, "row")
    return {
        "model": {
            "fingerprint": inspection.fingerprint,
            "generation": vlm.format_version,
            "parameters": vlm.n_parameters,
            "dtype": str(vlm.dtype).removeprefix("torch."),
            "device": str(vlm.device),
            "notes": vlm.notes,
        },
        "layout": inspection.prompt.layout,
        "document_mask": inspection.prompt.document_mask,
        "answer": inspection.prompt.turns[-1].assistant,
        "turns": [
            {
                "user": turn.user,
                "assistant": turn.assistant,
                "generated": [{"id": t.token_id, "text": t.text, "probability": t.probability} for t in tokens],
            }
            for turn, tokens in zip(inspection.prompt.turns, inspection.answers, strict=True)
        ],
        "faithful": inspection.faithful,
        "images": [
            {
                "original_size": image.original_size,
                "resized_size": image.resized_size,
                "grid": image.grid,
                "has_thumbnail": image.has_thumbnail,
                "tiles": len(image.boxes),
                "notes": image.notes,
                "boxes": [[box.left, box.top, box.right, box.bottom] for box in image.boxes],
            }
            for image in inspection.row.images
        ],
        "sequence": inspection.table.to_json(),
        "batch": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in vars(batch).items()
            if isinstance(tensor, torch.Tensor)
        },
        "samples": len(samples),
        "lint": [vars(finding) for finding in lint(vlm, inspection)],
        "attention": attention.to_json(),
    }
