"""The network against nanoVLM's own numbers: hidden states, logits, loss, answers, gradients, training steps."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from model import Batch, Conversation, Message, collate, load_vlm
from model.generate import filter_logits, generate_batch
from model.layers import RotaryEmbedding

LOGITS = {"atol": 2e-4, "rtol": 0}
LOSS = {"rel": 1e-5}


@pytest.fixture(scope="module")
def tiny(golden):
    return load_vlm(golden / "tiny_vlm")


@pytest.fixture(scope="module")
def numbers(golden):
    return load_file(golden / "tiny_vlm" / "golden.safetensors")


@pytest.fixture(scope="module")
def facts(golden):
    return json.loads((golden / "tiny_vlm" / "golden.json").read_text())


def make_batch(input_ids, attention_mask, tiles, tiles_per_row, shifted_labels=None) -> Batch:
    """Upstream's dictionaries as our batch. Its labels come shifted by one; ours lie on the token itself."""
    labels = torch.full_like(input_ids, -100)
    if shifted_labels is not None:
        labels[:, 1:] = shifted_labels[:, :-1]
    owner = [row for row, count in enumerate(tiles_per_row) for _ in range(count)]
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask.bool(),
        labels=labels,
        position_ids=torch.arange(input_ids.shape[1]).expand(input_ids.shape),
        segment_ids=attention_mask.long() - 1,
        tiles=tiles,
        tile_owner=torch.tensor(owner, dtype=torch.long),
    )


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch, with their tiles."""
    tiles = torch.cat([batch.tiles[batch.tile_owner == row] for row in rows])
    owner = [n for n, row in enumerate(rows) for _ in range(int((batch.tile_owner == row).sum()))]
    parts = {
        name: getattr(batch, name)[rows]
        for name in ("input_ids", "attention_mask", "labels", "position_ids", "segment_ids")
    }
    return Batch(**parts, tiles=tiles, tile_owner=torch.tensor(owner, dtype=torch.long))


def unpadded(batch: Batch) -> Batch:
    """One row without the padding on its left."""
    start = int((~batch.attention_mask[0]).sum())
    names = ("input_ids", "attention_mask", "labels", "segment_ids")
    parts = {name: getattr(batch, name)[:, start:] for name in names}
    return dataclasses.replace(batch, **parts, position_ids=torch.arange(parts["input_ids"].shape[1])[None])


@pytest.fixture(scope="module")
def batch(numbers, facts):
    tiles_per_row = [sum(images) for images in facts["tiles_per_sample"]]
    return make_batch(
        numbers["batch.input_ids"],
        numbers["batch.attention_mask"],
        numbers["batch.images"],
        tiles_per_row,
        numbers["batch.labels"],
    )


@pytest.fixture(scope="module")
def prompts(numbers, facts):
    tiles_per_row = [sum(images) for images in facts["gen_tiles_per_sample"]]
    return make_batch(numbers["gen.input_ids"], numbers["gen.attention_mask"], numbers["batch.images"], tiles_per_row)


def test_hidden_states_of_every_part(tiny, batch, numbers):
    seen = {}
    modules = {
        "fwd.vit.patch_embedding": tiny.vision_encoder.patch_embedding,
        "fwd.vit.block0": tiny.vision_encoder.blocks[0],
        "fwd.vit.block1": tiny.vision_encoder.blocks[1],
        "fwd.vit.out": tiny.vision_encoder,
        "fwd.mp.out": tiny.MP,
        "fwd.lm.block0": tiny.decoder.blocks[0],
        "fwd.lm.block2": tiny.decoder.blocks[2],
        "fwd.lm.hidden": tiny.decoder,
    }
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        seen["fwd.lm.input_embeds"] = tiny.embed(batch)
        logits = tiny(batch)
    for hook in hooks:
        hook.remove()
    for name, value in seen.items():
        torch.testing.assert_close(value, numbers[name], **LOGITS, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(logits[..., ::8], numbers["fwd.logits_every8th"], **LOGITS)


def test_losses(tiny, batch, facts):
    with torch.no_grad():
        assert tiny.loss(batch).item() == pytest.approx(facts["loss_masked"], **LOSS)
        assert tiny.loss(rows_of(batch, [2])).item() == pytest.approx(facts["loss_text_only_sample2"], **LOSS)
        unmasked = dataclasses.replace(batch, attention_mask=torch.ones_like(batch.attention_mask))
        assert tiny.loss(unmasked).item() == pytest.approx(facts["loss_no_attention_mask"], **LOSS)


def test_logits_without_a_mask(tiny, batch, numbers):
    unmasked = dataclasses.replace(batch, attention_mask=torch.ones_like(batch.attention_mask))
    with torch.no_grad():
        torch.testing.assert_close(tiny(unmasked)[:, -1], numbers["fwd_nomask.logits_last"], **LOGITS)


def test_the_loss_is_shifted_exactly_once(tiny, batch):
    with torch.no_grad():
        logits = tiny(batch)
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
        assert tiny.loss(batch).item() == pytest.approx(losses.item(), rel=1e-6)


def generated(vlm, batch, **settings) -> torch.Tensor:
    """[row new]; rows are filled with the end token once the generator stops early, as upstream writes them."""
    steps = [ids for ids, _ in generate_batch(vlm, batch, max_new_tokens=24, **settings)]
    ids = torch.stack(steps, dim=1)
    eos = settings.get("eos_token_id") or vlm.eos_token_id
    return F.pad(ids, (0, 24 - ids.shape[1]), value=eos)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_answers(tiny, prompts, numbers, use_cache):
    expected = numbers["gen.greedy_ids" if use_cache else "gen.greedy_ids_nocache"]
    assert torch.equal(generated(tiny, prompts, use_cache=use_cache), expected)


def test_greedy_answers_of_each_sample_alone_and_unpadded(tiny, prompts, numbers):
    for row in range(4):
        alone = unpadded(rows_of(prompts, [row]))
        assert torch.equal(generated(tiny, alone)[0], numbers["gen.greedy_ids_single_nomask"][row]), row


def test_padding_without_a_mask_does_change_the_answer(tiny, prompts, numbers):
    unmasked = dataclasses.replace(prompts, attention_mask=torch.ones_like(prompts.attention_mask))
    assert torch.equal(generated(tiny, unmasked), numbers["gen.greedy_ids_batch_nomask"])


def test_sampling_draws_what_upstream_draws(tiny, prompts, numbers):
    ids = generated(tiny, prompts, temperature=0.5, top_k=50, top_p=0.9, seed=123)
    assert torch.equal(ids, numbers["gen.sampled_ids_seed123"])
    assert torch.equal(ids, generated(tiny, prompts, temperature=0.5, top_k=50, top_p=0.9, seed=123))
    assert not torch.equal(ids, generated(tiny, prompts, temperature=0.5, top_k=50, top_p=0.9, seed=124))


def test_after_the_end_token_a_row_says_nothing_more(tiny, prompts, numbers, facts):
    ids = generated(tiny, prompts, eos_token_id=facts["fake_eos_id"])
    assert torch.equal(ids, numbers["gen.greedy_ids_fake_eos"])


def test_no_step_is_run_after_the_last_row_has_ended(tiny, prompts, numbers):
    """Row 0's second token is made the end token: two tokens come, and the network runs twice."""
    row = numbers["gen.greedy_ids"][0].tolist()
    end = row[1]
    assert end != row[0]
    runs = []
    hook = tiny.decoder.register_forward_hook(lambda *_: runs.append(1))
    steps = list(generate_batch(tiny, rows_of(prompts, [0]), max_new_tokens=24, eos_token_id=end))
    hook.remove()
    assert [int(ids[0]) for ids, _ in steps] == row[:2]
    assert len(runs) == 2


