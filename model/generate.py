"""Continuing a sequence, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.errors import InputError
from model.masks import build_mask
from model.sample import see
from model.tap import Tap
from model.values import is_number, is_whole, name_value

if TYPE_CHECKING:
    from model.collator import Batch
    from model.families.nanovlm import VLM
    from model.families.protocol import InspectableVLM
    from model.sample import Row


@dataclass(frozen=True)
class Step:
    """One generated token. ``text`` is what it adds to the answer ("" for the end token and while a character's
    bytes are incomplete); ``logprob`` is its log-probability in nats under the untempered, unfiltered distribution."""

    token_id: int
    text: str
    logprob: float


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """−inf for all but the ``top_k`` largest and for the tail beyond cumulative probability ``top_p`` (Holtzman et
    al. 2020), ``logits [… vocab]``. As upstream, the token that crosses ``top_p`` falls out too and the likeliest
    always stays; 0 or None means no filter."""
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and 0 < top_p < 1:
        ordered, order = logits.sort(descending=True)
        beyond = ordered.softmax(dim=-1).cumsum(dim=-1) > top_p
        beyond[..., 0] = False
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    return logits


def temper(logits: Tensor, temperature: float) -> Tensor:
    """softmax(``logits`` / ``temperature``) over the last dimension, for every temperature above 0."""
    tempered = logits / temperature
    if not bool(tempered.amax(dim=-1).isfinite().all()):
        # Beyond what a float32 holds; only the distances to the largest matter, and those may go to infinity.
        tempered = (logits - logits.amax(dim=-1, keepdim=True)).double() / temperature
    return tempered.softmax(dim=-1).to(logits.dtype)


def check_logits(logits: Tensor) -> None:
    """InputError if any is NaN or infinite: nothing that is worked out from such logits means anything."""
    if not bool(logits.isfinite().all()):
        raise InputError(
            "The model's output is no finite number any more (NaN or infinite), so its weights are too large or "
            "damaged; use another checkpoint."
        )


def check_sampling(
    temperature: float, top_k: int | None = None, top_p: float | None = None, seed: int | None = None
) -> None:
    """InputError for what nothing can be drawn with."""
    checks = (
        (
            is_number(temperature) and temperature >= 0,
            f"The temperature is {name_value(temperature)}; it must be 0 (greedy) or more.",
        ),
        (
            top_k is None or (is_whole(top_k) and top_k >= 0),
            f"top-k is {name_value(top_k)}; it must be a whole number, 0 (off) or more.",
        ),
        (
            top_p is None or (is_number(top_p) and 0 <= top_p <= 1),
            f"top-p is {name_value(top_p)}; it must be above 0 and at most 1 (off).",
        ),
        (
            seed is None or (is_whole(seed) and 0 <= seed < 2**64),
            f"The seed is {name_value(seed)}; it must be a whole number from 0 to 2⁶⁴ − 1.",
        ),
    )
    for ok, sentence in checks:
        if not ok:
            raise InputError(sentence)


def check_room(max_new_tokens: int, length: int, limit: int) -> int:
    """How many tokens an answer may have behind a prompt of ``length`` where a model reads ``limit``. InputError if
    none fits."""
    if not is_whole(max_new_tokens):
        raise InputError(f"The answer may be {name_value(max_new_tokens)} tokens long; give a whole number.")
    if max_new_tokens > 0 and length >= limit:
        raise InputError(
            f"The prompt is {length:,} tokens long and this model reads at most {limit:,}, so no answer fits; "
            "use fewer or smaller images, or less text."
        )
    return min(max_new_tokens, limit - length)


def new_generator(seed: int | None) -> torch.Generator:
    """What tokens are drawn with; ``seed`` None draws a fresh one."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def choose_tokens(
    logits: Tensor,
    generator: torch.Generator,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Token ids ``[batch]`` from ``logits [batch vocab]``: the likeliest at ``temperature`` 0, else drawn from
    softmax(filtered / temperature)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = temper(filter_logits(logits, top_k, top_p), temperature)
    return torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(logits.device)


class AnswerText:
    """The text of an answer that comes token by token."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown = ""

    def add(self, token_id: int) -> str:
        """What the token adds; "" while a character's bytes are incomplete."""
        self._ids.append(token_id)
        # Decoding all of it each time: a character may be made of several tokens.
        whole = self._decode(self._ids)
        if whole.endswith("\ufffd"):
            return ""
        text, self._shown = whole[len(self._shown) :], whole
        return text


