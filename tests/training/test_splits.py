"""Nothing that a model is measured on was trained on: files by their bytes, drawn sets by what is drawn."""

import hashlib
import io
import json
from collections import Counter

import pytest
from PIL import Image

from model import InputError, load_vlm
from model.training.data.datasets import DataStopped, Mixture
from model.training.data.ledger import Entry, join_entries
from model.training.data.readers import read_source
from model.training.data.splits import Subset, split_sources
from model.training.recipe import build_recipe
from model.training.stage_data import draw_held_out, open_stage_data, report_stage
from model.training.synthetic.scene_sets import _MAKERS, CaptionedScenes, read_scene_set
from model.training.synthetic.word import read_word_set


def pixels(item):
    if hasattr(item, "image"):
        return {hashlib.blake2b(getattr(item.image, "pixels", item.image).tobytes()).digest()}
    images = [image for message in item.conversation.messages for image in message.images]
    return {hashlib.blake2b(getattr(image, "pixels", image).tobytes()).digest() for image in images}


def asked(item):
    return item.conversation.messages[0].text


@pytest.mark.parametrize("kind", sorted(_MAKERS))
@pytest.mark.parametrize("pictures", [16, 100])
def test_no_scene_that_is_held_out_is_trained_on(kind, pictures):
    source = read_scene_set({"set": kind, "count": 200, "pictures": pictures})
    (split,) = split_sources([source], [3])
    assert (len(split.train), len(split.held)) == (190, 10)
    if kind == "text":
        assert not {asked(item) for item in split.train} & {asked(item) for item in split.held}
        return
    seen = set().union(*(pixels(item) for item in split.train))
    held = set().union(*(pixels(item) for item in split.held))
    assert len(seen) > 12
    assert len(held) > 8
    assert not seen & held
    assert [asked(split.train[n]) for n in range(3)] == [asked(source[n]) for n in range(3)]


@pytest.mark.parametrize("look", [{"word": "purple"}, {"word": "star", "kind": "shape"}])
def test_no_picture_of_a_word_that_is_held_out_is_trained_on(look):
    (split,) = split_sources([read_word_set({**look, "count": 200, "pictures": 100})], [3])
    assert not set().union(*map(pixels, split.train)) & set().union(*map(pixels, split.held))


@pytest.fixture(scope="module")
def config(golden):
    return load_vlm(golden / "tiny_vlm").config


def test_captioned_tiles_and_easy_vqa_hold_out_the_same_pictures(embedded):
    tiles = CaptionedScenes(embedded.config, 300, 5, easy_share=0.5)
    easy = read_source({"source": "easy-vqa", "limit": 400, "turns": 3}, base_folder=None)
    one, other = split_sources([tiles, easy], [1, 2])
    for split in (one, other):
        assert not set().union(*map(pixels, split.train)) & set().union(*map(pixels, split.held))
    held = set().union(*map(pixels, other.held))
    assert len(held) == other.images >= 10
    assert not set().union(*map(pixels, one.train)) & held
    assert sum(len(item.families) for item in other.held) == other.questions
    assert len(other.train) + len(other.held) == len(easy)


# --- files ---


def write_questions(folder, images, questions, name="d.jsonl"):
    """`questions` about each of `images`, a list of file names for each record."""
    records = [
        {
            "images": names,
            "conversations": [
                {"from": "human", "value": "<image>" * len(names) + f" {number}?"},
                {"from": "gpt", "value": "a"},
            ],
        }
        for names in images
        for number in range(questions)
    ]
    (folder / name).write_text("\n".join(map(json.dumps, records)))
    return read_source({"source": "llava", "path": name}, base_folder=folder)


@pytest.fixture
def photos(tmp_path):
    for number in range(60):
        image = Image.new("RGB", (8, 6), (number, 7, 9))
        image.save(tmp_path / f"{number}.png")
        image.save(tmp_path / f"copy{number}.png")  # the same bytes by another name
    return tmp_path


