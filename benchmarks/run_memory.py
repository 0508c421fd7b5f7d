"""``python -m benchmarks run-memory``: the memory that a run is said to take before it starts, against what it took.

Each setting is a run of its own in a process of its own, for a peak can't be taken back. Models larger than the
embedded one have random weights and take a few steps: only shapes matter.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.timing import SHAPE_222M, embedded_tokenizer
from benchmarks.tuned_shapes import write_qwen2_5_vl, write_smolvlm
from model import VLM, VLMConfig
from model.training.cpu import bound_memory
from model.training.recipe import build_recipe
from model.training.trainer import Trainer

MiB = 1 << 20
SCENES = {"source": "scenes", "set": "single", "turns": 5, "pictures": 1500}
CAPTIONS = {"source": "scenes", "set": "captions", "pictures": 1500}
TUNED = {"kind": "instruction", "learning_rates": {"MP": 1e-3, "decoder": 1e-3}, "lora_rank": 8, "data": [SCENES]}
BASES = {"smolvlm": write_smolvlm, "qwen2.5-vl": write_qwen2_5_vl}
"""Of other families: what writes their checkpoint."""
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
    "SmolVLM, LoRA": ("smolvlm", {**TUNED, "batch_rows": 4}),
    "SmolVLM, alignment": (
        "smolvlm",
        {"kind": "alignment", "learning_rates": {"MP": 1e-3}, "batch_rows": 4, "data": [CAPTIONS]},
    ),
    "Qwen2.5-VL, LoRA": ("qwen2.5-vl", {**TUNED, "batch_rows": 4, "accumulate": 2}),
}


def train(name: str) -> dict[str, Any]:
    """What run.json says of the memory of one setting's run."""
    bound_memory()
    base, stage = SETTINGS[name]
    small = base == "embedded"
    common = {"steps": 30 if small else 5, "eval_every": 15 if small else 0, "eval_examples": 48 if small else 2}
    vlm = VLM(VLMConfig(**SHAPE_222M), embedded_tokenizer()) if base == "222M" else None
    with tempfile.TemporaryDirectory() as folder:
        source = "embedded"
        if base in BASES:
            source = str(Path(folder) / base)
            # In a process of its own: the weights are drawn there, and read here.
            get_context("spawn").Pool(1).apply(BASES[base], (Path(source),))
        table = {"base": source, "stages": [{"name": name.split(", ")[1], **common, **stage}]}
        recipe = build_recipe(table, Path())
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
