"""A changed ending behind a cached row gives what a whole changed row gives."""

from dataclasses import replace

import pytest
import torch

from inspector.interventions.continuations import (
    Continuation,
    RopeShift,
    StatePatch,
    count_positions,
    gather_parents,
)
from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.prefix_cache import PrefixCache
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn
from inspector.row.row_store import ROWS
from model import ActivationPatch, AttentionReader, Cut, InputError, OpenedImage, Tap
from model.layers import rotate
from model.masks import build_mask
from model.training.synthetic.examples import EXAMPLES
from tests.example_cases import example_case


def inspected(vlm, name, **options):
    example = next(example for example in EXAMPLES if example.name == name)
    images = tuple(OpenedImage(image) for image in example.draw_images())
    prompt = Prompt(images, tuple(Turn(text) for text in example.turns), example.layout, **options)
    return ask_and_inspect(vlm, prompt, GenerationSettings())


def open_cache(vlm, inspection):
    return PrefixCache(vlm, ROWS.read(vlm, inspection.row, inspection.prompt.keeps_samples_apart))


@pytest.fixture(scope="module", params=["three", "packed", "packed, document mask"])
def inspection(embedded, request):
    name, _, mask = request.param.partition(", ")
    return inspected(embedded, name, **({"document_mask": True} if mask else {}))


@pytest.fixture(scope="module")
def prefix_cache(embedded, inspection):
    return open_cache(embedded, inspection)


def answer_span(inspection):
    return [span for span in inspection.row.spans if span.kind == "answer"][-1]


def question_span(inspection):
    return [span for span in inspection.row.spans if span.kind == "text"][-1]


def whole(vlm, inspection, cuts=(), patches=()):
    """log p of the last answer's tokens in one pass over the whole row."""
    span = answer_span(inspection)
    with torch.no_grad():
        logprobs = vlm(inspection.batch, Tap(cuts=tuple(cuts), patches=tuple(patches)))[0].log_softmax(dim=-1)
    ids = inspection.row.input_ids
    return [logprobs[p - 1, ids[p]].item() for p in range(span.start, span.stop)]


def ending(prefix_cache, inspection):
    span = answer_span(inspection)
    return prefix_cache.continuation(question_span(inspection).start, (span.start, span.stop))


def test_an_unchanged_ending_is_the_row(embedded, inspection, prefix_cache):
    (outcome,) = prefix_cache.run([ending(prefix_cache, inspection)])
    assert outcome.logprobs == pytest.approx(whole(embedded, inspection), abs=1e-5)
    assert len(outcome.logprobs) == len(answer_span(inspection))


@pytest.mark.parametrize("layers", [None, frozenset({1, 2})])
@pytest.mark.parametrize("heads", [None, frozenset({0, 3})])
def test_cuts_are_those_of_a_whole_pass(embedded, inspection, prefix_cache, layers, heads):
    base = ending(prefix_cache, inspection)
    rows = range(base.start, base.stop)
    spans = [span for span in inspection.row.spans if span.kind == "image"]
    cuts = [Cut(rows, range(span.start, span.stop), layers, heads) for span in spans]
    # Within the ending itself too: the answer's first token without the question.
    cuts.append(Cut(rows[-3:], rows[:2], layers, heads))
    outcomes = prefix_cache.run([base.cutting(cut) for cut in cuts])
    for cut, outcome in zip(cuts, outcomes, strict=True):
        assert outcome.logprobs == pytest.approx(whole(embedded, inspection, [cut]), abs=2e-5)


def test_other_ids_are_the_row_that_holds_them(embedded, inspection, prefix_cache):
    base = ending(prefix_cache, inspection)
    other = replace(base, ids=(*base.ids[:3], *base.ids[2:]), scored=(base.scored[0] + 1, base.scored[1] + 1))
    row = inspection.row
    ids = torch.cat((row.input_ids[: base.start], torch.tensor(other.ids)))
    kept = torch.ones(len(ids), dtype=torch.bool)
    kept[: base.start] = row.attention_mask[: base.start]
    segments = torch.cat((row.segment_ids[: base.start], row.segment_ids[base.start].expand(len(other.ids))))
    embeds = embedded.embed(inspection.batch)[0]
    embeds = torch.cat((embeds[: base.start], embedded.decoder.token_embedding(torch.tensor(other.ids))))
    mask = build_mask(kept[None], segments[None] if prefix_cache.document_mask else None, len(ids))
    with torch.no_grad():
        hidden = embedded.decoder(embeds[None], mask, torch.arange(len(ids))[None])[0]
        logprobs = embedded.decoder.head(hidden).log_softmax(dim=-1)
    (outcome,) = prefix_cache.run([other])
    expected = [logprobs[p - 1, ids[p]].item() for p in range(*other.scored)]
    assert outcome.logprobs == pytest.approx(expected, abs=2e-5)


