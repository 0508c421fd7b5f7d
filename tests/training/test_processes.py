"""Two processes that exchange gradients are one process that sees both their rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.training.events import StepEvent
from model.training.trainer import Trainer


def test_two_processes_have_the_losses_of_one(make_recipe, tmp_path):
    recipe = make_recipe(
        {
            "kind": "contrastive",
            "learning_rates": {"vision_encoder": 1e-3, "text": 1e-3},
            "batch_rows": 3,
            "data": [{"source": "scenes", "set": "captions", "count": 40, "pictures": 8}],
        },
        {"batch_rows": 3, "accumulate": 2, "eval_every": 2, "save_every_s": 0},
        {"batch_rows": 1, "learning_rates": {"MP": 1e-3, "decoder": 1e-3}, "lora_rank": 2},
    )
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    one = [
        (e.stage, e.step, e.loss, e.gradient_norm)
        for e in Trainer(recipe, tmp_path / "one").run()
        if isinstance(e, StepEvent)
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "model.training",
        "run",
        str(path),
        "--out",
        str(tmp_path / "two"),
        "--quiet",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    two = [(e["stage"], e["step"], e["loss"], e["gradient_norm"]) for e in lines if e["event"] == "step"]
    assert {e["processes"] for e in lines if e["event"] == "start"} == {2}
    assert [entry[:2] for entry in two] == [entry[:2] for entry in one]
    assert [x for entry in two for x in entry[2:]] == pytest.approx([x for entry in one for x in entry[2:]], rel=1e-4)
