"""A run's folder: whole at any moment, one process at a time, whatever is written beside."""

import errno
import json

import pytest
import torch

from model import InputError
from model.training import runs
from model.training.events import EvalEvent, StepEvent
from model.training.runs import CONTROL, METRICS, RUN, RunFolder


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.create("title = 'x'\n", "abc")
    return made


def step(stage, number):
    return StepEvent(stage, 1.0, number, 9, 0.5, {"MP": 1e-3}, 1.0, 10.0, 1.0, 1.0)


def test_a_second_run_and_a_second_process_are_refused(folder):
    with pytest.raises(InputError, match="--resume"):
        RunFolder(folder.path).create("", "")
    with pytest.raises(InputError, match="Another process"):
        RunFolder(folder.path).reopen()
    folder.unlock()
    other = RunFolder(folder.path)
    other.reopen()
    other.unlock()


def test_an_older_version_and_a_damaged_file_are_told(folder):
    (folder.path / RUN).write_text(json.dumps({"format": 0}))
    with pytest.raises(InputError, match=r"format 0, .* 1\)"):
        folder.read_run()
    for content in (b"{", b"\xff", b"[]"):
        (folder.path / RUN).write_bytes(content)
        with pytest.raises(InputError):
            folder.read_run()
    with pytest.raises(InputError, match="no run"):
        RunFolder(folder.path / "none").read_run()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="written"):
        RunFolder(tmp_path / "file" / "run").create("", "")


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        (b"pause", "pause"),
        (b" stop\n", "stop"),
        (b"run", "run"),
        (b"", "run"),
        (b"halt!", "run"),
        (b"\xff\xfe\x00", "run"),
        (b"stop" * 10_000, "run"),
    ],
)
def test_the_control_file(folder, content, asked):
    assert folder.request == "run"
    (folder.path / CONTROL).write_bytes(content)
    assert folder.request == asked
    folder.clear_request()
    folder.clear_request()
    assert folder.request == "run"


def test_a_control_file_that_is_a_folder_is_no_request(folder):
    (folder.path / CONTROL).mkdir()
    assert folder.request == "run"


def test_what_was_said_after_the_state_is_taken_back(folder):
    folder.append(step("a", 1))
    folder.append(EvalEvent("a", 1.0, 1, float("nan"), {"all": 1.0}, ()))
    for number in (1, 2, 3):
        folder.append(step("b", number))
    folder.append(step("c", 1))
    with (folder.path / METRICS).open("ab") as file:
        file.write('{"event":"step","stage":"“b'.encode()[:-2])  # cut inside a character
    folder.forget_after(1, ["a", "b", "c"], 2)
    kept = [json.loads(line) for line in (folder.path / METRICS).read_text().splitlines()]
    assert [(e["event"], e["stage"], e["step"]) for e in kept] == [
        ("step", "a", 1),
        ("eval", "a", 1),
        ("step", "b", 1),
        ("step", "b", 2),
    ]
    assert kept[1]["loss"] is None  # JSON knows no NaN


def test_unicode_line_ends_in_answers_are_no_line_ends(folder):
    from model.training.events import Answered

    folder.append(EvalEvent("a", 1.0, 1, 0.5, {}, (Answered("q", "e", "one\u2028two\x85three"),)))
    folder.forget_after(0, ["a"], 1)
    (line,) = (folder.path / METRICS).read_text(encoding="utf-8").strip("\n").split("\n")
    assert json.loads(line)["answers"][0]["answered"] == "one\u2028two\x85three"


def test_a_full_disk_leaves_the_state_before(folder, monkeypatch):
    folder.save_state({"x": torch.ones(2)}, {"stage_index": 0, "step": 1})

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "save_file", full)
    with pytest.raises(InputError, match="No space left"):
        folder.save_state({"x": torch.zeros(2)}, {"stage_index": 0, "step": 2})
    tensors, values = folder.load_state()
    assert tensors["x"].tolist() == [1, 1]
    assert values["step"] == 1
    assert len(list((folder.path / "state").iterdir())) == 2  # the state and “latest”


def test_a_damaged_state_is_told(folder):
    assert folder.load_state() is None
    folder.save_state({"x": torch.ones(2)}, {"stage_index": 0, "step": 1})
    (file,) = (folder.path / "state").glob("*/tensors.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match="read"):
        folder.load_state()


def test_left_overs_of_a_killed_process_go(folder):
    (folder.path / ".model-abc").mkdir()
    (folder.path / ".model-abc" / "part").write_text("")
    (folder.path / ".run.json-xyz").write_text("{")
    folder.unlock()
    folder.reopen("title = 'changed'\n")
    assert not list(folder.path.glob(".*-*"))
    assert (folder.path / "recipe.toml").read_text() == "title = 'changed'\n"
