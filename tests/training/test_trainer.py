"""Whole runs: what they say, what they keep, how they are steered, what ends them."""

import errno
import json

import pytest
import torch

from model import InputError, load_vlm
from model.training import runs
from model.training.__main__ import main
from model.training.events import DoneEvent, EvalEvent, FailedEvent, SavedEvent, StartEvent, StepEvent
from model.training.trainer import Trainer

TILES = {"kind": "contrastive", "learning_rates": {"vision_encoder": 1e-3, "text": 1e-3}, "batch_rows": 4,
         "data": [{"source": "scenes", "set": "captions", "count": 40, "pictures": 8}]}  # fmt: skip


def status(trainer):
    return trainer.folder.read_run()["status"]


def changed_parts(base, folder):
    after = load_vlm(folder / "model").state_dict()
    return {name.split(".")[0] for name, tensor in load_vlm(base).state_dict().items()
            if not torch.equal(tensor, after[name])}  # fmt: skip


def test_three_stages_train_exactly_what_they_name(make_recipe, tmp_path):
    recipe = make_recipe(
        TILES, {"kind": "alignment", "learning_rates": {"MP": 1e-3}}, {"learning_rates": {"decoder": 1e-3}}
    )
    parts = [set(stage.learning_rates) & {"vision_encoder", "MP", "decoder"} for stage in recipe.stages]
    trainer = Trainer(recipe, tmp_path / "run")
    events = []
    for event in trainer.run():
        events.append(event)
        if isinstance(event, SavedEvent) and event.path == "model":
            done = [part for stage in parts[: len([e for e in events if isinstance(e, StartEvent)])] for part in stage]
            assert changed_parts(recipe.base, tmp_path / "run") == set(done)
    assert [type(e) for e in events[:3]] == [StartEvent, StepEvent, StepEvent]
    assert [e.stage for e in events if isinstance(e, EvalEvent)] == ["part 0", "part 1", "part 2"]
    assert isinstance(events[-1], DoneEvent)
    assert events[-1].fingerprint == load_vlm(tmp_path / "run" / "model").fingerprint
    assert (tmp_path / "run" / "contrastive" / "part 0.safetensors").is_file()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == [event.name for event in events]
    run = trainer.folder.read_run()
    assert (run["status"], run["step"], run["stage_index"]) == ("done", 3, 2)
    assert run["fingerprint"] == events[-1].fingerprint != run["base_fingerprint"]


def losses(recipe, folder, **options):
    return [e.loss for e in Trainer(recipe, folder, **options).run() if isinstance(e, StepEvent)]


def test_micro_batches_add_up_to_one_batch(make_recipe, tmp_path):
    whole = losses(make_recipe({"batch_rows": 4}), tmp_path / "a")
    parts = losses(make_recipe({"batch_rows": 1, "accumulate": 4}), tmp_path / "b")
    assert parts == pytest.approx(whole, rel=1e-4)
    assert whole == losses(make_recipe({"batch_rows": 4}), tmp_path / "c")  # and the same run is the same


def test_pause_goes_on_and_stop_keeps(make_recipe, tmp_path):
    trainer = Trainer(make_recipe({"steps": 6}), tmp_path / "run")
    control = tmp_path / "run" / "control"
    seen = []
    for event in trainer.run():
        seen.append(event)
        if isinstance(event, StepEvent) and event.step == 2:
            control.write_text("pause")
        elif isinstance(event, SavedEvent) and event.step == 2:
            trainer._wait = spy_wait(trainer, control)
        elif isinstance(event, StepEvent) and event.step == 4:
            control.write_text("stop")
    assert [e.step for e in seen if isinstance(e, StepEvent)] == [1, 2, 3, 4]
    assert seen[-1].status == status(trainer) == "stopped"
    assert changed_parts(trainer.recipe.base, tmp_path / "run") == {"MP", "decoder"}
    again = Trainer(trainer.recipe, tmp_path / "run", resume=True)
    assert [e.step for e in again.run() if isinstance(e, StepEvent)] == [5, 6]
    assert status(again) == "done"


def spy_wait(trainer, control):
    original = trainer._wait

    def wait():
        trainer._request = lambda ask=trainer._request: (
            control.write_text("run") if status(trainer) == "paused" else None, ask())[1]  # fmt: skip
        return original()

    return wait


