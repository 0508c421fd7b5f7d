"""From a prompt to everything that the page shows, on the embedded model."""

import numpy as np
import pytest
import torch
from PIL import Image

from inspector.figures.payload import heat_payload
from inspector.row.ask import (
    GenerationSettings,
    Inspection,
    ask,
    attend,
    describe,
    inspect,
    inspect_unfinished,
    training_batch,
)
from inspector.row.attention import summarise_pattern
from inspector.row.prompt import MAX_IMAGES, Prompt, Turn, images_of_turns, prepare_row
from inspector.row.token_table import lint_batch, locate_cell, position_of_cell, token_losses
from model import Conversation, InputError, Message, OpenedImage, plan_image
from model.training.synthetic.examples import EXAMPLES


def picture(colour, size=(64, 64)):
    return OpenedImage(Image.new("RGB", size, colour))


THREE = tuple(picture(colour) for colour in ("red", "green", "blue"))
TURNS = (Turn("What is it?", "red"), Turn("And this?", "green"), Turn("Last?", "blue"))


def run(vlm, prompt, **settings):
    events = list(ask(vlm, prompt, GenerationSettings(**settings)))
    assert isinstance(events[-1], Inspection)
    return events[:-1], events[-1]


@pytest.mark.parametrize(
    ("layout", "expected"), [("images-first", (3, 0, 0)), ("per-turn", (1, 1, 1)), ("packed", (1, 1, 1))]
)
def test_layout_says_which_turn_brings_which_image(layout, expected):
    brought = images_of_turns(Prompt(THREE, TURNS, layout))
    assert tuple(map(len, brought)) == expected


def test_more_images_than_turns_join_the_last_turn():
    assert tuple(map(len, images_of_turns(Prompt(THREE, TURNS[:2], "per-turn")))) == (1, 2)


def test_ordinals_only_where_a_sample_has_several_images(embedded):
    first = prepare_row(embedded, Prompt(THREE, TURNS, "images-first"))
    packed = prepare_row(embedded, Prompt(THREE, TURNS, "packed"))
    assert "<image: 0>" in embedded.tokenizer.decode(first.input_ids)
    assert "<image: 0>" not in embedded.tokenizer.decode(packed.input_ids)
    assert packed.segment_ids.unique().tolist() == [0, 1, 2]
    assert (~packed.attention_mask).sum() == 3


def test_document_mask_hides_earlier_samples(embedded):
    prompts = [Prompt(THREE, TURNS, "packed", document_mask=mask) for mask in (False, True)]
    alone = inspect(embedded, Prompt(THREE[2:], TURNS[2:]))
    leak, barrier = (inspect(embedded, prompt) for prompt in prompts)
    start = len(leak.row) - len(alone.row) - 1
    assert [leak.table.ids[start + n] for n in range(len(alone.row))] == list(alone.table.ids)
    last = alone.first_answer_position
    assert barrier.table.losses[start + last] == pytest.approx(alone.table.losses[last], abs=1e-4)
    attention = attend(embedded, barrier, start + last)
    assert attention.image_shares[:, :2].max() == 0
    assert attend(embedded, leak, start + last).image_shares[:, :2].min() > 0


def test_reading_attention_adds_up(embedded):
    _, inspection = run(embedded, Prompt(THREE, (Turn("What colour is image 2?"),)), max_new_tokens=3)
    attention = attend(embedded, inspection, inspection.first_answer_position)
    assert np.allclose(attention.pattern.sum(-1), 1, atol=1e-5)
    assert np.allclose(attention.kind_shares.sum(-1), 1, atol=1e-5)
    assert np.allclose(attention.image_shares.sum(-1), attention.image_share.mean(-1), atol=1e-5)
    assert (attention.pattern[..., attention.position + 1 :] == 0).all()


