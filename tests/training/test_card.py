"""The curves of a card, and what it says of the processor."""

import json

from model.training.card import read_curves
from model.training.processor import processor_flags, processor_name


def test_held_out_losses_of_zero_are_points_and_unmeasured_ones_are_not(tmp_path):
    start = {"event": "start", "stage": "s", "kind": "instruction", "steps": 3, "resumed_at": 0,
             "trainable": [{"module": "MP", "parameters": 5, "trainable": 5}]}  # fmt: skip
    steps = [{"event": "step", "stage": "s", "step": n, "loss": 1 / n, "seconds": float(n)} for n in (1, 2, 3)]
    evaluations = [
        {"event": "eval", "stage": "s", "step": n, "loss": loss} for n, loss in ((1, 0.5), (2, None), (3, 0.0))
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in (start, *steps, *evaluations)))
    (curve,) = read_curves(path)
    assert curve.held_out == ((1, 0.5), (3, 0.0))
    assert curve.losses == ((1, 1.0), (2, 0.5), (3, 0.3333))
    assert (curve.trained, curve.seconds) == ("MP 5", 3.0)


def test_the_processor_is_read_from_the_first_entry(tmp_path, monkeypatch):
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nmodel name\t: A B: C\nflags\t\t: avx amx_bf16\n\nmodel name\t: other\n")
    monkeypatch.setattr("model.training.processor.Path", lambda _: listed)
    assert processor_name() == "A B: C"
    assert processor_flags() == {"avx", "amx_bf16"}
    listed.unlink()
    assert processor_flags() == frozenset()
    assert processor_name()
