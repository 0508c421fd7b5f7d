"""Draws are the same whoever renders them, and whoever can't render says why."""

import itertools
import multiprocessing
import os
import signal
import time

import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from model import InputError
from model.training.data.datasets import DataStopped
from model.training.data.ledger import Entry
from model.training.events import StepEvent
from model.training.feed import AUTO, MOST_WORKERS, Draw, Feed, can_fork, count_workers
from model.training.stages import LanguageLoss
from model.training.trainer import Trainer

pytestmark = [
    pytest.mark.skipif(not can_fork(), reason="workers are forked, on Linux alone"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more than the machine has cores
]


def draws_of(feed, steps, each):
    found, position = [], 0
    for _ in range(steps):
        feed.seek(position)
        position += each
        found += feed.take(position)
    feed.close()
    return found


def render(number):
    if number % 5 == 3:
        return Draw(number, passed_over=Entry("odd", 1, f"number {number} in {os.getpid()}"))
    return Draw(number, (torch.arange(number), number), number)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_the_draws_of_the_process_itself(workers):
    alone, ahead = draws_of(Feed(render, 6, 4), 6, 4), draws_of(Feed(render, 6, 4, workers=workers), 6, 4)
    assert [draw.number for draw in ahead] == list(range(24))
    for one, other in zip(alone, ahead, strict=True):
        assert (one.summary, one.passed_over is None) == (other.summary, other.passed_over is None)
        if one.item is not None:
            assert torch.equal(one.item[0], other.item[0])
            assert one.item[1:] == other.item[1:]
    who = {draw.passed_over.first.split()[-1] for draw in ahead if draw.passed_over is not None}
    assert str(os.getpid()) in who  # the first step says how many draws one takes
    assert 1 < len(who) <= workers + 1


def test_workers_leave_the_run_s_random_numbers_alone():
    torch.manual_seed(3)
    draws_of(Feed(render, 3, 4, workers=1), 3, 4)
    found = torch.rand(2)
    assert torch.equal(found, torch.rand(2, generator=torch.Generator().manual_seed(3)))


def test_a_worker_that_is_ended_is_one_sentence():
    def end_itself(number):
        if number == 9 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return render(number)

    with pytest.raises(InputError, match=r"process that renders rows.*ended.*fewer workers"):
        draws_of(Feed(end_itself, 6, 4, workers=1), 6, 4)


def test_a_worker_that_is_ended_while_the_run_computes_ends_it_in_one_sentence(make_recipe, tmp_path, monkeypatch):
    """torch tells of it out of a signal's handler, in whatever the process is about."""
    loss, calls = LanguageLoss.forward, []

    def forward(self, batch):
        calls.append(1)
        if len(calls) == 4:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(5)
        return loss(self, batch)

    monkeypatch.setattr(LanguageLoss, "forward", forward)
    trainer = Trainer(make_recipe({"steps": 6, "save_every_s": 0}, workers=1), tmp_path / "run")
    with pytest.raises(InputError, match=r"process that renders rows.*ended.*--resume"):
        list(trainer.run())
    assert trainer.folder.read_run()["status"] == "failed"
    monkeypatch.undo()
    list(Trainer(trainer.recipe, tmp_path / "run", resume=True).run())
    whole = Trainer(make_recipe({"steps": 6}), tmp_path / "whole")
    list(whole.run())
    assert trainer.folder.read_run()["fingerprint"] == whole.folder.read_run()["fingerprint"]


def test_what_stops_the_data_stops_them_when_it_is_drawn_and_not_when_it_is_rendered():
    def stop(number):
        return Draw(number, stops="Number 11 is damaged.") if number == 11 else render(number)

    for workers in (0, 1):
        feed = Feed(stop, 6, 4, workers=workers)
        for position in (0, 4):
            feed.seek(position)
            feed.take(position + 4)
        feed.seek(8)
        assert feed.know(10).summary == 10
        with pytest.raises(DataStopped, match="Number 11"):
            feed.know(11)
        feed.close()


def test_so_many_workers_as_pay(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64))
    assert count_workers(0.01, 1.0, 10_000) == 0  # 1 % of a step
    assert count_workers(1.0, 1.0, 5) == 0  # over before they have begun
    assert count_workers(0.2, 1.0, 1_000) == 1
    assert count_workers(2.0, 1.0, 1_000) == 3
    assert count_workers(50.0, 1.0, 1_000) == MOST_WORKERS
    assert count_workers(50.0, 1.0, 1_000, processes=16) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(1))
    assert count_workers(0.2, 1.0, 1_000) == 1


