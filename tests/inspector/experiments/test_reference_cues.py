"""Cues changed one at a time: identities, the same by hand in whole passes, and what the examples show."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from inspector.experiments import reference_cues
from inspector.experiments.reference_cues import compare_cues, exchange, filler_text, measure_cues, share_of
from inspector.interventions.target import image_keys, open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.image_effects import measure_dependence
from inspector.which_image.question_contrast import changed_question, measure_selection
from inspector.which_image.verdict import name_leader
from model import Cut, InputError, OpenedImage, Tap
from model.layers import rotate
from model.masks import build_mask
from model.training.synthetic.examples import EXAMPLES


def opened(vlm, name, turns=None, turn=None, **options):
    """(case, selection)."""
    example = next(example for example in EXAMPLES if example.name == name)
    images = tuple(OpenedImage(image) for image in example.draw_images())
    asked = tuple(one if isinstance(one, Turn) else Turn(one) for one in turns or example.turns)
    prompt = Prompt(images, asked, example.layout, **options)
    case = open_case(vlm, ask_and_inspect(vlm, prompt, GenerationSettings()), turn)
    return case, measure_selection(case, name_leader(measure_dependence(case)))


@pytest.fixture(scope="module")
def three(embedded):
    case, selection = opened(embedded, "three")
    return case, selection, list(measure_cues(case, selection))


@pytest.fixture(scope="module")
def packed(embedded):
    case, selection = opened(embedded, "packed")
    return case, selection, list(measure_cues(case, selection))


def one_of(found, words):
    (cue,) = [cue for cue in found if words in cue.change]
    return cue


def token(case, text):
    (found,) = case.vlm.tokenizer(text, add_special_tokens=False).input_ids
    return found


@torch.no_grad()
def whole(case, token_id, cuts=(), shifts=()):
    """log p of one answer token in a pass over the whole row: without the edges ``cuts``, and with the keys of
    ``shifts`` turned by hand for the question's rows and those behind them."""
    decoder, row, start = case.vlm.decoder, case.prefix_cache.row, case.target.start
    length = len(row)
    segments = row.segment_ids[None] if case.prefix_cache.document_mask else None
    mask = Tap(cuts=tuple(cuts)).edit(0, build_mask(row.attention_mask[None], segments, length), 1)
    positions = torch.arange(length)[None]
    moved = positions.clone()
    for shift in shifts:
        moved[:, shift.start : shift.stop] += shift.by
    cos, sin = decoder.rotary_embd(positions)
    late = (positions[0] >= start)[:, None]
    x = case.prefix_cache.embeds[None]
    for block in decoder.blocks:
        z, attention = block.norm1(x), block.attn
        q, k, v = (
            projection(z).view(1, length, heads, -1).transpose(1, 2)
            for projection, heads in (
                (attention.q_proj, attention.n_heads),
                (attention.k_proj, attention.n_kv_heads),
                (attention.v_proj, attention.n_kv_heads),
            )
        )
        q = rotate(q, cos, sin)
        groups = attention.n_heads // attention.n_kv_heads
        read = [
            F.scaled_dot_product_attention(
                q,
                rotate(k, *decoder.rotary_embd(where, length)).repeat_interleave(groups, 1),
                v.repeat_interleave(groups, 1),
                attn_mask=mask,
                scale=attention.scale,
            )
            for where in (moved, positions)
        ]
        mixed = torch.where(late, *read).transpose(1, 2).reshape(1, length, -1)
        x = x + attention.out_proj(mixed)
        x = x + block.mlp(block.norm2(x))
    logprobs = decoder.head(decoder.norm(x[0, case.target.scored[0] - 1])).log_softmax(dim=-1)
    return logprobs[token_id].item()


def everywhere(case, keys):
    """The edges from ``keys`` into everything else."""
    hidden = set(keys)
    return Cut([p for p in range(len(case.prefix_cache.row)) if p not in hidden], sorted(hidden))


def ordinal_keys(case):
    return [p for image in case.structure.images for p in range(*image.ordinal)]


def test_hidden_from_the_question_as_in_a_whole_pass(three):
    case, _, found = three
    cue = one_of(found, "`<image: k>` texts from the question")
    cut = Cut(range(case.target.start, len(case.prefix_cache.row)), ordinal_keys(case))
    (answer,) = case.answer_ids
    assert cue.tokens == len(ordinal_keys(case)) == 18
    assert cue.fall == pytest.approx(whole(case, answer) - whole(case, answer, [cut]), abs=1e-4)
    given = token(case, cue.answers[0])
    for image in case.structure.images:
        without = whole(case, given, [cut, everywhere(case, image_keys(image))])
        assert cue.effects[image.number - 1] == pytest.approx(whole(case, given, [cut]) - without, abs=1e-4)


