"""Transformers' language models under our tap: read, cut, patched, cached; and nothing of a pass stays behind."""

import copy
import threading

import pytest
import torch
from torch import nn

from inspector.row.embedded_row import read_positions, read_row
from model import ActivationPatch, AttentionReader, Cut, InputError, StateReader, Tap
from model.families.transformers_text import TextModel, forget_hooks
from model.language import KeptKeys
from tests import tiny_checkpoints as made


@pytest.fixture(params=["idefics3", "llava always", "qwen2.5 vl", "qwen3 vl"])
def case(request, tiny):
    """A model, a row of two images and its embeddings."""
    checkpoint = tiny(request.param)
    row = checkpoint.row([made.noise(200, 120), made.noise(64, 64)])
    return checkpoint.vlm, row, made.embeds_of(checkpoint.vlm, row)[None]


def run(case, tap=None, cache=None, visible=None):
    vlm, row, embeds = case
    return vlm.decode(embeds, row.position_ids, made.causal(row) if visible is None else visible, cache, tap)


def test_reading_leaves_the_states_as_they_are(case):
    vlm, row, _ = case
    reader = AttentionReader([3, len(row) - 1], torch.zeros(len(row), dtype=torch.long), 1, weigh_values=True)
    assert torch.equal(run(case, Tap(reader)), run(case))
    assert reader.reading.shares.shape == (vlm.n_layers, vlm.n_heads, 2, 1)
    torch.testing.assert_close(reader.reading.shares, torch.ones_like(reader.reading.shares))


def test_cached_passes_are_one_pass(case):
    vlm, row, _ = case
    parts = made.decode_in_parts(vlm, row, (40, 41, len(row)))
    torch.testing.assert_close(parts, run(case), rtol=0, atol=1e-5)


def test_kept_keys_are_looked_at_and_left_alone(case):
    vlm, row, _ = case
    read = read_row(vlm, row, [torch.cat(vlm.encode(vlm.encoder_inputs(image))) for image in row.images])
    before = read.cache.keys.clone()
    reading = read_positions(vlm, read, [len(row) - 1], torch.zeros(len(row), dtype=torch.long), 1, keep_patterns=True)
    whole = AttentionReader([len(row) - 1], torch.zeros(len(row), dtype=torch.long), 1, keep_patterns=True)
    run(case, Tap(whole))
    torch.testing.assert_close(reading.patterns, whole.reading.patterns, rtol=0, atol=1e-5)
    assert torch.equal(read.cache.keys, before)
    assert KeptKeys(read.cache).length == len(row)


def test_a_cut_edge_is_a_masked_one(case):
    _, row, _ = case
    queries, keys = [len(row) - 1, len(row) - 2], [5, 6, 7]
    visible = made.causal(row)
    visible[..., torch.tensor(queries)[:, None], torch.tensor(keys)] = False
    torch.testing.assert_close(
        run(case, Tap(cuts=(Cut(queries, keys),))), run(case, visible=visible), rtol=0, atol=1e-6
    )
    # In one layer, and in one head of it, it is another change.
    layer = run(case, Tap(cuts=(Cut(queries, keys, layers=frozenset({1})),)))
    head = run(case, Tap(cuts=(Cut(queries, keys, layers=frozenset({1}), heads=frozenset({2})),)))
    assert not torch.equal(layer, head)
    assert torch.equal(layer[:, : len(row) - 2], run(case)[:, : len(row) - 2])


def test_states_are_patched_before_each_layer_and_behind_the_last(case):
    vlm, row, _ = case
    last = len(row) - 1
    for layer in range(vlm.n_layers + 1):
        states = run(case, Tap(patches=(ActivationPatch(layer, [0], [last]),)))
        assert torch.equal(states[:, :last], run(case)[:, :last])
        assert not torch.equal(states[:, last], run(case)[:, last])
    # Behind the last layer the state is what the other's was.
    torch.testing.assert_close(states[:, last], run(case)[:, 0])


def test_nothing_of_a_pass_stays(case):
    plain = run(case)
    run(case, Tap(cuts=(Cut([20], [3]),), patches=(ActivationPatch(1, [4], [9]),)))
    assert torch.equal(run(case), plain)


