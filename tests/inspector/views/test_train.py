"""The Train tab without a page: what a run's id opens, and what is refused before anything is started."""

import asyncio

import gradio as gr
import pytest

from inspector.intake.parsers import ParserPool
from inspector.runs.presets import PRESETS
from inspector.runs.uploads import UploadShelf
from inspector.views.train import TrainHandlers
from inspector.views.train_form import FormHandlers, RecipeReader, build_form
from inspector.views.train_result import ResultHandlers
from inspector.views.train_run import Followed, HistoryHandlers, RunHandlers
from tests.stand_in import put_trainer, recipe, wait_for

GONE = "There is no run “gone” here"


@pytest.fixture
def reader(store, table):
    with gr.Blocks(analytics_enabled=False):
        return RecipeReader(build_form(store, table.bounds), store, table.bounds)


@pytest.fixture
def run(table, tmp_path, monkeypatch):
    """The id of a run that is over."""
    put_trainer(tmp_path, monkeypatch)
    job = table.start("somebody", recipe())
    wait_for(table, job, "done")
    return job


def values(reader, **changes):
    """The form's values, in the order of its fields."""
    return [changes.get(name, field.value) for name, field in reader.form.fields.items()]


def test_a_run_is_followed_and_what_is_drawn_already_is_not_drawn_again(table, run):
    handlers = RunHandlers(table)
    followed, timer, status, *_ = handlers.follow(f" {run} ")
    assert (followed.job, followed.status, followed.train) == (run, "done", 3)
    assert timer["active"] is False
    assert "done" in status.lower()
    assert handlers.tick(run, followed)[3:] == [gr.skip()] * 10


def test_a_run_that_is_gone_is_said_once_and_then_no_longer_looked_for(table):
    handlers = RunHandlers(table)
    for steer in (handlers.follow, handlers.pause, handlers.stop):
        with pytest.raises(gr.Error, match=GONE):
            steer("gone")
    assert handlers.tick("gone", Followed("gone"))[:2] == [Followed(), gr.update(active=False)]
    with pytest.raises(gr.Error, match=GONE):
        HistoryHandlers(table).lay_over(["gone"])


def test_a_run_that_is_over_cannot_be_paused(table, run):
    with pytest.raises(gr.Error, match="paused"):
        RunHandlers(table).pause(run)


def test_the_list_of_runs_waits_until_the_followed_one_is_over(table, run):
    handlers = HistoryHandlers(table)
    _, overlay = handlers.refresh(run, {"jobs": [run]})
    assert [job for _, job in overlay["choices"]] == [run]
    assert handlers.refresh("gone", {"jobs": [run]}) == (gr.skip(), gr.skip())


def test_what_a_run_has_not_got_is_neither_used_nor_pushed(store, table, run, reader):
    handlers = ResultHandlers(store, table, table.bounds, reader.form)
    with pytest.raises(gr.Error, match="weights"):
        handlers.go_on(run, [])
    with pytest.raises(gr.Error, match="weights"):
        handlers.use(run, [])
    with pytest.raises(gr.Error, match=GONE):
        handlers.export("gone")
    with pytest.raises(gr.Error, match=GONE):
        next(handlers.compare("gone"))
    with pytest.warns(UserWarning, match=GONE):
        token, said = handlers.push("gone", "owner/name", "a secret")
    assert token == ""
    assert "a secret" not in said


def test_the_run_in_the_address_comes_first_and_one_that_is_gone_is_left_out(reader, table, run, request_of):
    handlers = TrainHandlers(reader, table)
    job, known, *_ = handlers.attach(None, request_of(job=run))
    assert (job, known) == (run, {"jobs": [run]})
    with pytest.warns(UserWarning, match=GONE):
        job, known, *_ = handlers.attach({"jobs": [run]}, request_of(job="gone"))
    assert (job, known) == ("", {"jobs": [run]})
    assert handlers.describe(run)["status"] == "done"
    with pytest.raises(gr.Error, match=GONE):
        handlers.describe("gone")


def test_what_cannot_be_trained_starts_nothing(reader, table, request_of):
    handlers = TrainHandlers(reader, table)
    with pytest.raises(gr.Error, match="teps"):
        list(handlers.start(request_of(), "instruction tuning", None, None, *values(reader, steps=-1)))
    with pytest.raises(gr.Error):
        handlers.teach("no word that anybody knows", "", None, request_of())
    assert list(table.root.glob("*/job.json")) == []


def test_a_preset_fills_the_form_and_a_check_reads_it(reader, table, request_of):
    pool = ParserPool(table.bounds)
    handlers = FormHandlers(reader.form, reader, pool, UploadShelf(table.uploads, pool, table.used_uploads))
    _, *filled = handlers.fill("instruction tuning", "embedded")
    by_name = dict(zip(reader.form.plain, filled, strict=False))
    assert by_name["steps"] == PRESETS["instruction tuning"].values["steps"]
    # A model that was picked stays; what an earlier preset began from does not.
    assert by_name["base"] == gr.skip()
    for former in ("new", "parts"):
        _, *filled = handlers.fill("LoRA", former)
        assert dict(zip(reader.form.plain, filled, strict=False))["base"] == "embedded"
    with pytest.raises(gr.Error, match="begin"):
        handlers.fill("magic", "embedded")

    async def check(**changes):
        inputs = values(reader, **changes)
        return [step async for step in handlers.check(request_of(), "instruction tuning", None, *inputs)]

    with pytest.raises(gr.Error, match="teps"):
        asyncio.run(check(steps=-1))
    assert pool.is_reading(("a page", "check")) is False
