"""Which masks are plainly causal, and what the kernels are told."""

import pytest
import torch
import torch.nn.functional as F

from model import AttentionReader, Cut, Tap
from model.masks import build_mask, find_documents, is_causal, make_additive, mask_visible

CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]


def changed(query: int, key: int, value: bool) -> torch.Tensor:
    mask = CAUSAL.clone()
    mask[0, 0, query, key] = value
    return mask


@pytest.mark.parametrize(
    ("visible", "causal"),
    [
        (CAUSAL, True),
        (CAUSAL.repeat(2, 1, 1, 1), True),
        (changed(4, 0, False), False),
        (changed(2, 0, False), False),
        (changed(1, 3, True), False),
        (torch.cat((CAUSAL, changed(2, 1, False))), False),
        (CAUSAL[:, :, 2:], False),
        (CAUSAL[:, :, :1, :1], False),
        (torch.ones(1, 1, 5, 5, dtype=torch.bool), False),
    ],
)
def test_only_the_plain_causal_mask_stays_bool(visible, causal):
    assert is_causal(visible) is causal
    additive = make_additive(visible, torch.float32)
    assert is_causal(additive) is causal
    assert torch.equal(additive == 0, visible)
    assert bool((additive[~visible] == -torch.inf).all())
    mask = mask_visible(visible, torch.float32, torch.device("cpu"))
    assert (mask.dtype == torch.bool) is causal
    assert torch.equal(make_additive(mask, torch.float32), additive)


def test_padding_is_not_causal():
    attended = torch.tensor([[False, True, True, True]])
    assert not is_causal(build_mask(attended, None, 4))
    assert is_causal(build_mask(torch.ones(1, 4, dtype=torch.bool), None, 4))


@pytest.mark.parametrize("heads", [None, frozenset({1})])
def test_a_cut_of_a_bool_mask_is_that_of_the_additive_one(heads):
    tap = Tap(cuts=(Cut([3, 4], [0], None, heads),))
    cut = tap.edit(0, CAUSAL, 2, 0, torch.bfloat16)
    assert cut.dtype == torch.bfloat16
    assert torch.equal(cut.float(), Tap(cuts=tap.cuts).edit(0, make_additive(CAUSAL, torch.float32), 2))


def test_a_read_out_under_a_bool_mask_is_that_under_the_additive_one():
    torch.manual_seed(0)
    q, k, v, output = torch.randn(1, 4, 5, 3), torch.randn(1, 2, 5, 3), torch.randn(1, 2, 5, 3), torch.randn(7, 12)
    found = []
    for mask in (CAUSAL, make_additive(CAUSAL, torch.float32)):
        reader = AttentionReader([1, 3], torch.tensor([0, 0, 1, -1, 2]), 3, keep_patterns=True)
        reader.observe(q, k, v, mask, 0.5, output)
        found.append(reader.reading.patterns)
    assert torch.equal(*found)
    assert bool((found[0][0, :, 0, 2:] == 0).all())


@pytest.mark.parametrize("apart", [True, False])
def test_documents_see_what_the_mask_lets_them_see_and_have_its_gradients(apart):
    """Rows with padding on the left and separators, of documents of 1 to 9 positions; both roads in double."""
    torch.manual_seed(1)
    segments = torch.tensor([[-1, -1, -1, *[0] * 9], [0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 3], [5] * 7 + [6] * 5])
    attended = segments >= 0
    attended[1, 2] = attended[1, 6] = attended[2, 3] = False
    q = torch.randn(3, 4, 12, 3, dtype=torch.double, requires_grad=True)
    k, v = (torch.randn(3, 2, 12, 3, dtype=torch.double, requires_grad=True) for _ in range(2))
    documents = find_documents(attended, segments if apart else None)
    assert documents.order.sort().values.unique().shape == (int(attended.sum()),)
    flat = (x.transpose(1, 2)[attended].transpose(0, 1)[None] for x in (q, k, v))
    found = documents.attend(F.scaled_dot_product_attention, *flat, enable_gqa=True)[0].transpose(0, 1)
    dense = build_mask(attended, segments if apart else None, 12).double()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=True).transpose(1, 2)[attended]
    assert torch.allclose(found, expected, atol=1e-12)
    weights = torch.randn_like(found)
    one, other = (torch.autograd.grad((x * weights).sum(), (q, k, v), retain_graph=True) for x in (found, expected))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(one, other, strict=True))


def test_documents_of_like_lengths_share_a_kernel_call():
    segments = torch.arange(8).repeat_interleave(torch.tensor([3, 2, 9, 1, 3, 8, 2, 12]))[None]
    groups = find_documents(torch.ones_like(segments).bool(), segments).groups
    assert [tuple(places.shape) for places in groups] == [(1, 1), (4, 3), (3, 12)]
