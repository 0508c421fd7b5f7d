"""InfoNCE: by hand, as CLIP's two cross-entropies, with several images of one text."""

import math

import pytest
import torch
import torch.nn.functional as F

from model.losses import info_nce, mean_over, retrieval_accuracy, unit

ONE = torch.tensor(0.0)  # the logarithm of a temperature of 1


def test_two_pairs_by_hand():
    """Similarities [[1, 0], [0, 1]]: each choice costs log(1 + 1/e)."""
    eye = torch.eye(2)
    assert info_nce(eye, eye, torch.tensor([0, 1]), ONE).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert info_nce(eye, eye, torch.tensor([1, 0]), ONE).item() == pytest.approx(math.log(1 + math.e))
    half = torch.tensor(math.log(0.5))  # similarities doubled
    assert info_nce(eye, eye, torch.tensor([0, 1]), half).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_with_one_text_each_it_is_clips_loss():
    generator = torch.Generator().manual_seed(0)
    images, texts = (unit(torch.randn(7, 5, generator=generator)) for _ in range(2))
    logits = images @ texts.T / 0.07
    clip = (F.cross_entropy(logits, torch.arange(7)) + F.cross_entropy(logits.T, torch.arange(7))) / 2
    assert info_nce(images, texts, torch.arange(7), torch.tensor(math.log(0.07))).item() == pytest.approx(clip.item())


def test_several_images_of_one_text():
    """Three images, two texts; by the definition, sum by sum."""
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    owner = torch.tensor([0, 0, 1])
    similarity = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]
    by_image = [
        -math.log(math.exp(row[o]) / sum(map(math.exp, row))) for row, o in zip(similarity, [0, 0, 1], strict=True)
    ]
    columns = list(zip(*similarity, strict=True))
    share = [[math.exp(s) / sum(map(math.exp, column)) for s in column] for column in columns]
    by_text = [-(math.log(share[0][0]) + math.log(share[0][1])) / 2, -math.log(share[1][2])]
    expected = (sum(by_image) / 3 + sum(by_text) / 2) / 2
    assert info_nce(images, texts, owner, ONE).item() == pytest.approx(expected, rel=1e-6)


def test_a_text_of_no_image_is_a_wrong_answer_only():
    eye = torch.eye(3)
    loss = info_nce(eye[:2], eye, torch.tensor([0, 1]), ONE)
    image = math.log(math.e + 2) - 1
    text = math.log(1 + math.exp(-1))
    assert loss.item() == pytest.approx((image + text) / 2)


def test_autocast_does_not_round_similarities():
    images, texts = (unit(torch.randn(9, 16, generator=torch.Generator().manual_seed(seed))) for seed in (1, 2))
    plain = info_nce(images, texts, torch.arange(9), torch.tensor(math.log(0.01)))
    with torch.autocast("cpu", torch.bfloat16):
        assert info_nce(images, texts, torch.arange(9), torch.tensor(math.log(0.01))).item() == plain.item()


def test_retrieval_and_means():
    eye = torch.eye(4)
    assert retrieval_accuracy(eye, eye, torch.tensor([0, 1, 3, 2])) == 0.5
    assert math.isnan(retrieval_accuracy(eye[:0], eye, torch.tensor([], dtype=torch.long)))
    x = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [6.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_over(x, mask).tolist() == [[2.0], [0.0]]