@pytest.mark.parametrize(
    ("images", "questions", "held", "beside"),
    [
        ([[f"{n}.png"] for n in range(8)], 10, (1, 10), 0),
        ([[f"{n}.png"] for n in range(60)], 1, (3, 3), 0),
        ([["0.png"]], 40, (0, 0), 0),
        ([[f"{n}.png", f"{n + 1}.png"] for n in range(0, 50, 2)], 2, (2, 2), 0),
        ([[f"{n}.png", f"{n + 1}.png"] for n in range(50)], 1, None, None),
        ([[f"{n}.png"] for n in range(19)], 1, (0, 0), 0),
        ([*([f"{n}.png"] for n in range(20)), *([f"copy{n}.png"] for n in range(20))], 1, (1, 2), 0),
    ],
)
def test_an_image_is_held_out_with_every_question(photos, images, questions, held, beside):
    source = write_questions(photos, images, questions)
    (split,) = split_sources([source], [5])
    assert len(split.train) + len(split.held) + split.beside == len(source)
    assert not set().union(*map(pixels, split.train)) & set().union(set(), *map(pixels, split.held))
    if held is None:  # a chain: what shares an image with a held-out one is given up
        assert 0 < len(split.held) <= 2 < split.beside + len(split.held) <= 4
    else:
        assert (split.images, split.questions, split.beside) == (*held, beside)
    (again,) = split_sources([source], [5])
    assert list(again.held.numbers) == list(split.held.numbers)


def test_questions_without_an_image_are_held_out_with_all_that_ask_the_same(tmp_path):
    talks = [
        {"messages": [{"role": "user", "content": f"{n % 30}?"}, {"role": "assistant", "content": str(n)}]}
        for n in range(60)
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, talks)))
    (split,) = split_sources([read_source({"source": "chat", "path": "d.jsonl"}, base_folder=tmp_path)], [1])
    assert (len(split.held), split.images, split.questions) == (4, 0, 4)
    assert not {asked(item) for item in split.train} & {asked(item) for item in split.held}


def test_what_one_table_holds_out_none_trains_on(photos):
    one = write_questions(photos, [[f"{n}.png"] for n in range(40)], 1, "one.jsonl")
    two = write_questions(photos, [[f"copy{n}.png"] for n in range(20, 60)], 3, "two.jsonl")
    three = write_questions(photos, [["1.png"], ["2.png"]], 2, "three.jsonl")
    splits = split_sources([one, two, three], [1, 2, None], [three])
    seen = set().union(*(pixels(item) for split in splits for item in split.train))
    held = set().union(*(pixels(item) for split in splits for item in split.held), *map(pixels, three))
    assert not seen & held
    assert len(splits[0].held) == 2
    assert len(splits[1].held) >= 6
    assert (len(splits[2].train), len(splits[2].held), splits[2].beside) == (0, 0, 4)


def test_every_stage_is_spared_what_another_is_measured_on(photos, make_recipe, config):
    write_questions(photos, [[f"{n}.png"] for n in range(40)], 1, "one.jsonl")
    write_questions(photos, [[f"copy{n}.png"] for n in range(40)], 3, "two.jsonl")
    one, two = ({"source": "llava", "path": str(photos / name)} for name in ("one.jsonl", "two.jsonl"))
    recipe = make_recipe({"kind": "contrastive", "learning_rates": {"text": 1e-3}, "data": [one]}, {"data": [two]})
    first, second = (open_stage_data(recipe, index, config) for index in (0, 1))
    held = set().union(*map(pixels, draw_held_out(recipe, 1, config, 100)))
    assert len(held) == second.ledgers[0].held_out_images == 2
    for data in (first, second):
        trained = data.mixture.sources[0]
        assert not set().union(*map(pixels, trained)) & held
    assert first.ledgers[0].trained == 38


def test_the_ledger_and_the_check_have_the_same_numbers(photos, golden, make_recipe):
    vlm = load_vlm(golden / "tiny_vlm")
    write_questions(photos, [[f"{n}.png"] for n in range(30)], 2)
    with (photos / "d.jsonl").open("a") as lines:
        lines.write('\n{"conversations": []}\n{"conversations": 3}')
    table = {"source": "llava", "path": str(photos / "d.jsonl"), "on_error": "skip"}
    (photos / "29.png").write_bytes(b"no picture")
    recipe = make_recipe({"data": [table]})
    (report,) = report_stage(vlm, recipe, 0, 0)
    found = report.to_json()["ledger"]
    assert {key: found[key] for key in ("read", "usable", "looked_at", "trained", "held_out", "beside")} == {
        "read": 62,
        "usable": 60,
        "looked_at": 60,
        "trained": 56,
        "held_out": 4,
        "beside": 0,
    }
    assert (found["held_out_images"], found["held_out_questions"]) == (2, 4)
    assert [(entry["count"], entry["first"].split(":")[0]) for entry in found["skipped"]] == [
        (1, "d.jsonl line 61"),
        (1, "d.jsonl line 62"),
    ]
    assert [(entry["reason"], entry["count"]) for entry in found["dropped"]] == [("can't be rendered", 2)]
    assert found["dropped"][0]["first"].startswith("d.jsonl line 59: “29.png”")
    data = open_stage_data(recipe, 0, vlm.config)
    looked = {"looked_at": 60, "dropped": found["dropped"]}
    assert json.loads(json.dumps(data.ledgers[0].to_json() | looked)) == json.loads(json.dumps(found))


