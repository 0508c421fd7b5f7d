"""The stream that a person reads: text in whole characters, the end, the limits."""

import pytest
import torch

from model import Conversation, InputError, Message, load_vlm


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
    with pytest.raises(InputError, match="temperature is -1"):
        list(vlm.generate(prompt, temperature=-1))
    longest = vlm.config.lm_max_position_embeddings
    tokens = torch.full((longest,), plain(vlm, "a")[0])
    full = type(prompt)(
        input_ids=tokens, loss_mask=torch.zeros(longest).bool(), spans=(), images=(),
        attention_mask=torch.ones(longest).bool(), segment_ids=torch.zeros(longest).long(),
    )  # fmt: skip
    with pytest.raises(InputError, match="no answer fits"):
        list(vlm.generate(full, max_new_tokens=1))
