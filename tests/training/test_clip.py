"""The dual encoder: heads, the bound on its temperature, what a little training does."""

import math

import pytest
import torch
from torch import nn

from model import load_vlm
from model.clip import DualEncoder
from model.training.batches import PairBatch
from model.training.stages import ContrastiveLoss


@pytest.fixture(scope="module")
def tiny(golden):
    return load_vlm(golden / "tiny_vlm")


def make_dual(tiny, head="linear"):
    torch.manual_seed(0)
    return DualEncoder(tiny.vision_encoder, tiny.tokenizer, head=head, width=16, n_layers=1, n_heads=2)


def test_heads(tiny):
    assert isinstance(make_dual(tiny).image_head, nn.Linear)
    mlp = make_dual(tiny, "mlp").image_head
    assert [type(part) for part in mlp] == [nn.Linear, nn.GELU, nn.Linear]
    for head in ("linear", "mlp"):
        dual = make_dual(tiny, head)
        patches = dual.vision_encoder(torch.rand(3, 3, 64, 64))
        for vectors in (dual.embed_images(patches), dual.embed_patches(patches), dual.embed_texts(["a", "b c"])):
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))


def test_the_temperature_is_bounded(tiny):
    dual = make_dual(tiny)
    assert dual.log_temperature.item() == pytest.approx(math.log(0.07))
    assert dual.bounded(torch.tensor(-20.0)).exp().item() == pytest.approx(0.01)
    assert dual.bounded(torch.tensor(0.5)).item() == 0.5


def test_padding_beside_longer_texts_changes_nothing(tiny):
    dual = make_dual(tiny).eval()
    alone, beside = dual.embed_texts(["red"]), dual.embed_texts(["red", "a much longer caption of a picture"])
    torch.testing.assert_close(alone[0], beside[0], atol=1e-5, rtol=0)
    assert dual.embed_texts(["", "word " * 300]).shape == (2, 16)


def test_the_nearest_text_is_right_after_a_little_training(tiny):
    dual = make_dual(tiny)
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, 64, 64).contiguous()
    batch = PairBatch(
        colours, ("red", "green", "blue"), torch.arange(3), (), torch.zeros(0, 2).long(), torch.zeros(0).long()
    )
    loss = ContrastiveLoss(dual)
    optimizer = torch.optim.AdamW([p for n, p in dual.named_parameters() if not n.startswith("vision_encoder.")], 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
    images = dual.embed_images(dual.vision_encoder(colours))
    assert (images @ dual.embed_texts(["blue", "red", "green"]).T).argmax(dim=-1).tolist() == [1, 2, 0]
