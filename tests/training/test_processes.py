"""Two processes that exchange gradients are one process that sees both their rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.checkpoint import load_nanovlm
from model.training.events import StepEvent
from model.training.feed import can_fork
from model.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


def launch(*arguments):
    """A command's end in two processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


def test_two_processes_have_the_losses_of_one_and_render_half_of_the_rows_each(make_recipe, tmp_path):
    """Pairs with phrases, rows that are padded and packed, adapters; a number of rows that two can't share alike."""
    recipe = make_recipe(
        {
            "kind": "contrastive",
            "learning_rates": {"vision_encoder": 1e-3, "text": 1e-3},
            "batch_rows": 5,
            "data": [{"source": "scenes", "count": 40}, {"source": "scenes", "set": "captions", "count": 40}],
        },
        {"batch_rows": 3, "accumulate": 2, "eval_every": 2, "save_every_s": 0},
        {"batch_rows": 1, "learning_rates": {"MP": 1e-3, "decoder": 1e-3}, "lora_rank": 2},
        {"packing": "document", "row_tokens": 200, "batch_rows": 4, "steps": 4},
        workers=int(can_fork()),
    )
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    one = [event for event in Trainer(recipe, tmp_path / "one").run() if isinstance(event, StepEvent)]
    result = launch("-m", "model.training", "run", str(path), "--out", str(tmp_path / "two"), "--quiet")
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    two = [event for event in lines if event["event"] == "step"]
    assert {event["processes"] for event in lines if event["event"] == "start"} == {2}
    assert [(e["stage"], e["step"]) for e in two] == [(e.stage, e.step) for e in one]
    # Where a gradient is nearly 0, AdamW makes a whole step of its last digit: that is for later steps to differ by.
    exact = [n for n, event in enumerate(one) if event.step == 1 or event.stage in ("part 0", "part 1")]
    assert [two[n]["loss"] for n in exact] == pytest.approx([one[n].loss for n in exact], rel=1e-5)
    assert [e["loss"] for e in two] == pytest.approx([e.loss for e in one], rel=1e-3)
    assert [two[n]["gradient_norm"] for n in exact] == pytest.approx([one[n].gradient_norm for n in exact], rel=1e-4)
    for alone, shared in zip(one, two, strict=True):
        assert abs(2 * shared["rendered"] - alone.rendered) <= 1


PAIRS = """
import copy, sys
import torch, torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from model import load_vlm
from model.training.batches import join_pairs, render_pair
from model.training.recipe import Stage
from model.training.stages import build_stage
from model.training.synthetic.scene_sets import CaptionedScenes
import numpy as np

vlm = load_vlm(sys.argv[1])
accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
rates = {"vision_encoder": 1e-3, "text": 1e-3}
module = build_stage(Stage("s", "contrastive", 5, rates, ({"source": "x"},)), vlm, 0, vlm.tokenizer)
alone, wrapped = copy.deepcopy(module), accelerator.prepare(module)
scenes = CaptionedScenes(vlm.config, count=5, seed=2)
rendered = [render_pair(vlm, scenes[number]) for number in range(5)]
worst = 0.0
# Shared out evenly, unevenly, and with nothing for one of them.
for owners in ([0, 1, 0, 1, 0], [1, 1, 1, 0, 1], [0, 0, 0, 0, 0]):
    found = []
    for net, shared in ((alone, False), (wrapped, True)):
        here = [not shared or owner == accelerator.process_index for owner in owners]
        batch = join_pairs(
            [tile for (tile, _), own in zip(rendered, here) if own],
            [text for _, text in rendered],
            np.random.default_rng(0),
            torch.tensor(owners) if shared else None,
        )
        loss = net(batch) / len(batch)
        accelerator.backward(loss)
        gradients = {
            name.removeprefix("module."): p.grad.clone() for name, p in net.named_parameters() if p.grad is not None
        }
        net.zero_grad(set_to_none=True)
        found.append((loss.item(), gradients))
    (one, expected), (other, gradients) = found
    assert expected.keys() == gradients.keys()
    assert sum(bool(g.abs().max() > 1e-4) for g in expected.values()) > 10
    worst = max(worst, abs(one - other), *(float((gradients[n] - expected[n]).abs().max()) for n in expected))
print(f"worst {worst}", flush=True)
assert worst < 1e-5
"""


def test_pairs_of_two_processes_have_the_gradients_of_one(golden, tmp_path):
    script = tmp_path / "pairs.py"
    script.write_text(PAIRS)
    result = launch(str(script), str(golden / "tiny_vlm"))
    assert result.returncode == 0, result.stderr[-3000:]


SPOILT = """
import math, os, signal, sys
from pathlib import Path
from model.errors import InputError
from model.training import feed, stages
from model.training.__main__ import main
if os.environ["RANK"] == "1":
    learn, fetch, calls = stages.LanguageLoss.forward, feed.Feed._fetch, []
    def forward(self, batch):
        calls.append(1)
        return learn(self, batch) * (math.nan if sys.argv[1] == "nan" and len(calls) == 2 else 1)
    def lose(self):
        if sys.argv[1] == "worker" and calls:
            raise InputError("A process that renders rows was ended.")
        if sys.argv[1] == "killed" and calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return fetch(self)
    stages.LanguageLoss.forward, feed.Feed._fetch = forward, lose
sys.stderr = open(sys.argv[4] + os.environ["RANK"], "w")
sys.exit(main(["run", sys.argv[2], "--out", sys.argv[3], "--quiet"]))
"""


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(("fault", "sentence"), [("nan", "loss became nan at step 2"), ("worker", "renders rows")])
def test_a_fault_of_one_process_ends_all_with_its_sentence(make_recipe, tmp_path, fault, sentence, parallel):
    path = tmp_path / "recipe.toml"
    path.write_text(make_recipe({"steps": 5, "batch_rows": 2}, parallel=parallel).to_toml())
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT)
    launch(str(script), fault, str(path), str(tmp_path / "run"), str(tmp_path / "said"))
    said = [(tmp_path / f"said{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert sentence in said[0]
    assert sentence in json.loads((tmp_path / "run" / "run.json").read_text())["error"]
    if fault == "nan":
        assert load_nanovlm(tmp_path / "run" / "model")  # whole, and of finite numbers


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_process_that_is_killed_ends_the_others_with_a_sentence(make_recipe, tmp_path, parallel):
    path = tmp_path / "recipe.toml"
    path.write_text(make_recipe({"steps": 5, "save_every_s": 0}, parallel=parallel).to_toml())
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT)
    launch(str(script), "killed", str(path), str(tmp_path / "run"), str(tmp_path / "said"))
    said = (tmp_path / "said0").read_text()
    assert "lost another process of this run" in said
    assert "Traceback" not in said
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["error"]) == ("failed", said.strip())
    assert (tmp_path / "run" / "state" / "latest").is_file()


def test_two_launches_in_one_folder(make_recipe, tmp_path):
    """The second says so, and the first isn't disturbed."""
    path = tmp_path / "recipe.toml"
    path.write_text(make_recipe({"steps": 2}).to_toml())
    first = Trainer(make_recipe({"steps": 2}), tmp_path / "run")
    for how in ("ddp", "fsdp"):
        command = (
            "-m",
            "model.training",
            "run",
            "--out",
            str(tmp_path / "run"),
            "--resume",
            "--set",
            f"parallel={how}",
        )
        result = launch(*command)
        assert result.returncode
        assert "Another process is training in" in result.stderr
    assert len([event for event in first.run() if isinstance(event, StepEvent)]) == 2
