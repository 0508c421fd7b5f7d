"""What the app hands over lies in its own cache, within bounds, and nothing stays."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inspector import files
from inspector.bounds import Bounds
from inspector.facts import write_json
from inspector.files import handed_over, new_folder, open_cache, sweep
from model import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_made_lies_in_the_cache_under_a_name_of_its_own(cache):
    assert open_cache() == cache
    made = set()
    for _ in range(3):
        with handed_over() as folder:
            (folder / "facts.json").write_text("{}")
        made.add(folder)
    assert len(made) == 3
    assert all(folder.parent == cache / "made" and len(folder.name) == 32 for folder in made)
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in made)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError("odd"), "OSError"),
    ],
)
def test_a_full_or_read_only_disk_is_a_sentence_and_leaves_nothing(cache, error, words):
    def write():
        with handed_over() as folder:
            (folder / "half.json").write_text("{")
            raise error

    with pytest.raises(InputError, match=words):
        write()
    assert list((cache / "made").iterdir()) == []


def test_a_cache_that_cannot_be_made_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(files.CACHE, str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="written"):
        new_folder()


def test_another_fault_leaves_nothing_either(cache):
    def fail():
        with handed_over():
            raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        fail()
    assert list((cache / "made").iterdir()) == []


def fill(root, name, size, age):
    (root / name).mkdir(parents=True)
    (root / name / "file").write_bytes(bytes(size))
    changed = (root / name).stat().st_mtime - age
    os.utime(root / name, (changed, changed))


def left(root):
    return sorted(path.name for path in root.iterdir())


def test_the_oldest_go_first(tmp_path):
    for name, age in (("a", 40), ("b", 30), ("c", 20), ("d", 10)):
        fill(tmp_path, name, 100, age)
    sweep(tmp_path, 3600, 250)
    assert left(tmp_path) == ["c", "d"]
    sweep(tmp_path, 15, 10**6)
    assert left(tmp_path) == ["d"]
    sweep(tmp_path, 5, 1)
    assert left(tmp_path) == ["d"], "the newest is what was just asked for"


def test_many_exports_stay_within_the_bound(cache):
    bounds = Bounds(made_bytes=1000)
    for _ in range(30):
        with handed_over(bounds) as folder:
            (folder / "file").write_bytes(bytes(300))
    assert len(left(cache / "made")) == 3


def test_nothing_stays_when_the_process_ends(tmp_path):
    code = (
        "from inspector.files import handed_over, own_folder, open_cache\n"
        "with handed_over() as folder: (folder / 'a').write_text('a')\n"
        "assert open_cache().parent == own_folder() and (folder / 'a').exists()\n"
        "print(own_folder())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != files.CACHE}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_none_become_null():
    facts = {"a": [float("nan"), 1.5, (float("inf"), -0.0)], "b": {"c": float("-inf"), "d": "NaN"}, "e": True}
    assert json.loads(write_json(facts)) == {"a": [None, 1.5, [None, 0.0]], "b": {"c": None, "d": "NaN"}, "e": True}
