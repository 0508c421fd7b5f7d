"""Uploads: taken in by a process of their own, within quotas, and swept."""

import json
import os
import time
import zipfile

import pytest

from inspector.bounds import private_bounds, public_bounds
from inspector.intake.parsers import ParserPool, ReadingStopped
from inspector.runs.uploads import UploadShelf, sweep_uploads, take_in
from model import InputError

ROW = '{"messages": []}\n'
MIB = 1 << 20


def write_zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    return path


def write(path, text=ROW):
    path.write_text(text)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def shelf(tmp_path):
    """Makes shelves in one folder; ``used`` is what runs need."""

    def make(used=(), **bounds):
        return UploadShelf(tmp_path / "in", ParserPool(private_bounds(**bounds)), lambda: used)

    return make


def test_a_zip_with_a_table_and_pictures(tmp_path):
    path = write_zip(tmp_path / "set.zip", {"set/data.jsonl": ROW, "set/a.png": "x"})
    found = take_in(path, tmp_path / "in", "me")
    assert (found.path.name, found.source) == ("data.jsonl", "chat")
    assert (found.path.parent / "a.png").is_file()
    assert names(found.folder) == ["data", "owner.json"]
    assert json.loads((found.folder / "owner.json").read_text())["owner"] == "me"
    assert path.is_file()


def test_a_single_file_keeps_its_name_but_for_letters_that_mean_something(tmp_path):
    found = take_in(write(tmp_path / "a [1]*<b>.JSONL"), tmp_path / "in")
    assert found.path.name == "a _1___b_.jsonl"
    assert found.path.read_text() == ROW


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", "x", r"a\.txt.*\.jsonl"),
        ("a.jsonl", '{"messages": [', "JSON"),
        ("a.zip", "PK no", "zip"),
        ("a.jsonl", "", "empty"),
    ],
)
def test_a_bad_upload_is_one_sentence_and_leaves_nothing(tmp_path, name, content, sentence):
    with pytest.raises(InputError, match=sentence):
        take_in(write(tmp_path / name, content), tmp_path / "in")
    assert names(tmp_path / "in") == []


def test_a_zip_that_unpacks_too_large_leaves_nothing(tmp_path):
    path = write_zip(tmp_path / "bomb.zip", {"a.jsonl": "x" * 2 * MIB})
    with pytest.raises(InputError, match="1 MiB"):
        take_in(path, tmp_path / "in", bounds=private_bounds(unpacked_bytes=MIB))
    with pytest.raises(InputError, match=r"3 files.* 2"):
        take_in(write_zip(path, dict.fromkeys("abc", "")), tmp_path / "in", bounds=private_bounds(unpacked_files=2))
    assert names(tmp_path / "in") == []


def test_a_file_that_is_gone_or_none(tmp_path):
    with pytest.raises(InputError, match="any more"):
        take_in(tmp_path / "a.jsonl", tmp_path / "in")
    with pytest.raises(InputError, match="any more"):
        take_in(tmp_path / ("a" * 5000 + ".jsonl"), tmp_path / "in")
    os.mkfifo(tmp_path / "b.jsonl")
    with pytest.raises(InputError, match="no file"):
        take_in(tmp_path / "b.jsonl", tmp_path / "in")


# --- quotas ---


def test_a_persons_uploads_are_bounded_before_anything_is_unpacked(tmp_path, shelf):
    here = shelf(upload_bytes_per_person=MIB)
    large = write(tmp_path / "a.jsonl", ROW + " " * 600_000)
    here.begin(large, "me").wait()
    with pytest.raises(InputError, match=r"^Your .*0\.6 MiB of 1 MiB.*a\.jsonl.*0\.6 MiB"):
        here.begin(large, "me")
    # What it unpacks to counts, not what it takes packed.
    with pytest.raises(InputError, match=r"0\.42\d* MiB"):
        here.begin(write_zip(tmp_path / "a.zip", {"a.jsonl": ROW + " " * 600_000}), "me").wait()
    assert len(names(tmp_path / "in")) == 1
    here.begin(large, "you").wait()


def test_everybodys_uploads_are_bounded_together(tmp_path, shelf):
    here = shelf(upload_bytes=MIB)
    large = write(tmp_path / "a.jsonl", ROW + " " * 600_000)
    here.begin(large, "me").wait()
    with pytest.raises(InputError, match=r"^All .*0\.6 MiB of 1 MiB"):
        here.begin(large, "you")


