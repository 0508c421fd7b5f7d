"""Greedy answers to held-out questions, and how many are right."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from model.chat import Conversation
from model.errors import InputError
from model.families.nanovlm import VLM
from model.generate import Step, generate_batch
from model.sample import Sample
from model.training.data.example import Example
from model.training.events import Answered

MOST_TOKENS = 16_384
"""Of a batch of prompts: as many times the longest as it has rows. What is kept of each for the next token, and the
table of who sees whom, are memory."""


class Answerer(Protocol):
    """What answers a prompt: a model as it was opened, or one that is being trained."""

    def prepare(self, conversation: Conversation, add_generation_prompt: bool = False) -> Sample: ...

    def generate(self, sample: Sample, *, max_new_tokens: int) -> Iterator[Step]: ...


@dataclass(frozen=True)
class Probe:
    """A prompt that ends where the model is to answer, the question as people read it, and the one right answer."""

    family: str
    sample: Sample
    answer: str
    question: str = ""


def probe_example(vlm: Answerer, example: Example, which: int) -> Probe:
    """The conversation up to its answer number ``which``, earlier answers given. InputError as ``vlm.prepare``."""
    messages = example.conversation.messages
    places = [n for n, message in enumerate(messages) if message.role == "assistant"]
    stop = places[which]
    sample = vlm.prepare(Conversation(messages[:stop]), add_generation_prompt=True)
    family = example.families[which] if which < len(example.families) else "all"
    return Probe(family, sample, messages[stop].text, messages[stop - 1].text if stop else "")


def probe_examples(vlm: Answerer, examples: Sequence[Example], most: int, seed: int) -> list[Probe]:
    """One question of each of up to ``most`` examples, chosen by ``seed``; what can't be rendered is passed over."""
    rng = np.random.default_rng((seed, 11))
    numbers = rng.permutation(len(examples))[:most]
    probes = []
    for number in numbers:
        example = examples[int(number)]
        answers = sum(message.role == "assistant" for message in example.conversation.messages)
        if answers:
            which = int(rng.integers(answers))
            with contextlib.suppress(InputError):  # as training drops such examples
                probes.append(probe_example(vlm, example, which))
    return probes


@torch.no_grad()
def answer_samples(vlm: Answerer, samples: Sequence[Sample], max_new_tokens: int = 32, rows: int = 64) -> list[str]:
    """Greedy answers, in order; rows of about one length share a batch of ``rows``, fewer where they are long."""
    if not isinstance(vlm, VLM):
        steps_of = (vlm.generate(sample, max_new_tokens=max_new_tokens) for sample in samples)
        return ["".join(step.text for step in steps) for steps in steps_of]
    found: dict[int, str] = {}
    order = sorted(range(len(samples)), key=lambda index: len(samples[index]))
    start = 0
    while start < len(order):
        part = order[start : start + rows]
        while len(part) > 1 and len(part) * len(samples[part[-1]]) > MOST_TOKENS:
            part.pop()
        start += len(part)
        batch = vlm.collate([samples[index] for index in part])
        steps = [ids for ids, _ in generate_batch(vlm, batch, max_new_tokens=max_new_tokens)]
        for index, ids in zip(part, torch.stack(steps, dim=1).tolist(), strict=True):
            stop = ids.index(vlm.eos_token_id) if vlm.eos_token_id in ids else len(ids)
            found[index] = str(vlm.tokenizer.decode(ids[:stop]))
    return [found[index] for index in range(len(samples))]


def answer_probes(vlm: Answerer, probes: Sequence[Probe], max_new_tokens: int = 32) -> list[Answered]:
    """The model's answer to every probe."""
    answers = answer_samples(vlm, [probe.sample for probe in probes], max_new_tokens)
    return [
        Answered(probe.question, probe.answer, answer, probe.family)
        for probe, answer in zip(probes, answers, strict=True)
    ]


def score(answered: Iterable[Answered]) -> dict[str, float]:
    """Share of answers that equal the right one to the letter, per family and in all ("all")."""
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for one in answered:
        right["all"].append(one.right)
        if one.family != "all":
            right[one.family].append(one.right)
    return {family: sum(hits) / len(hits) for family, hits in right.items()}


def count_families(answered: Sequence[Answered]) -> dict[str, int]:
    """How many answers each share of :func:`score` is of."""
    named = Counter(one.family for one in answered if one.family != "all")
    return {"all": len(answered), **named} if answered else {}