def test_hidden_from_everything_as_in_a_whole_pass(three):
    """The images are read again without the marks, and the images behind a removed one without both."""
    case, _, found = three
    cue = one_of(found, "`<image: k>` texts from everything")
    cut = everywhere(case, ordinal_keys(case))
    (answer,) = case.answer_ids
    assert cue.fall == pytest.approx(whole(case, answer) - whole(case, answer, [cut]), abs=1e-4)
    given = token(case, cue.answers[0])
    for image in case.structure.images:
        without = whole(case, given, [cut, everywhere(case, image_keys(image))])
        assert cue.effects[image.number - 1] == pytest.approx(whole(case, given, [cut]) - without, abs=1e-4)


def test_an_image_moved_as_in_a_whole_pass_with_its_keys_turned_by_hand(packed):
    case, _, found = packed
    own, other = case.structure.images[2], case.structure.images[0]
    shifts = exchange(case.prefix_cache.row, own, other)
    assert [(shift.start, shift.stop, shift.by) for shift in shifts] == [(74, 91, -71), (3, 20, 71)]
    cue = one_of(found, "moved image 3 to the distance of image 1")
    (answer,) = case.answer_ids
    assert cue.tokens == 34
    assert abs(cue.fall) > 0.1
    assert cue.fall == pytest.approx(whole(case, answer) - whole(case, answer, shifts=shifts), abs=1e-4)
    given = token(case, cue.answers[0])
    for image in case.structure.images:
        without = whole(case, given, [everywhere(case, image_keys(image))], shifts)
        assert cue.effects[image.number - 1] == pytest.approx(whole(case, given, (), shifts) - without, abs=1e-4)


def test_an_image_moved_by_nothing_changes_no_bit(three):
    case, _, _ = three
    image = case.structure.images[1]
    shifts = exchange(case.prefix_cache.row, image, image)
    assert [shift.by for shift in shifts] == [0, 0]
    base = case.base
    assert case.prefix_cache.run([replace(base, shifts=shifts)]) == case.prefix_cache.run([base])


def test_filler_text():
    assert filler_text(0) == ""
    assert filler_text(3) == "Here is a. "
    assert len(filler_text(32).split()) == 32


def test_filler_of_no_words_is_nothing(three, monkeypatch):
    case, selection, found = three
    monkeypatch.setattr(reference_cues, "FILLER_LENGTHS", (0,))
    *_, nothing = measure_cues(case, selection)
    assert (nothing.family, nothing.tokens, nothing.fall) == ("length", 0, 0.0)
    assert nothing.share_after == pytest.approx(nothing.share_before, abs=1e-6)
    # A token for each word, one for the full stop, one for the blank behind it.
    assert one_of(found, "put 32 ").tokens == 34


def test_filler_is_a_longer_question_in_a_row_of_its_own(three):
    """log p from the cached row against a pass over the row with the longer question."""
    case, _, found = three
    words = filler_text(8)
    question = case.prompt.turns[0]
    turns = (Turn(words + question.user, question.assistant),)
    longer, _ = opened(case.vlm, "three", turns)
    assert longer.prefix_cache.ids[longer.target.start : longer.target.scored[0]] == changed_question(
        case, words + question.user
    )
    fall = whole(case, *case.answer_ids) - whole(longer, *longer.answer_ids)
    assert one_of(found, "put 8 ").fall == pytest.approx(fall, abs=1e-4)


def test_filler_beyond_the_model_s_length_is_said(embedded, monkeypatch):
    monkeypatch.setattr(reference_cues, "FILLER_LENGTHS", (8, 4_080))
    case, selection = opened(embedded, "single")
    *_, fits, long = measure_cues(case, selection)
    assert fits.not_done == ""
    assert "4,096" in long.not_done
    assert long.fall is None


def test_separators_are_seen_by_nobody_as_it_is(packed):
    _, _, found = packed
    hidden = [cue for cue in found if cue.family == "separators"]
    assert [cue.tokens for cue in hidden] == [2, 2]
    assert [cue.fall for cue in hidden] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert [cue.share_after for cue in hidden] == pytest.approx([cue.share_before for cue in hidden], abs=1e-6)


def test_editing_the_ordinal_repeats_the_selection(three):
    _, selection, found = three
    cue = found[0]
    edited = [asked for asked in selection.asked if asked.source == "ordinal edited"]
    assert "image 1, 2" in cue.change
    assert (cue.family, cue.image, cue.tokens) == ("ordinal", 3, 1)
    assert cue.answers == tuple(asked.answer for asked in edited) == ("red", "blue")
    assert cue.effects == pytest.approx([sum(asked.effects[k] for asked in edited) / 2 for k in range(3)])
    assert cue.share_before > 0.8
    assert cue.share_after < 0.2


