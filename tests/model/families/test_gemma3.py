"""What Gemma 3 has of its own: blocks that see one another, windows, scaled embeddings, two kinds of rotary angles."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import DynamicCache
from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model, get_block_sequence_ids_for_mask

from inspector.interventions.knockout import read_cut, run_lab
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.embedded_row import see
from inspector.row.prompt import Prompt, Turn
from model import AttentionReader, Cut, InputError, OpenedImage, Tap, load_vlm
from tests import tiny_checkpoints as made

IMAGES = [made.noise(100, 60), made.noise(64, 200, seed=1)]
NAMES = ("gemma3", "gemma3 rest", "gemma3 wide")


@pytest.fixture(params=NAMES)
def checkpoint(request, tiny):
    return tiny(request.param)


@pytest.fixture
def case(tiny):
    vlm = tiny("gemma3 wide").vlm
    prompt = Prompt(tuple(map(OpenedImage, IMAGES)), (Turn("What colour is the second one?"),))
    return open_case(vlm, ask_and_inspect(vlm, prompt, GenerationSettings(4)), max_new_tokens=4)


def masks_of(vlm, row, start, stop):
    """Ours for the positions from ``start`` to ``stop``, by the kind of layer, as what each position sees."""
    visible = see(row, False, start, stop)[None, None, :, :stop]
    cache = vlm.new_cache(len(row))
    cache.positions[:] = torch.arange(len(row))
    embeds = torch.zeros(1, stop - start, vlm.text.width)
    found = vlm.text._make_masks(visible, torch.arange(start, stop), cache.positions[:stop], embeds)
    return {kind: mask[0, 0] == 0 for kind, mask in found.items()}


@pytest.mark.parametrize("window", [1, 2, 3, 5, 11, 64, 4096])
@pytest.mark.parametrize("name", ["gemma3", "gemma3 wide"])
def test_masks_are_the_family_s_to_the_bit(tiny, name, window, monkeypatch):
    """Of all of the row, and behind a kept prefix that ends between the images."""
    checkpoint = tiny(name)
    vlm, row = checkpoint.vlm, checkpoint.row(IMAGES)
    monkeypatch.setattr(vlm.text, "window", window)
    monkeypatch.setattr(vlm.text, "mixed", True)
    config = transformers.Gemma3TextConfig(**{**vlm.text.config.to_dict(), "sliding_window": window})
    config._attn_implementation = "sdpa"
    types = checkpoint.inputs(IMAGES)["token_type_ids"]
    assert len(row) > 30
    theirs = create_masks_for_vision_model(
        config,
        torch.zeros(1, len(row), vlm.text.width),
        torch.ones(1, len(row), dtype=torch.long),
        DynamicCache(),
        torch.arange(len(row))[None],
        get_block_sequence_ids_for_mask(types),
    )
    middle = row.grids[1].start - 1
    for start, stop in ((0, len(row)), (0, middle), (middle, len(row))):
        for kind, mine in masks_of(vlm, row, start, stop).items():
            assert torch.equal(mine, theirs[kind][0, 0, start:stop, :stop]), (kind, start)


def test_layers_that_all_see_everything_are_one_mask(tmp_path):
    model, processor = made.build_gemma3(
        made.byte_tokenizer([]), side=112, tokens=16, layer_types=["full_attention"] * 2, num_hidden_layers=2
    )
    made.write_checkpoint(model, processor, tmp_path, max_shard_size="100KB")
    checkpoint = made.Tiny(tmp_path, model, processor)
    vlm, row = checkpoint.vlm, checkpoint.row(IMAGES)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert (vlm.text.window, vlm.text.mixed) == (None, False)
    hidden = vlm.decode(made.embeds_of(vlm, row)[None], row.position_ids, made.causal(row))
    with torch.no_grad():
        expected = model(**checkpoint.inputs(IMAGES)).logits
    torch.testing.assert_close(vlm.logits(hidden), expected, rtol=0, atol=1e-5)


def test_blocks_are_the_family_s(checkpoint):
    row = checkpoint.row(IMAGES)
    theirs = get_block_sequence_ids_for_mask(checkpoint.inputs(IMAGES)["token_type_ids"])[0]
    assert row.blocks.tolist() == theirs.tolist()
    assert sorted(set(row.blocks.tolist())) == [-1, 0, 1]
    inside, outside = row.grids[1].start, row.grids[1].stop
    assert [row.first_to_see(p) for p in (inside - 1, inside, outside - 1, outside, len(row) + 3)] == [
        inside - 1,
        inside,
        inside,
        outside,
        len(row) + 3,
    ]


def test_text_enters_scaled_and_images_as_they_are(checkpoint):
    vlm, row = checkpoint.vlm, checkpoint.row(IMAGES)
    embeds, is_image = made.embeds_of(vlm, row), row.input_ids == vlm.image_token_id
    plain = vlm.embedding.weight[row.input_ids[~is_image]]
    torch.testing.assert_close(embeds[~is_image], plain * vlm.text.width**0.5)
    with torch.no_grad():
        theirs = checkpoint.model.get_input_embeddings()(row.input_ids[~is_image])
        pixels = checkpoint.inputs(IMAGES)["pixel_values"]
        features = checkpoint.model.get_image_features(pixels).pooler_output
    assert torch.equal(embeds[~is_image], theirs)
    torch.testing.assert_close(embeds[is_image], features.flatten(0, 1), rtol=0, atol=1e-6)
    half = vlm.convert(torch.bfloat16)
    with torch.no_grad():
        same = deepcopy(checkpoint.model).to(torch.bfloat16).get_input_embeddings()(row.input_ids[~is_image])
    assert torch.equal(half.embed_ids(row.input_ids[~is_image]), same)


@pytest.mark.parametrize("scaled", [False, True])
def test_moved_keys_are_those_of_moved_positions(scaled, tmp_path):
    """Each kind of layer turns by its own angles; those of the released models are stretched in one kind."""
    more = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}} if scaled else {}
    model, processor = made.build_gemma3(made.byte_tokenizer([]), **more)
    made.write_checkpoint(model, processor, tmp_path)
    checkpoint = made.Tiny(tmp_path, model, processor)
    made.check_moved_keys(checkpoint.vlm, checkpoint.row(IMAGES))


def whole_pass(case, cuts):
    """log p of the answer by one whole pass of the row with edges cut."""
    vlm, read = case.vlm, case.prefix_cache.read_row
    first, stop = case.target.scored
    tap = Tap(cuts=tuple(cuts)) if cuts else None
    hidden = vlm.decode(read.embeds[None], read.row.position_ids, see(read.row, False)[None, None], None, tap)[0]
    logprobs = vlm.logits(hidden[first - 1 : stop - 1]).log_softmax(-1)
    return float(logprobs.gather(-1, read.row.input_ids[first:stop, None]).sum())


def test_cuts_by_hand_inside_an_image_are_a_whole_pass_with_them(case):
    start, stop = case.structure.images[1].tokens[0], case.structure.images[1].tokens[-1]
    lines = [
        f"tokens {start + 5}-{start + 6} -> later",  # the image's first tokens see them too
        f"tokens {start + 3} -> tokens {start + 7}-{stop}",
        f"tokens {stop} -> tokens {start}-{start + 2}",  # from behind to before, inside the image
    ]
    for line in lines:
        cut = read_cut(case, line).cut
        (before, after) = run_lab(case, [line]).trials
        assert after.logprob == pytest.approx(whole_pass(case, [cut]), abs=1e-4)
        assert before.logprob == pytest.approx(whole_pass(case, []), abs=1e-4)
        assert after.logprob != pytest.approx(before.logprob, abs=1e-6)
    assert read_cut(case, lines[0]).rows[0] == start
    assert read_cut(case, f"tokens {stop + 2} -> later").rows[0] == stop + 3


def test_nothing_is_read_on_from_the_middle_of_an_image(case):
    inside = case.structure.images[0].tokens[3]
    with pytest.raises(ValueError, match="inside an image whose tokens see one another"):
        case.prefix_cache.run([case.prefix_cache.continuation(inside, case.target.scored)])


def test_a_later_pixel_changes_an_image_s_first_token(tiny):
    """As it can't where the past alone is seen."""
    checkpoint = tiny("gemma3 wide")
    vlm, row = checkpoint.vlm, checkpoint.row(IMAGES)
    embeds = made.embeds_of(vlm, row)
    changed = embeds.clone()
    changed[row.grids[0].stop - 1] += 1
    first = row.grids[0].start
    states = [vlm.decode(one[None], row.position_ids, made.causal(row))[0] for one in (embeds, changed)]
    assert torch.equal(states[0][:first], states[1][:first])
    assert not torch.allclose(states[0][first], states[1][first])
    plain = made.causal(replace(row, blocks=None))
    past = [vlm.decode(one[None], row.position_ids, plain)[0] for one in (embeds, changed)]
    assert torch.equal(past[0][first], past[1][first])