def test_sink_is_named_and_can_be_excluded(embedded):
    inspection = inspect(embedded, Prompt(THREE, (Turn("What?", "red"),)))
    pattern = np.full((2, 2, len(inspection.row)), 0.5 / (len(inspection.row) - 1), dtype=np.float32)
    pattern[..., 0] = 0.5
    named = summarise_pattern(pattern, inspection.row, len(inspection.row) - 1)
    assert [sink.position for sink in named.sinks] == [0]
    assert named.sinks[0].share == pytest.approx(0.5)
    without = summarise_pattern(pattern, inspection.row, len(inspection.row) - 1, exclude_sinks=True)
    assert without.excluded == (0,)
    assert without.mean_image_share == pytest.approx(2 * named.mean_image_share)


def test_the_row_that_chose_an_answer_token_is_the_one_before(embedded):
    _, inspection = run(embedded, Prompt(THREE, (Turn("What?"), Turn("And?", "yes"))), max_new_tokens=4)
    first = inspection.first_answer_position
    end = first + len(inspection.answers[1]) + 1
    assert inspection.row_that_chose(first) == first - 1
    assert inspection.row_that_chose(end) == end - 1
    assert inspection.row_that_chose(0) == 0
    image = next(span.start for span in inspection.row.spans if span.kind == "image")
    assert inspection.row_that_chose(image) == image
    logits = embedded(inspection.batch)[0]
    places = inspection.answer_positions
    assert places[1] == ()
    for position, token in zip(places[0], inspection.answers[0], strict=True):
        assert inspection.table.ids[position] == token.token_id
        row = inspection.row_that_chose(position)
        assert row == position - 1
        assert int(logits[row].argmax()) == token.token_id


def test_scale_is_that_of_all_maps_of_the_same_sort(embedded):
    inspection = inspect(embedded, Prompt(THREE[:1], (Turn("What?", "red"),)))
    pattern = np.zeros((2, 2, len(inspection.row)), dtype=np.float32)
    pattern[0, 0, 5], pattern[0, 1, 6], pattern[1, :, 7] = 0.08, 0.04, 0.06
    attention = summarise_pattern(pattern, inspection.row, len(inspection.row) - 1)
    assert heat_payload(attention)["max"] == pytest.approx(0.03)
    assert heat_payload(attention, layer=0)["max"] == pytest.approx(0.06)
    assert heat_payload(attention, layer=0, shared_scale=False)["max"] == pytest.approx(0.04)
    assert heat_payload(attention, head=1)["max"] == pytest.approx(0.04)
    assert heat_payload(attention, layer=1, head=0)["max"] == pytest.approx(0.08)
    assert heat_payload(attention)["selected"] == attention.position
    assert heat_payload(attention, selected=3)["selected"] == 3


def test_token_losses_are_the_models_own_loss(embedded):
    inspection = inspect(embedded, Prompt(THREE, (Turn("What is in image 2?", "green"),)))
    losses = torch.tensor(
        [value for value, on in zip(inspection.table.losses, inspection.table.trained, strict=True) if on]
    )
    assert float(losses.mean()) == pytest.approx(embedded.loss(inspection.batch).item(), rel=1e-5)
    assert token_losses(embedded, embedded.hidden(inspection.batch)[0].detach(), inspection.row)[0].isnan()


@pytest.mark.parametrize("size", [(64, 64), (100, 37), (301, 777), (640, 480), (192, 128), (5, 600)])
def test_cell_and_token_round_trip(embedded, size):
    """Every cell of every tile comes back, and a cell's box is where its pixels are: a bright square painted into the
    box changes that token's pixels most, among the tokens of its tile."""
    black = Image.new("RGB", size)
    sample = embedded.prepare(Conversation((Message("user", "x", (black,)),)))
    cells = embedded.config.cells_per_side
    seen = set()
    for tile in range(len(sample.images[0].tiles)):
        for row in range(cells):
            for col in range(cells):
                position = position_of_cell(embedded.place(sample), 0, tile, row, col)
                cell = locate_cell(embedded.place(sample), position)
                assert (cell.image, cell.tile, cell.row, cell.col) == (0, tile, row, col)
                seen.add(position)
    assert len(seen) == int((sample.input_ids == embedded.image_token_id).sum())
    if min(size) < 30:
        return  # a cell is smaller than a pixel there: nothing can be painted into it
    tile, row, col = len(sample.images[0].tiles) - 1, 1, 2
    box = locate_cell(embedded.place(sample), position_of_cell(embedded.place(sample), 0, tile, row, col)).box
    bright = black.copy()
    bright.paste("white", tuple(round(side) for side in (box.left, box.top, box.right, box.bottom)))
    tiles = embedded.process_image(bright).tiles
    side = embedded.config.tile_px // cells
    means = tiles[tile].mean(0).unfold(0, side, side).unfold(1, side, side).mean((-1, -2))
    assert divmod(int(means.argmax()), cells) == (row, col)


