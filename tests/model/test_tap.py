"""Reading changes nothing and reads the truth; a cut edge is gone and nothing else is."""

import dataclasses

import pytest
import torch
from PIL import Image

from model import AttentionReader, Batch, ColumnReader, Conversation, Cut, Message, Tap, collate, load_vlm, pack_samples
from model.generate import generate_batch


@pytest.fixture(scope="module")
def vlm(golden):
    return load_vlm(golden / "tiny_vlm")


def picture(width, height, seed):
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def samples(vlm):
    return [
        vlm.prepare(
            Conversation((Message("user", "What is this?", (picture(100, 37, 1),)), Message("assistant", "a cat")))
        ),
        vlm.prepare(Conversation((Message("user", "And?", (picture(64, 64, 2),)), Message("assistant", "no")))),
    ]


@pytest.fixture(scope="module")
def batch(vlm, samples):
    """Two rows; the second has padding on its left."""
    return vlm.collate(samples)


def full_patterns(vlm, batch: Batch) -> torch.Tensor:
    """[layer batch head query key]: every layer's whole softmax(q kᵀ), worked out from the layer's input alone.

    Rotation is done with complex numbers and the mask by position and padding, so nothing of the model's own path is
    used but its weights. Padded query rows are left out (NaN)."""
    config, inputs = vlm.config, []
    hooks = [block.norm1.register_forward_hook(lambda _m, _i, out: inputs.append(out)) for block in vlm.decoder.blocks]
    with torch.no_grad():
        vlm(batch)
    for hook in hooks:
        hook.remove()
    rows, length = batch.input_ids.shape
    half = config.head_dim // 2
    frequencies = config.lm_re_base ** (-torch.arange(half, dtype=torch.float64) / half)
    turns = torch.polar(torch.ones(length, half).double(), torch.outer(torch.arange(length).double(), frequencies))

    def rotated(x, heads):
        x = x.double().view(rows, length, heads, 2, half)
        return torch.view_as_real(torch.complex(x[..., 0, :], x[..., 1, :]) * turns[:, None]).flatten(-2)

    patterns = []
    for block, x in zip(vlm.decoder.blocks, inputs, strict=True):
        q = rotated(block.attn.q_proj(x), config.lm_n_heads)
        k = rotated(block.attn.k_proj(x), config.lm_n_kv_heads)
        k = k.repeat_interleave(config.lm_n_heads // config.lm_n_kv_heads, dim=2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / config.head_dim**0.5
        allowed = torch.ones(length, length).tril().bool() & batch.attention_mask[:, None, None, :]
        patterns.append(scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1))
    return torch.stack(patterns).detach()


def read(vlm, batch, rows, groups, n_groups, cuts=(), batch_row=0):
    reader = AttentionReader(rows, groups, n_groups, keep_patterns=True, batch_row=batch_row)
    with torch.no_grad():
        logits = vlm(batch, tap=Tap(reader, tuple(cuts)))
    return logits, reader.reading


@pytest.mark.parametrize("batch_row", [0, 1])
def test_reading_leaves_the_logits_bit_identical(vlm, batch, batch_row):
    length = batch.input_ids.shape[1]
    groups = torch.arange(length) % 5
    with torch.no_grad():
        plain = vlm(batch)
    logits, _ = read(vlm, batch, range(length), groups, 5, batch_row=batch_row)
    assert torch.equal(logits, plain)
    with torch.no_grad():
        assert torch.equal(vlm(batch, tap=Tap()), plain)


@pytest.mark.parametrize("batch_row", [0, 1])
def test_patterns_are_those_of_a_full_softmax_worked_out_independently(vlm, batch, batch_row):
    length = batch.input_ids.shape[1]
    rows = [length - 1, length - 4, length - 9]  # in the order asked for, not sorted
    _, reading = read(vlm, batch, rows, torch.zeros(length).long(), 1, batch_row=batch_row)
    expected = full_patterns(vlm, batch)[:, batch_row][:, :, rows].float()
    assert reading.patterns.shape == (vlm.config.lm_n_blocks, vlm.config.lm_n_heads, 3, length)
    torch.testing.assert_close(reading.patterns, expected, atol=1e-5, rtol=0)
    assert reading.rows.tolist() == rows