def test_a_cut_of_a_later_token_reaches_an_earlier_one(case):
    """The tap's edges go forwards in a block as well as back."""
    first, last = case.structure.images[0].tokens[0], case.structure.images[0].tokens[-1]
    read = case.prefix_cache.read_row
    visible = see(read.row, False)[None, None]
    cut = case.vlm.decode(read.embeds[None], read.row.position_ids, visible, None, Tap(cuts=(Cut([first], [last]),)))
    visible[..., first, last] = False
    masked = case.vlm.decode(read.embeds[None], read.row.position_ids, visible)
    torch.testing.assert_close(cut, masked, rtol=0, atol=1e-6)


def test_a_system_turn_stands_before_the_images(checkpoint):
    history = (("system", "Be brief."), ("user", "Look."), ("assistant", "At what?"))
    row = checkpoint.vlm.place(checkpoint.vlm.prepare(made.conversation([], history=history), True))
    assert row.input_ids.tolist() == checkpoint.inputs([], history=history)["input_ids"][0].tolist()
    assert [span.role for span in row.spans if span.kind in ("text", "answer")] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_typed_marks_stay_text(checkpoint):
    typed = "<start_of_image> <image_soft_token> <end_of_turn> <end_of_image> <start_of_turn>model"
    row, plain = checkpoint.row(IMAGES[:1], typed), checkpoint.row(IMAGES[:1], "x")
    special = set(checkpoint.vlm.tokenizer.get_added_vocab().values())
    found = [[token for token in one.input_ids.tolist() if token in special] for one in (row, plain)]
    assert found[0] == found[1]


