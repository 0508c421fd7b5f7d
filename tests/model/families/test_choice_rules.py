"""A checkpoint's own generation settings: what is said under them is what transformers' generate says under them."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from inspector.interventions.continuations import Continuation
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect, lint
from inspector.row.prompt import Prompt, Turn
from model import InputError, OpenedImage, load_vlm
from model.families.choice_rules import ChoiceRules
from tests import tiny_checkpoints as made

IMAGES = [made.noise(90, 60), made.noise(64, 64, seed=1)]
COUNT = 12
FAMILIES = ("idefics3", "llava", "internvl", "qwen2.5 vl", "qwen3 vl", "gemma3")
RULES = [
    {"repetition_penalty": 3.0},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 7, "repetition_penalty": 1.3},
    {"exponential_decay_length_penalty": [2, 1.5]},
]


def with_settings(folder: Path, **values) -> Path:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def generate(tiny, folder, history=()):
    """Transformers' road under the settings in ``folder``."""
    settings = transformers.GenerationConfig.from_pretrained(folder)
    inputs = tiny.inputs(IMAGES, history=history)
    found = tiny.model.generate(**inputs, generation_config=settings, do_sample=False, max_new_tokens=COUNT)
    return found[0, inputs["input_ids"].shape[1] :].tolist()


def prompt_of(*turns):
    return Prompt(tuple(map(OpenedImage, IMAGES)), turns or (Turn(made.QUESTION),))


def answer(vlm, prompt):
    inspection = ask_and_inspect(vlm, prompt, GenerationSettings(COUNT))
    return inspection, [token.token_id for token in inspection.answers[-1]]


@pytest.mark.parametrize("values", RULES, ids=lambda values: " ".join(values))
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_generate(tiny, copy_of, name, values):
    """Asked by the page, by a notebook, and decoded behind a kept prefix: one answer."""
    folder = with_settings(copy_of(name), **values)
    vlm, expected = load_vlm(folder), generate(tiny(name), folder)
    inspection, said = answer(vlm, prompt_of())
    assert said == expected
    steps = list(vlm.generate(vlm.prepare(made.conversation(IMAGES), True), max_new_tokens=COUNT))
    assert [step.token_id for step in steps] == expected
    # What is told of a token is the model's own softmax, whatever chose it.
    told = [token.probability for token in inspection.answers[0]]
    plain = [token_probability(tiny(name), expected[:n], token) for n, token in enumerate(expected)]
    assert told == pytest.approx(plain, abs=1e-5)
    if not (set(expected) & set(vlm.eos_ids)):
        case = open_case(vlm, inspection, max_new_tokens=COUNT)
        assert list(case.greedy_ids) == expected
        assert case.gives_own_answer


def token_probability(tiny, before, token):
    inputs = tiny.inputs(IMAGES)
    ids = torch.cat((inputs["input_ids"], torch.tensor([before], dtype=torch.long)), dim=1)
    for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            fill = 1 if name == "attention_mask" else 0
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(before)), value=fill)
    inputs["input_ids"] = ids
    with torch.no_grad():
        return float(tiny.model(**inputs).logits[0, -1].float().softmax(-1)[token])


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_that_may_not_be_said_are_not_said(tiny, copy_of, name):
    plain = generate(tiny(name), tiny(name).folder)
    folder = with_settings(
        copy_of(name),
        suppress_tokens=[plain[1]],
        begin_suppress_tokens=[plain[0]],
        bad_words_ids=[[plain[2]], [5, 6]],
        sequence_bias=[[[plain[3]], -3.0]],
    )
    expected = generate(tiny(name), folder)
    assert expected != plain
    assert answer(load_vlm(folder), prompt_of())[1] == expected


