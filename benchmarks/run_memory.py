"""``python -m benchmarks run-memory``: the memory that a run is said to take before it starts, against what it took.

Each setting is a run of its own in a process of its own, for a peak can't be taken back. The 222M shape has random
weights and takes three steps: only shapes matter.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import SHAPE_222M, embedded_tokenizer
from model import VLM, VLMConfig
from model.training.cpu import bound_memory
from model.training.recipe import build_recipe
from model.training.trainer import Trainer

MiB = 1 << 20
SCENES = {"source": "scenes", "set": "single", "turns": 5, "pictures": 1500}
CAPTIONS = {"source": "scenes", "set": "captions", "pictures": 1500}
ALL = {"vision_encoder": 1e-4, "MP": 1e-4, "decoder": 1e-4}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "embedded, everything": ("embedded", {"kind": "instruction", "learning_rates": ALL, "data": [SCENES]}),
    "embedded, alignment": ("embedded", {"kind": "alignment", "learning_rates": {"MP": 1e-3}, "data": [CAPTIONS]}),
    "embedded, LoRA": (
        "embedded",
        {"kind": "instruction", "learning_rates": {"decoder": 1e-3}, "lora_rank": 8, "data": [SCENES]},
    ),
    "embedded, contrastive": (
        "embedded",
        {
            "kind": "contrastive",
            "learning_rates": {"vision_encoder": 1e-3, "text": 1e-3},
            "batch_rows": 48,
            "data": [{"source": "scenes", "set": "tiles"}],
        },
    ),
    "222M, alignment": (
        "222M",
        {"kind": "alignment", "learning_rates": {"MP": 1e-3}, "batch_rows": 8, "data": [CAPTIONS]},
    ),
    "222M, instruction": (
        "222M",
        {"kind": "instruction", "learning_rates": {"MP": 1e-3, "decoder": 1e-4}, "batch_rows": 8, "data": [SCENES]},
    ),
}


def train(name: str) -> dict[str, Any]:
    """What run.json says of the memory of one setting's run."""
    bound_memory()
    base, stage = SETTINGS[name]
    large = base == "222M"
    common = {"steps": 3 if large else 30, "eval_every": 0 if large else 15, "eval_examples": 8 if large else 48}
    recipe = build_recipe({"stages": [{"name": name.split(", ")[1], **common, **stage}]}, Path())
    vlm = VLM(VLMConfig(**SHAPE_222M), embedded_tokenizer()) if large else None
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, Path(folder) / "run", vlm=vlm)
        for _ in trainer.run():
            pass
        return dict(trainer.folder.read_run()["memory"])


def main(repeats: int) -> None:
    worst = 0.0
    for name in SETTINGS:
        command = [sys.executable, "-m", "benchmarks.run_memory", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        estimate, peak = next(iter(found["stages"].values())), found["peak"]
        off = estimate["total"] / peak - 1
        worst = max(worst, abs(off))
        parts = ", ".join(f"{part} {value / MiB:,.0f}" for part, value in estimate.items() if part != "total" and value)
        print(
            f"{name:24} estimated {estimate['total'] / MiB:7,.0f} MiB, took {peak / MiB:7,.0f}, {off:+.0%} ({parts})",
            flush=True,
        )
    print(f"the worst estimate is off by {worst:.0%} (wanted: 15 %)")


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1])))
