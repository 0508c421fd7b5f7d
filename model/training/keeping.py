"""What is written of a model while and after it is trained: the whole of it, whatever part of it a process has.

Where weights are shared out, all processes must ask for each of these at the same place; the main one writes.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import nn

from model.checkpoint import save_vlm
from model.encoders.text_tower import copy_tower, save_tower
from model.errors import InputError
from model.training.recipe import Stage
from model.training.runs import ADAPTER, MODEL, TOWER, WRITE_ERRORS, RunFolder, replacing
from model.training.sharding import join
from model.training.stages import ContrastiveLoss, adapter_state, lora_config, plain_vlm
from model.training.tuned import Trainee, TunedVLM


def close_stage(
    vlm: Trainee, stage: Stage, module: nn.Module, folder: RunFolder, writes: bool, shared: bool
) -> Trainee:
    """Keeps what lives only as long as its stage: the adapter, the text tower. The model as the next stage takes it."""
    if isinstance(vlm, TunedVLM):
        return vlm
    if stage.lora_rank:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter_state(vlm).items()}
        if writes:
            with replacing(folder.path / ADAPTER) as staging:
                lora_config(stage).save_pretrained(staging)
                save_file(state, staging / "adapter_model.safetensors")
    if isinstance(module, ContrastiveLoss):
        tower = {name: join(tensor) for name, tensor in module.dual.state_dict().items()}
        if writes:
            with replacing(folder.path / TOWER) as staging:
                save_tower(module.dual, staging, tower)
    return plain_vlm(vlm) if stage.lora_rank or shared else vlm


def keep_model(vlm: Trainee, folder: RunFolder, *, writes: bool) -> None:
    """Writes the weights as they are. InputError where that can't be; what was there before stays."""
    if isinstance(vlm, TunedVLM):
        if not all(bool(torch.isfinite(tensor).all()) for tensor in vlm.changes().values()):
            raise InputError("The weights hold numbers that are not finite; they are not kept.")
        with replacing(folder.path / MODEL) as staging:
            vlm.save(staging)
        return
    plain = plain_vlm(vlm)
    if not writes:
        return
    if not all(bool(torch.isfinite(parameter).all()) for parameter in plain.parameters()):
        raise InputError("The weights hold numbers that are not finite; they are not kept.")
    try:
        save_vlm(plain, folder.path / MODEL)
        copy_tower(folder.path / TOWER, plain, folder.path / MODEL)
    except WRITE_ERRORS as error:
        raise InputError(f"The model can't be saved ({error}); the one before it is kept.") from error
