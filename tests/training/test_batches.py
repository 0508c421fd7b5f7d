"""Rows of a step: features kept, packs, what is dropped; micro-batches that add up to one batch."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model import Conversation, InputError, Message, load_vlm
from model.collator import collate
from model.packing import pack_samples
from model.training.batches import FeatureCache, RowMaker, count_patches, split_rows, with_features
from model.training.data.datasets import Mixture
from model.training.data.example import Example
from model.training.stages import LanguageLoss, count_labels, count_row_labels
from model.training.synthetic.scene_sets import read_scene_set


@pytest.fixture(scope="module")
def tiny(golden):
    return load_vlm(golden / "tiny_vlm")


@pytest.fixture(scope="module")
def scenes():
    return read_scene_set({"source": "scenes", "set": "single", "count": 30, "turns": 2, "pictures": 8})


@pytest.fixture(scope="module")
def samples(tiny, scenes):
    return [tiny.prepare(scenes[n].conversation) for n in range(4)]


def test_kept_features_give_the_very_same_loss(tiny, samples):
    batch = tiny.collate(samples)
    cache = FeatureCache(tiny)
    fresh, kept = with_features(batch, cache), with_features(batch, cache)
    assert torch.equal(fresh.features, kept.features)
    with torch.no_grad():
        assert tiny.loss(kept).item() == tiny.loss(batch).item()
    assert with_features(batch, None) is batch


def test_features_are_kept_in_the_precision_that_they_are_computed_in(tiny, samples):
    batch, cache = tiny.collate(samples), FeatureCache(tiny)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        kept = with_features(batch, cache)
        assert kept.features.dtype == torch.bfloat16
        assert tiny.loss(kept).item() == tiny.loss(batch).item()
    assert with_features(batch, FeatureCache(tiny)).features.dtype == torch.float32


def test_the_cache_forgets_what_was_used_least(tiny, samples):
    tiles = torch.cat([image.tiles for sample in samples for image in sample.images]).unique(dim=0)[:3]
    one = FeatureCache(tiny)
    size = one.features(tiles[:1]).nbytes
    cache = FeatureCache(tiny, max_bytes=2 * size)
    calls = []
    hook = tiny.vision_encoder.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    for n in (0, 1, 0, 2, 0, 1):  # 1 is the oldest when 2 comes
        cache.features(tiles[n : n + 1])
    hook.remove()
    assert calls == [1, 1, 1, 1]
    assert cache._bytes == 2 * size


def test_features_are_kept_without_dropout(golden, samples):
    vlm = load_vlm(golden / "tiny_vlm")
    vlm.vision_encoder.dropout = 0.5
    tiles = samples[0].images[0].tiles
    expected = FeatureCache(vlm.eval()).features(tiles)
    assert torch.equal(FeatureCache(vlm.train()).features(tiles), expected)


def summed_loss(vlm, rows, **options):
    with torch.no_grad():
        return LanguageLoss(vlm)(vlm.collate(rows, **options)).item()


def test_a_packed_row_with_the_document_mask_is_its_samples_alone(tiny, samples):
    row = pack_samples(samples, tiny.pad_token_id)
    alone = sum(summed_loss(tiny, [sample]) for sample in samples)
    assert summed_loss(tiny, [row], document_mask=True) == pytest.approx(alone, rel=1e-5)
    assert abs(summed_loss(tiny, [row]) - alone) > 1e-3 * alone


class Shapes(TorchDispatchMode):
    """Remembers the shape of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.seen.add(tuple(tensor.shape))
        return made


@pytest.mark.parametrize("apart", [True, False], ids=["packed", "padded"])
def test_training_makes_no_tensor_of_positions_by_positions(tiny, samples, apart):
    """Forward and backward, of rows that are packed, and of one that is padded beside one that is not."""
    rows = [pack_samples(samples, tiny.pad_token_id)] if apart else samples[:2]
    batch = tiny.collate(rows, document_mask=apart)
    square = (batch.input_ids.shape[1],) * 2
    with Shapes() as shapes:
        tiny.loss(batch).backward()
    assert not {shape for shape in shapes.seen if shape[-2:] == square}
    tiny.zero_grad()
    with Shapes() as shapes, torch.no_grad():
        tiny.hidden(batch)
    assert (len(rows), 1, *square) in shapes.seen


def test_only_labels_count(tiny, samples):
    """The loss is the mean over the positions before a label, and nothing else of the logits matters."""
    batch = tiny.collate(samples)
    with torch.no_grad():
        logprobs = tiny(batch)[:, :-1].log_softmax(dim=-1)
    targets = batch.labels[:, 1:]
    trained = targets != -100
    expected = -logprobs[trained].gather(1, targets[trained][:, None]).sum()
    assert count_labels(batch) == int(trained.sum()) == sum(int(s.loss_mask[1:].sum()) for s in samples)
    assert summed_loss(tiny, samples) == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_without_labels_costs_nothing_and_has_gradients(golden, samples):
    vlm = load_vlm(golden / "tiny_vlm")
    bare = [dataclasses.replace(s, loss_mask=torch.zeros_like(s.loss_mask)) for s in samples]
    loss = LanguageLoss(vlm)(collate(bare, pad_token_id=vlm.pad_token_id))
    loss.backward()
    assert loss.item() == 0
    assert vlm.MP.proj.weight.grad.abs().max() == 0