def test_passes_of_several_threads_keep_apart(case):
    _, row, _ = case
    taps = [None, Tap(cuts=(Cut([len(row) - 1], [5, 6]),)), Tap(patches=(ActivationPatch(1, [4], [len(row) - 1]),))]
    expected = [run(case, tap) for tap in taps]
    assert not torch.equal(expected[0], expected[1])
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(5):
            if not torch.equal(run(case, taps[which]), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(n % 3,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_moved_keys_are_those_of_moved_positions(case):
    vlm, row, _ = case
    made.check_moved_keys(vlm, row)


def test_whoever_watches_is_called_before_every_block(case, tiny):
    vlm, row, _ = case
    copy = vlm.convert(torch.float32)
    called: list[int] = []
    copy.watch(lambda: called.append(1))
    run((copy, row, made.embeds_of(copy, row)[None]))
    assert len(called) >= copy.n_layers + 2  # the encoder's as well
    called.clear()
    run(case)
    assert called == []


def test_copies_are_models_of_their_own(case):
    vlm, row, embeds = case
    half, random = vlm.convert(torch.bfloat16), vlm.redraw(3)
    assert (half.dtype, vlm.dtype) == (torch.bfloat16, torch.float32)
    assert len({vlm.fingerprint, half.fingerprint, random.fingerprint}) == 3
    assert random.redraw(3).fingerprint == random.fingerprint
    states = half.decode(embeds.to(torch.bfloat16), row.position_ids, made.causal(row))
    assert states.isfinite().all()
    torch.testing.assert_close(states.float(), run(case), rtol=0, atol=0.3)


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2"])
def test_sliding_windows_are_the_model_s(kind, tmp_path):
    """Of all layers (Mistral), and of the last two of three (Qwen2): a mask for each kind of layer."""
    more = {"use_sliding_window": True, "max_window_layers": 1} if kind == "Qwen2" else {}
    model, processor = made.build_llava(made.byte_tokenizer(["<image>"]), text=kind, sliding_window=9, **more)
    made.write_checkpoint(model, processor, tmp_path)
    checkpoint = made.Tiny(tmp_path, model, processor)
    images = [made.noise(60, 60), made.noise(60, 90)]
    vlm, row = checkpoint.vlm, checkpoint.row(images)
    assert (vlm.text.window, vlm.text.mixed) == (9, kind == "Qwen2")
    parts = made.decode_in_parts(vlm, row, (30, 31, len(row)))
    with torch.no_grad():
        expected = model(**checkpoint.inputs(images)).logits
    torch.testing.assert_close(vlm.logits(parts), expected, rtol=0, atol=1e-5)


def test_typed_text_never_becomes_a_special_token(tiny):
    for name in ("idefics3", "llava"):
        checkpoint = tiny(name)
        vlm, images = checkpoint.vlm, [made.noise(30, 20)]
        row = checkpoint.row(images, "<image> </s> <end_of_utterance> <row_1_col_1> <|im_end|>")
        plain = checkpoint.row(images, "x")
        special = set(vlm.tokenizer.get_added_vocab().values())
        found = [[token for token in one.input_ids.tolist() if token in special] for one in (row, plain)]
        assert found[0] == found[1]
        (text,) = [span for span in row.spans if span.kind == "text"]
        typed = vlm.decode_text(row.input_ids[text.start : text.stop].tolist())
        assert "<image> </s> <end_of_utterance> <row_1_col_1> <|im_end|>" in typed


def test_a_typed_answer_stands_as_the_model_would_say_it(tiny):
    """These templates write a blank before an answer that is given, and none before one that is to come."""
    checkpoint = tiny("idefics3")
    said = (("user", "What is it?"), ("assistant", "The shape"))
    prompt = checkpoint.row([], "What is it?").input_ids.tolist()
    expected = [*prompt, *checkpoint.vlm.encode_answer("The shape")]
    assert checkpoint.row([], "And this?", said).input_ids[: len(expected)].tolist() == expected
    for name in ("llava", "llava always"):  # whose pieces may reach over words
        vlm = tiny(name).vlm
        assert "".join(vlm.token_text(token) for token in vlm.encode_answer("The shape")) == " The shape"
    vlm = tiny("llava text").vlm
    assert vlm.encode_answer("The shape") == vlm.encode_text("The shape")


def test_states_are_read_where_hidden_states_of_transformers_are(case):
    vlm, row, _ = case
    reader = StateReader(range(len(row)), range(vlm.n_layers))
    assert torch.equal(run(case, Tap(states=reader)), run(case))
    torch.testing.assert_close(vlm.text.norm(reader.states[vlm.n_layers - 1]), run(case)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("part", ["norm", "head", "layer"])
def test_a_model_without_the_ends_that_a_lens_needs_is_refused(tiny, part):
    model = copy.deepcopy(tiny("llava always").vlm.text.model)
    forget_hooks(model)
    head = nn.Linear(model.config.hidden_size + (part == "head"), 8)
    if part == "norm":
        model.norm = nn.LayerNorm(model.config.hidden_size + 1)
    elif part == "layer":
        del model.layers[0].post_attention_layernorm
    with pytest.raises(InputError, match="can't be inspected here"):
        TextModel(model, head)