def test_no_wasted_step_at_the_token_limit(tiny, prompts):
    runs = []
    hook = tiny.decoder.register_forward_hook(lambda *_: runs.append(1))
    assert len(list(generate_batch(tiny, prompts, max_new_tokens=4))) == 4
    assert len(runs) == 4
    assert list(generate_batch(tiny, prompts, max_new_tokens=0)) == []
    hook.remove()
    assert len(runs) == 4


def test_logprobs_are_those_of_a_forward_pass(tiny, prompts):
    """Log-probabilities come from the untempered, unfiltered distribution, whatever is sampled."""
    row = unpadded(rows_of(prompts, [2]))
    steps = list(generate_batch(tiny, row, max_new_tokens=6, temperature=0.8, top_k=20, seed=5))
    ids = torch.tensor([[int(token) for token, _ in steps]])
    whole = make_batch(
        torch.cat((row.input_ids, ids), dim=1), torch.ones(1, row.input_ids.shape[1] + 6), row.tiles, [0]
    )
    with torch.no_grad():
        logprobs = tiny(whole).log_softmax(dim=-1)[0, -7:-1]
    expected = logprobs.gather(-1, ids[0][:, None])[:, 0]
    torch.testing.assert_close(torch.stack([value[0] for _, value in steps]), expected, atol=1e-4, rtol=0)


