"""What a row is made of, which question can see which image, and what the row shows itself to be."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from inspector.row.layout import RowStructure, describe_structure, read_structure, structure_sentences
from inspector.row.prompt import Prompt, Turn, prepare_row
from model import VLM, Conversation, Message, OpenedImage, Sample, Span, load_vlm, pack_samples
from model.masks import build_mask
from model.tokenizer import decode

TURNS = (Turn("What is it?", "red"), Turn("And this?", "green"), Turn("Last?", "blue"))
PADDING, SPECIAL = 2, "<|im_end|>"  # nanoVLM's padding token is its end token


@pytest.fixture(scope="module")
def vlm(golden):
    """A random checkpoint of nanoVLM's: 64-px tiles of 4 image tokens, split up to 256 px."""
    return load_vlm(golden / "tiny_vlm")


def picture(width=64, height=64):
    return OpenedImage(Image.new("RGB", (width, height), "red"))


THREE = (picture(), picture(), picture())


def read(vlm: VLM, sample: Sample, document_mask: bool = False) -> RowStructure:
    return read_structure(sample, document_mask=document_mask, decode=lambda ids: decode(vlm.tokenizer, ids))


def row(vlm: VLM, images=THREE, turns=TURNS, layout="images-first", **options) -> Sample:
    return prepare_row(vlm, Prompt(images, turns, layout), **options)


def text_at(vlm: VLM, sample: Sample, start: int, stop: int) -> str:
    return decode(vlm.tokenizer, sample.input_ids[start:stop].tolist())


def reachable(structure: RowStructure) -> list[tuple[int, ...]]:
    return [question.reachable for question in structure.questions]


@pytest.mark.parametrize(
    ("layout", "document_mask", "expected"),
    [
        ("images-first", False, [(1, 2, 3), (1, 2, 3), (1, 2, 3)]),
        ("per-turn", False, [(1,), (1, 2), (1, 2, 3)]),
        ("packed", False, [(1,), (1, 2), (1, 2, 3)]),
        ("packed", True, [(1,), (2,), (3,)]),
    ],
)
def test_which_question_can_see_which_image(vlm, layout, document_mask, expected):
    assert reachable(read(vlm, row(vlm, layout=layout), document_mask)) == expected


def test_reach_is_what_the_model_s_own_mask_allows(vlm):
    """The chooser's row of the mask against the structure, for every layout and both masks."""
    for layout in ("images-first", "per-turn", "packed"):
        for document_mask in (False, True):
            sample = row(vlm, layout=layout)
            structure = read(vlm, sample, document_mask)
            segments = sample.segment_ids[None] if document_mask else None
            mask = build_mask(sample.attention_mask[None], segments, len(sample), torch.float32)[0, 0]
            for question in structure.questions:
                seen = tuple(
                    image.number
                    for image in structure.images
                    if (mask[question.chooser, list(image.tokens)] == 0).all()
                )
                assert seen == question.reachable, (layout, document_mask, question.number)


def test_questions_and_answers_are_where_their_text_is(vlm):
    sample = row(vlm, layout="per-turn")
    structure = read(vlm, sample)
    assert [question.text for question in structure.questions] == ["What is it?", "And this?", "Last?"]
    assert [question.answer_text for question in structure.questions] == ["red", "green", "blue"]
    for question in structure.questions:
        assert text_at(vlm, sample, question.start, question.stop) == question.text
        assert question.chooser == question.answer[0] - 1
        assert text_at(vlm, sample, question.chooser, question.chooser + 1) == "\n"
        assert text_at(vlm, sample, question.end, question.end + 1) == SPECIAL
    assert [question.number for question in structure.questions] == [1, 2, 3]
    assert [question.message for question in structure.questions] == [1, 3, 5]


def test_a_row_that_stops_before_the_answer_is_chosen_by_its_last_position(vlm):
    sample = row(vlm, answering=1)
    structure = read(vlm, sample)
    asked = structure.questions[-1]
    assert (len(structure.questions), asked.number, asked.text) == (2, 2, "And this?")
    assert asked.chooser == len(sample) - 1
    assert asked.answer == (len(sample), len(sample))
    assert (asked.answer_text, asked.end) == ("", None)


def test_an_empty_answer_and_a_question_that_nobody_answers(vlm):
    messages = (Message("user", "A?", (Image.new("RGB", (64, 64)),)), Message("assistant", ""), Message("user", "B?"))
    structure = read(vlm, vlm.prepare(Conversation(messages)))
    first, second = structure.questions
    assert first.answer[0] == first.answer[1] == first.end == first.chooser + 1
    assert (second.text, second.chooser, second.end) == ("B?", None, None)


def test_a_system_message_is_no_question(vlm):
    messages = (Message("system", "Be brief."), Message("user", "A?"), Message("assistant", "b"))
    structure = read(vlm, vlm.prepare(Conversation(messages)))
    assert [(question.number, question.text, question.message) for question in structure.questions] == [(1, "A?", 2)]


