"""Qwen-VL: sizes and positions of images, windows and deeper layers of the encoder, and endings that count on from
places, not from tokens."""

import json
import pickle

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from inspector.__main__ import main
from inspector.experiments.reference_cues import exchange
from inspector.interventions.continuations import Continuation
from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.prefix_cache import PrefixCache
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.embedded_row import answer_row, read_row
from inspector.row.layout import read_structure
from inspector.row.prompt import Prompt, Turn
from model import Conversation, Cut, InputError, Message, OpenedImage, Row, Tap, collate, load_vlm
from model.families.qwen_vl_images import FittedImages
from tests import tiny_checkpoints as made

NAMES = ("qwen2 vl", "qwen2.5 vl", "qwen3 vl", "qwen3 vl tied")
PICTURES = [made.noise(*size, seed=n) for n, size in enumerate([(300, 80), (90, 250), (128, 128)])]


@pytest.fixture(params=NAMES)
def checkpoint(request, tiny):
    return tiny(request.param)


@pytest.fixture(params=["qwen2.5 vl", "qwen3 vl"])
def usual(request, tiny):
    return tiny(request.param)


def per_turn_row(vlm, *, second: str = "And here?") -> Row:
    """Two turns that bring an image each."""
    first, other = map(OpenedImage, PICTURES[:2])
    messages = (
        Message("user", "What is it?", (first,)),
        Message("assistant", "A ring."),
        Message("user", second, (other,)),
    )
    return vlm.place(vlm.prepare(Conversation(messages), True))


