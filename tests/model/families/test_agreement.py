"""A family behind the seam gives what transformers' own model, processor and generation give."""

import math
from typing import Any

import pytest
import torch
from PIL import Image

from inspector.row.ask import GenerationSettings, ask_and_inspect, attend, find_readers
from inspector.row.prompt import Prompt, Turn
from model import OpenedImage
from model.families.table import FAMILIES
from tests import tiny_checkpoints as made

SIZES = [[(100, 60)], [(40, 300), (64, 64)], [(300, 40), (1, 1), (17, 900)], []]
HISTORY = (("user", "Which shape?"), ("assistant", "A ring, I think."))


def pictures(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    return [made.noise(*size, seed=n) for n, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("text", [made.QUESTION, "  two blanks before, two behind  ", "äöü 你好 🙂\n\nand lines", "x"])
def test_ids_are_the_processor_s(any_tiny: made.Tiny, sizes, text):
    images = pictures(sizes)
    assert any_tiny.row(images, text).input_ids.tolist() == any_tiny.inputs(images, text)["input_ids"][0].tolist()


@pytest.mark.parametrize("sizes", SIZES[:2])
def test_ids_of_a_conversation_are_the_processor_s(any_tiny: made.Tiny, sizes):
    images = pictures(sizes)
    row = any_tiny.row(images, history=HISTORY)
    assert row.input_ids.tolist() == any_tiny.inputs(images, history=HISTORY)["input_ids"][0].tolist()
    assert [span.role for span in row.spans if span.kind in ("text", "answer")] == ["user", "assistant", "user"]


@pytest.mark.parametrize("sizes", SIZES)
def test_logits_are_the_model_s(any_tiny: made.Tiny, sizes):
    images = pictures(sizes)
    vlm, row = any_tiny.vlm, any_tiny.row(images)
    hidden = vlm.decode(made.embeds_of(vlm, row)[None], row.position_ids, made.causal(row))
    with torch.no_grad():
        expected = any_tiny.model(**any_tiny.inputs(images)).logits
    torch.testing.assert_close(vlm.logits(hidden), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES[:3])
def test_the_encoder_reads_the_processor_s_pixels(any_tiny: made.Tiny, sizes):
    images = pictures(sizes)
    vlm, row = any_tiny.vlm, any_tiny.row(images)
    mine = [tile for image in row.images for tile in vlm.encoder_inputs(image)]
    theirs = any_tiny.inputs(images)["pixel_values"]
    if theirs.ndim == 2:  # Qwen's: the patches of all images, one behind the other
        assert torch.equal(torch.cat([vlm.cut_patches(tile) for tile in mine]), theirs)
        return
    # Idefics3 pads the lists of tiles with black ones.
    theirs = [tile for tile in theirs.flatten(0, -4) if bool(tile.any())]
    assert len(mine) == len(theirs)
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def asked(tiny: made.Tiny, sizes: list[tuple[int, int]]) -> Any:
    prompt = Prompt(tuple(OpenedImage(image) for image in pictures(sizes)), (Turn(made.QUESTION),))
    return ask_and_inspect(tiny.vlm, prompt, GenerationSettings(8))


@pytest.mark.parametrize("sizes", SIZES)
def test_greedy_answers_are_those_of_generate(any_tiny: made.Tiny, sizes):
    inputs = any_tiny.inputs(pictures(sizes))
    length = inputs["input_ids"].shape[1]
    expected = any_tiny.model.generate(
        **inputs, do_sample=False, max_new_tokens=8, output_logits=True, return_dict_in_generate=True
    )
    inspection = asked(any_tiny, sizes)
    said = expected.sequences[0, length:].tolist()
    assert [token.token_id for token in inspection.answers[0]] == said
    for token, logits in zip(inspection.answers[0], expected.logits, strict=True):
        assert math.isclose(token.probability, float(logits[0].softmax(-1)[token.token_id]), abs_tol=1e-6)
    # What was read is what was answered to: the prompt as it stood, then the answer.
    assert inspection.row.input_ids[:length].tolist() == inputs["input_ids"][0].tolist()
    assert inspection.faithful


def test_a_notebook_gets_the_same_answer(any_tiny: made.Tiny):
    images, vlm = pictures(SIZES[1]), any_tiny.vlm
    steps = list(vlm.generate(vlm.prepare(made.conversation(images), True), max_new_tokens=8))
    assert [step.token_id for step in steps] == [token.token_id for token in asked(any_tiny, SIZES[1]).answers[0]]
    assert vlm.config.model_type in FAMILIES


@pytest.mark.parametrize("sizes", SIZES[:2])
def test_attention_is_that_of_the_eager_model(any_tiny: made.Tiny, sizes):
    inspection = asked(any_tiny, sizes)
    found = attend(any_tiny.vlm, inspection, inspection.row_that_chose(inspection.first_answer_position))
    any_tiny.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            theirs = any_tiny.model(**any_tiny.inputs(pictures(sizes)), output_attentions=True).attentions
    finally:
        any_tiny.model.set_attn_implementation("sdpa")
    assert found.position == theirs[0].shape[-1] - 1
    expected = torch.stack([layer[0, :, found.position] for layer in theirs])
    torch.testing.assert_close(torch.from_numpy(found.pattern[..., : found.position + 1]), expected, rtol=0, atol=1e-5)
    images = [p for p in range(found.position) if inspection.row.input_ids[p] == any_tiny.vlm.image_token_id]
    torch.testing.assert_close(torch.from_numpy(found.image_share), expected[..., images].sum(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES[:2])
def test_the_other_side_and_a_stretch_are_columns_and_means_of_the_eager_model(any_tiny: made.Tiny, sizes):
    """Of every kind of layer: grouped heads, windows, images whose tokens see one another."""
    inspection = asked(any_tiny, sizes)
    any_tiny.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            layers = any_tiny.model(**any_tiny.inputs(pictures(sizes)), output_attentions=True).attentions
    finally:
        any_tiny.model.set_attn_implementation("sdpa")
    theirs = torch.stack([layer[0] for layer in layers])
    length, grid = theirs.shape[-1], inspection.row.grids[-1]
    # The first cell of the last image, which a part of the row can read; some of its cells; the row's beginning.
    for first, last in ((grid.start, grid.start), (grid.start, grid.start + grid.cols), (0, 3)):
        found = find_readers(any_tiny.vlm, inspection, last, first=first)
        expected = theirs[..., first : last + 1].sum(dim=-1)
        torch.testing.assert_close(torch.from_numpy(found.pattern[..., :length]), expected, rtol=0, atol=1e-6)
        behind = [reader for reader in found.readers if reader < length]
        assert behind == list(range(last + 1, length))
    first, last = grid.start, length - 1
    stretch = attend(any_tiny.vlm, inspection, last, first=first)
    rows = theirs[:, :, first : last + 1]
    pattern = torch.from_numpy(stretch.pattern[..., :length])
    torch.testing.assert_close(pattern, rows.mean(dim=2), rtol=0, atol=1e-6)
    entropy = -(rows * rows.clamp(min=1e-30).log()).sum(dim=-1)
    torch.testing.assert_close(torch.from_numpy(stretch.entropy), entropy.mean(dim=-1), rtol=0, atol=1e-5)
    of_max = (entropy / (rows > 0).sum(dim=-1).log()).mean(dim=-1)
    torch.testing.assert_close(torch.from_numpy(stretch.entropy_of_max), of_max, rtol=0, atol=1e-5)