def test_entries_of_one_reason_are_one_with_the_first_place():
    entries = [Entry("short", 1, "a"), Entry("long", 2, "b"), Entry("short", 3, "c")]
    assert join_entries(entries) == (Entry("short", 4, "a"), Entry("long", 2, "b"))
    many = join_entries(Entry(f"reason {n}", 1, str(n)) for n in range(100))
    assert len(many) == 41
    assert many[-1].count == 60


# --- mixtures ---


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5), (0.3, 0.7, 1e-2), (1.2, 1.8, 1.6, 0.9, 0.6, 0.8)])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_pass_draws_every_item_of_every_source_once(weights, seed):
    lengths = (50, 7, 113, 20, 31, 1)[: len(weights)]
    sources = tuple([(which, item) for item in range(length)] for which, length in enumerate(lengths))
    mixture = Mixture(sources, weights, seed)
    drawn = [mixture.draw(number) for number in range(4000)]
    for which, length in enumerate(lengths):
        mine = [item for source, item in drawn if source == which]
        assert abs(len(mine) - 4000 * weights[which] / sum(weights)) < len(weights)
        passes = [mine[start : start + length] for start in range(0, len(mine) - length + 1, length)]
        assert passes or len(mine) < length
        assert all(sorted(one) == list(range(length)) for one in passes)
        assert length < 20 or len({tuple(one) for one in passes}) == len(passes)
        # Every stretch holds its share, not only the whole.
        for start in range(0, 4000, 500):
            share = sum(source == which for source, _ in drawn[start : start + 500]) / 500
            assert abs(share - weights[which] / sum(weights)) < len(weights) / 250
    assert [mixture.draw(number) for number in (3999, 5, 17)] == [drawn[number] for number in (3999, 5, 17)]


def test_sources_without_an_item_have_no_share():
    mixture = Mixture(([], ["a"], [], ["b"]), (5.0, 1.0, 5.0, 1.0), 0)
    assert Counter(mixture.draw(number) for number in range(10)) == {"a": 5, "b": 5}


@pytest.mark.parametrize(("on_error", "raised"), [("stop", DataStopped), ("skip", InputError)])
def test_a_picture_that_cannot_be_opened_ends_the_draws_where_the_recipe_says_so(photos, on_error, raised):
    write_questions(photos, [["0.png"]], 1)
    source = read_source({"source": "llava", "path": "d.jsonl", "on_error": on_error}, base_folder=photos)
    (photos / "0.png").write_bytes((photos / "0.png").read_bytes()[:50])
    mixture = Mixture((Subset(source, range(1)),), (1.0,), 0)
    with pytest.raises(raised, match=r"d\.jsonl line 1: “0\.png”"):
        mixture.draw(0)


def test_a_recipe_says_what_its_data_are(photos, config, golden):
    """The same records elsewhere are the same data; one more, another answer or another picture are not."""
    write_questions(photos, [["0.png"], ["1.png"]], 3)

    def digest(**table):
        stage = {"name": "s", "kind": "instruction", "steps": 1, "learning_rates": {"MP": 1e-3}}
        table = {"source": "llava", "path": "d.jsonl", **table}
        return open_stage_data(build_recipe({"stages": [{**stage, "data": [table]}]}, photos), 0, config).digest

    first = digest()
    (photos / "e.jsonl").write_bytes((photos / "d.jsonl").read_bytes())
    assert digest(path="e.jsonl") == digest(on_error="skip") == first
    assert digest(weight=2.0) != first
    text = (photos / "d.jsonl").read_text()
    (photos / "d.jsonl").write_text(text.replace('"a"', '"b"', 1))
    assert digest() != first
    (photos / "d.jsonl").write_text(text + "\n" + text.split("\n")[0])
    assert digest() != first
    (photos / "d.jsonl").write_text(text)
    stream = io.BytesIO()
    Image.new("RGB", (80, 60), "white").save(stream, "png")
    (photos / "1.png").write_bytes(stream.getvalue())
    assert digest() != first
