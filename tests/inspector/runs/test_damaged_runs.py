"""Every kind of damage of a run's folder, and every look at it: it shows as itself and hides nothing else."""

import json
import os
import shutil
import time
import types
import warnings
import zipfile
from pathlib import Path

import gradio as gr
import pytest

from inspector.figures.training import chart_payload, show_evaluation, show_history, show_status
from inspector.runs.job_folder import JobFolder, JobState, Record
from inspector.runs.jobs import JobTable
from inspector.runs.progress import ProgressReader
from inspector.session import ModelStore
from inspector.ui import build_ui
from model.training.recipe import build_recipe

SOUND, HURT = "soundsoundsound1", "hurthurthurthur1"
STEP = {
    "event": "step",
    "stage": "s",
    "time": 1.0,
    "step": 1,
    "steps": 3,
    "loss": 1.5,
    "learning_rates": {"MP": 1e-3},
    "gradient_norm": 1.0,
    "tokens_per_s": 10.0,
    "seconds": 1.0,
    "eta_s": 1.0,
}
EVAL = {
    "event": "eval",
    "stage": "s",
    "time": 1.0,
    "step": 1,
    "loss": 0.5,
    "accuracy": {"all": 0.5},
    "answers": [{"question": "q", "expected": "a", "answered": "b", "family": "f"}],
}
START = {"event": "start", "stage": "s", "time": 1.0, "kind": "instruction", "steps": 3, "trainable": [], "data": {}}
RUN = {
    "format": 1,
    "id": "x",
    "created": "2026-01-01",
    "command": "",
    "status": "stopped",
    "stage": "s",
    "stage_index": 0,
    "step": 3,
    "base_fingerprint": "b" * 64,
    "fingerprint": "f" * 64,
    "pid": 1,
    "error": None,
}


def make_run(root, job, golden):
    """A whole one that has ended."""
    folder = JobFolder(root / job)
    stage = {
        "name": "s",
        "kind": "instruction",
        "steps": 3,
        "learning_rates": {"MP": 1e-3},
        "data": [{"source": "scenes", "set": "single"}],
    }
    folder.create(Record(job, f"title of {job}", 1.7e9, ended=time.time()), build_recipe({"stages": [stage]}, Path()))
    run = folder.run.path
    (run / "state" / "x").mkdir(parents=True)
    (run / "state" / "latest").write_text("x")
    (run / "state" / "x" / "values.json").write_text("{}")
    (run / "state" / "x" / "tensors.safetensors").write_bytes(b"")
    (run / "run.json").write_text(json.dumps(RUN))
    shutil.copy(folder.path / "recipe.toml", run / "recipe.toml")
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in (START, STEP, EVAL)))
    (folder.path / "output.txt").write_text("a word\n")
    shutil.copytree(golden / "tiny_vlm", run / "model")


# --- damage ---


def put(name, content):
    def damage(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def gone(name, then=lambda path: None):
    def damage(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        then(path)

    return damage


def truncated(name, behind=b""):
    """In the middle, or behind the last of some bytes there: TOML may be whole at any line's end."""

    def damage(folder):
        content = (folder / name).read_bytes()
        half = content[: len(content) // 2]
        (folder / name).write_bytes(half[: half.rindex(behind) + len(behind)] if behind else half)

    return damage


def changed(name, **values):
    def damage(folder):
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **values}))

    return damage


def lacking(name, key):
    def damage(folder):
        values = json.loads((folder / name).read_text())
        del values[key]
        (folder / name).write_text(json.dumps(values))

    return damage


JSON = {
    "a list": "[]",
    "a text": '"x"',
    "a number": "5",
    "null": "null",
    "nested": "[" * 100_000,
    "NaN": "NaN",
    "long number": '{"format": ' + "9" * 6000 + "}",
    "another format": '{"format": 0}',
}
BROKEN = {"empty": "", "garbage": b"\xff\xfe\x00\x80", "zeros": bytes(4096), "large": b" " * (3 << 20) + b"{}"}
ODD = {
    "missing": gone,
    "a folder": lambda name: gone(name, Path.mkdir),
    "a pipe": lambda name: gone(name, os.mkfifo),
    "a loop": lambda name: gone(name, lambda path: path.symlink_to(path.name)),
    "a link to nowhere": lambda name: gone(name, lambda path: path.symlink_to("/nowhere/at/all")),
    "an endless link": lambda name: gone(name, lambda path: path.symlink_to("/dev/zero")),
}
DAMAGES = {}
for name in (
    "job.json",
    "run/run.json",
    "recipe.toml",
    "run/metrics.jsonl",
    "run/state/latest",
    "run/control",
    "output.txt",
    "run/model/config.json",
    "run/model/model.safetensors",
):
    DAMAGES |= {f"{name} {how}": put(name, content) for how, content in BROKEN.items()}
    # Reading a checkpoint is the model's own business.
    ENDLESS = ("a pipe", "an endless link") if name.startswith("run/model") else ()
    DAMAGES |= {f"{name} {how}": damage(name) for how, damage in ODD.items() if how not in ENDLESS}
