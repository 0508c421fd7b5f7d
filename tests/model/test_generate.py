"""The stream that a person reads: text in whole characters, the end, the limits."""

import pytest
import torch

from model import Conversation, InputError, Message, load_vlm
from model.generate import temper


@pytest.fixture(scope="module")
def vlm(golden):
    return load_vlm(golden / "tiny_vlm")


@pytest.fixture(scope="module")
def prompt(vlm):
    return vlm.prepare(Conversation((Message("user", "hi"),)), add_generation_prompt=True)


def speaking(vlm, monkeypatch, ids):
    """Makes the model say exactly these tokens."""
    left = iter(ids)

    def head(hidden):
        logits = torch.zeros(*hidden.shape[:-1], vlm.config.lm_vocab_size)
        logits[..., next(left)] = 20.0
        return logits

    monkeypatch.setattr(vlm.decoder.head, "forward", head)


def plain(vlm, text):
    return vlm.tokenizer.encode(text, add_special_tokens=False)


def test_text_comes_in_whole_characters(vlm, prompt, monkeypatch):
    ids = plain(vlm, "é 日本 x")
    assert len(ids) > len("é 日本 x")  # several tokens make one character
    speaking(vlm, monkeypatch, [*ids, vlm.eos_token_id])
    steps = list(vlm.generate(prompt, max_new_tokens=50))
    assert [step.token_id for step in steps] == [*ids, vlm.eos_token_id]
    assert "".join(step.text for step in steps) == "é 日本 x"
    assert all("\ufffd" not in step.text for step in steps)
    assert steps[-1].text == ""


def test_it_stops_at_the_end_token_and_at_the_limit(vlm, prompt, monkeypatch):
    word = plain(vlm, "a")[0]
    speaking(vlm, monkeypatch, [word, vlm.eos_token_id])
    assert [step.token_id for step in vlm.generate(prompt, max_new_tokens=50)] == [word, vlm.eos_token_id]
    speaking(vlm, monkeypatch, [word] * 3)
    assert [step.token_id for step in vlm.generate(prompt, max_new_tokens=3)] == [word] * 3


def test_it_streams(vlm, prompt, monkeypatch):
    """Each step comes before the next is worked out: here there is no second one to work out."""
    speaking(vlm, monkeypatch, [plain(vlm, "a")[0]])
    assert next(vlm.generate(prompt, max_new_tokens=50)).text == "a"


def test_log_probability_of_a_sure_token(vlm, prompt, monkeypatch):
    speaking(vlm, monkeypatch, [plain(vlm, "a")[0]])
    expected = -torch.log1p((vlm.config.lm_vocab_size - 1) * torch.exp(torch.tensor(-20.0)))
    assert next(vlm.generate(prompt, max_new_tokens=1)).logprob == pytest.approx(expected.item(), abs=1e-6)


def test_a_seed_repeats_and_the_global_generator_is_left_alone(vlm, prompt):
    state = torch.random.get_rng_state()
    runs = [
        [step.token_id for step in vlm.generate(prompt, max_new_tokens=12, temperature=1.0, seed=seed)]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_top_k_one_is_greedy(vlm, prompt):
    greedy = [step.token_id for step in vlm.generate(prompt, max_new_tokens=8)]
    assert [s.token_id for s in vlm.generate(prompt, max_new_tokens=8, temperature=3.0, top_k=1, seed=0)] == greedy


def test_wrong_settings_and_full_prompts(vlm, prompt):
    with pytest.raises(InputError, match=r"temperature.*-1"):
        list(vlm.generate(prompt, temperature=-1))
    longest = vlm.config.lm_max_position_embeddings
    tokens = torch.full((longest,), plain(vlm, "a")[0])
    full = type(prompt)(
        input_ids=tokens,
        loss_mask=torch.zeros(longest).bool(),
        spans=(),
        images=(),
        attention_mask=torch.ones(longest).bool(),
        segment_ids=torch.zeros(longest).long(),
    )
    with pytest.raises(InputError, match="fits"):
        list(vlm.generate(full, max_new_tokens=1))


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45, 1e-300, 5e-324])
def test_the_smallest_temperatures_are_greedy(vlm, prompt, temperature):
    greedy = [step.token_id for step in vlm.generate(prompt, max_new_tokens=6)]
    found = list(vlm.generate(prompt, max_new_tokens=6, temperature=temperature, top_k=50, seed=3))
    assert [step.token_id for step in found] == greedy
    assert all(torch.isfinite(torch.tensor(step.logprob)) for step in found)


