"""Devices, precision and processes: accelerate, set up for a recipe."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from model.errors import InputError
from model.training.cpu import processor_flags
from model.training.recipe import Recipe

SEVERAL = "torchrun --nproc-per-node 2 -m model.training run …"
"""How several processes are started, on CPUs as on GPUs."""
FSDP = "ACCELERATE_USE_FSDP"
"""How accelerate's launcher says that weights are to be shared out."""
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers say how many processes there are."""


def choose_precision(wanted: str) -> str:
    """“fp32” or “bf16”. “auto” takes bfloat16 on a GPU that computes in it and on processors with AMX: without such
    units a bfloat16 product is emulated and took 15 times as long as float32 where it was measured."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if "amx_bf16" in processor_flags() else "fp32"


def start_accelerator(recipe: Recipe, out: Path) -> Accelerator:
    """accelerate as the recipe and the way of launching want it. InputError for what this trainer can't serve, before
    anything is loaded."""
    if recipe.tracker and not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise InputError(
            "tracker is “tensorboard” and TensorBoard isn't installed; pip install tensorboard, or leave tracker out."
        )
    for engine in ("DEEPSPEED", "MEGATRON_LM"):
        if _is_set(f"ACCELERATE_USE_{engine}"):
            raise InputError(
                f"accelerate was asked for {engine}, which this trainer doesn't do, with GPUs or without; "
                f"launch data parallelism or FSDP: {SEVERAL}."
            )
    if _is_set(FSDP) and _is_set("FSDP_OFFLOAD_PARAMS"):
        raise InputError(
            "accelerate was asked to keep FSDP's weights in the machine's memory (fsdp_offload_params), which this "
            "trainer doesn't do; leave that out, it shares weights out among the GPUs alone."
        )
    # accelerate's launcher gives several processes an address to meet at, and without MPI starts a single one on CPUs.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and not any(name in os.environ for name in WORLD_SIZES):
        raise InputError(
            f"accelerate was asked for several processes and started one; on CPUs launch them with {SEVERAL}."
        )
    # accelerate keeps one state for the whole process and refuses another precision; a second run may want one.
    AcceleratorState._reset_state()
    # Told of FSDP it would wrap the model in a way of its own, which knows nothing of its blocks.
    asked = os.environ.pop(FSDP, None)
    try:
        return Accelerator(
            # Else it takes each of several processes on CPUs for the only one.
            cpu=not torch.accelerator.is_available(),
            mixed_precision="bf16" if choose_precision(recipe.precision) == "bf16" else "no",
            log_with=recipe.tracker or None,
            project_dir=str(out) if recipe.tracker else None,
            # Prompts without pictures leave the projector out of some steps.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    finally:
        if asked is not None:
            os.environ[FSDP] = asked


def shares_weights(recipe: Recipe, processes: int) -> bool:
    """Whether the weights are shared out among the ``processes`` of a run, by its recipe or by the way that accelerate
    launched it; one process has nobody to share with."""
    return processes > 1 and (recipe.parallel == "fsdp" or _is_set(FSDP))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() == "true"