def test_an_answer_ends_at_each_of_several_tokens(checkpoint):
    named = [checkpoint.vlm.tokenizer.convert_tokens_to_ids("<end_of_turn>"), checkpoint.vlm.image_token_id]
    assert checkpoint.vlm.eos_ids == (2, *named)


def test_what_is_left_out_of_an_image_is_said(tiny):
    (whole,) = tiny("gemma3").row(IMAGES[:1]).images
    assert (whole.notes, whole.seen, whole.resized_size) == ((), None, (56, 56))
    (rest,) = tiny("gemma3 rest").row(IMAGES[:1]).images
    assert rest.notes == (
        "no image token for what is outside x 0–80, y 0–48 px",
        "pan and scan left out, as the processor of transformers does",
    )
    assert (rest.boxes[0].right, rest.boxes[0].bottom) == pytest.approx((80, 48))


def spoiled(tmp_path, change):
    model, processor = made.build_gemma3(made.byte_tokenizer([]))
    change(model, processor)
    made.write_checkpoint(model, processor, tmp_path)
    return tmp_path


def test_what_can_t_be_opened_is_said(tmp_path):
    def set_size(_, processor):
        processor.image_processor.size = {"height": 28, "width": 56}

    with pytest.raises(InputError, match="don't lead to the 56 × 56 px"):
        load_vlm(spoiled(tmp_path / "size", set_size))

    def see_all(model, _):
        model.config.text_config.use_bidirectional_attention = True

    with pytest.raises(InputError, match="all tokens see one another"):
        load_vlm(spoiled(tmp_path / "all", see_all))

    def pool(model, _):
        model.config.mm_tokens_per_image = 9

    with pytest.raises(InputError, match="4 × 4 patches can't be pooled to 3 × 3"):
        load_vlm(spoiled(tmp_path / "pool", pool))


def test_reading_leaves_the_states_and_a_kept_prefix_gives_the_same(checkpoint):
    """Looked at or not: to the bit. In parts that end between the images: as in one pass."""
    vlm, row = checkpoint.vlm, checkpoint.row(IMAGES)
    embeds, visible = made.embeds_of(vlm, row)[None], made.causal(row)
    reader = AttentionReader([row.grids[0].start, len(row) - 1], torch.zeros(len(row), dtype=torch.long), 1)
    whole = vlm.decode(embeds, row.position_ids, visible)
    assert torch.equal(vlm.decode(embeds, row.position_ids, visible, None, Tap(reader)), whole)
    torch.testing.assert_close(reader.reading.shares, torch.ones_like(reader.reading.shares))
    parts = made.decode_in_parts(vlm, row, (row.grids[0].start, row.grids[0].stop, row.grids[1].stop + 1, len(row)))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