@torch.no_grad()
def continue_row(
    vlm: InspectableVLM,
    row: Row,
    state: Tensor,
    read: Callable[[int], Tensor],
    *,
    room: int,
    document_mask: bool = False,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Iterator[Step]:
    """What the model says behind ``row``, ``room`` tokens at most; the last one is the end token if it said it.
    ``state [1 width]`` is the row's last state, ``read`` gives that of the row with one more token. Tokens are chosen
    under the checkpoint's own rules, which count what the row's last position sees. InputError for numbers that
    nothing can be drawn with, and if the model's own are no numbers any more."""
    check_sampling(temperature, top_k, top_p, seed)
    generator, text = new_generator(seed), AnswerText(vlm.decode_text)
    prompt = row.input_ids[see(row, document_mask, len(row) - 1)[0]]
    said: list[int] = []
    for step in range(room):
        logits = vlm.logits(state)
        check_logits(logits)
        chosen = vlm.choice_rules.adjust(logits, [prompt], [said])
        token_id = int(choose_tokens(chosen, generator, temperature, top_k, top_p)[0])
        ended = token_id in vlm.eos_ids
        yield Step(token_id, "" if ended else text.add(token_id), float(logits.log_softmax(dim=-1)[0, token_id]))
        if ended or step == room - 1:
            return
        said.append(token_id)
        state = read(token_id)


@torch.no_grad()
def generate_batch(
    vlm: VLM,
    batch: Batch,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    eos_token_id: int | None = None,
    use_cache: bool = True,
    tap: Tap | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (token ids ``[batch]``, log-probabilities ``[batch]``) per step and ends when every row has met the end
    token, at ``max_new_tokens``, or at the model's length. A row that has ended repeats the end token with log-
    probability 0. ``temperature`` 0 is greedy; else tokens are drawn from softmax(filtered / temperature), the filter
    being applied before the temperature as upstream does. ``seed`` None draws a fresh one. ``use_cache=False``
    recomputes everything each step; the answers agree. InputError if the prompt leaves no room, for numbers that
    nothing can be drawn with, and if the model's own are no numbers any more.
    """
    check_sampling(temperature, top_k, top_p, seed)
    if tap is not None and tap.reader is not None:
        raise ValueError("A reader reads one whole pass; read the finished row instead of every step.")
    length = batch.input_ids.shape[1]
    room = check_room(max_new_tokens, length, vlm.max_positions)
    eos = vlm.eos_token_id if eos_token_id is None else eos_token_id
    generator = new_generator(seed)
    rows = batch.input_ids.shape[0]
    embeds = vlm.embed(batch)
    cache = vlm.decoder.new_cache(rows, length + room) if use_cache else None
    attention_mask, segment_ids = batch.attention_mask, batch.segment_ids
    ended = torch.zeros(rows, dtype=torch.bool, device=embeds.device)
    inputs = embeds
    for step in range(room):
        keys = attention_mask.shape[1]
        queries = inputs.shape[1]
        mask = build_mask(attention_mask, segment_ids if batch.document_mask else None, queries, embeds.dtype)
        positions = torch.arange(keys - queries, keys, device=embeds.device).expand(rows, -1)
        hidden = vlm.decoder(inputs, mask, positions, cache=cache, tap=tap)
        logits = vlm.decoder.head(hidden[:, -1]).float()
        check_logits(logits)
        logprobs = logits.log_softmax(dim=-1)
        token_ids = choose_tokens(logits, generator, temperature, top_k, top_p)
        chosen = logprobs.gather(-1, token_ids[:, None])[:, 0].masked_fill(ended, 0.0)
        token_ids = token_ids.masked_fill(ended, eos)
        ended = ended | (token_ids == eos)
        yield token_ids, chosen
        if bool(ended.all()) or step == room - 1:
            return
        new = vlm.decoder.token_embedding(token_ids)[:, None]
        embeds = embeds if use_cache else torch.cat((embeds, new), dim=1)
        inputs = new if use_cache else embeds
        attention_mask = torch.cat((attention_mask, attention_mask.new_ones(rows, 1)), dim=1)
        segment_ids = torch.cat((segment_ids, segment_ids[:, -1:]), dim=1)
