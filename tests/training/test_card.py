"""The curves of a card, and what it says of the processor."""

import json

import pytest

from model import load_vlm
from model.errors import InputError
from model.training.cpu import processor_flags, processor_name
from model.training.evaluation.card import StageCurve, compare_freezing, read_curves
from model.training.evaluation.stage_losses import HEADING, StageLoss, measure_stages, write_losses
from model.training.evaluation.text_tower import TowerScore, put_section, write_section
from model.training.stage_data import draw_held_out


def test_held_out_losses_of_zero_are_points_and_unmeasured_ones_are_not(tmp_path):
    start = {
        "event": "start",
        "stage": "s",
        "kind": "instruction",
        "steps": 3,
        "resumed_at": 0,
        "trainable": [{"module": "MP", "parameters": 5, "trainable": 5}],
    }
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


RUN = {
    "format": 1,
    "id": "x",
    "created": "2026-01-01",
    "status": "done",
    "step": 2,
    "stage": "s",
    "stage_index": 0,
    "pid": 1,
    "error": None,
    "fingerprint": None,
    "base_fingerprint": "b" * 64,
}


def write_run(folder, trained, losses, seconds):
    folder.mkdir()
    sizes = [{"module": name, "parameters": 5, "trainable": 5} for name in trained]
    start = {"event": "start", "stage": "s", "kind": "instruction", "steps": 2, "resumed_at": 0, "trainable": sizes}
    events = [
        start,
        *({"event": "step", "stage": "s", "step": n, "loss": 1.0, "seconds": n * seconds} for n in (1, 2)),
        *({"event": "eval", "stage": "s", "step": n, "loss": loss} for n, loss in enumerate(losses, start=1)),
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "run.json").write_text(json.dumps({**RUN, "command": f"train --out {folder}"}))


def test_what_freezing_costs_is_told_from_two_runs(tmp_path):
    write_run(tmp_path / "frozen", ["MP"], (0.5, 0.4), 1.5)
    write_run(tmp_path / "whole", ["vision_encoder", "MP"], (0.45, 0.3), 3.0)
    text = compare_freezing(tmp_path / "frozen", tmp_path / "whole")
    assert "train --out FROZEN\ntrain --out TRAINED\n" in text  # whoever reads it has other folders
    assert "| frozen | MP 5 | 2 | 1.50 | 0.5000 → 0.4000 |" in text
    assert all(f"{times} times" in text for times in (2.0, 0.75))
    with pytest.raises(InputError, match="frozen"):
        compare_freezing(tmp_path / "whole", tmp_path / "frozen")


def test_the_processor_is_read_from_the_first_entry(tmp_path, monkeypatch):
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nmodel name\t: A B: C\nflags\t\t: avx amx_bf16\n\nmodel name\t: other\n")
    monkeypatch.setattr("model.training.cpu.Path", lambda _: listed)
    assert processor_name() == "A B: C"
    assert processor_flags() == {"avx", "amx_bf16"}
    listed.unlink()
    assert processor_flags() == frozenset()
    assert processor_name()


def test_a_tower_s_section_stands_before_the_last_and_is_replaced():
    curve = StageCurve("tower", "contrastive", 10, 120.0, "text 5", ((5, 2.0), (10, 1.0)), ((10, 1.5),))
    scores = [TowerScore("a", 48, 0.9, 0.95), TowerScore("b", 48, 0.97, 0.95), TowerScore("c", 3, 0.2)]
    section = write_section(scores, curve, ("train", "measure"), 2_300_000)
    rows = ("| a | 48 | 0.95 | 0.900 (missed) |", "| b | 48 | 0.95 | 0.970 |", "| c | 3 | – | 0.200 |")
    assert all(row in section for row in rows)
    card = put_section("# Card\n\n## One\n\ntext\n\n## Limits\n\n- none\n", section)
    assert card.index("## One") < card.index("## The text tower") < card.index("## Limits")
    assert put_section(card, section) == card


def test_finished_weights_are_measured_on_what_each_stage_holds_out_of_drawn_scenes(make_recipe, golden):
    vlm = load_vlm(golden / "tiny_vlm")
    scenes = {"source": "scenes", "set": "several", "count": 60, "turns": 2, "pictures": 60}
    easy = {"source": "easy-vqa", "split": "train", "limit": 40}
    recipe = make_recipe(
        {"kind": "contrastive", "learning_rates": {"text": 1e-3}},
        {"name": "own", "data": [scenes, easy]},
        {"name": "files", "data": [easy]},
    )
    (found,) = measure_stages(vlm, recipe, 6)
    own = [example for example in draw_held_out(recipe, 1, vlm.config, 6) if not example.source]
    assert found == StageLoss("own", len(own), found.loss)
    assert 0 < len(own) < 6
    total = labels = 0
    for example in own:
        batch = vlm.collate([vlm.prepare(example.conversation)])
        count = int((batch.labels[:, 1:] != -100).sum())
        total, labels = total + vlm.loss(batch).item() * count, labels + count
    assert found.loss == pytest.approx(total / labels, rel=1e-5)
    section = write_losses([found], "measure")
    assert f"| own | {len(own)} | {found.loss:.4f} |" in section
    card = put_section("# Card\n\n## Limits\n\n- none\n", section)
    assert card.index(HEADING) < card.index("## Limits")
    assert put_section(card, section) == card