for name in ("job.json", "run/run.json", "run/metrics.jsonl", "run/model/config.json"):
    DAMAGES |= {f"{name} {how}": put(name, content + "\n") for how, content in JSON.items()}
for name in ("job.json", "run/run.json", "run/metrics.jsonl", "run/model/model.safetensors"):
    DAMAGES[f"{name} truncated"] = truncated(name)
DAMAGES["recipe.toml truncated"] = truncated("recipe.toml", b"= ")
for name, key in [("job.json", key) for key in ("id", "title", "created")] + [("run/run.json", key) for key in RUN]:
    DAMAGES[f"{name} lacks {key}"] = lacking(name, key)
    for value in (None, 5, "\ud800", [1]):
        DAMAGES[f"{name} {key} {value!r}"] = changed(name, **{key: value})
DAMAGES["run/run.json status 'x'"] = changed("run/run.json", status="x")
for key, value in [
    ("uploads", "../../x"),
    ("uploads", 5),
    ("spent_s", "x"),
    ("begun", -1),
    ("begun", 1e300),
    ("ended", []),
    ("exit_status", "x"),
    ("exit_status", -300),
    ("pid", "x"),
    ("why", 5),
    ("person", {}),
    ("cancelled", "x"),
]:
    DAMAGES[f"job.json {key} {value!r}"] = changed("job.json", **{key: value})
for text in (
    "stages = 5",
    "stages = [1]",
    "[[stages]]\nname = 5",
    "title = 5",
    "x = 1",
    "seed = nan",
    '[[stages]]\nname = "s"\nkind = "instruction"\nsteps = 1\nlearning_rates = [1]\ndata = 5',
    '[[stages]]\nname = "s"\nkind = []\nsteps = "x"\nlearning_rates = {MP = "x"}\ndata = [5]',
    '[[stages]]\nname = [1]\nkind = "instruction"\nsteps = 1e20\nlearning_rates = {MP=1}\ndata = [{source=1}]',
    '[[stages]]\nname = "s"\nkind = "pretrain"\nsteps = 1\nbetas = [1, {}]\ndata = [{source="x"}]',
):
    DAMAGES[f"recipe.toml {text!r}"] = put("recipe.toml", text)