def test_rows_sum_to_one_and_see_neither_the_future_nor_padding(vlm, batch):
    length = batch.input_ids.shape[1]
    padding = int((~batch.attention_mask[1]).sum())
    assert padding > 0
    rows = list(range(padding, length))
    _, reading = read(vlm, batch, rows, torch.arange(length) // 4, -(-length // 4), batch_row=1)
    ones = torch.ones(vlm.config.lm_n_blocks, vlm.config.lm_n_heads, len(rows))
    torch.testing.assert_close(reading.patterns.sum(dim=-1), ones, atol=1e-6, rtol=0)
    torch.testing.assert_close(reading.shares.sum(dim=-1), ones, atol=1e-6, rtol=0)
    assert (reading.patterns[..., :padding] == 0).all()
    for index, row in enumerate(rows):
        assert (reading.patterns[:, :, index, row + 1 :] == 0).all()


def test_shares_are_sums_over_groups_and_ungrouped_keys_are_left_out(vlm, batch):
    length = batch.input_ids.shape[1]
    groups = torch.full((length,), -1)
    groups[3:9], groups[9:12], groups[20] = 0, 2, 2  # group 1 is empty
    _, reading = read(vlm, batch, [length - 1, length - 2], groups, 3)
    expected = torch.stack(
        [
            reading.patterns[..., 3:9].sum(dim=-1),
            torch.zeros(reading.patterns.shape[:3]),
            reading.patterns[..., 9:12].sum(dim=-1) + reading.patterns[..., 20],
        ],
        dim=-1,
    )
    torch.testing.assert_close(reading.shares, expected, atol=1e-6, rtol=0)


def test_a_column_is_the_patterns_other_side_and_leaves_the_pass_as_it_was(vlm, samples):
    batch = vlm.collate(samples[::-1])  # the first row has padding on its left
    padding, length = int((~batch.attention_mask[0]).sum()), batch.input_ids.shape[1]
    assert padding > 0
    keys = [padding + 3, padding + 4, length - 6]
    with torch.no_grad():
        plain = vlm(batch)
        logits = vlm(batch, tap=Tap(column=(column := ColumnReader(keys))))
        cut = Tap(column=(fewer := ColumnReader(keys)), cuts=(Cut((length - 1,), keys[:1]),))
        vlm(batch, tap=cut)
    torch.testing.assert_close(logits, plain, atol=1e-4, rtol=0)
    expected = full_patterns(vlm, batch)[:, 0][..., keys].sum(dim=-1).float()
    rows = list(range(padding, length))
    torch.testing.assert_close(column.shares[..., rows], expected[..., rows], atol=1e-5, rtol=0)
    assert (column.shares[..., padding : padding + 3] == 0).all()
    assert (fewer.shares[0, :, -1] < column.shares[0, :, -1]).all()


def test_patterns_are_kept_only_when_asked_for(vlm, batch):
    length = batch.input_ids.shape[1]
    reader = AttentionReader([length - 1], torch.zeros(length).long(), 1)
    with torch.no_grad():
        vlm(batch, tap=Tap(reader))
    assert reader.reading.patterns is None
    assert reader.reading.shares.shape == (vlm.config.lm_n_blocks, vlm.config.lm_n_heads, 1, 1)


def test_a_reader_that_saw_nothing_says_so():
    with pytest.raises(RuntimeError, match="forward"):
        _ = AttentionReader([0], torch.zeros(1).long(), 1).reading


@pytest.mark.parametrize("cut", [Cut((), ()), Cut((), (1, 2)), Cut((3, 4), ()), Cut((5,), (1,), layers=frozenset())])
def test_an_empty_cut_changes_nothing(vlm, batch, cut):
    with torch.no_grad():
        assert torch.equal(vlm(batch, tap=Tap(cuts=(cut,))), vlm(batch))


def test_a_cut_of_future_edges_changes_nothing(vlm, batch):
    with torch.no_grad():
        assert torch.equal(vlm(batch, tap=Tap(cuts=(Cut((2, 3), (10, 11)),))), vlm(batch))


def test_cutting_a_key_from_everything_after_it_is_masking_it(vlm, samples):
    batch = vlm.collate(samples[:1])
    length = batch.input_ids.shape[1]
    key = 8
    masked = dataclasses.replace(batch, attention_mask=batch.attention_mask.clone())
    masked.attention_mask[0, key] = False
    with torch.no_grad():
        plain = vlm(batch)
        cut = vlm(batch, tap=Tap(cuts=(Cut(range(key + 1, length), (key,)),)))
        expected = vlm(masked)
    torch.testing.assert_close(cut[:, key + 1 :], expected[:, key + 1 :], atol=1e-5, rtol=0)
    assert torch.equal(cut[:, : key + 1], plain[:, : key + 1])
    assert (cut[:, key + 1 :] - plain[:, key + 1 :]).abs().amax(dim=-1).gt(0).all()


def test_cutting_a_whole_image_is_masking_its_tokens(vlm, samples):
    batch = vlm.collate(samples[:1])
    length = batch.input_ids.shape[1]
    keys = [p for span in samples[0].spans if span.kind == "image" for p in range(span.start, span.stop)]
    masked = dataclasses.replace(batch, attention_mask=batch.attention_mask.clone())
    masked.attention_mask[0, keys] = False
    after = range(max(keys) + 1, length)
    outside = [p for p in range(length) if p not in keys]
    with torch.no_grad():
        cut = vlm(batch, tap=Tap(cuts=(Cut(outside, keys),)))
        expected = vlm(masked)
    torch.testing.assert_close(cut[:, list(after)], expected[:, list(after)], atol=1e-5, rtol=0)


def test_a_cut_edge_gets_no_attention_and_the_rest_is_renormalised(vlm, batch):
    length = batch.input_ids.shape[1]
    query, keys = length - 1, [length - 3, length - 6]
    groups = torch.zeros(length).long()
    _, plain = read(vlm, batch, [query], groups, 1)
    _, reading = read(vlm, batch, [query], groups, 1, cuts=(Cut((query,), keys),))
    assert (reading.patterns[..., keys] == 0).all()
    # Layer 0 sees the same input either way: what is left is scaled up to sum to one.
    left = plain.patterns[0].clone()
    left[..., keys] = 0
    expected = left / left.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(reading.patterns[0], expected, atol=1e-6, rtol=0)


def test_a_cut_keeps_to_its_layers_heads_and_row(vlm, batch):
    length = batch.input_ids.shape[1]
    query, key = length - 1, length - 3
    groups = torch.zeros(length).long()
    cut = Cut((query,), (key,), layers=frozenset({1}), heads=frozenset({0, 4}), row=0)
    _, reading = read(vlm, batch, [query], groups, 1, cuts=(cut,))
    shares = reading.patterns[:, :, 0, key]
    assert (shares[1, [0, 4]] == 0).all()
    assert (shares[1, [1, 2, 3, 5]] > 0).all()
    assert (shares[[0, 2]] > 0).all()
    with torch.no_grad():
        plain, cut_logits = vlm(batch), vlm(batch, tap=Tap(cuts=(cut,)))
    assert torch.equal(cut_logits[1], plain[1])
    assert torch.equal(cut_logits[0, :query], plain[0, :query])
    assert not torch.equal(cut_logits[0, query], plain[0, query])


def test_two_cuts_are_both_made(vlm, batch):
    length = batch.input_ids.shape[1]
    query = length - 1
    one, two = Cut((query,), (length - 3,)), Cut((query,), (length - 5,), heads=frozenset({2}))
    groups = torch.zeros(length).long()
    _, reading = read(vlm, batch, [query], groups, 1, cuts=(one, two))
    assert (reading.patterns[:, :, 0, length - 3] == 0).all()
    assert (reading.patterns[:, 2, 0, length - 5] == 0).all()
    assert (reading.patterns[:, [0, 1, 3, 4, 5], 0, length - 5] > 0).all()


def test_a_row_may_not_be_left_with_nothing(vlm, batch):
    with pytest.raises(ValueError, match="own position"):
        vlm(batch, tap=Tap(cuts=(Cut((4,), range(5), row=0),)))


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_cut_holds_for_what_is_generated_too(vlm, samples, use_cache):
    """Positions that don't exist yet may be named; each step cuts what it has."""
    batch = vlm.collate(samples[:1])
    length = batch.input_ids.shape[1]
    keys = [p for span in samples[0].spans if span.kind == "image" for p in range(span.start, span.stop)]
    outside = [p for p in range(length + 8) if p not in keys]
    masked = dataclasses.replace(batch, attention_mask=batch.attention_mask.clone())
    masked.attention_mask[0, keys] = False
    expected = [int(ids[0]) for ids, _ in generate_batch(vlm, masked, max_new_tokens=8)]
    assert expected != [int(ids[0]) for ids, _ in generate_batch(vlm, batch, max_new_tokens=8)]
    cut = Tap(cuts=(Cut(outside, keys),))
    steps = generate_batch(vlm, batch, max_new_tokens=8, use_cache=use_cache, tap=cut)
    assert [int(ids[0]) for ids, _ in steps] == expected


def test_document_mask_makes_packed_samples_strangers(vlm, samples):
    packed = pack_samples(samples, pad_token_id=vlm.pad_token_id)
    apart = collate([packed], pad_token_id=vlm.pad_token_id, document_mask=True)
    together = collate([packed], pad_token_id=vlm.pad_token_id)
    with torch.no_grad():
        alone = [vlm(vlm.collate([sample]))[0] for sample in samples]
        kept_apart, leaking = vlm(apart)[0], vlm(together)[0]
    first, second = slice(0, len(samples[0])), slice(len(samples[0]) + 1, len(packed) - 1)
    torch.testing.assert_close(kept_apart[first], alone[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(kept_apart[second], alone[1], atol=2e-4, rtol=0)
    # Upstream has no barrier: the second sample sees the first.
    torch.testing.assert_close(leaking[first], alone[0], atol=2e-4, rtol=0)
    assert (leaking[second] - alone[1]).abs().max() > 0.1
    assert kept_apart.isfinite().all()


def test_document_mask_with_padding_in_front(vlm, samples):
    packed = pack_samples(samples, pad_token_id=vlm.pad_token_id)
    width = len(packed) + 7
    batch = collate([packed], pad_token_id=vlm.pad_token_id, max_length=width, document_mask=True)
    with torch.no_grad():
        logits = vlm(batch)[0]
        alone = vlm(vlm.collate([samples[1]]))[0]
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[width - 1 - len(samples[1]) : width - 1], alone, atol=2e-4, rtol=0)


def test_one_tap_on_two_batches_of_one_shape_follows_each_batchs_own_mask(vlm, samples):
    """The second batch hides a key that the first one shows; an edited mask must not outlive its pass."""
    batch = vlm.collate(samples[:1])
    hidden = dataclasses.replace(batch, attention_mask=batch.attention_mask.clone())
    hidden.attention_mask[0, 8] = False
    tap = Tap(cuts=(Cut(range(20, batch.input_ids.shape[1]), (5,)),))
    with torch.no_grad():
        first = vlm(batch, tap=tap)
        assert torch.equal(vlm(hidden, tap=tap), vlm(hidden, tap=Tap(cuts=tap.cuts)))
        assert torch.equal(vlm(batch, tap=tap), first)
    assert len(tap._masks) == 1