def test_gradients_and_five_steps(golden):
    vlm = load_vlm(golden / "tiny_vlm").train()
    numbers = load_file(golden / "tiny_vlm" / "golden.safetensors")
    facts = json.loads((golden / "tiny_vlm" / "golden.json").read_text())
    expected = load_file(golden / "tiny_vlm" / "train_fp32.safetensors")
    log = json.loads((golden / "tiny_vlm" / "train.json").read_text())["fp32_accum1_5steps_max100"]["log"]
    batch = make_batch(
        numbers["batch.input_ids"],
        numbers["batch.attention_mask"],
        numbers["batch.images"],
        [sum(images) for images in facts["tiles_per_sample"]],
        numbers["batch.labels"],
    )

    def sampled(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().flatten()[::16] if tensor.numel() > 2048 else tensor.detach().flatten()

    named = dict(vlm.named_parameters())
    golden_names = {name.removeprefix("grad.") for name in expected if name.startswith("grad.")}
    # The tied matrix has two names and one gradient.
    assert {name.replace("token_embedding", "head") for name in named} == {
        name.replace("token_embedding", "head") for name in golden_names
    }
    groups = [vlm.MP.parameters(), vlm.vision_encoder.parameters(), vlm.decoder.parameters()]
    optimiser = torch.optim.AdamW([{"params": list(group), "lr": 0.0} for group in groups])
    for step, entry in enumerate(log):
        for group, rate in zip(optimiser.param_groups, entry["lrs"], strict=True):
            group["lr"] = rate
        loss = vlm.loss(batch)
        assert loss.item() == pytest.approx(entry["loss"], rel=1e-4 if step else 1e-5)
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            for name, parameter in named.items():
                want = expected.get(f"grad.{name}", expected.get(f"grad.{name.replace('token_embedding', 'head')}"))
                scale = want.abs().max().item()
                torch.testing.assert_close(sampled(parameter.grad), want, atol=1e-4 * max(scale, 1e-3), rtol=1e-3)
        norm = torch.nn.utils.clip_grad_norm_(vlm.parameters(), 1.0)
        assert norm.item() == pytest.approx(entry["grad_norm"], rel=1e-3)
        optimiser.step()
    for name, parameter in named.items():
        want = expected.get(
            f"param_after.{name}", expected.get(f"param_after.{name.replace('token_embedding', 'head')}")
        )
        # One AdamW step moves a weight by about its rate whatever the gradient: where the gradient is nearly
        # nothing, its sign is chance. So: tight almost everywhere, and nowhere further than five steps can go.
        difference = (sampled(parameter) - want).abs()
        assert difference.quantile(0.99) < 5e-5, name
        assert difference.max() < 0.04, name


def test_rotary_tables_beyond_the_trained_length(golden):
    expected = load_file(golden / "tiny_vlm" / "rope_beyond_max.safetensors")
    rope = RotaryEmbedding(head_dim=16, base=100000, max_positions=60)
    for length in (59, 60, 61, 120):
        cos, sin = rope(torch.arange(length)[None])
        torch.testing.assert_close(cos, expected[f"rope.cos_{length}"], atol=1e-6, rtol=0)
        torch.testing.assert_close(sin, expected[f"rope.sin_{length}"], atol=1e-6, rtol=0)
    cos, sin = rope(torch.tensor([[75]]))
    torch.testing.assert_close(cos, expected["rope.cos_pos75_alone"], atol=1e-6, rtol=0)
    torch.testing.assert_close(sin, expected["rope.sin_pos75_alone"], atol=1e-6, rtol=0)


def test_generation_ends_at_the_models_length(golden, tmp_path):
    """Upstream goes on and its cached keys stop fitting (its two answers part at token 54); ours stops at 60."""
    expected = load_file(golden / "tiny_vlm" / "rope_beyond_max.safetensors")
    folder = tmp_path / "short"
    folder.mkdir()
    values = json.loads((golden / "tiny_vlm" / "config.json").read_text()) | {"lm_max_position_embeddings": 60}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").write_bytes((golden / "tiny_vlm" / "model.safetensors").read_bytes())
    vlm = load_vlm(folder, tokenizer=golden / "tiny_tokenizer")
    ids = expected["rope.short_ids"]
    batch = make_batch(ids, torch.ones_like(ids), torch.zeros(0, 3, 64, 64), [0])
    for use_cache in (True, False):
        steps = [int(token[0]) for token, _ in generate_batch(vlm, batch, max_new_tokens=60, use_cache=use_cache)]
        assert len(steps) == 60 - 22
        assert steps == expected["rope.greedy_cached"][0, :38].tolist()
        assert steps == expected["rope.greedy_nocache"][0, :38].tolist()
    # A single pass may be longer; all of it is on one scale then.
    longer = torch.cat((ids, expected["rope.greedy_nocache"][:, :59]), dim=1)
    batch = make_batch(longer, torch.ones_like(longer), torch.zeros(0, 3, 64, 64), [0])
    with torch.no_grad():
        assert int(vlm(batch)[0, -1].argmax()) == int(expected["rope.greedy_nocache"][0, 59])


def test_image_tokens_and_features_must_agree(tiny, batch):
    from model import InputError

    with pytest.raises(InputError, match=r"40 .* 9 .* 36 "):
        tiny(dataclasses.replace(batch, tiles=batch.tiles[:-1]))


def test_a_batch_without_labels_is_refused_where_upstream_gives_nan(tiny, batch):
    from model import InputError

    with pytest.raises(InputError, match="label"):
        tiny.loss(dataclasses.replace(batch, labels=torch.full_like(batch.labels, -100)))


def test_filters(golden):
    cases = load_file(golden / "top_k_top_p.safetensors")
    logits = cases.pop("logits")
    assert len(cases) == 9
    for name, expected in cases.items():
        k, p = name.removeprefix("k").split("_p")
        assert torch.equal(filter_logits(logits, int(k), float(p)), expected), name


def test_no_filter_changes_nothing():
    logits = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(filter_logits(logits), logits)
    assert torch.equal(filter_logits(logits, top_k=0, top_p=1.0), logits)


@pytest.fixture(scope="module")
def legacy(golden):
    return load_vlm(golden / "legacy_v01")


@pytest.fixture(scope="module")
def legacy_numbers(golden):
    return load_file(golden / "legacy_v01" / "golden.safetensors")


def legacy_batch(vlm, numbers) -> Batch:
    """v0.1 puts the image's features before the padded text; here they get positions of their own."""
    ids, mask = numbers["batch.input_ids"], numbers["batch.attention_mask"]
    front = vlm.config.tokens_per_tile
    ids = F.pad(ids, (front, 0), value=vlm.image_token_id)
    labels = F.pad(numbers["batch.labels"], (front, 0), value=-100)
    return make_batch(ids, F.pad(mask, (front, 0), value=1), numbers["batch.image"], [1, 1, 1], labels)


def test_legacy_hidden_states_logits_and_loss(golden, legacy, legacy_numbers):
    assert legacy.config.generation == "v0.1"
    batch = legacy_batch(legacy, legacy_numbers)
    with torch.no_grad():
        hidden = legacy.hidden(batch)
        torch.testing.assert_close(hidden, legacy_numbers["fwd.hidden_img_plus_text"], **LOGITS)
        logits = legacy(batch)[:, 4:, ::8]
        torch.testing.assert_close(logits, legacy_numbers["fwd.text_logits_every8th"], **LOGITS)
        facts = json.loads((golden / "legacy_v01" / "golden.json").read_text())
        assert legacy.loss(batch).item() == pytest.approx(facts["loss"], **LOSS)


def test_legacy_prompt_and_answer(legacy, legacy_numbers):
    ids = legacy_numbers["prompt.input_ids"]
    batch = make_batch(
        F.pad(ids, (4, 0), value=legacy.image_token_id),
        torch.ones(1, ids.shape[1] + 4),
        legacy_numbers["batch.image"][:1],
        [1],
    )
    with torch.no_grad():
        torch.testing.assert_close(legacy(batch)[:, -1], legacy_numbers["prompt.last_logits"], **LOGITS)
    steps = [int(token[0]) for token, _ in generate_batch(legacy, batch, max_new_tokens=12)]
    assert steps == legacy_numbers["prompt.greedy_ids"][0, : len(steps)].tolist()
    assert len(steps) == 12 or steps[-1] == legacy.eos_token_id


def test_legacy_rows_are_rendered_as_upstream_did(golden, legacy, legacy_numbers):
    from PIL import Image

    texts = json.loads((golden / "legacy_v01" / "golden.json").read_text())["texts"]
    for row, (prompt, answer) in enumerate(texts[:2]):  # the third was cut by upstream's collator
        question = prompt.removeprefix("Question: ").removesuffix(" Answer:")
        messages = (
            Message("user", question, (Image.new("RGB", (64, 64)),)),
            Message("assistant", answer.removesuffix("<|endoftext|>")),
        )
        sample = legacy.prepare(Conversation(messages))
        mask = legacy_numbers["batch.attention_mask"][row].bool()
        ids = legacy_numbers["batch.input_ids"][row][mask].tolist()
        assert sample.input_ids.tolist() == [legacy.image_token_id] * 4 + ids, row
        batch = collate([sample], pad_token_id=legacy.pad_token_id)
        labels = legacy_numbers["batch.labels"][row][mask]
        assert batch.labels[0, 5:].tolist() == labels[:-1].tolist()