def test_an_answer_continued_behind_the_row_is_the_answer(embedded, inspection, prefix_cache):
    span = answer_span(inspection)
    base = prefix_cache.continuation(question_span(inspection).start, (span.start, span.start), stop=span.start)
    found = prefix_cache.answer([base, base], 8)
    assert found[0] == found[1] == tuple(inspection.row.input_ids[span.start : span.stop].tolist())


def test_a_child_sees_its_parent_in_place_of_the_row(embedded, inspection, prefix_cache):
    """A stretch in the middle read again without the first image, then the ending behind it: as one whole pass in
    which the image is cut from both."""
    base = ending(prefix_cache, inspection)
    first = next(span for span in inspection.row.spans if span.kind == "image")
    gone = range(first.start, first.stop)
    ids = prefix_cache.ids[first.stop : base.start]
    middle = Continuation(first.stop, ids, (first.stop,) * 2, (Cut(range(first.stop, base.start), gone),))
    (outcome,) = prefix_cache.run([replace(base.cutting(Cut(range(base.start, base.stop), gone)), parent=middle)])
    everything = Cut(range(first.stop, len(inspection.row)), gone)
    assert outcome.logprobs == pytest.approx(whole(embedded, inspection, [everything]), abs=2e-5)


def test_variants_do_not_touch_one_another(inspection, prefix_cache):
    base = ending(prefix_cache, inspection)
    image = [span for span in inspection.row.spans if span.kind == "image"][-1]
    cut = base.cutting(Cut(range(base.start, base.stop), range(image.start, image.stop)))
    (alone,) = prefix_cache.run([base])
    among = prefix_cache.run([cut, base, cut, base])
    assert among[1].logprob == pytest.approx(alone.logprob, abs=2e-5)
    assert among[0].logprob == pytest.approx(among[2].logprob, abs=2e-5)
    assert abs(among[0].logprob - alone.logprob) > 0.5