def test_a_stop_during_the_last_evaluation_finds_the_run_done(make_recipe, tmp_path):
    trainer = Trainer(make_recipe({"steps": 1}), tmp_path / "run")
    for event in trainer.run():
        if isinstance(event, EvalEvent):
            trainer.stop()
    assert status(trainer) == "done"


def test_a_loss_that_is_not_finite_ends_the_run_with_the_weights_before(make_recipe, tmp_path, monkeypatch):
    trainer = Trainer(make_recipe({"steps": 5}), tmp_path / "run")
    teach, seen = trainer._teach, []

    def spoil(*arguments):
        loss, work = teach(*arguments)
        seen.append({name: tensor.clone() for name, tensor in trainer.vlm.state_dict().items()})
        return (float("nan") if len(seen) == 3 else loss), work

    monkeypatch.setattr(trainer, "_teach", spoil)
    events = []
    with pytest.raises(InputError, match="The loss became nan at step 3 of stage “part 0”"):
        events.extend(trainer.run())
    assert status(trainer) == "failed"
    assert "Lower the learning rates" in trainer.folder.read_run()["error"]
    kept = load_vlm(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[2].items())
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["path"]) == (FailedEvent.name, "model")


def test_a_full_disk_keeps_the_older_state_and_model(make_recipe, tmp_path, monkeypatch):
    trainer = Trainer(make_recipe({"steps": 2}, {"steps": 2}), tmp_path / "run")

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = trainer.run()
    while not isinstance(event := next(run), SavedEvent) or event.path != "model":
        pass
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(runs, "save_file", full)
    monkeypatch.setattr("model.checkpoint.save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        list(run)
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before
    assert status(trainer) == "failed"
    monkeypatch.undo()
    again = Trainer(trainer.recipe, tmp_path / "run", resume=True)
    assert [(e.stage, e.step) for e in again.run() if isinstance(e, StepEvent)] == [("part 1", 1), ("part 1", 2)]
    assert status(again) == "done"


def test_memory_and_faults_of_the_program(make_recipe, tmp_path, monkeypatch):
    for number, (error, kind, sentence) in enumerate([
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), InputError, "lower batch_rows"),
        (RuntimeError("a fault"), RuntimeError, "a fault"),
    ]):  # fmt: skip
        trainer = Trainer(make_recipe({"steps": 1}), tmp_path / str(number))
        monkeypatch.setattr(trainer, "_teach", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(kind, match=sentence):
            list(trainer.run())
        assert sentence in trainer.folder.read_run()["error"]


def test_whoever_stops_listening_leaves_a_run_to_go_on_with(make_recipe, tmp_path):
    trainer = Trainer(make_recipe({"save_every_s": 0}), tmp_path / "run")
    run = trainer.run()
    while not isinstance(next(run), SavedEvent):
        pass
    run.close()
    assert status(trainer) == "stopped"
    assert losses(trainer.recipe, tmp_path / "run", resume=True)


def test_what_cannot_be_resumed_is_told(make_recipe, tmp_path):
    recipe = make_recipe({"steps": 1})
    list(Trainer(recipe, tmp_path / "run").run())
    with pytest.raises(InputError, match=r"stage “part 0”, which is not number 1 .*\(other\)"):
        Trainer(make_recipe({"name": "other"}), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="began from other weights"):
        Trainer(make_recipe({"steps": 1}, base="embedded"), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"MP.proj.weight .*doesn't train"):
        losses(make_recipe({"steps": 1, "learning_rates": {"decoder": 1e-3}}), tmp_path / "run", resume=True)


def test_tensorboard(make_recipe, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    list(Trainer(make_recipe(tracker="tensorboard"), tmp_path / "run").run())
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_engines_that_it_does_not_serve_are_refused_at_once(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="FSDP, which this trainer doesn't do"):
        Trainer(make_recipe(), tmp_path / "run")


def test_the_command_answers_in_one_sentence(make_recipe, tmp_path, capsys):
    recipe = tmp_path / "r.toml"
    recipe.write_text(make_recipe({"steps": 1}).to_toml())
    out = ["--out", str(tmp_path / "run")]
    for arguments, words in [
        (["run", *out], "Name a recipe"),
        (["run", str(tmp_path / "none.toml"), *out], "can't be read"),
        (["run", str(recipe), *out, "--set", "stages.0.steps=0"], "steps is 0"),
        (["run", "--resume", *out], "can't be read"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert main(["run", str(recipe), *out]) == 0
    assert "done: model" in capsys.readouterr().out
    assert main(["run", str(recipe), *out]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(["run", "--resume", *out, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
