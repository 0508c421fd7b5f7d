"""What can be taken away: the batch as files for a notebook, and all facts as JSON."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from inspector.analysis.attention import AttentionMap
from inspector.analysis.inspection import Inspection, describe, training_batch
from model import VLM, Batch, Sample


def write_files(vlm: VLM, inspection: Inspection, arrangement: str) -> list[str]:
    """batch.json (ids, labels, masks, spans) and batch.safetensors (every tensor, pixels too)."""
    batch, samples = training_batch(vlm, inspection, arrangement)
    folder = Path(tempfile.mkdtemp(prefix="batch-"))
    (folder / "batch.json").write_text(json.dumps(_facts(batch, samples), ensure_ascii=False), encoding="utf-8")
    tensors = {name: value.contiguous() for name, value in vars(batch).items() if isinstance(value, Tensor)}
    save_file(tensors, folder / "batch.safetensors")
    return [str(folder / "batch.json"), str(folder / "batch.safetensors")]


def write_facts(vlm: VLM, inspection: Inspection, attention: AttentionMap) -> str:
    """inspection.json: what ``python -m inspector inspect`` prints, for the token whose attention is shown."""
    path = Path(tempfile.mkdtemp(prefix="inspection-")) / "inspection.json"
    path.write_text(json.dumps(describe(vlm, inspection, attention), ensure_ascii=False) + "\n", encoding="utf-8")
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