def test_an_image_without_a_question_is_seen_from_where_its_question_would_be(vlm):
    messages = (Message("user", "", (Image.new("RGB", (64, 64)),)), Message("assistant", "a"))
    question = read(vlm, vlm.prepare(Conversation(messages))).questions[0]
    assert (question.text, question.start == question.stop, question.reachable) == ("", True, (1,))
    assert question.sights[0].to_first == 1


def test_distances_count_positions_from_the_image_s_last_token(vlm):
    structure = read(vlm, row(vlm, layout="per-turn"))
    for question in structure.questions:
        for sight in question.sights:
            if not sight.reachable:
                assert (sight.to_first, sight.to_last) == (None, None)
                continue
            end = structure.images[sight.image - 1].tokens[-1]
            assert sight.to_first == question.start - end
            assert sight.to_last == question.stop - 1 - end
    assert [question.sights[question.number - 1].to_first for question in structure.questions] == [1, 1, 1]


def test_an_image_is_its_ordinal_its_marks_and_its_tokens(vlm):
    images = (picture(128, 64), picture())
    sample = row(vlm, images, TURNS[:1])
    first, second = read(vlm, sample).images
    assert (first.grid, second.grid) == ((1, 2), (1, 1))
    assert [tile.name for tile in first.tiles] == ["thumbnail", "r1c1", "r1c2"]
    assert [text_at(vlm, sample, mark, mark + 1) for mark in first.marks] == [
        "<|global_image|>",
        "<row_1_col_1>",
        "<row_1_col_2>",
    ]
    assert (len(first.tokens), len(second.tokens)) == (12, 4)
    assert {int(sample.input_ids[p]) for p in first.tokens + second.tokens} == {vlm.image_token_id}
    assert first.ordinal_text == "<image: 0>"
    assert second.ordinal_text == text_at(vlm, sample, *second.ordinal) == "<image: 1>"
    assert first.start == first.ordinal[0]
    assert first.stop == second.start == first.tokens[-1] + 1
    assert [tile.mark for tile in first.tiles] == list(first.marks)
    # Every position of the block is one of the three.
    assert sorted([*range(*first.ordinal), *first.marks, *first.tokens]) == list(range(first.start, first.stop))


def test_images_name_what_brings_them(vlm):
    per_turn = read(vlm, row(vlm, layout="per-turn")).images
    assert [(image.question, image.message, image.sample) for image in per_turn] == [(1, 1, 1), (2, 3, 1), (3, 5, 1)]
    packed = read(vlm, row(vlm, layout="packed")).images
    assert [(image.question, image.message, image.sample) for image in packed] == [(1, 1, 1), (2, 3, 2), (3, 5, 3)]
    first = read(vlm, row(vlm)).images
    assert [(image.question, image.message, image.sample) for image in first] == [(1, 1, 1)] * 3


def test_separators_marks_and_samples_can_be_picked_by_name(vlm):
    sample = row(vlm, layout="packed")
    structure = read(vlm, sample)
    masked = (~sample.attention_mask).nonzero().flatten().tolist()
    assert list(structure.separators) == masked
    assert structure.separator_texts == (SPECIAL,) * 3
    assert structure.mark_names == ("<|im_start|>", "user", SPECIAL, "line break", "assistant")
    ends = structure.mark_positions(SPECIAL)
    assert len(ends) == 6  # three questions, three answers; separators are no marks
    assert {int(sample.input_ids[p]) for p in ends} == {PADDING}
    assert not set(ends) & set(masked)
    assert "".join(text_at(vlm, sample, p, p + 1) for p in structure.mark_positions("user")) == "user\n" * 3
    assert [int(sample.segment_ids[start]) for start, _ in structure.samples] == [0, 1, 2]
    assert [stop for _, stop in structure.samples] == masked


# --- what the row is ---


@pytest.mark.parametrize(
    ("images", "turns", "layout", "kind"),
    [
        ((), TURNS, "images-first", "text only"),
        (THREE[:1], TURNS, "images-first", "one image"),
        (THREE[:1], TURNS, "per-turn", "one image"),
        (THREE, TURNS, "images-first", "several images, first"),
        (THREE, TURNS[:1], "per-turn", "several images, first"),
        (THREE, TURNS, "per-turn", "one image per turn"),
        (THREE, TURNS, "packed", "packed samples"),
        ((), TURNS, "packed", "packed samples"),
        (THREE[:1], TURNS[:1], "packed", "one image"),
    ],
)
@pytest.mark.parametrize("document_mask", [False, True])
def test_the_row_alone_tells_what_it_is(vlm, images, turns, layout, kind, document_mask):
    assert read(vlm, row(vlm, images, turns, layout), document_mask).row.kind == kind


def test_reasons_name_positions_and_what_nanovlm_would_have_written(vlm):
    sample = row(vlm, layout="packed", answering=2)
    first, second = (~sample.attention_mask).nonzero().flatten().tolist()
    reasons = read(vlm, sample).row.reasons
    assert [f"Position {n} " in reason for n, reason in zip((first, second), reasons, strict=False)] == [True, True]
    assert len(reasons) == 5
    assert reasons[-1] != read(vlm, sample, document_mask=True).row.reasons[-1]


