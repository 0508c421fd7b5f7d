"""Why a run can't go on, in one sentence that says what to do."""

from __future__ import annotations

import torch.distributed as dist

from model.errors import InputError
from model.memory import is_shortage
from model.training.data.datasets import DataStopped
from model.training.feed import explain_worker
from model.training.memory_estimate import MemoryEstimate
from model.training.recipe import Stage
from model.training.runs import WRITE_ERRORS

SAVING = {
    "activations": "lower batch_rows (and raise accumulate as much), or row_tokens",
    "optimizer": "train fewer parts, or the language model through lora_rank; or ",
    "features": "lower cache_mib; or ",
    "weights": "begin from a smaller model; or ",
}
"""What makes each part of a run's memory smaller."""


class NotFiniteError(InputError):
    """A loss or gradient is no number any more. Every process of the run meets it at the same place."""


def explain_failure(error: Exception, stage: Stage, estimate: MemoryEstimate | None) -> InputError | None:
    """What a person can do something about, said in one sentence; None for what is a fault of the program."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, DataStopped):
        return InputError(str(error))
    if is_shortage(error):
        need = "" if estimate is None else f", which takes {estimate}"
        first = "" if estimate is None or estimate.largest == "activations" else SAVING[estimate.largest]
        rows = SAVING["activations"]
        return InputError(f"The memory doesn't suffice for stage “{stage.name}”{need}; {first}{rows}.")
    if (ended := explain_worker(error)) is not None:
        return ended
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
        return InputError(
            f"Stage “{stage.name}” lost another process of this run, which says itself why it ended, or was ended for "
            "want of memory; go on from the last state (--resume)."
        )
    if isinstance(error, WRITE_ERRORS):
        return InputError(f"Stage “{stage.name}” can't read or write a file ({error}).")
    return None
