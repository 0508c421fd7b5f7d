"""Whole runs: what they say, what they keep, how they are steered, what ends them."""

import base64
import dataclasses
import errno
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from model import InputError, load_vlm
from model.encoders.text_tower import find_tower
from model.training import runs
from model.training.__main__ import main
from model.training.batches import count_patches
from model.training.evaluation.held_out import HeldOut, HeldOutScore
from model.training.events import DoneEvent, EvalEvent, FailedEvent, SavedEvent, StartEvent, StepEvent
from model.training.first_batch import show_rows
from model.training.learners import LanguageLearner
from model.training.memory_estimate import draw_step
from model.training.runs import forget_answers
from model.training.stage_data import open_stage_data
from model.training.stages import LanguageLoss
from model.training.trainer import Trainer

TILES = {
    "kind": "contrastive",
    "learning_rates": {"vision_encoder": 1e-3, "text": 1e-3},
    "batch_rows": 4,
    "data": [{"source": "scenes", "set": "captions", "count": 40, "pictures": 8}],
}


def status(trainer):
    return trainer.folder.read_run()["status"]


def changed_parts(base, folder):
    after = load_vlm(folder / "model").state_dict()
    return {
        name.split(".")[0]
        for name, tensor in load_vlm(base).state_dict().items()
        if not torch.equal(tensor, after[name])
    }


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
    contrasted = next(e for e in events if isinstance(e, EvalEvent) and e.stage == "part 0")
    assert [sum(row) for row in contrasted.shares] == pytest.approx([1] * len(contrasted.answers))
    # The tower stays with the run and lies beside its model, whose encoder no later stage has changed.
    for folder in ("contrastive", "model"):
        assert (tmp_path / "run" / folder / "text_tower.safetensors").is_file()
    assert find_tower(load_vlm(tmp_path / "run" / "model")) is not None
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


def test_a_step_in_parts_that_the_memory_holds_is_the_same_step(make_recipe, tmp_path, monkeypatch):
    seen = []
    learn = LanguageLoss.forward

    def forward(self, batch):
        patches = 0 if batch.features is not None else len(batch.tiles) * count_patches(self.vlm.config)
        seen.append((len(batch.input_ids), batch.input_ids.numel() + patches))
        return learn(self, batch)

    monkeypatch.setattr(LanguageLoss, "forward", forward)
    for most, rates in ((200, {"MP": 1e-3, "decoder": 1e-3}), (500, {"vision_encoder": 1e-3, "MP": 1e-3})):
        whole = losses(make_recipe({"batch_rows": 6, "learning_rates": rates}), tmp_path / f"whole {most}")
        assert {rows for rows, _ in seen} == {6}
        seen.clear()
        bounded = {"batch_rows": 6, "learning_rates": rates, "batch_tokens": most}
        parts = losses(make_recipe(bounded), tmp_path / f"parts {most}")
        assert all(size <= most or rows == 1 for rows, size in seen)
        assert len(seen) > 3
        seen.clear()
        assert parts == pytest.approx(whole, rel=1e-4)


def test_checkpointing_is_the_same_run_with_less_kept_for_the_way_back(make_recipe, tmp_path):
    stages = ({**TILES}, {"learning_rates": {"vision_encoder": 1e-3, "decoder": 1e-3}}, {"lora_rank": 2})
    found = {}
    for checkpointing in (False, True):
        recipe = make_recipe(*({**stage, "checkpointing": checkpointing} for stage in stages))
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            events = list(Trainer(recipe, tmp_path / str(checkpointing)).run())
        curve = [(e.stage, e.step, e.loss, e.gradient_norm) for e in events if isinstance(e, StepEvent)]
        found[checkpointing] = curve, events[-1].fingerprint, kept
    assert found[True][:2] == found[False][:2]
    assert found[True][2] < 0.5 * found[False][2]


def test_pairs_that_the_memory_does_not_hold_are_refused(make_recipe, tmp_path):
    trainer = Trainer(make_recipe({**TILES, "batch_rows": 8, "batch_tokens": 64}), tmp_path / "run")
    with pytest.raises(InputError, match=r"part 0.* 8 pairs of \d+ .*batch_tokens"):
        list(trainer.run())


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
            control.write_text("run") if status(trainer) == "paused" else None,
            ask(),
        )[1]
        return original()

    return wait