def pad_left(sample: Sample, count: int) -> Sample:
    """As a batch does: padding tokens with mask 0, in no sample."""
    return replace(
        sample,
        input_ids=torch.cat([torch.full((count,), PADDING), sample.input_ids]),
        loss_mask=torch.cat([torch.zeros(count, dtype=torch.bool), sample.loss_mask]),
        attention_mask=torch.cat([torch.zeros(count, dtype=torch.bool), sample.attention_mask]),
        segment_ids=torch.cat([torch.full((count,), -1), sample.segment_ids]),
        spans=(
            Span("padding", 0, count),
            *(replace(span, start=span.start + count, stop=span.stop + count) for span in sample.spans),
        ),
    )


def test_padding_at_the_start_is_no_packing(vlm):
    plain = read(vlm, row(vlm))
    padded = read(vlm, pad_left(row(vlm), 7))
    assert padded.row.kind == "several images, first"
    assert padded.row.samples == 1
    assert padded.padding == ((0, 7),)
    assert padded.separators == ()
    assert "Positions 0 to 6 " in padded.row.reasons[0]
    assert [(q.start - 7, q.chooser - 7) for q in padded.questions] == [(q.start, q.chooser) for q in plain.questions]
    assert reachable(padded) == reachable(plain)


def test_a_padded_pack_is_still_a_pack(vlm):
    structure = read(vlm, pad_left(row(vlm, layout="packed", answering=2), 3))
    assert (structure.row.kind, structure.row.samples) == ("packed samples", 3)
    assert structure.padding == ((0, 3),)
    assert len(structure.separators) == 2


def test_a_pack_without_separators_shows_by_its_unnumbered_images(vlm):
    packed = row(vlm, layout="packed")
    kept = packed.attention_mask
    spans, position = [], 0
    for span in packed.spans:
        if span.kind != "separator":
            spans.append(replace(span, start=position, stop=position + len(span)))
            position += len(span)
    glued = replace(
        packed,
        input_ids=packed.input_ids[kept],
        loss_mask=packed.loss_mask[kept],
        segment_ids=packed.segment_ids[kept],
        attention_mask=kept[kept],
        spans=tuple(spans),
    )
    structure = read(vlm, glued)
    assert (structure.row.kind, structure.row.samples, structure.separators) == ("packed samples", 3, ())


def test_samples_of_several_images_count_their_images_anew(vlm):
    pictures = tuple(Image.new("RGB", (64, 64)) for _ in range(2))
    one = vlm.prepare(Conversation((Message("user", "A?", pictures), Message("assistant", "a"))))
    structure = read(vlm, pack_samples([one, one], vlm.pad_token_id))
    assert structure.row.kind == "packed samples"
    assert [image.number for image in structure.images] == [1, 2, 3, 4]
    assert [image.ordinal_text for image in structure.images] == ["<image: 0>", "<image: 1>"] * 2
    assert [image.sample for image in structure.images] == [1, 1, 2, 2]


def test_a_typed_ordinal_is_only_text(vlm):
    structure = read(vlm, row(vlm, THREE, (Turn("<image: 0> and <|im_end|>?", "no"),), "packed"))
    assert [image.ordinal for image in structure.images] != [None] * 3  # three images in one sample are numbered
    one = read(vlm, row(vlm, THREE[:1], (Turn("<image: 0> and <|im_end|>?", "no"),)))
    assert one.images[0].ordinal is None
    assert one.row.kind == "one image"
    assert one.questions[0].text == "<image: 0> and <|im_end|>?"


def test_the_oldest_checkpoints_number_no_images(golden):
    """Before June 2025: image embeddings in front of “Question: … Answer:”, no marks, no numbers."""
    legacy = load_vlm(golden / "legacy_v01", tokenizer=golden / "tiny_tokenizer")
    sample = legacy.prepare(
        Conversation((Message("user", "What is it?", tuple(Image.new("RGB", (64, 64)) for _ in range(2))),)), True
    )
    structure = read(legacy, sample)
    assert structure.row.kind == "several images, first"
    assert len(structure.row.reasons) == 1
    assert [image.marks for image in structure.images] == [(), ()]
    question = structure.questions[0]
    assert (question.text.strip(), question.chooser, question.reachable) == ("What is it?", len(sample) - 1, (1, 2))


def test_in_words_and_in_json(vlm):
    structure = read(vlm, row(vlm, layout="packed"), document_mask=True)
    sentences = structure_sentences(structure)
    assert "3 packed samples" in sentences[0]
    distance = structure.questions[1].sights[1].to_first
    assert distance == 1
    assert "Question 2 " in sentences[-2]
    assert "1 position" in sentences[-2]
    described = json.loads(json.dumps(describe_structure(structure)))
    assert described["kind"] == "packed samples"
    assert described["sentences"] == list(sentences)
    assert [question["reachable"] for question in described["questions"]] == [[1], [2], [3]]
    assert [question["images"][0]["why"] for question in described["questions"]] == [
        "before it",
        "another sample",
        "another sample",
    ]
    assert [image["number"] for image in described["images"]] == [1, 2, 3]
    assert described["marks"]["<|im_end|>"] == list(structure.mark_positions("<|im_end|>"))
