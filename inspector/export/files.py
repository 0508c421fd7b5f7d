"""What can be taken away: the batch as files for a notebook, and all facts as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from inspector.facts import write_json
from inspector.row.ask import Inspection, attend_tokens, describe, find_readers, training_batch
from inspector.row.attention import AttentionMap
from inspector.which_image.looks_needs import is_quick
from inspector.which_image.seen import measure_all_seen
from model import Batch, InspectableVLM, Sample


def write_files(vlm: InspectableVLM, inspection: Inspection, arrangement: str, folder: Path) -> list[str]:
    """batch.json (ids, labels, masks, spans) and batch.safetensors (every tensor, pixels too) in ``folder``. OSError
    if they can't be written."""
    batch, samples = training_batch(vlm, inspection, arrangement)
    (folder / "batch.json").write_text(write_json(_facts(batch, samples)), encoding="utf-8")
    tensors = {name: value.contiguous() for name, value in vars(batch).items() if isinstance(value, Tensor)}
    try:
        save_file(tensors, folder / "batch.safetensors")
    except SafetensorError as error:
        raise OSError(0, str(error).splitlines()[0]) from error
    return [str(folder / "batch.json"), str(folder / "batch.safetensors")]


def describe_all(vlm: InspectableVLM, inspection: Inspection, attention: AttentionMap) -> dict[str, Any]:
    """:func:`inspector.row.ask.describe`, and which tokens of each answer were seen."""
    found = measure_all_seen(vlm, inspection, exchange=is_quick(vlm, inspection))
    seen = [answer.to_json() for answer in found]
    return {**describe(vlm, inspection, attention), "seen": seen}


def describe_sides(vlm: InspectableVLM, inspection: Inspection, first: int, last: int, own_row: bool) -> dict[str, Any]:
    """Attention of the tokens from ``first`` to ``last`` from both sides, as ``python -m inspector attention`` prints
    it: what the rows that chose them read (``own_row``: their own), and which later tokens read them. InputError for a
    stretch that isn't in the row."""
    attention = attend_tokens(vlm, inspection, first, last, own_row=own_row)
    readers = find_readers(vlm, inspection, last, first=first)
    return {
        "fingerprint": inspection.fingerprint,
        "answer": inspection.prompt.turns[-1].assistant,
        "tokens": [{"position": p, "text": inspection.table.text(p)} for p in range(first, last + 1)],
        "attention": attention.to_json(),
        "readers": readers.to_json(),
    }


def write_facts(vlm: InspectableVLM, inspection: Inspection, attention: AttentionMap, folder: Path) -> str:
    """inspection.json in ``folder``: what ``python -m inspector inspect`` prints, for the token whose attention is
    shown. OSError if it can't be written."""
    path = folder / "inspection.json"
    path.write_text(write_json(describe_all(vlm, inspection, attention)) + "\n", encoding="utf-8")
    return str(path)


def _facts(batch: Batch, samples: tuple[Sample, ...]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        name: value.int().tolist()
        for name, value in vars(batch).items()
        if isinstance(value, Tensor) and name != "tiles"
    }
    facts["document_mask"] = batch.document_mask
    facts["images"] = [
        [{"shape": list(image.tiles.shape), "dtype": "float32", "grid": image.grid} for image in sample.images]
        for sample in samples
    ]
    facts["spans"] = [[vars(span) for span in sample.spans] for sample in samples]
    return facts