def test_the_penalty_counts_all_that_was_said_before(tiny, copy_of):
    """A later turn is penalised for the words of the first ones, too."""
    name = "qwen2.5 vl"
    folder = with_settings(copy_of(name), repetition_penalty=3.0)
    history = (("user", "What is it?"), ("assistant", "The shape is red"))
    expected = generate(tiny(name), folder, history)
    assert (
        answer(load_vlm(folder), prompt_of(Turn("What is it?", "The shape is red"), Turn(made.QUESTION)))[1] == expected
    )


def test_changed_prompts_are_answered_under_the_same_rules(tiny, copy_of):
    """Another question behind the kept prefix is answered as the row that asks it."""
    vlm = load_vlm(with_settings(copy_of("qwen2.5 vl"), repetition_penalty=3.0))
    other = Turn("And this? 56")
    case = open_case(vlm, answer(vlm, prompt_of())[0], max_new_tokens=COUNT)
    asked, said = answer(vlm, prompt_of(other))
    first, own = open_case(vlm, asked).target.scored[0], case.target.scored[0]
    start = case.target.start
    ids = tuple(asked.row.input_ids[start:first].tolist())
    unchanged = case.prefix_cache.continuation(start, (own, own), stop=own)
    found = case.answer([Continuation(start, ids, (first, first)), unchanged])
    assert list(found[0]) == [token for token in said if token not in vlm.eos_ids]
    assert found[1] == case.greedy_ids


@pytest.mark.parametrize("name", FAMILIES[1:])  # the small idefics3 ends by another token than its template writes
def test_an_end_token_behind_an_answer_is_where_the_template_writes_one(tiny, copy_of, name):
    """LLaVA's writes none: training is told, and an answer of an end token alone leaves nothing to explain."""
    vlm = load_vlm(with_settings(copy_of(name), sequence_bias=[[[tiny(name).vlm.eos_ids[0]], 1e4]]))
    inspection, said = answer(vlm, prompt_of())
    assert said == [vlm.eos_ids[0]]
    spoken = ask_and_inspect(vlm, prompt_of(Turn("What is it?", "The shape")), GenerationSettings(4))
    assert [finding.rule for finding in lint(vlm, spoken)] == (["no-end-token"] if name == "llava" else [])
    if name == "llava":
        for turn in (None, 1):
            with pytest.raises(InputError, match="no end token"):
                open_case(vlm, inspection, turn)
    else:
        case = open_case(vlm, inspection)
        assert case.answer_ids[0] in vlm.eos_ids
        assert case.text(case.greedy_ids) == ""


def test_what_stays_undone_is_said(copy_of):
    vlm = load_vlm(
        with_settings(copy_of("llava"), num_beams=4, do_sample=True, min_p=0.1, top_k=None, max_new_tokens=77)
    )
    assert not vlm.choice_rules
    (note,) = vlm.notes
    assert "num_beams 4, min_p 0.1, which is not done here" in note
    # What is left out is what transformers draws with.
    assert vlm.generation_defaults == {"max_new_tokens": 77, "temperature": 1.0, "top_k": 50, "top_p": 1.0}


def test_a_checkpoint_that_asks_for_nothing_has_no_rules(tiny, embedded):
    for vlm in (tiny("llava").vlm, embedded):
        assert (bool(vlm.choice_rules), vlm.notes, dict(vlm.generation_defaults)) == (False, (), {})
    logits = torch.randn(2, 5)
    assert ChoiceRules().adjust(logits, [], []) is logits


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"repetition_penalty": 0.0}, "penalty"),
        ({"repetition_penalty": "high"}, "high"),
        ({"no_repeat_ngram_size": -1}, "ngram_size"),
        ({"suppress_tokens": list(range(5000))}, "leaves no token to say"),
        ({"sequence_bias": [[[999_999], 1.0]]}, "can't be applied"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"do_sample": True, "temperature": "warm"}, "temperature is 'warm'"),
    ],
)
def test_settings_that_can_t_be_applied_are_refused(copy_of, values, sentence):
    folder = with_settings(copy_of("llava"), **values)
    with pytest.raises(InputError, match=sentence):
        load_vlm(folder)
