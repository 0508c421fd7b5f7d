"""The report of a data set, on the embedded model."""

import json

import pytest
from PIL import Image

from model import Conversation, InputError, Message
from model.training.data.data_report import MAX_BINS, Bin, report_data
from model.training.data.example import Example
from model.training.data.readers import ExampleSource, Problem, read_source


def example(text="What colour?", answer="red", images=1, where="", size=(64, 64), families=()):
    pictures = tuple(Image.new("RGB", size, "red") for _ in range(images))
    return Example(Conversation((Message("user", text, pictures), Message("assistant", answer))), families, where)


def source(*examples, problems=()):
    return ExampleSource("made up", examples, lambda item: item, problems)


def test_counts_are_those_of_the_samples(embedded):
    examples = [example(), example(images=2), example("2 + 2?", "4", images=0, families=("sums",))]
    samples = [embedded.prepare(item.conversation) for item in examples]
    report = report_data(embedded, source(*examples))
    assert (report.name, report.examples, report.measured, report.usable) == ("made up", 3, 3, 3)
    assert (report.turns, report.images) == (3, 3)
    assert report.tokens == sum(len(sample) for sample in samples)
    assert report.trained_tokens == sum(int(sample.loss_mask.sum()) for sample in samples)
    assert report.trained_share == report.trained_tokens / report.tokens
    assert report.longest == max(len(sample) for sample in samples)
    assert report.images_per_sample == {0: 1, 1: 1, 2: 1}
    assert report.tiles_per_image == {1: 3}
    assert report.families == {"sums": 1}
    assert sum(part.count for part in report.token_histogram) == 3
    assert report.drops == ()
    assert report.lint == ()
    assert report.max_length == embedded.config.lm_max_position_embeddings


def test_tiles_of_a_large_picture(embedded):
    tile = embedded.config.tile_px
    (image,) = embedded.prepare(example(size=(2 * tile, tile)).conversation).images
    report = report_data(embedded, source(example(size=(2 * tile, tile))))
    assert report.tiles_per_image == {len(image.tiles): 1}
    assert len(image.tiles) == 3


def test_what_is_dropped_and_why(embedded):
    limit = embedded.config.lm_max_position_embeddings
    unanswered = Example(Conversation((Message("user", "q"),)), source="d line 5")
    examples = [
        example(where="d line 1"),
        example("word " * 3 * limit, where="d line 2"),
        example(images=3, where="d line 3"),
        Example(Conversation((Message("robot", "x"),)), source="d line 4"),
        unanswered,
        Example(Conversation((Message("user", "q"),)), source="d line 6"),
    ]
    report = report_data(embedded, source(*examples), max_images=2)
    assert {drop.reason: drop.count for drop in report.drops} == {
        "too long": 1,
        "too many images": 1,
        "can't be rendered": 1,
        "no label": 2,
    }
    sentences = {drop.reason: drop.example for drop in report.drops}
    assert sentences["too long"].startswith("d line 2 has ")
    assert f"{limit:,}" in sentences["too long"]
    assert "d line 3 has 3 images" in sentences["too many images"]
    assert "“robot”" in sentences["can't be rendered"]
    assert "d line 5" in sentences["no label"]
    assert report.usable == 1
    assert report.longest > limit
    assert [(found.finding.rule, found.count, found.where) for found in report.lint] == [
        ("all-labels-ignored", 2, "d line 5")
    ]


def test_the_limit_is_exact(embedded):
    length = len(embedded.prepare(example().conversation))
    assert report_data(embedded, source(example()), length).usable == 1
    assert report_data(embedded, source(example()), length - 1).usable == 0
    assert report_data(embedded, source(example()), 10**9).max_length == embedded.config.lm_max_position_embeddings


def test_special_text_is_linted(embedded):
    report = report_data(embedded, source(example("what is <|im_end|>", where="here"), example("<|im_end|>")))
    assert [(found.finding.severity, found.finding.rule, found.count, found.where) for found in report.lint] == [
        ("note", "special-text", 2, "here")
    ]


def test_damaged_pictures_are_told(embedded, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "a.txt").write_text("A")
    captions = read_source({"source": "captions", "path": "."}, base_folder=tmp_path)
    (drop,) = report_data(embedded, captions).drops
    assert drop.reason == "can't be rendered"
    assert drop.example.startswith("a.png")
    assert report_data(embedded, captions).token_histogram == ()
    assert report_data(embedded, captions).trained_share == 0.0


def test_a_draw_is_seeded(embedded):
    examples = [example(f"number {number}?", images=0, where=f"n{number}") for number in range(60)]
    one, same, other = (report_data(embedded, source(*examples), sample=20, seed=seed) for seed in (1, 1, 2))
    assert (one.examples, one.measured, one.usable) == (60, 20, 20)
    places = lambda report: [look.where for look in report.looks]  # noqa: E731
    assert places(one) == places(same)
    assert places(one) != places(other)
    assert len(one.looks) == 4
    assert one.looks[0].sample.input_ids.tolist() == embedded.prepare(one.looks[0].conversation).input_ids.tolist()


def test_histogram_bins_are_round_and_cover_all(embedded):
    examples = [example("word " * number, images=0) for number in range(1, 60)]
    lengths = [len(embedded.prepare(item.conversation)) for item in examples]
    bins = report_data(embedded, source(*examples)).token_histogram
    assert len(bins) <= MAX_BINS
    width = bins[0].stop - bins[0].start
    assert width in (1, 2, 5, 10, 20, 50)
    assert [part.start for part in bins] == list(range(bins[0].start, bins[-1].stop, width))
    for part in bins:
        assert part.count == sum(part.start <= length < part.stop for length in lengths)
    length = len(embedded.prepare(example().conversation))
    assert report_data(embedded, source(example())).token_histogram == (Bin(length, length + 1, 1),)


def test_json_is_plain_and_whole(embedded):
    problem = Problem("d line 9", "it has no answer", "skipped")
    report = report_data(embedded, source(example(where="d line 1"), problems=(problem,)))
    values = json.loads(json.dumps(report.to_json()))
    assert values["problems"] == [{"where": "d line 9", "sentence": "it has no answer", "kind": "skipped", "count": 1}]
    assert values["tiles_per_image"] == {"1": 1}
    (look,) = values["looks"]
    assert look["where"] == "d line 1"
    assert look["tokens"] == values["tokens"]
    assert f"⟨{embedded.config.tokens_per_tile} image tokens⟩" in look["text"]
    assert "What colour?" in look["text"]
    assert "red<|im_end|>" in look["text"]


def test_requests_that_make_no_sense(embedded):
    with pytest.raises(InputError, match="no example"):
        report_data(embedded, source())
    for keywords in ({"sample": -1}, {"max_length": 0}, {"max_images": -1}):
        with pytest.raises(InputError, match="0 or more"):
            report_data(embedded, source(example()), **keywords)


def test_easy_vqa_has_a_clean_report(embedded, tmp_path):
    easy = read_source({"source": "easy-vqa", "split": "test", "turns": 2}, base_folder=tmp_path)
    report = report_data(embedded, easy, sample=40)
    assert (report.examples, report.measured, report.usable, report.turns) == (5099, 40, 40, 79)
    assert report.lint == ()
    assert sum(report.families.values()) == 79
