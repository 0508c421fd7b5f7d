"""The table of jobs, with a trainer that only writes a run's folder: quick and the same every time."""

import os
import signal
import sys
import time

import pytest

from inspector.bounds import private_bounds, public_bounds
from inspector.runs.jobs import JobTable
from inspector.runs.presets import PRESETS, read_form, write_recipe
from inspector.runs.progress import Progress
from inspector.runs.uploads import take_in
from model import InputError

TRAINER = """
import json, os, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
mode = pathlib.Path(sys.argv[0]).with_name("mode").read_text()
if mode == "refuse":
    print("The recipe is no good; change it.", file=sys.stderr); sys.exit(2)
out.mkdir(parents=True, exist_ok=True)
while mode == "load" and not (out / "loaded").exists(): time.sleep(0.02)
def save(status, step, **more):
    (out / "run.tmp").write_text(json.dumps({
        "format": 1, "id": "x", "created": "2026-01-01", "status": status, "step": step, "stage": "s",
        "stage_index": 0, "pid": os.getpid(), "error": None, "fingerprint": None, "base_fingerprint": "b" * 64,
        **more}))
    os.replace(out / "run.tmp", out / "run.json")
def say(**event):
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "s", "time": 0, **event}) + "\\n")
def asked():
    try: return (out / "control").read_text().strip()
    except FileNotFoundError: return "run"
resumed = "--resume" in sys.argv
first = int((out / "state" / "step").read_text()) if resumed else 0
save("running", first)
if not resumed: say(event="start", kind="instruction", steps=4, trainable=[], data={})
for step in range(first + 1, 5):
    say(event="step", step=step, steps=4, loss=1.0 / step, learning_rates={"MP": 1e-3}, gradient_norm=1.0,
        tokens_per_s=10.0, seconds=1.0, eta_s=1.0)
    (out / "state" / "x").mkdir(parents=True, exist_ok=True)
    for part in ("values.json", "tensors.safetensors"): (out / "state" / "x" / part).touch()
    (out / "state" / "latest").write_text("x")
    (out / "state" / "step").write_text(str(step))
    if mode == "nan" and step == 2:
        save("failed", step, error="The loss became nan at step 2; lower the learning rates."); sys.exit(2)
    while True:
        if asked() == "pause":
            save("paused", step)
            while asked() == "pause": time.sleep(0.02)
            save("running", step)
        if asked() == "stop": save("stopped", step, fingerprint="f" * 64); sys.exit(0)
        if mode == "hold" and step == 2: time.sleep(0.02); continue
        break
save("done", 4, fingerprint="f" * 64)
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Stands for ``python -m model.training``."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{TRAINER}")
    script.chmod(0o755)
    # Not in the environment: processes get none but what is named.
    mode = script.with_name("mode")
    mode.write_text("quick")
    monkeypatch.setattr(sys, "executable", str(script))
    return mode.write_text


@pytest.fixture
def make(tmp_path):
    tables = []

    def make(**bounds):
        tables.append(JobTable(tmp_path / "jobs", private_bounds(**bounds), nice=0))
        return tables[-1]

    yield make
    for table in tables:
        table.close()


def recipe(**changes):
    values = {"seed": 0, "base": "embedded", "path": "", "source": "auto", **PRESETS["instruction tuning"].values}
    return write_recipe(read_form(**{**values, "steps": 4, **changes}), "embedded", "a run")


def wait_for(table, job, *statuses, seconds=60):
    end = time.monotonic() + seconds
    while (state := table.read(job)).status not in statuses:
        assert time.monotonic() < end, state
        time.sleep(0.02)
    return state


def test_a_job_runs_to_its_end_and_tells_its_curve(trainer, make):
    table = make()
    job = table.start("me", recipe())
    state = wait_for(table, job, "done")
    assert state.run["fingerprint"] == "f" * 64
    assert not state.can_resume
    progress = table.progress(job)
    assert [point[:2] for point in progress.train] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert [(part.name, part.steps, part.offset) for part in progress.stages] == [("s", 4, 0)]
    assert table.recipe(job).stages[0].steps == 4


def test_pause_resume_and_stop(trainer, make):
    trainer("hold")
    table = make()
    job = table.start("me", recipe())
    wait_for(table, job, "running")
    table.pause(job)
    wait_for(table, job, "paused")
    table.resume(job, "me")
    wait_for(table, job, "running")
    table.stop(job)
    state = wait_for(table, job, "stopped")
    assert state.can_resume
    trainer("quick")
    table.resume(job, "me")
    wait_for(table, job, "done")
    assert [point[0] for point in table.progress(job).train] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("request_", "before", "after"), [("pause", "pausing", "paused"), ("stop", "stopping", "stopped")]
)
def test_what_is_asked_while_a_job_starts_is_taken_and_acted_on(trainer, make, request_, before, after):
    trainer("load")
    table = make()
    job = table.start("me", recipe())
    wait_for(table, job, "starting")
    getattr(table, request_)(job)
    assert table.read(job).status == before
    (table.run_folder(job) / "loaded").touch()
    wait_for(table, job, after)
    assert [point[0] for point in table.progress(job).train] == [1]


def test_a_job_that_goes_on_is_starting_until_its_process_has_taken_it_over(trainer, make):
    trainer("hold")
    table = make()
    job = table.start("me", recipe())
    wait_for(table, job, "running")
    table.stop(job)
    wait_for(table, job, "stopped")
    trainer("load")
    table.resume(job, "me")
    assert wait_for(table, job, "starting", seconds=0).live
    table.pause(job)
    (table.run_folder(job) / "loaded").touch()
    wait_for(table, job, "paused")
    table.resume(job, "me")
    wait_for(table, job, "done")
    assert [point[0] for point in table.progress(job).train] == [1, 2, 3, 4]


def test_a_process_that_cannot_go_on_says_why_and_loses_nothing(trainer, make):
    trainer("hold")
    table = make()
    job = table.start("me", recipe())
    wait_for(table, job, "running")
    table.stop(job)
    wait_for(table, job, "stopped")
    trainer("refuse")
    table.resume(job, "me")
    state = wait_for(table, job, "failed")
    assert (state.error, state.can_resume) == ("The recipe is no good; change it.", True)
    trainer("quick")
    table.resume(job, "me")
    assert wait_for(table, job, "done").error is None


def test_nothing_is_kept_of_a_job_that_was_removed(trainer, make):
    trainer("hold")
    table = make()
    job = table.start("me", recipe())
    other = table.start("me", recipe())
    wait_for(table, job, "running")
    table.progress(job)
    trainer("quick")
    table.remove(job)
    wait_for(table, other, "done")
    assert not (table.root / job).exists()
    table.remove(other)
    assert table._progress._cursors == {}
    with pytest.raises(InputError, match="no run"):
        table.read(job)


def test_the_second_job_waits_its_turn(trainer, make):
    trainer("hold")
    table = make(runs_at_once=1)
    one = table.start("me", recipe())
    two = table.start("you", recipe())
    three = table.start("them", recipe())
    wait_for(table, one, "running")
    assert (table.read(two).status, table.read(two).position) == ("queued", 1)
    assert table.read(three).position == 2
    table.stop(two)
    assert table.read(two).status == "stopped"
    assert table.read(three).position == 1
    trainer("quick")
    table.stop(one)
    wait_for(table, three, "done")


def test_a_killed_process_is_noticed_and_goes_on(trainer, make):
    trainer("hold")
    table = make()
    job = table.start("me", recipe())
    wait_for(table, job, "running")
    while len(table.progress(job).train) < 2:
        time.sleep(0.02)
    os.killpg(table.read(job).run["pid"], signal.SIGKILL)
    state = wait_for(table, job, "interrupted")
    assert "SIGKILL" in state.error
    assert state.can_resume
    trainer("quick")
    table.resume(job, "me")
    wait_for(table, job, "done")


def test_failures_are_one_sentence(trainer, make):
    trainer("nan")
    table = make()
    job = table.start("me", recipe())
    assert wait_for(table, job, "failed").error == "The loss became nan at step 2; lower the learning rates."


def test_a_server_that_starts_again_finds_its_jobs(trainer, make):
    trainer("hold")
    table = make()
    job = table.start("me", recipe())
    wait_for(table, job, "running")
    again = make()
    assert again.read(job).status == "running"
    again.stop(job)
    wait_for(again, job, "stopped")


def test_the_limits_of_a_public_server(trainer, make):
    trainer("hold")
    assert (public_bounds().runs_per_person, public_bounds().keep_uploads) == (1, False)
    table = make(runs_per_person=1, run_steps=10, runs_waiting=1)
    table.start("me", recipe())
    with pytest.raises(InputError, match="You have"):
        table.start("me", recipe())
    with pytest.raises(InputError, match=" 10 "):
        table.start("you", recipe(steps=11))
    table.start("you", recipe())
    with pytest.raises(InputError, match=r"^1 runs"):
        table.start("them", recipe())


def test_uploads_are_deleted_after_the_run_and_minutes_are_bounded(trainer, make, tmp_path):
    trainer("hold")
    table = make(keep_uploads=False, run_minutes=0.02)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"messages": []}\n')
    upload = take_in(file, table.uploads)
    job = table.start("me", recipe(data="my file", path=str(upload.path), source=upload.source), upload.folder)
    state = wait_for(table, job, "stopped")
    while upload.folder.exists():
        time.sleep(0.02)
    assert not table.read(job).can_resume
    assert state.error is None


@pytest.mark.parametrize("job", ["", "..", "../jobs", "nobody", "a/b", "\0"])
def test_an_id_is_a_plain_name(make, job):
    with pytest.raises(InputError, match="no run"):
        make().read(job)


def test_half_a_line_is_left_for_the_next_look(trainer, make):
    table = make()
    job = table.start("me", recipe())
    wait_for(table, job, "done")
    with (table.run_folder(job) / "metrics.jsonl").open("a") as file:
        file.write('{"event": "eval", "stage": "s", "step": 4, ')
        file.flush()
        assert table.progress(job).evaluations == ()
        file.write('"loss": 0.0, "accuracy": {}, "answers": []}\n')
        file.write('{"event": "eval", "stage": "s", "step": 4, "loss": null, "accuracy": {}, "answers": []}\n')
    assert table.progress(job).held_out == ((4, 0.0),)
    assert len(table.progress(job).evaluations) == 2
    assert table.progress(job).generation == 0
    assert table.progress(job) != Progress()