def maker(vlm, make_recipe, source, **stage):
    (made,) = make_recipe(stage).stages
    return RowMaker(vlm, made, Mixture((source,), (1.0,), 0), 0)


def test_rows_depend_on_the_position_alone(tiny, make_recipe, scenes):
    for stage in ({"batch_rows": 3}, {"packing": "document", "row_tokens": 240, "leak_share": 0.5}):
        first = maker(tiny, make_recipe, scenes, **stage)
        start = first.take(0).position
        again = maker(tiny, make_recipe, scenes, **stage).take(start)
        expected = first.take(start)
        assert again.position == expected.position > start
        assert [r.input_ids.tolist() for r in again.samples] == [r.input_ids.tolist() for r in expected.samples]


def test_packed_rows_are_never_longer_than_asked(tiny, make_recipe, scenes):
    made = maker(tiny, make_recipe, scenes, packing="document", row_tokens=200, leak_share=0.7)
    position = 0
    for _ in range(5):
        rows = made.take(position)
        position = rows.position
        assert all(0 < len(row) <= 200 for row in rows.samples)
        for row in rows.samples:  # every sample is one segment, a separator at its end
            assert np.all(np.diff(row.segment_ids.numpy()) >= 0)


def conversation(answer: str) -> Example:
    return Example(Conversation((Message("user", "What?"), Message("assistant", answer))))


def test_what_cannot_be_used_is_counted(tiny, make_recipe):
    source = [conversation("yes"), conversation("long " * 200), conversation("no")]
    rows = maker(tiny, make_recipe, source, packing="document", row_tokens=60, batch_rows=1).take(0)
    assert rows.dropped >= 1
    assert all(len(row) <= 60 for row in rows.samples)


def test_nothing_usable_ends_the_run_with_the_reason(tiny, make_recipe, monkeypatch):
    monkeypatch.setattr("model.training.batches.MAX_DROPPED", 20)
    with pytest.raises(InputError, match=r"20 examples.* 59 "):
        maker(tiny, make_recipe, [conversation("long " * 200)], packing="document", row_tokens=60).take(0)
    with pytest.raises(InputError, match="no example"):
        Mixture((), (), 0)


# --- parts of a micro-batch ---


def fake_row(tokens, tiles=0):
    row = type("Row", (), {"__len__": lambda self: tokens})()
    row.images = (type("Picture", (), {"tiles": range(tiles)})(),)
    return row


@pytest.mark.parametrize(
    ("lengths", "rows", "tokens", "sizes"),
    [
        ([10, 10, 10, 10], 4, 40, [4]),
        ([10, 10, 10, 10], 3, 40, [3, 1]),
        ([10, 10, 10, 10], 4, 39, [3, 1]),
        ([1, 1, 1, 30], 4, 40, [3, 1]),  # padded to 30, four rows would be 120
        ([30, 1, 1, 1], 4, 60, [2, 2]),
        ([100, 100], 4, 40, [1, 1]),  # a row alone is taken, however long
        ([], 4, 40, []),
    ],
)
def test_a_micro_batch_is_cut_where_its_rows_times_the_longest_are_too_many(lengths, rows, tokens, sizes):
    assert [len(part) for part in split_rows([fake_row(n) for n in lengths], rows, tokens, 0)] == sizes


def test_patches_of_pictures_count_where_the_encoder_trains():
    rows = [fake_row(10, tiles=2) for _ in range(4)]
    assert [len(part) for part in split_rows(rows, 4, 40, 0)] == [4]
    assert [len(part) for part in split_rows(rows, 4, 60, 10)] == [2, 2]  # 2 × 10 tokens and 2 × 2 × 10 patches


def test_parts_count_the_labels_that_their_batches_have(tiny, samples):
    first_trained = dataclasses.replace(samples[0], loss_mask=torch.ones_like(samples[0].loss_mask))
    for part in ([samples[0]], samples, [first_trained], [first_trained, *samples[1:]]):
        assert count_row_labels(part) == count_labels(tiny.collate(part))


def test_the_patches_of_a_tile(tiny, embedded):
    assert count_patches(embedded.config) == 64
    with torch.no_grad():
        tile = torch.zeros(1, 3, tiny.config.tile_px, tiny.config.tile_px)
        assert tiny.vision_encoder(tile).shape[1] == count_patches(tiny.config)
