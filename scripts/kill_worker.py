"""``python -m scripts.kill_worker [--times 30]``: whether a killed run goes on to the same weights, bit for bit.

A small recipe is trained once whole, then again and again with SIGKILL at random moments and ``--resume`` until it is
done. It prints one line for each and ends with 1 if any weight, or any loss on the way, differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from model.training.__main__ import main as training
from model.training.recipe import Recipe, build_recipe
from model.training.runs import METRICS, MODEL, RUN

ROOT = Path(__file__).parents[1]
STEPS = 8


def small_recipe() -> Recipe:
    """Two stages, of which the second has an adapter; its state is saved after every step."""
    common = {
        "kind": "instruction",
        "batch_rows": 2,
        "eval_every": 0,
        "eval_examples": 2,
        "save_every_s": 0.0,
        "data": [{"source": "scenes", "set": "single", "count": 60, "turns": 2, "pictures": 8}],
    }
    first = {
        **common,
        "name": "all",
        "steps": STEPS,
        "learning_rates": {"vision_encoder": 1e-4, "MP": 1e-3, "decoder": 1e-3},
    }
    second = {**common, "name": "adapter", "steps": STEPS, "lora_rank": 2, "learning_rates": {"decoder": 1e-3}}
    base = str(ROOT / "tests" / "golden" / "tiny_vlm")
    return build_recipe({"base": base, "precision": "fp32", "threads": 1, "stages": [first, second]}, Path())


def start(recipe: Path, out: Path) -> BaseProcess:
    """Begins the run in ``out``, or goes on with it, as ``python -m model.training run`` does."""
    arguments = ["run", str(recipe), "--out", str(out), "--quiet", *(["--resume"] if (out / RUN).exists() else [])]
    # Forked: to import everything takes longer than the run.
    process = multiprocessing.get_context("fork").Process(target=_run, args=(arguments,))
    process.start()
    return process


def _run(arguments: list[str]) -> None:
    sys.exit(training(arguments))


def train(recipe: Path, out: Path, kills: int, seconds: float, rng: random.Random) -> list[float]:
    """Trains to the end, killed so many times at random within ``seconds`` after a start; the moments."""
    moments: list[float] = []
    while True:
        process = start(recipe, out)
        moment = rng.uniform(0, 1) * seconds if len(moments) < kills else None
        process.join(moment)
        if process.is_alive():
            process.kill()
            process.join()
            moments.append(moment or 0)
        elif process.exitcode:
            raise SystemExit(f"The run in {out} ended with {process.exitcode}.")
        else:
            return moments


def read_losses(out: Path) -> list[tuple[str, int, float]]:
    events = [json.loads(line) for line in (out / METRICS).read_text(encoding="utf-8").splitlines()]
    return [(event["stage"], event["step"], event["loss"]) for event in events if event["event"] == "step"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.set_num_threads(1)  # a process with threads of its own must not be forked
    different = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "recipe.toml"
        recipe.write_text(small_recipe().to_toml(), encoding="utf-8")
        begun = time.monotonic()
        train(recipe, folder / "whole", 0, 0, rng)
        seconds = time.monotonic() - begun
        weights = (folder / "whole" / MODEL / "model.safetensors").read_bytes()
        losses = read_losses(folder / "whole")
        print(f"whole: {len(losses)} steps in {seconds:.1f} s", flush=True)
        for number in range(1, options.times + 1):
            out = folder / str(number)
            while not (moments := train(recipe, out, rng.randint(1, 2), seconds, rng)):
                shutil.rmtree(out)  # the machine has become faster: it was over before it could be killed
                seconds *= 0.7
            same = (out / MODEL / "model.safetensors").read_bytes() == weights and read_losses(out) == losses
            different += not same
            killed = ", ".join(f"{moment:.1f}" for moment in moments)
            print(f"{number}: killed after {killed} s: {'bit-equal' if same else 'DIFFERENT'}", flush=True)
    print(f"{options.times - different} of {options.times} bit-equal")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
