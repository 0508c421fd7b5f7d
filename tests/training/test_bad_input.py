"""Data and folders that a run can't go on with: one sentence, and nothing is lost."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

from model import Conversation, InputError, Message, load_vlm
from model.training.__main__ import main
from model.training.batches import RowMaker
from model.training.data.example import Example
from model.training.events import StepEvent
from model.training.trainer import Trainer


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def with_data(monkeypatch, examples):
    monkeypatch.setattr("model.training.stage_data.open_examples", lambda table, folder: examples)


def test_data_without_any_label_end_the_run(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("model.training.batches.MAX_DROPPED", 20)
    with_data(monkeypatch, [Example(Conversation((Message("user", "What?"),)))] * 5)
    trainer = Trainer(make_recipe(), tmp_path / "run")
    with pytest.raises(InputError, match=r"20 examples.*no label"):
        list(trainer.run())
    assert trainer.folder.read_run()["status"] == "failed"


def test_a_step_without_any_label_is_an_error_and_no_nan(make_recipe, tmp_path, monkeypatch):
    take = RowMaker.take

    def bare(self, position):
        rows = take(self, position)
        if position == 0:
            return rows
        unlabelled = [dataclasses.replace(s, loss_mask=torch.zeros_like(s.loss_mask)) for s in rows.samples]
        return dataclasses.replace(rows, samples=tuple(unlabelled))

    monkeypatch.setattr(RowMaker, "take", bare)
    trainer = Trainer(make_recipe(), tmp_path / "run")
    steps = []
    with pytest.raises(InputError, match="label"):
        steps += [event for event in trainer.run() if isinstance(event, StepEvent)]
    kept = load_vlm(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in trainer.vlm.state_dict().items())


def talk(path, *pictures):
    """Chat lines about these pictures, None for a line without one."""
    lines = []
    for number, picture in enumerate(pictures):
        turns = [{"role": "user", "content": f"Which {number}?"}, {"role": "assistant", "content": "this"}]
        lines.append({"messages": turns, **({"images": [picture]} if picture else {})})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"source": "chat", "path": str(path)}


def test_a_projector_alone_is_not_trained_without_images(make_recipe, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    stage = {"kind": "alignment", "learning_rates": {"MP": 1e-3}, "batch_rows": 1, "steps": 6, "eval_examples": 0}
    none = make_recipe({**stage, "data": [talk(tmp_path / "none.jsonl", *[None] * 6)]})
    with pytest.raises(InputError, match=r"of the 6 examples .* none .* has an image"):
        list(Trainer(none, tmp_path / "none").run())
    # Rows without one among others that have some teach it nothing and end nothing.
    some = make_recipe({**stage, "data": [talk(tmp_path / "some.jsonl", None, None, "a.png", None, None, None)]})
    events = [event for event in Trainer(some, tmp_path / "some").run() if isinstance(event, StepEvent)]
    assert [event.gradient_norm > 0 for event in events].count(True) == 1
    assert all(event.loss > 0 for event in events)


def test_what_is_too_long_is_dropped_and_counted(make_recipe, tmp_path, monkeypatch):
    def example(text):
        return Example(Conversation((Message("user", text), Message("assistant", "yes"))))

    limit = load_vlm(make_recipe().base).config.lm_max_position_embeddings
    with_data(monkeypatch, [example("a " * 2 * limit), example("what?"), example("why?")])
    trainer = Trainer(make_recipe({"batch_rows": 3}), tmp_path / "run")
    steps = [event for event in trainer.run() if isinstance(event, StepEvent)]
    assert [event.dropped for event in steps] == [2, 1, 1]  # of every three draws one
    assert all(event.loss < 100 for event in steps)


def test_a_file_with_a_cut_line_and_a_missing_picture(make_recipe, tmp_path):
    part = {"type": "image", "path": "gone.png"}
    lines = [
        json.dumps(chat("what?", "yes")),
        json.dumps(chat("why?", "no"))[:40],
        json.dumps(chat([part, {"type": "text", "text": "what?"}], "yes")),
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(lines) + "\n")
    table = {"source": "chat", "path": str(tmp_path / "d.jsonl")}
    trainer = Trainer(make_recipe({"data": [table]}), tmp_path / "run")
    with pytest.raises(InputError, match=r"d\.jsonl line 2.*\(1 more"):
        list(trainer.run())
    assert trainer.folder.read_run()["status"] == "failed"
    left = Trainer(make_recipe({"data": [{**table, "on_error": "skip"}]}), tmp_path / "left")
    assert len([event for event in left.run() if isinstance(event, StepEvent)]) == 3


def test_a_run_folder_of_another_version_is_refused_and_stays_as_it_is(make_recipe, tmp_path, capsys):
    folder = tmp_path / "run"
    list(Trainer(make_recipe({"steps": 1}), folder).run())
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "format": 0}))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["run", "--resume", "--out", str(folder)]) == 2
    assert "format 0" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_two_runs_in_one_folder(make_recipe, tmp_path):
    first = Trainer(make_recipe({"steps": 1}), tmp_path / "run")
    with pytest.raises(InputError, match="already"):
        Trainer(make_recipe({"steps": 1}), tmp_path / "run")
    with pytest.raises(InputError, match="Another process"):
        Trainer(make_recipe({"steps": 1}), tmp_path / "run", resume=True)
    assert len([event for event in first.run() if isinstance(event, StepEvent)]) == 1


def test_without_room_for_features_a_run_is_the_same(make_recipe, tmp_path):
    """They are kept in memory and on no disk; what doesn't fit is computed again."""
    runs = {}
    for room in (0, 64):
        trainer = Trainer(make_recipe({"steps": 4, "eval_every": 2}, cache_mib=room), tmp_path / str(room))
        runs[room] = [event.loss for event in trainer.run() if isinstance(event, StepEvent)]
        features = trainer.folder.read_run()["memory"]["stages"]["part 0"]["features"]
        assert (features > 0) == (room > 0)
    assert runs[0] == runs[64]
    kept = {path.name for path in (tmp_path / "0").iterdir()}
    assert kept == {"recipe.toml", "run.json", "first_batch", "metrics.jsonl", "state", "model", ".lock"}