@pytest.mark.parametrize("moment", [StartEvent, StepEvent, EvalEvent, SavedEvent])
def test_a_stop_at_any_moment_keeps_everything(make_recipe, tmp_path, moment):
    """While a stage begins, a step is taken, the model is measured, a state is saved."""
    trainer = Trainer(make_recipe({"steps": 50, "eval_every": 1, "save_every_s": 0}), tmp_path / "run")
    seen = []
    for event in trainer.run():
        seen.append(event)
        if isinstance(event, moment):
            (tmp_path / "run" / "control").write_text("stop")
    taken = 2 if moment is SavedEvent else 1
    assert [e.step for e in seen if isinstance(e, StepEvent)] == list(range(1, taken + 1))
    assert status(trainer) == seen[-1].status == "stopped"
    assert seen[-1].fingerprint == load_vlm(tmp_path / "run" / "model").fingerprint
    again = Trainer(make_recipe({"steps": taken + 1}), tmp_path / "run", resume=True)
    assert [e.step for e in again.run() if isinstance(e, StepEvent)] == [taken + 1]


def test_a_run_that_goes_on_forgets_what_an_earlier_process_was_asked(make_recipe, tmp_path):
    def stop_and_go_on(**options):
        run = Trainer(make_recipe({"steps": 5}), tmp_path / "run", resume=True, **options).run()
        return [e.step for e in run if isinstance(e, StepEvent)]

    control = tmp_path / "run" / "control"
    control.parent.mkdir()
    control.write_text("stop")  # asked while the process was starting
    first = Trainer(make_recipe({"steps": 5}), tmp_path / "run")
    assert [e.step for e in first.run() if isinstance(e, StepEvent)] == [1]
    assert stop_and_go_on(keep_request=True) == [2]
    assert stop_and_go_on() == [3, 4, 5]


def test_a_stop_during_the_last_evaluation_finds_the_run_done(make_recipe, tmp_path):
    trainer = Trainer(make_recipe({"steps": 1}), tmp_path / "run")
    for event in trainer.run():
        if isinstance(event, EvalEvent):
            trainer.stop()
    assert status(trainer) == "done"


@pytest.fixture
def spoil(monkeypatch):
    """`spoil(3, math.nan)`: the third step's loss is NaN. Returns the weights that each step's loss was taken of."""

    def spoil(step, value):
        learn, seen = LanguageLearner.learn, []

        def learn_spoilt(self, module, position):
            seen.append({name: tensor.clone() for name, tensor in self.vlm.state_dict().items()})
            found = learn(self, module, position)
            return dataclasses.replace(found, loss=value) if len(seen) == step else found

        monkeypatch.setattr(LanguageLearner, "learn", learn_spoilt)
        return seen

    return spoil


