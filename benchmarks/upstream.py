"""``python -m benchmarks upstream --repository FOLDER``: a training step of ours against nanoVLM's own.

``FOLDER`` is a clone of github.com/huggingface/nanoVLM, of which nothing is in this repository. Its model takes our
weights and a step of its ``train.py``: the whole forward with the encoder and the logits of every position, AdamW with
a rate for each part, and what has no rate frozen. Both run in turn in this process on the same batch; ratios count.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from benchmarks.timing import SHAPE_222M, embedded_tokenizer
from benchmarks.training import (
    ALIGNMENT,
    EVERYTHING,
    INSTRUCTION,
    cast_to,
    check_equal,
    compare,
    finish,
    make_batch,
    our_step,
    plain_optimizer,
    report,
)
from model import VLM, Batch, VLMConfig
from model.training.cpu import processor_flags

TARGETS = (("alignment", ALIGNMENT, 1.9), ("instruction", INSTRUCTION, 1.7), ("everything", EVERYTHING, 1.1))


def open_upstream(repository: Path, vlm: VLM) -> Any:
    """nanoVLM's model with the weights of ``vlm``. Its data package needs torchvision, which is no part of a step, so
    the one function that the model takes from there is put in its place."""
    if not (repository / "models" / "vision_language_model.py").is_file():
        raise SystemExit(f"{repository} is no clone of nanoVLM; give the folder that holds its train.py.")
    processors: Any = ModuleType("data.processors")
    processors.get_tokenizer = lambda *_: SimpleNamespace(image_token_id=vlm.image_token_id)
    sys.modules |= {"data": ModuleType("data"), "data.processors": processors}
    sys.path.insert(0, str(repository))
    try:
        config = importlib.import_module("models.config").VLMConfig
        module = importlib.import_module("models.vision_language_model")
    finally:
        sys.path.remove(str(repository))
    shared = {field.name for field in fields(config)} & {field.name for field in fields(vlm.config)}
    theirs = module.VisionLanguageModel(
        config(**{name: getattr(vlm.config, name) for name in shared}), load_backbone=False
    )
    theirs.load_state_dict(vlm.state_dict())
    return theirs


def their_step(
    theirs: Any, rates: dict[str, float], batch: Batch, precision: str
) -> tuple[Callable[[], torch.Tensor], Callable[[], object]]:
    """The loss and a step as ``train.py`` takes it."""
    for name in ("MP", "decoder", "vision_encoder"):
        getattr(theirs, name).requires_grad_(name in rates)
    optimizer = plain_optimizer(theirs, rates)
    targets = torch.full_like(batch.labels, -100)
    targets[:, :-1] = batch.labels[:, 1:]
    mask = batch.attention_mask.long()

    def find_loss() -> torch.Tensor:
        with cast_to(precision):
            loss: torch.Tensor = theirs(batch.input_ids, batch.tiles, attention_mask=mask, targets=targets)[1]
        return loss

    return find_loss, lambda: finish(find_loss(), theirs, optimizer)


def main(repeats: int, repository: Path) -> None:
    precisions = ("fp32", "bf16") if "amx_bf16" in processor_flags() else ("fp32",)
    for precision in precisions:
        for name, rates, target in TARGETS:
            torch.manual_seed(0)
            vlm = VLM(VLMConfig(**SHAPE_222M), embedded_tokenizer())
            batch = make_batch(vlm, 4, 131, 1)
            their_loss, theirs = their_step(open_upstream(repository, vlm), rates, batch, precision)
            _, our_loss, ours = our_step(vlm, rates, batch, precision)
            with torch.no_grad():
                check_equal(our_loss(), their_loss())
            measured = compare(ours, theirs, repeats)
            report(f"{name} step, 222M shape, 4 rows of 131 tokens, {precision}", target, *measured, "upstream")
            del vlm, their_loss, theirs, our_loss, ours
