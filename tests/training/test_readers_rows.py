"""nanoVLM's rows from parquet, JSONL, a saved folder and (with the hub stood in for) the hub."""

import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model import InputError
from model.training.data.readers import read_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` converts stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(colour="red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(stream, "png")
    return stream.getvalue()


def row(*turns, images=("red",), **more):
    texts = [{"user": user, "assistant": assistant} for user, assistant in turns or [("What colour?", "red")]]
    return {"images": [{"bytes": png(name), "path": None} for name in images], "texts": texts, **more}


def read(folder, path, **more):
    return read_source({"source": "rows", "path": path, **more}, base_folder=folder)


def shown(example):
    return [
        (message.text, [image.pixels.getpixel((0, 0)) for image in message.images])
        for message in example.conversation.messages
    ]


RED, BLUE = (255, 0, 0), (0, 0, 255)
FEATURES = datasets.Features(
    {
        "images": datasets.List(datasets.Image()),
        "texts": datasets.List({"user": datasets.Value("string"), "assistant": datasets.Value("string")}),
        "relevance_ratings": datasets.List(datasets.Value("int64")),
    }
)


def table(*rows, features=FEATURES):
    return datasets.Dataset.from_list([{"relevance_ratings": None, **entry} for entry in rows], features=features)


# --- where rows come from ---


def test_parquet_without_metadata(tmp_path):
    rows = [row(("a", "b"), ("c", "d"), images=("red", "blue")), row(images=())]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    source = read(tmp_path, "d.parquet")
    assert shown(source[0]) == [("a", [RED, BLUE]), ("b", []), ("c", []), ("d", [])]
    assert shown(source[1]) == [("What colour?", []), ("red", [])]
    assert (source.name, source[1].source, source.problems) == ("d.parquet", "d.parquet row 2", ())


def test_a_folder_of_parquet_files_names_file_and_row(tmp_path):
    (tmp_path / "data").mkdir()
    table(row(), row()).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    table(row(("only", "one")), row(("q", ""))).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    table(row(("held", "out"))).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"train-00001-of-00002\.parquet.*row 2.*message 2"):
        read(tmp_path, "data", split="train")
    source = read(tmp_path, "data", split="train", on_error="skip")
    assert [source[n].source for n in (0, 2)] == [
        "train-00000-of-00002.parquet row 1",
        "train-00001-of-00002.parquet row 1",
    ]
    assert shown(source[2]) == [("only", [RED]), ("one", [])]
    assert shown(read(tmp_path, "data", split="test")[0])[0] == ("held", [RED])
    assert len(read(tmp_path, "data", split="train", limit=2)) == 2


def test_jsonl_rows_name_their_pictures(tmp_path):
    (tmp_path / "red.png").write_bytes(png())
    rows = [
        {"images": ["red.png"], "texts": [{"user": "q", "assistant": "a", "source": "aokvqa"}]},
        {"images": [{"path": "../x.png"}], "texts": [{"user": "q", "assistant": "a"}]},
        {"images": None, "texts": [{"user": "q", "assistant": "a"}]},
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"d\.jsonl.*line 2.*\.\./x\.png"):
        read(tmp_path, "d.jsonl")
    source = read(tmp_path, "d.jsonl", on_error="skip")
    assert [shown(example) for example in source] == [[("q", [RED]), ("a", [])], [("q", []), ("a", [])]]
    assert [example.families for example in source] == [("aokvqa",), ()]


def test_saved_data_sets(tmp_path):
    table(row(), row(images=("blue",))).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table(row()), "dev": table(row(images=("blue",)))}).save_to_disk(tmp_path / "two")
    source = read(tmp_path, "one")
    assert shown(source[1]) == [("What colour?", [BLUE]), ("red", [])]
    assert source[1].source == "one row 2"
    assert shown(read(tmp_path, "two", split="dev")[0])[0] == ("What colour?", [BLUE])
    with pytest.raises(InputError, match=r"two.*several.*train or dev"):
        read(tmp_path, "two")
    with pytest.raises(InputError, match=r"two.*“test”"):
        read(tmp_path, "two", split="test")
    with pytest.raises(InputError, match=r"one.*“train”"):
        read(tmp_path, "one", split="train")


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the hub: records how it was asked and hands out `hub.table`."""

    class Hub:
        calls: list = []  # noqa: RUF012
        table = table(row(("q1", "a1")), row(("q2", ""), images=("blue",)), row(("q3", "a3"), images=("blue",)))
        error = None

        def load(self, path, name=None, **keywords):
            self.calls.append((path, name, keywords))
            if self.error:
                raise self.error
            return self.table.to_iterable_dataset() if keywords["streaming"] else self.table

    Hub.calls = []
    stand_in = Hub()
    monkeypatch.setattr(datasets, "load_dataset", stand_in.load)
    return stand_in


@pytest.mark.parametrize("streaming", [False, True])
def test_from_the_hub(tmp_path, hub, streaming):
    source = read(
        tmp_path,
        "HuggingFaceM4/the_cauldron",
        subset="ai2d",
        split="train",
        revision="abc",
        limit=2,
        streaming=streaming,
        on_error="skip",
    )
    assert hub.calls == [
        (
            "HuggingFaceM4/the_cauldron",
            "ai2d",
            {"split": "train", "revision": "abc", "streaming": streaming, "token": False},
        )
    ]
    assert source.name == "HuggingFaceM4/the_cauldron ai2d train"
    assert [shown(example) for example in source] == [[("q1", [RED]), ("a1", [])], [("q3", [BLUE]), ("a3", [])]]
    assert source[1].source == "HuggingFaceM4/the_cauldron ai2d train row 3"
    assert [problem.where for problem in source.problems] == ["HuggingFaceM4/the_cauldron ai2d train row 2"]


def test_hub_without_options_and_its_failures(tmp_path, hub):
    assert len(read(tmp_path, "a/b", on_error="skip")) == 2
    assert hub.calls == [("a/b", None, {"split": "train", "revision": None, "streaming": False, "token": False})]
    with pytest.raises(InputError, match=r"streaming.*limit"):
        read(tmp_path, "a/b", streaming=True)
    hub.error = ConnectionError("Couldn't reach the hub\nlong trace")
    with pytest.raises(InputError, match=r"a/b train.*\(ConnectionError"):
        read(tmp_path, "a/b")
    hub.error, hub.table = None, datasets.Dataset.from_list([{"question": "x", "label": 1}])
    with pytest.raises(InputError, match=r"a/b train.*question, label.*texts"):
        read(tmp_path, "a/b")


def test_the_hub_is_asked_as_nobody_unless_the_recipe_says_otherwise(tmp_path, hub):
    read(tmp_path, "a/b", on_error="skip", token=False)
    read(tmp_path, "a/b", on_error="skip", token=True)
    # None is datasets' word for the token of whoever runs this.
    assert [call[2]["token"] for call in hub.calls] == [False, None]
    with pytest.raises(InputError, match=r"token.*rows.*'hf_x'"):
        read(tmp_path, "a/b", token="hf_x")


def test_what_is_converted_lies_where_the_table_says(tmp_path, monkeypatch):
    common = tmp_path / "common"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(common))
    (tmp_path / "upload").mkdir()
    table(row(), row(images=("blue",))).to_parquet(tmp_path / "upload" / "d.parquet")
    own = tmp_path / "upload" / ".converted"
    source = read(tmp_path, "upload/d.parquet", cache=str(own))
    assert shown(source[1]) == [("What colour?", [BLUE]), ("red", [])]
    assert list(own.rglob("*.arrow"))
    assert not common.exists()


def test_pictures_from_the_hub_must_be_bytes(tmp_path, hub):
    """A path in data from elsewhere must not open a file of this machine."""
    hub.table = table(row()).cast_column("images", datasets.List(datasets.Image(decode=False)))
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    hub.table = datasets.Dataset.from_list([{"images": [str(secret)], "texts": [{"user": "q", "assistant": "a"}]}])
    with pytest.raises(InputError, match="without its bytes"):
        read(tmp_path, "a/b")


# --- rows that can't be used ---


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"images": {"bytes": "x"}}, "images.*an object"),
        ({"images": "red.png"}, "images.*text"),
        ({"images": ""}, "images.*text"),
        ({"images": [5]}, "a number.*bytes"),
        ({"images": [None]}, "missing.*bytes"),
        ({"images": ["gone.png"]}, r"gone\.png"),
        ({"images": ["/etc/hostname"]}, "/etc/hostname"),
        ({"texts": None}, "texts.*missing"),
        ({"texts": []}, "texts.*empty"),
        ({"texts": ["q"]}, r"texts\[0\] is"),
        ({"texts": [{"user": "q"}]}, r"texts\[0\]\.assistant"),
        ({"texts": [{"user": 1, "assistant": "a"}]}, r"texts\[0\]\.user"),
        ({"relevance_ratings": [1, 2]}, "relevance_ratings.*2 entries.*1 turns"),
        ({"relevance_ratings": []}, "relevance_ratings.*0 entries.*1 turns"),
        ({"formatting_ratings": 3}, "formatting_ratings.*list"),
        ({"formatting_ratings": ["5"]}, "formatting_ratings.*text"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, entry, sentence):
    whole = {"images": [], "texts": [{"user": "q", "assistant": "a"}]}
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, [whole, whole | entry])))
    with pytest.raises(InputError, match=rf"^d\.jsonl line 2.*{sentence}"):
        read(tmp_path, "d.jsonl")
    assert len(read(tmp_path, "d.jsonl", on_error="skip")) == 1


def test_files_that_are_no_parquet(tmp_path):
    (tmp_path / "d.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"d\.parquet.*parquet file"):
        read(tmp_path, "d.parquet")
    (tmp_path / "d.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"d\.parquet.*parquet file"):
        read(tmp_path, "d.parquet")
    (tmp_path / "e.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"e\.jsonl"):
        read(tmp_path, ".")
    with pytest.raises(InputError, match=r"gone\.parquet"):
        read(tmp_path, "gone.parquet")


def test_a_parquet_file_cut_in_half(tmp_path):
    table(*[row()] * 20).to_parquet(tmp_path / "d.parquet")
    data = (tmp_path / "d.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"d\.parquet.*parquet file"):
        read(tmp_path, "d.parquet")


def test_a_damaged_picture_in_parquet(tmp_path):
    bad = row() | {"images": [{"bytes": png()[:40], "path": None}]}
    table(row(), bad).to_parquet(tmp_path / "d.parquet")
    source = read(tmp_path, "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet.*row 2"):
        source[1]


@pytest.mark.parametrize("key", ["subset", "revision", "streaming", "token"])
def test_keys_of_the_hub_are_refused_for_files(tmp_path, key):
    (tmp_path / "d.jsonl").write_text("{}")
    with pytest.raises(InputError, match=rf"d\.jsonl.*“{key}”"):
        read(tmp_path, "d.jsonl", **{key: True if key in ("streaming", "token") else "x"})


# --- ratings ---


@pytest.fixture(scope="module")
def golden_rows(golden):
    return json.loads((golden / "text.json").read_text())["items_input"]


@pytest.mark.parametrize(
    ("name", "questions"),
    [
        ("ratings_drop_first", ["good"]),
        ("ratings_drop_middle", ["a", "c"]),
        ("ratings_none_entries", ["a"]),
        ("ratings_equal_threshold", ["a"]),
        ("ratings_drop_all", None),
    ],
)
def test_ratings_leave_the_turns_that_nanovlm_leaves(tmp_path, golden, golden_rows, name, questions):
    entry = golden_rows[name]
    (tmp_path / "tile_64x64").write_bytes(png())
    lines = [json.dumps(entry), json.dumps({"images": None, "texts": [{"user": "other", "assistant": "x"}]})]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    least = {
        f"{kind}_min_rating": 3 for kind in ("relevance", "image_correspondence", "visual_dependency", "formatting")
    }
    source = read(tmp_path, "d.jsonl", **least)
    theirs = json.loads((golden / "text.json").read_text())["datasets"]["full66_p64max256F_mp4_thr3"]["items"][name]
    assert (theirs is None) == (questions is None)
    if questions is None:
        assert len(source) == 1
        assert len(source.problems) == 1
        return
    messages = source[0].conversation.messages
    assert [message.text for message in messages[::2]] == questions
    # All pictures stay, with the first turn that is left.
    assert [len(message.images) for message in messages] == [1] + [0] * (len(messages) - 1)
    assert len(read(tmp_path, "d.jsonl")[0].conversation.messages) == 2 * len(entry["texts"])


def test_a_threshold_must_be_a_whole_number(tmp_path):
    with pytest.raises(InputError, match=r"relevance_min_rating.*'high'"):
        read(tmp_path, "d.jsonl", relevance_min_rating="high")
