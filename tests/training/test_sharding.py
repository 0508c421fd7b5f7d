"""Two processes that share out the weights have the run of one, and take each other's runs over."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from model import InputError
from model.training import trainer as trainer_module
from model.training.accelerator import shares_weights
from model.training.events import StepEvent
from model.training.trainer import Trainer
from tests.training.test_processes import launch

EVERYTHING = {"vision_encoder": 1e-4, "MP": 1e-4, "decoder": 1e-4}
SCENES = {"source": "scenes", "set": "single", "count": 60, "turns": 2, "pictures": 8}
CAPTIONS = {"source": "scenes", "set": "captions", "count": 40, "pictures": 8}
CONTRAST = {"kind": "contrastive", "learning_rates": {"vision_encoder": 1e-3, "text": 1e-3}, "data": [CAPTIONS]}


def run_two(recipe, out, *more):
    """A run of two processes that share out the weights."""
    path = out.with_suffix(".toml")
    path.write_text(recipe.to_toml())
    return launch("-m", "model.training", "run", str(path), "--out", str(out), "--quiet", *more)


def steps(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["step"], line["loss"]) for line in lines if line["event"] == "step"]


def test_the_losses_and_weights_are_those_of_one_process(make_recipe, tmp_path):
    """Every kind of stage, with data that leave one process, or all, without an image, and with unequal numbers of
    micro-batches."""
    talk = {"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "a word or two"}]}
    (tmp_path / "talks.jsonl").write_text(f"{json.dumps(talk)}\n" * 6)
    talks = {"source": "chat", "path": str(tmp_path / "talks.jsonl")}
    stages = (
        {**CONTRAST, "batch_rows": 3},
        {**CONTRAST, "batch_rows": 1, "steps": 1},  # one process has no image
        {"learning_rates": EVERYTHING, "data": [SCENES, talks], "batch_rows": 3, "accumulate": 2, "eval_every": 2},
        {"learning_rates": EVERYTHING, "data": [talks], "steps": 1},
        {"learning_rates": EVERYTHING, "steps": 2, "checkpointing": True, "batch_tokens": 200},
        {"kind": "alignment", "learning_rates": {"MP": 1e-4}, "data": [SCENES, talks], "batch_rows": 2},
        {"lora_rank": 2, "batch_rows": 1, "learning_rates": {"MP": 1e-4, "decoder": 1e-4}},  # one process has no row
        {"packing": "document", "row_tokens": 200, "batch_rows": 4, "decay": "matrices", "steps": 2},
    )
    recipe = make_recipe(*stages)
    one = [event for event in Trainer(recipe, tmp_path / "one").run() if isinstance(event, StepEvent)]
    result = run_two(make_recipe(*stages, parallel="fsdp"), tmp_path / "two")
    assert result.returncode == 0, result.stderr[-3000:]
    two = steps(tmp_path / "two")
    assert [entry[:2] for entry in two] == [(event.stage, event.step) for event in one]
    # As of processes that have all weights each: see test_processes.
    assert [loss for *_, loss in two] == pytest.approx([event.loss for event in one], rel=1e-3, abs=1e-5)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    # AdamW makes a whole step of the last digit of a gradient that is nearly 0.
    most = sum(max(stage.learning_rates.values()) * stage.steps for stage in recipe.stages)
    for name, tensor in weights[0].items():
        found = (weights[1][name] - tensor).abs()
        assert float(found.max()) <= most, name
        assert float(found.mean()) <= 1e-4, name
    for kept in ("adapter/adapter_model.safetensors", "contrastive/text_tower.safetensors"):
        shapes = [{k: v.shape for k, v in load_file(tmp_path / name / kept).items()} for name in ("one", "two")]
        assert shapes[0] == shapes[1]


def test_in_bfloat16_it_is_the_weights_of_blocks_alone_that_are_rounded_twice(make_recipe, tmp_path):
    stage = {"learning_rates": EVERYTHING, "steps": 2}
    one = list(Trainer(make_recipe(stage, precision="bf16"), tmp_path / "one").run())
    assert run_two(make_recipe(stage, precision="bf16", parallel="fsdp"), tmp_path / "two").returncode == 0
    losses = [event.loss for event in one if isinstance(event, StepEvent)]
    assert [loss for *_, loss in steps(tmp_path / "two")] == pytest.approx(losses, rel=1e-2)


KILLED = """
import os, signal, sys
from model.training import learners
from model.training.__main__ import main
learn, calls = learners.LanguageLearner.learn, []
def end(self, module, position):
    calls.append(1)
    if len(calls) == 3 and os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return learn(self, module, position)