def test_auto_starts_none_for_what_is_rendered_at_once():
    feed = Feed(render, 6, 4, workers=AUTO)
    draws = draws_of(feed, 6, 4)
    assert {draw.passed_over.first.split()[-1] for draw in draws if draw.passed_over} == {str(os.getpid())}


@pytest.fixture
def folder(tmp_path):
    """Ten pictures with captions, one of which is cut off in the middle."""
    for number in range(10):
        path = tmp_path / "data" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((80, 60), 40 + number).save(path)
        path.with_suffix(".txt").write_text(f"number {number}")
    damaged = (tmp_path / "data" / "4.png").read_bytes()
    (tmp_path / "data" / "4.png").write_bytes(damaged[: len(damaged) // 2])
    return tmp_path / "data"


def test_a_run_with_workers_is_the_run_without(make_recipe, folder, tmp_path):
    """Losses, the account of a damaged image, and a run that goes on with another number of workers."""
    table = {"source": "captions", "path": str(folder), "on_error": "skip"}
    stages = (
        {"kind": "contrastive", "learning_rates": {"vision_encoder": 1e-3, "text": 1e-3}, "data": [table]},
        {"data": [table], "steps": 6, "packing": "document", "row_tokens": 100, "save_every_s": 0},
    )
    found = {}
    for workers in (0, 2):
        trainer = Trainer(make_recipe(*stages, workers=workers), tmp_path / str(workers))
        events = [event for event in trainer.run() if isinstance(event, StepEvent)]
        ledger = {name: stage["passed_over"] for name, stage in trainer.folder.read_run()["ledger"].items()}
        found[workers] = [(e.stage, e.step, e.loss, e.gradient_norm, e.dropped) for e in events], ledger
    assert found[0] == found[2]
    assert found[0][1]["part 1"][0]["count"] >= 1
    broken = Trainer(make_recipe(*stages, workers=2), tmp_path / "broken").run()
    steps = [e for e in itertools.islice(broken, 12) if isinstance(e, StepEvent)]
    broken.close()
    rest = Trainer(make_recipe(*stages, workers=1), tmp_path / "broken", resume=True).run()
    steps += [e for e in rest if isinstance(e, StepEvent)]
    assert {(e.stage, e.step): e.loss for e in steps} == {entry[:2]: entry[2] for entry in found[0][0]}


def test_stops_at_a_damaged_image_whoever_opens_it(make_recipe, folder, tmp_path):
    table = {"source": "captions", "path": str(folder), "on_error": "stop"}
    sentences = set()
    for workers in (0, 1):
        recipe = make_recipe({"data": [table], "steps": 9, "eval_examples": 0}, workers=workers)
        with pytest.raises(InputError, match=r"4\.png.*on_error") as caught:
            list(Trainer(recipe, tmp_path / str(workers)).run())
        sentences.add(str(caught.value))
    assert len(sentences) == 1


def test_workers_end_with_their_run(make_recipe, tmp_path):
    run = Trainer(make_recipe({"steps": 4}, workers=2), tmp_path / "run").run()
    steps = [event for event in itertools.islice(run, 4) if isinstance(event, StepEvent)]
    assert len(steps) == 3
    assert len(multiprocessing.active_children()) == 2
    list(run)
    assert multiprocessing.active_children() == []