def test_the_largest_temperature_draws_evenly(vlm, prompt):
    logits = torch.tensor([[-3.0, 0.0, 80.0, -torch.inf]])
    assert temper(logits, 1e300).tolist() == [[pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(1 / 3), 0.0]]
    assert len(list(vlm.generate(prompt, max_new_tokens=2, temperature=1e300, seed=0))) == 2


def test_two_that_tie_stay_even_at_any_temperature():
    logits = torch.tensor([[-5.0, -2.0, -2.0], [0.0, 0.0, 0.0]])
    for temperature in (1e-3, 1e-40, 1e-300):
        assert temper(logits, temperature).tolist() == [[0.0, 0.5, 0.5], [pytest.approx(1 / 3)] * 3]


def test_usual_temperatures_are_plain_division():
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)) * 10
    for temperature in (0.05, 0.7, 1.0, 2.0, 5.0):
        assert torch.equal(temper(logits, temperature), (logits / temperature).softmax(dim=-1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": float("nan")}, "temperature.*nan"),
        ({"temperature": float("inf")}, "temperature.*inf"),
        ({"temperature": -1}, "temperature.*-1"),
        ({"temperature": "0.5"}, r"temperature.*'0\.5'"),
        ({"temperature": True}, "temperature.*True"),
        ({"temperature": 10**400}, "temperature.*1329"),
        ({"top_k": -1}, "top-k.*-1"),
        ({"top_k": 2.5}, r"top-k.*2\.5"),
        ({"top_k": True}, "top-k.*True"),
        ({"top_p": float("nan")}, "top-p.*nan"),
        ({"top_p": 1.5}, r"top-p.*1\.5"),
        ({"seed": 2**64}, "seed.*18446744073709551616"),
        ({"seed": -1}, "seed.*-1"),
        ({"seed": 1.5}, r"seed.*1\.5"),
        ({"seed": 10**5000}, "seed.*16610"),
        ({"max_new_tokens": 2.0}, r"2\.0 tokens"),
        ({"max_new_tokens": "5"}, "'5' tokens"),
        ({"max_new_tokens": True}, "True tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_that_nothing_can_be_drawn_with(vlm, prompt, options, words):
    with pytest.raises(InputError, match=words):
        next(vlm.generate(prompt, **{"max_new_tokens": 3, "temperature": 0.5, **options}))


def test_the_largest_numbers_that_can_be_used(vlm, prompt):
    options = {"temperature": 1.0, "top_k": 10**30, "top_p": 1, "seed": 2**64 - 1}
    assert len(list(vlm.generate(prompt, max_new_tokens=3, **options))) == 3
    plain = [step.token_id for step in vlm.generate(prompt, max_new_tokens=3, temperature=1.0, seed=2**64 - 1)]
    assert [step.token_id for step in vlm.generate(prompt, max_new_tokens=3, **options)] == plain


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_model_whose_output_is_no_number_says_so(vlm, prompt, monkeypatch, value, temperature):
    def head(hidden):
        logits = torch.zeros(*hidden.shape[:-1], vlm.config.lm_vocab_size)
        logits[..., 7] = value
        return logits

    monkeypatch.setattr(vlm.decoder.head, "forward", head)
    with pytest.raises(InputError, match="finite"):
        next(vlm.generate(prompt, max_new_tokens=3, temperature=temperature))