def test_a_shift_is_the_row_with_those_keys_rotated(embedded):
    """By hand: a whole pass in which, for the ending's queries only, one image's keys are rotated further."""
    inspection = inspected(embedded, "three")
    prefix_cache = open_cache(embedded, inspection)
    base = ending(prefix_cache, inspection)
    span = next(span for span in inspection.row.spans if span.kind == "image")
    by = 23
    moved, unmoved, zero = prefix_cache.run(
        [
            replace(base, shifts=(RopeShift(span.start, span.stop, by),)),
            base,
            replace(base, shifts=(RopeShift(span.start, span.stop, 0),)),
        ]
    )
    assert zero.logprobs == pytest.approx(unmoved.logprobs, abs=1e-6)
    assert unmoved.logprobs == pytest.approx(whole(embedded, inspection), abs=1e-5)

    x = embedded.embed(inspection.batch)
    mask = build_mask(inspection.batch.attention_mask, None, x.shape[1])
    cos, sin = embedded.decoder.rotary_embd(inspection.batch.position_ids)
    extra = embedded.decoder.rotary_embd(torch.tensor([[by]]), len(inspection.row))
    with torch.no_grad():
        for block in embedded.decoder.blocks:
            normed = block.norm1(x)
            shape = (1, x.shape[1], -1, embedded.config.head_dim)
            q = rotate(block.attn.q_proj(normed).view(shape).transpose(1, 2), cos, sin)
            k = rotate(block.attn.k_proj(normed).view(shape).transpose(1, 2), cos, sin)
            v = block.attn.v_proj(normed).view(shape).transpose(1, 2)
            further = k.clone()
            further[:, :, span.start : span.stop] = rotate(k[:, :, span.start : span.stop], *extra)
            groups = q.shape[1] // k.shape[1]
            rows = []
            for keys in (k, further):
                scores = q @ keys.repeat_interleave(groups, 1).transpose(2, 3) * block.attn.scale + mask
                rows.append(scores.softmax(dim=-1) @ v.repeat_interleave(groups, 1))
            z = torch.cat((rows[0][:, :, : base.start], rows[1][:, :, base.start :]), dim=2)
            x = x + block.attn.out_proj(z.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        logprobs = embedded.decoder.head(embedded.decoder.norm(x))[0].log_softmax(dim=-1)
    expected = [logprobs[p - 1, prefix_cache.ids[p]].item() for p in range(*base.scored)]
    assert moved.logprobs == pytest.approx(expected, abs=5e-5)
    (after,) = prefix_cache.run([base])
    assert after == unmoved


def test_states_patched_from_another_ending_at_the_first_layer_are_that_ending(embedded):
    """Before layer 0 a state is the token alone: with all of them taken over, one question becomes the other."""
    inspection = inspected(embedded, "three")
    prefix_cache = open_cache(embedded, inspection)
    base = ending(prefix_cache, inspection)
    one = embedded.tokenizer("1", add_special_tokens=False).input_ids[-1]
    three = embedded.tokenizer("3", add_special_tokens=False).input_ids[-1]
    assert base.ids.count(three) == 1
    other = replace(base, ids=tuple(one if token == three else token for token in base.ids))
    layers = embedded.config.lm_n_blocks
    positions = tuple(range(base.start, base.scored[0]))
    plain = prefix_cache.run([base, other])
    assert abs(plain[0].logprob - plain[1].logprob) > 3
    patched = prefix_cache.run([base, other, other], [StatePatch(0, 0, 2, positions)])
    assert patched[2].logprob == pytest.approx(plain[0].logprob, abs=2e-5)
    late = prefix_cache.run([base, other, other], [StatePatch(layers - 1, 0, 2, positions[-1:])])
    assert late[1].logprob == pytest.approx(plain[1].logprob, abs=2e-5)


def test_a_patch_of_a_position_onto_itself_changes_nothing(embedded, inspection):
    assert whole(embedded, inspection, patches=[ActivationPatch(2, [5, 9], [5, 9])]) == whole(embedded, inspection)


def test_attention_read_behind_the_row_is_that_of_the_whole_row(embedded, inspection, prefix_cache):
    base = ending(prefix_cache, inspection)
    position = base.scored[0] - 1
    groups = torch.arange(len(inspection.row)) % 4
    found = prefix_cache.read([base, base], [position, position], groups, 4, weigh=True)
    reader = AttentionReader([position], groups, 4, weigh_values=True)
    with torch.no_grad():
        embedded.hidden(inspection.batch, Tap(reader))
    reading = reader.reading
    assert torch.allclose(found.shares[:, :, :1], reading.shares, atol=1e-5)
    assert torch.allclose(found.shares.sum(dim=-1), torch.ones(()), atol=1e-5)
    assert found.norms is not None
    assert reading.norms is not None
    assert torch.allclose(found.norms[:, :, 1:], reading.norms, atol=1e-4)


def test_norms_are_lengths_of_what_a_head_adds(embedded):
    """With one group of all keys and the heads summed as vectors, a layer's own output: here for one head at a time,
    against the layer run with the other heads' values set to zero."""
    inspection = inspected(embedded, "single")
    position = len(inspection.row) - 4
    reader = AttentionReader([position], torch.zeros(len(inspection.row), dtype=torch.long), 1, weigh_values=True)
    outputs = []
    hook = embedded.decoder.blocks[0].attn.out_proj.register_forward_hook(lambda _m, args, _o: outputs.append(args[0]))
    with torch.no_grad():
        embedded.hidden(inspection.batch, Tap(reader))
    hook.remove()
    heads, width = embedded.config.lm_n_heads, embedded.config.head_dim
    weight = embedded.decoder.blocks[0].attn.out_proj.weight
    for head in range(heads):
        part = outputs[0][0, position, head * width : (head + 1) * width]
        expected = (weight[:, head * width : (head + 1) * width] @ part).norm().item()
        assert reader.reading.norms[0, head, 0, 0].item() == pytest.approx(expected, rel=1e-4)


def test_what_can_not_be_replayed_is_refused(embedded, inspection, prefix_cache):
    base = ending(prefix_cache, inspection)
    with pytest.raises(ValueError, match="scored"):
        prefix_cache.run([replace(base, scored=(base.start - 1, base.start + 1))])
    with pytest.raises(ValueError, match="image token"):
        prefix_cache.run([replace(base, ids=(embedded.image_token_id, *base.ids[1:]))])
    with pytest.raises(ValueError, match="stand behind"):
        replace(base, parent=base)
    with pytest.raises(InputError, match="4,096"):
        prefix_cache.run([replace(base, ids=base.ids * 300)])


def test_an_answer_behind_the_row_is_scored_by_what_stands_before_it(embedded, inspection, prefix_cache):
    span = answer_span(inspection)
    (outcome,) = prefix_cache.run([prefix_cache.continuation(span.start, (span.start, span.stop))])
    assert outcome.logprobs == pytest.approx(whole(embedded, inspection), abs=1e-5)


def without_first(prefix_cache, inspection):
    """The ending and its answer without the first image, what stands between read again: (whole cut, the answer behind
    the question behind the stretch in the middle)."""
    base, span = ending(prefix_cache, inspection), answer_span(inspection)
    first = next(one for one in inspection.row.spans if one.kind == "image")
    gone = range(first.start, first.stop)
    parent = None
    for start, stop in ((first.stop, base.start), (base.start, span.start)):
        parent = Continuation(
            start, prefix_cache.ids[start:stop], (stop, stop), (Cut(range(start, stop), gone),), parent=parent
        )
    answer = Continuation(
        span.start,
        prefix_cache.ids[span.start : span.stop],
        (span.start, span.stop),
        (Cut(range(span.start, span.stop), gone),),
        parent=parent,
    )
    return Cut(range(first.stop, len(inspection.row)), gone), answer


def test_what_is_kept_is_found_again_and_makes_way(embedded, inspection, monkeypatch):
    prefix_cache = open_cache(embedded, inspection)
    everything, answer = without_first(prefix_cache, inspection)
    expected = pytest.approx(whole(embedded, inspection, [everything]), abs=2e-5)
    read = []
    forward = type(embedded.decoder).forward
    monkeypatch.setattr(
        type(embedded.decoder),
        "forward",
        lambda self, x, *a, **k: (read.append(x.shape[1]), forward(self, x, *a, **k))[1],
    )
    base = ending(prefix_cache, inspection)
    (first,) = prefix_cache.run([answer])
    assert read == [answer.start - answer.line[0].start, len(answer.ids)]
    read.clear()
    again, plain = prefix_cache.run([answer, base])
    assert read == [len(answer.ids) + len(base.ids)]
    assert (first.logprobs, again.logprobs) == (expected, expected)
    assert plain.logprobs == pytest.approx(whole(embedded, inspection), abs=2e-5)
    # No room for any of it: read with the pass, and the same.
    monkeypatch.setattr("inspector.interventions.prefix_cache.KEPT_ROWS", 0)
    monkeypatch.setattr("inspector.interventions.prefix_cache.KEPT_BYTES", 0)
    monkeypatch.setattr("inspector.interventions.prefix_cache.PASS_POSITIONS", 8)
    read.clear()
    (crowded,) = open_cache(embedded, inspection).run([replace(answer, parent=replace(answer.parent))])
    assert read == [answer.stop - answer.line[0].start]
    assert crowded.logprobs == expected


@pytest.mark.parametrize("room", [0, 20, 60])
def test_the_oldest_that_nothing_stands_behind_makes_way(embedded, monkeypatch, room):
    """What stays is found again, and right. ``room``: positions beyond the most that one of them needs."""
    case = example_case(embedded, "five")
    ablations, numbers = ImageAblations(case), [image.number for image in case.reachable]
    sets = [frozenset({n}) for n in numbers] + [frozenset(numbers[:2]), frozenset(numbers[1:4])]
    endings = [ablations.of_answer(gone) for gone in sets]
    alone = [PrefixCache(embedded, case.prefix_cache.read_row).run([one])[0].logprob for one in endings]
    most = max(count_positions(gather_parents([one])) for one in endings)
    monkeypatch.setattr(PrefixCache, "_room", most + room)
    small = PrefixCache(embedded, case.prefix_cache.read_row)
    for n in (0, 1, 2, 1, 3, 0, 5, 4, 6, 2, 0):
        assert small.run([endings[n]])[0].logprob == pytest.approx(alone[n], abs=1e-4)
        kept = {id(node) for node in small._kept}
        assert small._kept_positions <= most + room
        assert all(node.parent is None or id(node.parent) in kept for node in small._kept)
        assert set(small._ends) == kept


def test_what_was_read_last_is_still_there_when_room_is_made(embedded, monkeypatch):
    case = example_case(embedded, "five")
    ablations = ImageAblations(case)
    early, late, other = (ablations.of_answer(frozenset({n})) for n in (3, 4, 2))
    sizes = [count_positions(gather_parents([one])) for one in (early, late, other)]
    monkeypatch.setattr(PrefixCache, "_room", sizes[1] + sizes[2] + 1)
    cache = PrefixCache(embedded, case.prefix_cache.read_row)
    for one in (early, late, other):
        cache.run([one])
    assert set(gather_parents([late, other])) <= set(cache._kept)
    assert not set(gather_parents([early])) & set(cache._kept)


def test_reading_attention_is_the_same_with_something_kept(embedded, inspection):
    prefix_cache = open_cache(embedded, inspection)
    base = ending(prefix_cache, inspection)
    groups = torch.arange(len(inspection.row)) % 4
    position = base.scored[0] - 1
    before = prefix_cache.read([base], [position], groups, 4)
    prefix_cache.run([without_first(prefix_cache, inspection)[1]])
    after = prefix_cache.read([base], [position], groups, 4)
    assert torch.allclose(before.shares, after.shares, atol=1e-6)