def test_painting_a_cell_moves_the_features_of_its_own_token_most(embedded):
    image = Image.new("RGB", (64, 64), "white")
    sample = embedded.prepare(Conversation((Message("user", "What color is the shape?", (image,)),)), True)
    batch = embedded.collate([sample])
    position = position_of_cell(embedded.place(sample), 0, 0, 1, 2)
    features = embedded.embed(batch)[0, position]
    bright = image.copy()
    bright.paste("red", (32, 16, 48, 32))
    other = embedded.prepare(Conversation((Message("user", "What color is the shape?", (bright,)),)), True)
    changed = embedded.embed(embedded.collate([other]))[0]
    moved = (changed - embedded.embed(batch)[0]).norm(dim=-1)
    assert int(moved.argmax()) == position
    assert not torch.equal(features, changed[position])


def test_answers_stream_and_are_in_the_row(embedded):
    steps, inspection = run(
        embedded, Prompt(THREE, (Turn("What?"), Turn("Given?", "yes"), Turn("And?"))), max_new_tokens=4
    )
    assert {turn for turn, _ in steps} == {0, 2}
    assert inspection.prompt.turns[1].assistant == "yes"
    assert inspection.answers[1] == ()
    for turn in (0, 2):
        assert "".join(token.text for token in inspection.answers[turn]) == inspection.prompt.turns[turn].assistant


def test_sampling_repeats_with_its_seed(embedded):
    prompt = Prompt(THREE, (Turn("Describe the image."),))
    once, again = (run(embedded, prompt, temperature=2.0, seed=5, max_new_tokens=8)[0] for _ in range(2))
    assert once[0] == again[0] == (0, None)
    assert [step.token_id for _, step in once[1:]] == [step.token_id for _, step in again[1:]]


def test_an_answer_that_was_stopped_is_looked_at_as_far_as_it_came(embedded):
    questions = tuple(Turn(f"In image {number}, what colour is the shape?") for number in (1, 2, 3))
    prompt = Prompt(THREE, questions, "per-turn")
    tokens = [[], [], []]
    for turn, token in ask(embedded, prompt, GenerationSettings()):
        if token is not None:
            tokens[turn].append(token)
        if turn == 1 and token is not None:
            break
    found = inspect_unfinished(embedded, prompt, tokens)
    # What came after the stop was never shown to the model: neither the third question nor its image.
    assert len(found.prompt.turns) == len(found.prompt.images) == len(found.answers) == 2
    assert found.prompt.turns[1].assistant == tokens[1][0].text != ""
    assert [len(answer) for answer in found.answers] == [len(tokens[0]), 1]
    # The answer that was stopped is where its token says, and the one before it is whole.
    assert [len(places) for places in found.answer_positions] == [len(tokens[0]), 1]
    assert len(found.row.images) == 2
    assert "image 3" not in embedded.tokenizer.decode(found.row.input_ids)


def test_stopping_before_the_first_token_leaves_nothing_to_look_at(embedded):
    with pytest.raises(InputError, match="Stopped"):
        inspect_unfinished(embedded, Prompt(THREE, TURNS), [[], [], []])


