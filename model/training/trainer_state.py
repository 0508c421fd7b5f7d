"""What a run must keep of a stage to go on exactly, and the weights to fall back on when a step was too large.

Kept are whole tensors by the model's names, however many processes had parts of them: the next may be others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import InputError
from model.training.recipe import Recipe, Stage
from model.training.runs import MODEL, RECIPE, STATE_KINDS
from model.training.sharding import cut, is_shared, join
from model.training.stages import belongs_to_model, model_name
from model.training.tuned import Trainee, TunedVLM

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and plain values, as :meth:`model.training.runs.RunFolder.load_state` gives them."""


def check_state(values: Mapping[str, Any], recipe: Recipe, where: Path) -> None:
    """InputError if the ``values`` of the state in the run's folder ``where`` are of no state of this recipe."""
    if missing := sorted(STATE_KINDS.keys() - values.keys()):
        raise InputError(f"The state in {where} is damaged (it lacks {', '.join(missing)}); start the run anew.")
    index, name, step = values["stage_index"], values["stage"], values["step"]
    names = [stage.name for stage in recipe.stages]
    if not 0 <= index < len(names) or names[index] != name:
        raise InputError(
            f"The state in {where} is of stage “{name}”, which is not number {index + 1} "
            f"of the recipe ({', '.join(names)}); go on with the recipe of the run."
        )
    steps = recipe.stages[index].steps
    if steps < step:
        raise InputError(
            f"Stage “{name}” has {steps:,} steps now, and {step:,} were taken by the run in {where}; "
            "go on with as many or more, or start a new run."
        )


def check_data(values: Mapping[str, Any], stage: Stage, digest: str, where: Path) -> None:
    """InputError if the stage's data (``digest``) are not those that the state was saved with: the run would go on with
    other examples in another order, and nobody would know."""
    if values["step"] >= stage.steps:
        return
    found = values.get("data")
    if found is None:
        raise InputError(
            f"The run in {where} was saved by a version that drew examples in another order, so it can't go on "
            f"exactly; start a new run from {RECIPE}, with base = “{MODEL}” to keep what was learnt."
        )
    if found != {"digest": digest}:
        raise InputError(
            f"The data of stage “{stage.name}” changed since the run in {where} was saved; bring those back, or start "
            f"a new run from {RECIPE}, with base = “{MODEL}” to keep what was learnt."
        )


def trained_names(module: nn.Module) -> set[str]:
    """The model's own names of the parameters that a stage's module trains. Adapters are parts of a model that keeps
    them from stage to stage."""
    kept = isinstance(getattr(module, "vlm", None), TunedVLM)
    return {
        model_name(name)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and (kept or belongs_to_model(name))
    }


def gather_state(
    vlm: Trainee, module: nn.Module, optimizer: torch.optim.Optimizer, changed: set[str], writes: bool = True
) -> dict[str, Tensor]:
    """The model's parameters of the names ``changed``, what the stage trains beside them, the optimizer's moments by
    parameter, and the state of the random numbers. Where weights are shared out, all processes must ask for it, and
    those that don't write (``writes``) get nothing."""
    found: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        if not is_shared(tensor):
            found[name] = tensor
        elif writes:
            found[name] = join(tensor).cpu()
        else:
            join(tensor)

    for name, tensor in vlm.state_dict().items():
        if model_name(name) in changed:
            keep(f"model:{model_name(name)}", tensor)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and model_name(name) not in changed:
            keep(f"module:{name}", parameter)
        for key, value in optimizer.state.get(parameter, {}).items():
            keep(f"optimizer:{name}:{key}", value)
    found["rng"] = torch.get_rng_state()
    if torch.cuda.is_available():
        found["rng_cuda"] = torch.cuda.get_rng_state()
    return found


def load_model_state(vlm: Trainee, tensors: Mapping[str, Tensor]) -> set[str]:
    """Puts the model's own parameters of a state in place; their names. InputError if it is of others."""
    saved = {name.removeprefix("model:"): tensor for name, tensor in tensors.items() if name.startswith("model:")}
    known = vlm.state_dict()
    for name, tensor in saved.items():
        if name not in known or known[name].shape != tensor.shape:
            raise _refuse(name, tensor)
    vlm.load_state_dict(saved, strict=False)
    return set(saved)


def _refuse(name: str, found: Tensor) -> InputError:
    return InputError(
        f"The state has {name} of shape {tuple(found.shape)}, which this stage doesn't train; go on with the "
        "learning_rates and lora_rank of the run."
    )


def load_stage_state(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts everything else of a state in place. InputError if it is of other parameters than the stage trains."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    own = {name.removeprefix("module:"): tensor for name, tensor in tensors.items() if name.startswith("module:")}
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer:"):
            _, name, what = key.split(":")
            state.setdefault(name, {})[what] = tensor
    for name, found in [*own.items(), *((name, values["exp_avg"]) for name, values in state.items())]:
        if name not in trained or trained[name].shape != found.shape:
            raise _refuse(name, found)
    with torch.no_grad():
        for name, tensor in own.items():
            trained[name].copy_(cut(tensor, trained[name]))
    for name, values in state.items():
        optimizer.state[trained[name]] = {
            what: value if what == "step" else cut(value, trained[name]) for what, value in values.items()
        }
    torch.set_rng_state(tensors["rng"].cpu().to(torch.uint8))
    if "rng_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng_cuda"].cpu().to(torch.uint8))


class GoodWeights:
    """A copy of what a module trains, of the moment when its loss was last finite. Costs its memory once more, beside
    the gradients and AdamW's two moments."""

    def __init__(self, module: nn.Module) -> None:
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """The weights of this moment are good."""
        if not self._kept:
            self._kept = [parameter.detach().clone() for parameter in self._trained]
            return
        for copy, parameter in zip(self._kept, self._trained, strict=True):
            copy.copy_(parameter)

    @torch.no_grad()
    def restore(self) -> bool:
        """Puts the kept weights back; False if none were kept yet."""
        for copy, parameter in zip(self._kept, self._trained, strict=bool(self._kept)):
            parameter.copy_(copy)
        return bool(self._kept)