def grids(vlm, row: Row) -> torch.Tensor:
    sides = [image.resized_size for image in row.images]
    return torch.tensor([[1, height // vlm.patch_px, width // vlm.patch_px] for width, height in sides])


def read(vlm, row: Row) -> PrefixCache:
    features = [torch.cat(vlm.encode(vlm.encoder_inputs(image))) for image in row.images]
    return PrefixCache(vlm, read_row(vlm, row, features))


# --- positions ---


def test_positions_are_the_model_s(checkpoint):
    vlm = checkpoint.vlm
    rows = [checkpoint.row(PICTURES), checkpoint.row(PICTURES[1:]), checkpoint.row([]), per_turn_row(vlm)]
    for row in rows:
        images = (row.input_ids == vlm.image_token_id).int()[None]
        expected, deltas = checkpoint.model.model.get_rope_index(
            row.input_ids[None], images, grids(vlm, row) if row.images else None
        )
        assert torch.equal(row.position_ids, expected[:, 0])
        assert int(row.position_ids.max()) + 1 - len(row) == int(deltas[0, 0])


def test_one_image_is_one_grid_of_its_own_shape(checkpoint):
    row = checkpoint.row(PICTURES[:1])
    (grid,) = row.grids
    assert grid.rows * 2 < grid.cols
    assert (grid.tile, grid.is_thumbnail) == (0, False)
    assert (grid.box.right, grid.box.bottom) == (300, 80)
    assert row.position_ids[:, grid.position(grid.rows - 1, 2)].tolist() == [
        grid.start,
        grid.start + grid.rows - 1,
        grid.start + 2,
    ]
    # It takes as many places as its longer side has cells.
    assert row.position_ids[:, grid.stop].tolist() == [grid.start + grid.cols] * 3


def test_a_batch_has_all_axes_of_the_positions(checkpoint):
    """Side by side, padded on the left, as the family's own model counts them but for where the padding begins."""
    vlm = checkpoint.vlm
    samples = [vlm.prepare(made.conversation(images), True) for images in (PICTURES, PICTURES[1:], [])]
    batch, rows = vlm.collate(samples), [vlm.place(sample) for sample in samples]
    width = max(map(len, samples))
    assert batch.position_ids.shape == (3, 3, width)
    expected, _ = checkpoint.model.model.get_rope_index(
        batch.input_ids,
        (batch.input_ids == vlm.image_token_id).int(),
        torch.cat([grids(vlm, row) for row in rows if row.images]),
        attention_mask=batch.attention_mask.long(),
    )
    for number, row in enumerate(rows):
        start = width - len(row)
        assert torch.equal(batch.position_ids[:, number, start:] - start, expected[:, number, start:])
        assert batch.position_ids[:, number, :start].tolist() == [list(range(start))] * 3
    with pytest.raises(ValueError, match="without its rotary positions"):
        collate([rows[0], samples[1]], pad_token_id=0)


# --- the encoder ---


@pytest.mark.parametrize("chosen", [[0], [1], [2], [0, 1, 2]])
def test_features_are_the_model_s_for_one_image_and_for_several(checkpoint, chosen):
    """In Qwen2.5's encoder most layers see windows of an image; none sees another image."""
    vlm, pictures = checkpoint.vlm, [PICTURES[n] for n in chosen]
    inputs = checkpoint.processor.image_processor(pictures, return_tensors="pt")
    with torch.no_grad():
        expected = checkpoint.model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    parts = [vlm.encoder_inputs(vlm.process_image(picture)) for picture in pictures]
    found = vlm.encode([one for (one,) in parts])
    deep = getattr(expected, "deepstack_features", [])
    assert len(deep) == vlm.extra_layers
    for n, features in enumerate(found):
        wanted = torch.cat([expected.pooler_output[n], *(layer[n] for layer in deep)], dim=-1)
        torch.testing.assert_close(features, wanted, rtol=0, atol=2e-6)


def test_pixels_of_odd_pictures_are_the_processor_s(checkpoint):
    vlm = checkpoint.vlm
    for size in ((3, 40), (40, 3), (1, 1), (600, 3), (101, 77), (1000, 1000), (63, 2000)):
        picture = made.noise(*size)
        inputs = checkpoint.processor.image_processor([picture], return_tensors="pt")
        (mine,) = vlm.encoder_inputs(vlm.process_image(picture))
        assert torch.equal(vlm.cut_patches(mine), inputs["pixel_values"])


def test_deeper_layers_are_added_behind_the_first_ones(tiny):
    checkpoint = tiny("qwen3 vl")
    vlm, row = checkpoint.vlm, checkpoint.row(PICTURES[:2])
    embeds = made.embeds_of(vlm, row)
    width = vlm.text.width
    assert embeds.shape == (len(row), 4 * width)
    image = row.input_ids == vlm.image_token_id
    assert not bool(embeds[~image, width:].any())
    whole = vlm.decode(embeds[None], row.position_ids, made.causal(row))
    for layer in range(1, 4):
        less = embeds.clone()
        less[:, layer * width : (layer + 1) * width] = 0
        changed = vlm.decode(less[None], row.position_ids, made.causal(row))
        assert (changed - whole).abs().max() > 1e-3
    # Hidden from what is behind them, they say nothing there, whatever they are.
    visible = made.causal(row)
    first, last = int(image.nonzero()[0]), int(image.nonzero()[-1])
    visible[..., last + 1 :, first : last + 1] = False
    other = embeds.clone()
    other[image] = -other[image].flip(0)
    states = [vlm.decode(each[None], row.position_ids, visible)[0, last + 1 :] for each in (embeds, other)]
    torch.testing.assert_close(*states, rtol=0, atol=1e-5)


# --- sizes ---


def test_sizes_are_the_processor_s():
    rng = np.random.default_rng(0)
    for cell, least, most in ((28, 4 * 28**2, 48 * 28**2), (28, 3136, 12845056), (32, 65536, 16777216), (32, 1, 1024)):
        geometry = FittedImages(cell, least, most, 3)
        assert pickle.loads(pickle.dumps(geometry)) == geometry
        for height, width in (2 ** rng.uniform(0, 13, (200, 2))).astype(int).tolist():
            if max(height, width) <= 200 * min(height, width):
                layout = geometry.lay_out((width, height))
                assert layout.resized_size == smart_resize(height, width, cell, least, most)[::-1]


def test_an_image_that_is_too_long_is_refused_in_a_sentence(tiny, tmp_path, capsys):
    checkpoint = tiny("qwen2.5 vl")
    assert checkpoint.vlm.plan_image((600, 3)).tokens > 0
    with pytest.raises(ValueError, match="must be smaller than 200"):
        checkpoint.processor.image_processor([made.noise(603, 3)])
    with pytest.raises(InputError, match="603 × 3 px is 201 times as long as it is across"):
        checkpoint.vlm.plan_image((603, 3))
    made.noise(3, 603).save(tmp_path / "long.png")
    arguments = ["--image", str(tmp_path / "long.png"), "--ask", "What?"]
    assert main(["inspect", "--model", str(checkpoint.folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "this model takes at most 200; crop it." in error


def test_sizes_that_are_left_alone_must_fit():
    geometry = FittedImages(28, 0, 0, 3, resizes=False)
    assert geometry.lay_out((56, 84)).resized_size == (56, 84)
    with pytest.raises(InputError, match="does not divide into cells of 28 px"):
        geometry.lay_out((56, 85))


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("preprocessor_config.json", {"patch_size": 16}, "cut patches of 16 px, 2 × 2 to a token, 2 deep, and the"),
        ("preprocessor_config.json", {"size": {"height": 56, "width": 56}}, "known here are shortest_edge and longest"),
        ("config.json", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "looks back 64"),
    ],
)
def test_settings_that_are_not_understood_are_refused(copy_of, file, change, sentence):
    folder = copy_of("qwen2.5 vl")
    values = json.loads((folder / file).read_text())
    if file == "config.json":
        values["text_config"] = {**values["text_config"], **change, "layer_types": None}
    else:
        values |= change
    (folder / file).write_text(json.dumps(values))
    with pytest.raises(InputError) as refused:
        load_vlm(folder)
    assert sentence in str(refused.value)


# --- what is read behind a kept row ---


@pytest.mark.parametrize("second", ["Red?", "And what do you see in this one, please?"])
def test_other_words_before_an_image_behind_a_kept_row(usual, second):
    """Another text of another length behind images: as in a row that was written with it."""
    vlm = usual.vlm
    row, other = per_turn_row(vlm), per_turn_row(vlm, second=second)
    cache, expected = read(vlm, row), read(vlm, other)
    start = row.grids[-1].stop  # right behind the second image
    ids = expected.ids[start:]
    half = len(ids) // 2
    parent = Continuation(start, ids[:half], (start, start))
    behind = Continuation(start + half, ids[half:], (len(other) - 3, len(other)), parent=parent)
    inside = Continuation(start - 5, cache.ids[start - 5 : start] + ids, (len(other) - 3, len(other)))
    mine = cache.run([behind, inside])
    (theirs,) = expected.run([expected.continuation(len(other) - 3, (len(other) - 3, len(other)))])
    for outcome in mine:
        assert outcome.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        assert outcome.next_id == theirs.next_id
    # And the answers go on from there.
    answers = cache.answer([behind, inside], 5)
    assert answers == expected.answer([expected.continuation(len(other) - 2, (len(other), len(other)))], 5) * 2


@pytest.mark.parametrize("kept", [1, 3, 11])
def test_text_in_the_middle_of_an_image_counts_on_from_the_largest(usual, kept):
    """The last token's place is not the largest where a row of a wide image has just begun."""
    vlm, row = usual.vlm, usual.row(PICTURES[:1])
    cache = read(vlm, row)
    (grid,) = row.grids
    stop = grid.start + kept
    largest = max(grid.start + min(kept, grid.cols) - 1, grid.start + (kept - 1) // grid.cols)
    text = vlm.encode_text("A red ring.")
    table = torch.cat(
        (row.position_ids[:, :stop], torch.arange(largest + 1, largest + 1 + len(text)).expand(3, -1)), dim=1
    )
    ids = torch.cat((row.input_ids[:stop], torch.tensor(text)))
    embeds = torch.cat((cache.embeds[:stop], vlm.embed_ids(torch.tensor(text))))
    states = vlm.decode(embeds[None], table, torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None])[0]
    expected = vlm.logits(states).log_softmax(-1)
    scored = (stop + 1, len(ids))
    ends = (
        Continuation(stop, tuple(text), scored),
        Continuation(grid.start, cache.ids[grid.start : stop] + tuple(text), scored),
        Continuation(stop + 1, tuple(text[1:]), scored, parent=Continuation(stop, tuple(text[:1]), (stop, stop))),
    )
    wanted = expected[stop:-1].gather(-1, ids[stop + 1 :, None])[:, 0].tolist()
    for outcome in cache.run(ends):
        assert outcome.logprobs == pytest.approx(wanted, abs=1e-5)
        assert outcome.next_id == int(expected[-1].argmax())


def test_an_answer_is_the_same_from_a_kept_row_and_anew(usual):
    vlm = usual.vlm
    prompt = Prompt(tuple(map(OpenedImage, PICTURES)), (Turn(made.QUESTION), Turn("And now?")))
    inspection = ask_and_inspect(vlm, prompt, GenerationSettings(6))
    assert inspection.faithful
    row = inspection.row
    text = row.position_ids[:, row.grids[-1].stop :]
    assert torch.equal(text, torch.arange(text.shape[1]).expand(3, -1) + text[0, 0])
    # The images are unlike one another, so what was counted is not what stands there.
    assert int(text[0, 0]) < row.grids[-1].stop
    images = (row.input_ids == vlm.image_token_id).int()[None]
    expected, _ = usual.model.model.get_rope_index(row.input_ids[None], images, grids(vlm, row))
    assert torch.equal(row.position_ids, expected[:, 0])


def test_answering_leaves_nothing_behind_for_the_next(usual):
    """Transformers keeps how far text has fallen behind on its module; here it is the row's."""
    vlm = usual.vlm
    assert vlm.model.model.rope_deltas is None
    rows = [usual.row(PICTURES), usual.row(PICTURES[:1])]
    reads = [read(vlm, row).read_row for row in rows]
    streams = [answer_row(vlm, one, max_new_tokens=5) for one in reads]
    mixed = [[step.token_id for step, _ in pair] for pair in zip(*streams, strict=False)]
    for n, row in enumerate(rows):
        alone = [step.token_id for step, _ in answer_row(vlm, read(vlm, row).read_row, max_new_tokens=5)]
        assert [pair[n] for pair in mixed] == alone[: len(mixed)]
    assert vlm.model.model.rope_deltas is None


def test_images_change_places_by_places(usual):
    """View-shift: by how far apart their ends are for the rotary scheme, not by how many tokens lie between."""
    # Random weights attend to everything alike, wherever it stands; these look more closely.
    vlm, row = usual.vlm.convert(torch.float32), usual.row(PICTURES)
    for name, weight in vlm.text.model.named_parameters():
        if "q_proj" in name or "q_norm" in name:
            weight.mul_(20)
    structure = read_structure(row, document_mask=False, decode=vlm.decode_text, numbers_images=False)
    one, other = structure.images[0], structure.images[2]
    shifts = exchange(row, one, other)
    places = row.position_ids
    by = int(places[:, other.stop].amax() - places[:, one.stop].amax())
    assert [shift.by for shift in shifts] == [by, -by]
    assert 0 < by < other.stop - one.stop
    # The keys are those of the image at the other's end: turned in the cache, or read there.
    cache = read(vlm, row)
    start = structure.questions[-1].start
    base = cache.continuation(start, (len(row) - 1, len(row)))
    (moved,) = cache.run([Continuation(start, base.ids, base.scored, shifts=shifts)])
    assert moved.logprob == pytest.approx(whole_with_moved_keys(vlm, row, cache, start, shifts), abs=2e-5)
    assert abs(moved.logprob - cache.run([base])[0].logprob) > 2e-4


def whole_with_moved_keys(vlm, row, cache, start, shifts) -> float:
    """log p of the last token, where the row before ``start`` was read as it is and its keys then moved by hand."""
    kept = vlm.new_cache(len(row))
    vlm.decode(cache.embeds[None, :start], row.position_ids[:, :start], made.causal(row)[..., :start, :start], kept)
    rotary = vlm.text.model.rotary_emb
    for shift in shifts:
        own = slice(shift.start, shift.stop)
        keys = kept.keys[:, 0, :, own]
        here, there = (
            rotary(keys, (row.position_ids[:, own] + by)[:, None])  # cos and sin [1 pos d]
            for by in (0, shift.by)
        )
        kept.keys[:, 0, :, own] = turn(turn(keys, here[0], -here[1]), *there)
    visible = made.causal(row)[..., start:, :]
    states = vlm.decode(cache.embeds[None, start:], row.position_ids[:, start:], visible, kept)[0]
    return float(vlm.logits(states[-2]).log_softmax(-1)[row.input_ids[-1]])


def turn(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = keys.chunk(2, dim=-1)
    return keys * cos[0] + torch.cat((-second, first), dim=-1) * sin[0]


def test_an_image_is_exchanged_for_one_of_its_own_shape(usual):
    wide, high = PICTURES[:2]
    for pictures, number in (((wide, high), None), ((wide, made.noise(300, 80, seed=9)), 2)):
        prompt = Prompt(tuple(map(OpenedImage, pictures)), (Turn(made.QUESTION),))
        case = open_case(usual.vlm, ask_and_inspect(usual.vlm, prompt, GenerationSettings(2)), max_new_tokens=2)
        (partner,) = ImageExchanges(case).partners(case.structure.images[0], 1)
        assert partner.number == number
        assert partner.features.shape == case.prefix_cache.embeds[list(case.structure.images[0].tokens)].shape


def test_a_cut_reaches_what_an_image_brings_in_every_layer(usual):
    vlm, row = usual.vlm, usual.row(PICTURES)
    cache = read(vlm, row)
    grid = row.grids[1]
    behind = range(grid.stop, len(row))
    cut = cache.continuation(grid.stop, (len(row) - 1, len(row))).cutting(Cut(behind, range(grid.start, grid.stop)))
    embeds = cache.embeds.clone()
    embeds[grid.start : grid.stop] = torch.randn_like(embeds[grid.start : grid.stop])
    tap = Tap(cuts=(Cut(behind, range(grid.start, grid.stop)),))
    states = vlm.decode(embeds[None], row.position_ids, made.causal(row), None, tap)[0]
    other = float(vlm.logits(states[-2]).log_softmax(-1)[row.input_ids[-1]])
    assert cache.run([cut])[0].logprob == pytest.approx(other, abs=1e-5)