def test_it_is_told_when_a_turn_fits_and_not_before(embedded):
    long = "0 1 2 3 4 " * 1900
    events = ask(embedded, Prompt((), (Turn("What?"), Turn(long))), GenerationSettings(max_new_tokens=1))
    assert next(events) == (0, None)
    assert next(events)[0] == 0
    with pytest.raises(InputError, match="model reads"):
        list(events)


def test_description_is_plain_json(embedded):
    import json

    _, inspection = run(embedded, Prompt(THREE[:1], (Turn("What?"),)), max_new_tokens=2)
    facts = describe(embedded, inspection, attend(embedded, inspection, 0))
    assert json.loads(json.dumps(facts))["sequence"]["length"] == len(inspection.row)


def test_lint_is_silent_on_a_good_batch_and_names_each_fault(embedded):
    from dataclasses import replace

    inspection = inspect(embedded, Prompt(THREE, TURNS))
    batch, samples = training_batch(embedded, inspection, "row")
    assert lint_batch(embedded, samples, batch) == ()

    def rules(sample, text=""):
        return {finding.rule for finding in lint_batch(embedded, (sample,), embedded.collate([sample]), (text,))}

    sample = samples[0]
    assert "all-labels-ignored" in rules(replace(sample, loss_mask=torch.zeros_like(sample.loss_mask)))
    first = next(span.start for span in sample.spans if span.kind == "answer")
    mask = sample.loss_mask.clone()
    mask[first] = False
    assert rules(replace(sample, loss_mask=mask)) == {"first-answer-token"}
    last = next(span.stop for span in sample.spans if span.kind == "answer")
    mask = sample.loss_mask.clone()
    mask[last] = False
    assert rules(replace(sample, loss_mask=mask)) == {"last-answer-token"}
    ids = sample.input_ids.clone()
    ids[next(span.start for span in sample.spans if span.kind == "image")] = 5
    assert rules(replace(sample, input_ids=ids)) == {"image-token-count"}
    spans = tuple(replace(span, stop=span.stop - 1) if span.kind == "image" else span for span in sample.spans)
    assert "truncated-image" in rules(replace(sample, spans=spans))
    assert rules(sample, "look <|image|> here") == {"special-text"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Prompt((), ()), "question"),
        (lambda: Prompt((), (Turn("  "),)), "question"),
        (lambda: Prompt((), (Turn("a"), Turn(""))), "Turn 2"),
        (lambda: Prompt(THREE * 10, (Turn("a"),)), f"at most {MAX_IMAGES}"),
        (lambda: Prompt((), (Turn("x" * 100_000),)), "100,000"),
        (lambda: Prompt((), (Turn("a"),), "sideways"), "sideways"),
        (lambda: GenerationSettings(max_new_tokens=0), "1 to 512"),
        (lambda: GenerationSettings(temperature=-1), "greedy"),
        (lambda: GenerationSettings(top_p=0), "top-p"),
    ],
)
def test_bad_input_gets_one_sentence(make, words):
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_row_beyond_the_models_length_is_refused_with_both_numbers(embedded):
    with pytest.raises(InputError, match=f"at most {embedded.config.lm_max_position_embeddings:,}"):
        prepare_row(embedded, Prompt((), (Turn("0 1 2 3 4 " * 1900),)))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_are_answered_correctly(embedded, example):
    prompt = Prompt(
        tuple(OpenedImage(image) for image in example.draw_images()),
        tuple(Turn(text) for text in example.turns),
        example.layout,
    )
    _, inspection = run(embedded, prompt)
    assert tuple(turn.assistant for turn in inspection.prompt.turns) == example.expected


def test_plan_says_what_the_row_will_cost(embedded):
    for size in ((64, 64), (640, 480), (300, 900)):
        plan = plan_image(size, embedded.config)
        sample = embedded.prepare(Conversation((Message("user", "x", (Image.new("RGB", size),)),)))
        assert plan.tokens == sum(len(span) for span in sample.spans if span.kind in ("image", "region"))