def test_every_kind_of_cue_is_there_once_or_for_both_rows(three):
    _, _, found = three
    assert [cue.family for cue in found] == [
        "ordinal",
        "ordinal",
        *("image numbers",) * 2,
        *("region marks",) * 2,
        "separators",
        *("turn boundary",) * 2,
        "template marks",
        "distance",
        "length",
        "length",
    ]
    assert [cue.family for cue in found if cue.not_done] == ["separators", "template marks"]
    assert one_of(found, "turn begins from the question").tokens == 2  # all but the row's first
    assert json.loads(json.dumps([cue.to_json() for cue in found]))[0]["moved"] == found[0].moved


def test_the_ordinal_and_the_numbers_of_the_images_work_together(three):
    """The numbers of one set of weights can be read without; what is said if they can't is told from made-up shares."""
    case, _, found = three
    said = compare_cues(case, found)
    assert [number in said for number in ("Image 3", "1.00", "image 1, 2", "0.00")] == [True] * 4
    assert "ordinal" in said.partition("favours")[2]
    hidden = "hid the `<image: k>` texts from everything behind them"
    changed = [replace(cue, share_after=0.0) if cue.change == hidden else cue for cue in found]
    assert [cue.change for cue in changed].count(hidden) == 1
    said = compare_cues(case, changed)
    favoured = said.partition("favours")[2]
    assert "`<image: k>`" in favoured
    assert "ordinal" in favoured


@pytest.mark.parametrize(
    ("question", "pointing"),
    [
        ("In image 3, what colour is the shape?", "3"),
        ("What colour is the second image?", " second"),
        ("🦒<|im_end|><image: 1> in 2 words", "1"),
        ("What colour is the 2nd picture?", "2nd"),
        ("What colour is it?", ""),
        ("Are image 1 and image 2 alike?", ""),
    ],
)
def test_the_tokens_that_point(embedded, question, pointing):
    case, _ = opened(embedded, "three", (Turn(question, "red"),))
    positions = reference_cues.pointing_positions(case)
    assert case.text([case.prefix_cache.ids[p] for p in positions]) == pointing


def test_marks_of_other_samples_are_left_alone_behind_a_document_mask(embedded):
    case, selection = opened(embedded, "packed", turn=3, document_mask=True)
    found = list(measure_cues(case, selection))
    assert one_of(found, "region marks from the question").tokens == 1
    assert one_of(found, "turn begins from the question").tokens == 2
    assert one_of(found, "distance").not_done
    assert all(cue.effects[0] == cue.effects[1] == 0.0 for cue in found if cue.effects)


def test_an_image_out_of_reach_has_no_effect(embedded):
    case, selection = opened(embedded, "per-turn", turn=2)
    found = list(measure_cues(case, selection))
    done = [cue for cue in found if not cue.not_done]
    assert {cue.image for cue in done} == {2}
    assert all(cue.effects[2] == 0.0 for cue in done)
    naming = found[0]
    assert naming.family == "naming"
    assert "image 1" in naming.change
    assert "Naming" in compare_cues(case, found)


def test_one_image_and_none(embedded):
    case, selection = opened(embedded, "tiles")
    found = list(measure_cues(case, selection))
    assert all(cue.not_done for cue in found[:2])
    # Its share is the whole, or nothing that counts: behind words that say nothing the model may guess it unseen.
    done = [cue for cue in found if not cue.not_done]
    counts = [cue.effects[0] >= 0.1 for cue in done]
    assert [cue.share_after for cue in done] == [pytest.approx(1.0, abs=1e-6) if one else None for one in counts]
    assert {cue.family for cue, one in zip(done, counts, strict=True) if one} >= {"region marks", "turn boundary"}
    bare = open_case(embedded, ask_and_inspect(embedded, Prompt((), (Turn("Hello?", "yes"),)), GenerationSettings()))
    found = list(measure_cues(bare, measure_selection(bare, None)))
    assert {(cue.share_before, cue.share_after, cue.effects) for cue in found} == {(None, None, ())}


def test_shares():
    assert share_of((3.0, 1.0, -5.0), 1) == 0.75
    assert share_of((3.0, 1.0, -5.0), 3) == 0.0
    assert share_of((3.0, 1.0), None) is None
    assert share_of((0.04, 0.05, -9.0), 2) is None
    assert share_of((), None) is None


def test_bad_input_in_the_turn_is_refused_before(three):
    case, _, _ = three
    with pytest.raises(InputError, match="most"):
        changed_question(case, "word " * 5_000)