def test_a_newer_upload_takes_the_place_of_the_older_unless_a_run_needs_it(tmp_path, shelf):
    bounds = {"upload_bytes_per_person": MIB}
    large = write(tmp_path / "a.jsonl", ROW + " " * 600_000)
    first = shelf(**bounds).begin(large, "me").wait()
    second = shelf(**bounds).begin(large, "me", replaced=first).wait()
    assert names(tmp_path / "in") == [second.folder.name]
    with pytest.raises(InputError, match="JSON"):
        shelf().begin(write(tmp_path / "bad.jsonl", "{"), "me", replaced=second).wait()
    assert names(tmp_path / "in") == [second.folder.name]  # what was there is kept until there is something better
    with pytest.raises(InputError, match="Your uploads"):
        shelf(used={second.folder.name}, **bounds).begin(large, "me", replaced=second)
    shelf(used={second.folder.name}).remove(second)
    assert names(tmp_path / "in") == [second.folder.name]
    shelf().remove(second)
    shelf().remove(None)
    assert names(tmp_path / "in") == []


def test_what_no_run_needs_is_swept_by_age(tmp_path):
    root = tmp_path / "in"
    old, used, new = (take_in(write(tmp_path / "a.jsonl"), root).folder for _ in range(3))
    for folder in (old, used):
        (folder / "owner.json").write_text(json.dumps({"owner": "me", "since": time.time() - 100}))
    (root / "half").mkdir()  # of a server that ended in the middle: as old as the folder is
    os.utime(root / "half", (0, 0))
    sweep_uploads(root, {used.name}, older_than=50)
    assert names(root) == sorted([used.name, new.name])
    sweep_uploads(tmp_path / "none", set(), older_than=50)


# --- bounds of the process ---


def test_the_process_ends_at_its_time(tmp_path, shelf):
    with pytest.raises(InputError, match=r"a\.jsonl.* 0\.001 s"):
        shelf(parse_s=0.001).begin(write(tmp_path / "a.jsonl"), "me").wait()
    assert names(tmp_path / "in") == []


def test_the_process_ends_by_itself_if_nobody_looks(tmp_path, shelf):
    intake = shelf(parse_s=0.5).begin(write(tmp_path / "a.jsonl"), "me")
    intake._reading._module = "tests.inspector.endless"
    assert intake.look() is None
    intake._reading._process.wait(30)
    with pytest.raises(InputError, match=r"0\.5 s"):
        intake.wait()


def test_memory_is_bounded(tmp_path, shelf):
    # An LZMA member names the memory that it wants.
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.jsonl", ROW * 99)
    data = path.read_bytes()
    start = 30 + len("a.jsonl") + 4
    path.write_bytes(data[: start + 1] + b"\xff\xff\xff\x7f" + data[start + 5 :])
    with pytest.raises(InputError, match=" 50 MiB of memory"):
        shelf(parse_bytes=50 * MIB).begin(path, "me").wait()
    assert names(tmp_path / "in") == []


def test_others_wait_for_their_turn_and_not_forever(tmp_path, shelf):
    here = shelf(parsers=1, parse_s=60)
    first, second = (here.begin(write(tmp_path / f"{name}.jsonl"), name) for name in "ab")
    first._reading._module = "tests.inspector.endless"
    assert first.look() is None
    assert second.look() is None
    assert second._reading._process is None
    first.close()
    assert second.wait().source == "chat"
    here = shelf(parsers=0, parse_s=0.05)
    with pytest.raises(InputError, match=r"a\.jsonl.* waited 0\.05 s"):
        here.begin(write(tmp_path / "a.jsonl"), "me").wait()
    assert names(tmp_path / "in") == [names(tmp_path / "in")[0]]


def test_a_newer_reading_of_the_same_page_ends_the_older_at_once(tmp_path, shelf):
    here = shelf()
    first = here.begin(write(tmp_path / "a.jsonl"), "me", page=("page", "upload"))
    first._reading._module = "tests.inspector.endless"
    other = here.begin(write(tmp_path / "a.jsonl"), "you", page=("other", "upload"))
    assert first.look() is None
    process = first._reading._process
    second = here.begin(write(tmp_path / "b.jsonl"), "me", page=("page", "upload"))
    assert process.poll() is not None
    with pytest.raises(ReadingStopped):
        first.wait()
    assert (second.wait().path.name, other.wait().path.name) == ("b.jsonl", "a.jsonl")
    assert here.pool.is_reading(("page",)) is False


def test_a_process_with_foreign_data_knows_no_secret(tmp_path, shelf, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    intake = shelf().begin(write(tmp_path / "a.jsonl"), "me")
    assert "HF_TOKEN" not in intake._reading._environment
    assert intake._reading._environment["HF_HUB_OFFLINE"] == "1"
    intake.close()
    assert names(tmp_path / "in") == []


def test_bounds_of_a_public_server():
    bounds = public_bounds()
    assert (bounds.parsers, bounds.parse_s, bounds.upload_bytes_per_person) == (1, 60, 200 * MIB)