def same(folder, state):
    kept = load_vlm(folder / "model").state_dict()
    return all(torch.equal(kept[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_weights_whose_loss_was(
    make_recipe, tmp_path, spoil, value
):
    seen = spoil(3, value)
    trainer = Trainer(make_recipe({"steps": 5}), tmp_path / "run")
    events = []
    with pytest.raises(InputError, match=rf"loss .*{value}.* step 3 .*part 0"):
        events.extend(trainer.run())
    assert status(trainer) == "failed"
    assert "learning rates" in trainer.folder.read_run()["error"]
    assert len(seen) == 3
    assert same(tmp_path / "run", seen[1])
    assert not same(tmp_path / "run", seen[2])
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["path"]) == (FailedEvent.name, "model")


def test_weights_that_never_had_a_finite_loss_are_not_kept(make_recipe, tmp_path, spoil):
    list(Trainer(make_recipe({"steps": 2}), tmp_path / "run").run())
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    spoil(1, math.nan)
    again = Trainer(make_recipe({"steps": 4}), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"step 3 .*part 0.*first weights"):
        list(again.run())
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before
    first = Trainer(make_recipe({"steps": 1}), tmp_path / "other")
    spoil(1, math.nan)
    with pytest.raises(InputError, match="first weights"):
        list(first.run())
    assert not (tmp_path / "other" / "model").exists()


def test_a_gradient_that_is_not_finite_keeps_the_weights_that_it_is_of(make_recipe, tmp_path, spoil, monkeypatch):
    seen = spoil(9, math.nan)
    trainer = Trainer(make_recipe({"steps": 5}), tmp_path / "run")
    clip = trainer._clip
    monkeypatch.setattr(trainer, "_clip", lambda *given: clip(*given) if len(seen) < 3 else math.inf)
    with pytest.raises(InputError, match=r"gradient .*inf .* 3"):
        list(trainer.run())
    assert same(tmp_path / "run", seen[2])


def test_a_last_step_that_was_too_large_is_found_by_the_held_out_loss(make_recipe, tmp_path, spoil, monkeypatch):
    seen = spoil(9, math.nan)
    monkeypatch.setattr(HeldOut, "measure", lambda *_: HeldOutScore(math.nan))
    trainer = Trainer(make_recipe({"steps": 2}), tmp_path / "run")
    with pytest.raises(InputError, match=r"[Hh]eld-out .*nan .* 2 .*part 0"):
        list(trainer.run())
    assert same(tmp_path / "run", seen[1])
    monkeypatch.setattr(HeldOut, "measure", lambda *_: HeldOutScore(None))
    trainer = Trainer(make_recipe({"steps": 2}), tmp_path / "unmeasured")
    assert list(trainer.run())[-1].status == "done"


def test_a_rate_that_is_far_too_high_never_leaves_weights_that_are_not_finite(make_recipe, tmp_path, monkeypatch):
    """Steps so large that float32 overflows, without a hand in the loss."""
    monkeypatch.setattr("model.training.trainer.rate_factor", lambda stage, step: 1e30 if step else 1.0)
    trainer = Trainer(make_recipe({"steps": 6}), tmp_path / "run")
    with pytest.raises(InputError, match=r"became (nan|inf)"):
        list(trainer.run())
    kept = load_vlm(tmp_path / "run" / "model")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.state_dict().values())


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
    for number, (error, kind, sentence) in enumerate(
        [
            (RuntimeError("DefaultCPUAllocator: can't allocate memory"), InputError, "batch_rows"),
            (RuntimeError("a fault"), RuntimeError, "a fault"),
        ]
    ):
        trainer = Trainer(make_recipe({"steps": 1}), tmp_path / str(number))
        monkeypatch.setattr(LanguageLearner, "learn", lambda *_, error=error: (_ for _ in ()).throw(error))
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
    with pytest.raises(InputError, match=r"part 0.*number 1 .*\(other\)"):
        Trainer(make_recipe({"name": "other"}), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="other weights"):
        Trainer(make_recipe({"steps": 1}, base="embedded"), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"MP\.proj\.weight"):
        losses(make_recipe({"steps": 1, "learning_rates": {"decoder": 1e-3}}), tmp_path / "run", resume=True)


def test_tensorboard(make_recipe, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    list(Trainer(make_recipe(tracker="tensorboard"), tmp_path / "run").run())
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_engines_that_it_does_not_serve_are_refused_at_once(make_recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        context.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        with pytest.raises(InputError, match="DEEPSPEED"):
            Trainer(make_recipe(), tmp_path / "run")
    # As `accelerate launch --cpu --num_processes 2` starts one process without MPI.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(InputError, match="several processes"):
        Trainer(make_recipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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
    assert "already" in capsys.readouterr().err
    assert main(["run", "--resume", *out, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_the_first_batch_is_kept_as_it_was_drawn(make_recipe, tmp_path):
    recipe = make_recipe({}, TILES)
    trainer = Trainer(recipe, tmp_path / "run")
    list(trainer.run())
    vlm = load_vlm(recipe.base)
    for index in range(2):
        data = open_stage_data(recipe, index, vlm.config)
        kept = trainer.folder.read_first_batch(index)
        assert kept == show_rows(vlm, draw_step(vlm, recipe, index, data))
        assert 0 < len(kept) <= 4
    image = trainer.folder.read_first_batch(0)[0].images[0].removeprefix("data:image/png;base64,")
    sample = draw_step(vlm, recipe, 0, open_stage_data(recipe, 0, vlm.config)).samples[0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))
    np.testing.assert_array_equal(shown, (sample.images[0].tiles[0].permute(1, 2, 0) * 255).round().byte().numpy())
    assert trainer.folder.read_first_batch(2) == ()
    for damaged in ("", "[]", '{"rows": [{"text": 5, "images": []}]}', '{"rows": [{"text": "", "images": ["x.png"]}]}'):
        (tmp_path / "run" / "first_batch" / "0.json").write_text(damaged)
        assert trainer.folder.read_first_batch(0) == ()
    forget_answers(tmp_path / "run")
    assert not (tmp_path / "run" / "first_batch").exists(), "it shows the data, and goes with them"