learners.LanguageLearner.learn = end
main(["run", *sys.argv[1:], "--quiet"])
"""


@pytest.fixture(scope="module")
def killed(make_recipe, tmp_path_factory):
    """A recipe, the folder of a run of two that share its weights, and that of one killed in its third step."""
    folder = tmp_path_factory.mktemp("killed")
    recipe = make_recipe(
        {**CONTRAST, "save_every_s": 0, "steps": 2},
        {"learning_rates": EVERYTHING, "steps": 4, "save_every_s": 0},
        parallel="fsdp",
    )
    path, script = folder / "recipe.toml", folder / "killed.py"
    path.write_text(recipe.to_toml())
    script.write_text(KILLED)
    assert run_two(recipe, folder / "whole").returncode == 0
    assert launch(str(script), str(path), "--out", str(folder / "broken")).returncode != 0
    assert steps(folder / "broken") == steps(folder / "whole")[:4]
    return recipe, folder


def test_a_killed_run_goes_on_with_the_same_losses(killed):
    _, folder = killed
    shutil.copytree(folder / "broken", folder / "again")
    result = launch("-m", "model.training", "run", "--out", str(folder / "again"), "--resume", "--quiet")
    assert result.returncode == 0, result.stderr[-3000:]
    assert steps(folder / "again") == steps(folder / "whole")
    ends = [load_file(folder / name / "model" / "model.safetensors") for name in ("whole", "again")]
    assert all(bool((ends[0][name] == tensor).all()) for name, tensor in ends[1].items())


def test_one_process_goes_on_with_a_run_of_two_and_the_other_way_round(killed):
    recipe, folder = killed
    expected = [loss for *_, loss in steps(folder / "whole")]
    shutil.copytree(folder / "broken", folder / "alone")
    trainer = Trainer(recipe, folder / "alone", resume=True)
    for event in trainer.run():
        if isinstance(event, StepEvent) and event.step == 3:
            trainer.stop()
    assert [loss for *_, loss in steps(folder / "alone")] == pytest.approx(expected[:5], rel=1e-3)
    for how in ("ddp", "fsdp"):
        shutil.copytree(folder / "alone", folder / how)
        command = ("-m", "model.training", "run", "--out", str(folder / how), "--resume", "--quiet")
        result = launch(*command, "--set", f"parallel={how}")
        assert result.returncode == 0, result.stderr[-3000:]
        assert [loss for *_, loss in steps(folder / how)] == pytest.approx(expected, rel=1e-3)


def test_what_cannot_be_shared_out_is_said_before_anything_is_made(make_recipe, tiny, tmp_path, monkeypatch):
    for bad in ("FSDP", True, ""):
        with pytest.raises(InputError, match=r"parallel is .*; it must be one of ddp, fsdp"):
            make_recipe(parallel=bad)
    tuned = make_recipe({"lora_rank": 2}, base=str(tiny("smolvlm").folder), parallel="fsdp")
    with monkeypatch.context() as context:
        context.setattr(trainer_module, "shares_weights", lambda *_: True)
        with pytest.raises(InputError, match="nanoVLM alone, and this is a SmolVLM model"):
            Trainer(tuned, tmp_path / "run")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert shares_weights(make_recipe(), 2)
    assert not shares_weights(make_recipe(), 1)
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(InputError, match="fsdp_offload_params"):
        Trainer(make_recipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