WRONG = (None, "x", [1], {"a": {}}, float("nan"), float("inf"), 10**400, -5, True, "\ud800")
KEYS = [(event, key) for event in (STEP, EVAL, START) for key in event]
LINES = [{name: value for name, value in event.items() if name != key} for event, key in KEYS]
LINES += [{**event, key: value} for event, key in KEYS for value in WRONG]
DAMAGES["metrics lines of every kind"] = put("run/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in LINES))
DAMAGES["metrics step loss x"] = put("run/metrics.jsonl", json.dumps({**STEP, "loss": "x"}) + "\n")
DAMAGES |= {
    "state latest names nothing": put("run/state/latest", "gone"),
    "state latest leaves": put("run/state/latest", "../../.."),
    "state is a file": put("run/state", "x"),
    "run is a file": put("run", "x"),
    "run is missing": gone("run"),
    "run is a loop": gone("run", lambda path: path.symlink_to("run")),
    "model is a file": put("run/model", "x"),
    "adapter is a file": put("run/adapter", "x"),
    "all is missing": lambda folder: [gone(path.name)(folder) for path in list(folder.iterdir())],
    "nothing": lambda folder: None,
}


# --- looks ---


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page's own handlers by their names, and the table beneath them."""
    jobs = JobTable(tmp_path_factory.mktemp("runs"), nice=0)
    demo = build_ui(ModelStore({"embedded": "embedded"}), jobs)
    handlers = {fn.api_name: fn.fn for fn in demo.fns.values() if isinstance(fn.api_name, str)}
    yield jobs, handlers
    jobs.close()


KNOWN = {"jobs": [HURT, SOUND]}
REQUEST = types.SimpleNamespace(query_params={"job": HURT}, username=None, headers={}, client=None)


def first(values):
    """Comparing is a generator; both models are loaded before the second value."""
    return [next(values), next(values)]


LOOKS = {
    "attach": lambda call: call["train_attach"](KNOWN, REQUEST),
    "open": lambda call: call["train_open"](HURT),
    "tick": lambda call: call["train_tick"](HURT, None),
    "your runs": lambda call: call["train_ended"]("", KNOWN),
    "overlay": lambda call: call["train_overlay"]([HURT, SOUND]),
    "describe": lambda call: call["job"](HURT),
    "use": lambda call: call["train_use"](HURT, []),
    "export": lambda call: call["train_export"](HURT),
    "compare": lambda call: first(call["train_compare"](HURT)),
    "resume": lambda call: call["train_resume"](HURT, REQUEST),
}
REFUSED = ("use", "export", "compare", "resume")
"""What can't be done with every damaged run, and says so; all others are looks that always show something."""


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run_shows_as_itself_and_hides_nothing(page, golden, damage, monkeypatch):
    jobs, handlers = page
    monkeypatch.setattr(jobs._keeper, "dispatch", lambda: None)  # whether it would train isn't asked here
    for job in (SOUND, HURT):
        shutil.rmtree(jobs.root / job, ignore_errors=True)
        make_run(jobs.root, job, golden)
    damage(jobs.root / HURT)
    shown, refused = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, look in LOOKS.items():
            try:
                shown[name] = look(handlers)
            except gr.Error as error:
                refused[name] = error.message
    assert refused.keys() <= set(REFUSED), refused
    assert [said for said in refused.values() if not said.endswith(".") or "\n" in said] == []
    jobs._keeper.queue.remove(HURT)
    # What the page is sent must be text and numbers that JSON knows.
    json.dumps(shown["describe"], allow_nan=False, ensure_ascii=False).encode()
    history = shown["your runs"][0]
    assert f"title of {SOUND}" in history
    assert f"?job={HURT}" in history
    history.encode()
    assert "0.500" in history.partition(f"?job={SOUND}")[2]  # the sound one's held-out loss
    status = shown["open"][2]
    assert f"?job={HURT}" in status
    json.dumps(shown["tick"][:1], default=str)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("job.json truncated", "job.json"),
        ("job.json another format", "another version"),
        ("job.json title 5", "“title”"),
        ("run/run.json truncated", "run.json"),
        ("run/run.json another format", "another version"),
        ("run/run.json a folder", "run.json"),
        ("run/run.json status 'x'", "&#x27;x&#x27;"),
        ("recipe.toml missing", "recipe.toml"),
        ("recipe.toml truncated", "TOML"),
        ("run/metrics.jsonl a folder", "metrics.jsonl"),
        ("metrics step loss x", "1 line"),
        ("state latest names nothing", "saved state"),
        ("all is missing", "No such file"),
    ],
)
def test_what_is_damaged_is_said_in_a_sentence(page, golden, damage, sentence):
    jobs, handlers = page
    shutil.rmtree(jobs.root / HURT, ignore_errors=True)
    make_run(jobs.root, HURT, golden)
    DAMAGES[damage](jobs.root / HURT)
    assert sentence in handlers["train_open"](HURT)[2]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_one_line_of_the_metrics(tmp_path, line):
    """What follows it is read, and everything that is drawn of it can be drawn and sent."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (START, line, STEP, EVAL)))
    progress = ProgressReader().read(path)
    assert progress.train[-1][1] == 1.5
    assert progress.held_out[-1][1] == 0.5
    state = JobState("x", "t", 0.0, "running")
    json.dumps(chart_payload("x", progress, 0, 0), allow_nan=False, ensure_ascii=False).encode()
    shown = show_status(state, progress) + show_evaluation(progress) + show_history([(state, progress, [])])
    assert "Held-out data" in shown
    shown.encode()


def test_a_sound_run_is_taken_away_and_says_nothing(page, golden):
    jobs, handlers = page
    shutil.rmtree(jobs.root / HURT, ignore_errors=True)
    make_run(jobs.root, HURT, golden)
    assert jobs.read(HURT).error is None
    assert jobs.read(HURT).can_resume
    with zipfile.ZipFile(handlers["train_export"](HURT)["value"]) as archive:
        assert {"metrics.jsonl", "model/config.json", "model/model.safetensors"} <= set(archive.namelist())
