"""What a checkpoint's generation settings do to logits before a token is chosen, as transformers' ``generate`` does.

Probabilities that are shown or compared stay the model's own softmax: a rule says which token is said, not how likely
the model holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from model.errors import InputError
from model.generate import check_sampling
from model.values import is_whole, name_value

if TYPE_CHECKING:
    from transformers import LogitsProcessorList

# The settings that are applied, in the order in which transformers applies them, each with the value that does nothing.
_DONE: dict[str, Any] = {
    "sequence_bias": None,
    "repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
# What changes answers in transformers and is not done here, with the value that does nothing. The first ones always,
# the rest where answers are drawn.
_NOT_DONE: dict[str, Any] = {
    "num_beams": 1,
    "guidance_scale": 1,
    "forced_eos_token_id": None,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
    "stop_strings": None,
    "max_time": None,
    "watermarking_config": None,
    "penalty_alpha": 0,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
}
_NOT_DRAWN: dict[str, Any] = {"min_p": None, "top_h": None, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0}


@dataclass(frozen=True)
class ChoiceRules:
    """``settings``: those of the checkpoint that change what it says, by transformers' names; ``end_ids``: the tokens
    that end an answer by these settings; ``notes``: what people should know of them, in sentences."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    end_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, generation_config: Any, end_ids: Sequence[int], vocabulary: int) -> ChoiceRules:
        """Of transformers' ``GenerationConfig`` (None: of no settings). InputError for values that can't be applied to
        so many logits."""
        if generation_config is None:
            return cls()

        def find(neutral: Mapping[str, Any]) -> dict[str, Any]:
            values = {name: getattr(generation_config, name, None) for name in neutral}
            return {name: value for name, value in values.items() if value not in (None, neutral[name])}

        acting = find(_DONE)
        missing = find({**_NOT_DONE, **(_NOT_DRAWN if generation_config.do_sample else {})})
        notes = []
        if acting:
            notes.append(
                f"Answers are chosen under the checkpoint's own {_list(acting)}; the likeliest token may be another "
                "one, and probabilities are those of the model without it."
            )
        if missing:
            notes.append(
                f"The checkpoint's settings ask for {_list(missing)}, which is not done here; transformers' generate "
                "may answer otherwise."
            )
        rules = cls(acting, tuple(end_ids), tuple(notes))
        try:
            rules.adjust(torch.zeros(1, vocabulary), [torch.zeros(1, dtype=torch.long)], [[]])
        except (IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"The checkpoint's generation settings can't be applied ({str(error)[:200]}); correct its "
                "generation_config.json."
            ) from error
        return rules

    def __bool__(self) -> bool:
        return bool(self.settings)

    def adjust(self, logits: Tensor, prompts: Sequence[Tensor], said: Sequence[Sequence[int]]) -> Tensor:
        """``logits [answer vocab]`` as the rules leave them: −inf for a token that may not be said. ``prompts``: per
        answer the ids ``[pos]`` that it goes on from, image tokens included, ``said`` its own so far. InputError where
        no token is left."""
        if not self:
            return logits
        adjusted = []
        for own, prompt, answer in zip(logits, prompts, said, strict=True):
            ids: Any = torch.cat((prompt, torch.tensor(answer, dtype=torch.long)))[None].to(own.device)
            adjusted.append(self._processors(len(prompt), own.device)(ids, own[None].clone())[0])
        found = torch.stack(adjusted)
        if bool((found == -torch.inf).all(dim=-1).any()):
            raise InputError(
                f"The checkpoint's {_list(self.settings)} leaves no token to say; correct its generation_config.json."
            )
        return found

    def _processors(self, prompt: int, device: torch.device) -> LogitsProcessorList:
        """Transformers' own, behind a prompt of so many tokens."""
        from transformers import LogitsProcessorList
        from transformers.generation import logits_process as own

        ends, where = torch.tensor(self.end_ids, dtype=torch.long, device=device), str(device)
        make: dict[str, Callable[[Any], Any]] = {
            "sequence_bias": own.SequenceBiasLogitsProcessor,
            "repetition_penalty": lambda value: own.RepetitionPenaltyLogitsProcessor(float(value)),
            "no_repeat_ngram_size": own.NoRepeatNGramLogitsProcessor,
            "bad_words_ids": lambda value: own.NoBadWordsLogitsProcessor(value, ends),
            "min_length": lambda value: own.MinLengthLogitsProcessor(value, ends, where),
            "min_new_tokens": lambda value: own.MinNewTokensLengthLogitsProcessor(prompt, value, ends, where),
            "exponential_decay_length_penalty": lambda value: own.ExponentialDecayLengthPenalty(value, ends, prompt),
            "suppress_tokens": lambda value: own.SuppressTokensLogitsProcessor(value, where),
            "begin_suppress_tokens": lambda value: own.SuppressTokensAtBeginLogitsProcessor(value, prompt, where),
        }
        return LogitsProcessorList(make[name](value) for name, value in self.settings.items())


def _list(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {name_value(value)}" for name, value in settings.items())


def read_defaults(generation_config: Any) -> dict[str, float]:
    """What a checkpoint asks to be sampled with, by the names that :mod:`model.generate` has for it, as far as
    transformers' ``GenerationConfig`` says anything: the longest answer always, the rest where answers are drawn at
    all. InputError for what is no such number."""
    if generation_config is None:
        return {}
    found: dict[str, float] = {}
    if generation_config.max_new_tokens is not None:
        longest = generation_config.max_new_tokens
        if not is_whole(longest) or longest < 1:
            raise InputError(
                f"The checkpoint's max_new_tokens is {name_value(longest)}; it must be a whole number, 1 or more. "
                "Correct its generation_config.json."
            )
        found["max_new_tokens"] = longest
    if generation_config.do_sample:
        # What is left out is what transformers draws with.
        for name, usual in {"temperature": 1.0, "top_k": 50, "top_p": 1.0}.items():
            value = getattr(generation_config, name)
            found[name] = usual if value is None else value
        check_sampling(found["temperature"], cast(int, found["top_k"]), found["top_p"])
    return found
