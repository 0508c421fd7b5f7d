"""Foreign data are checked beside this process, with the same report."""

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from inspector.bounds import private_bounds, public_bounds
from inspector.figures.training import show_reports
from inspector.intake.parsers import ParserPool, ReadingStopped
from inspector.runs.metrics import DataCheck, check_data
from model import InputError
from model.training.data.data_report import TOLD, DataReport
from model.training.recipe import build_recipe


def chat(question, answer="yes"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def recipe_of(path, source="chat", kind="instruction"):
    table = {"source": source, "path": str(path), "on_error": "skip"}
    stage = {"name": "s", "kind": kind, "steps": 3, "learning_rates": {"MP": 1e-3}, "data": [table]}
    return build_recipe({"stages": [stage]}, Path())


def finish(check):
    try:
        while (found := check.look()) is None:
            time.sleep(0.02)
        return found
    finally:
        check.close()


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where temporary folders are made; none may stay."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def test_the_report_is_the_one_that_this_process_would_make(embedded, tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [chat("what?"), chat("a " * 9000), {"messages": 3}, chat("<|im_end|>")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here,) = check_data(embedded, recipe_of(file))
    (beside,) = finish(DataCheck(ParserPool(private_bounds()), embedded, recipe_of(file)))
    assert beside == replace(here, looks=())
    assert (beside.examples, beside.usable, len(beside.problems)) == (3, 2, 2)
    assert show_reports([beside]) == show_reports([here])


def test_the_data_of_another_family_are_checked_without_its_weights(tiny, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (chat("what?"), chat("a " * 9000))))
    vlm = tiny("smolvlm").vlm
    (here,) = check_data(vlm, recipe_of(file))
    (beside,) = finish(DataCheck(ParserPool(public_bounds()), vlm, recipe_of(file)))
    assert beside == replace(here, looks=())
    assert (beside.examples, beside.usable) == (2, 1)


def test_own_data_are_checked_here(embedded):
    recipe = build_recipe(
        {
            "stages": [
                {
                    "name": "s",
                    "kind": "instruction",
                    "steps": 3,
                    "learning_rates": {"MP": 1e-3},
                    "data": [{"source": "word", "word": "purple"}],
                }
            ]
        },
        Path(),
    )
    pool = ParserPool(private_bounds())
    check = DataCheck(pool, embedded, recipe)
    with pool.own:  # somebody else's check goes on
        assert check.look() is None
    (report,) = finish(check)
    assert report.measured == 200


def test_a_table_that_cannot_be_read_is_one_sentence(embedded, tmp_path):
    file = tmp_path / "[b]*.parquet"
    file.write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    with pytest.raises(InputError, match=r"\[b\]\*\.parquet.*parquet file"):
        finish(DataCheck(ParserPool(private_bounds()), embedded, recipe_of(file, "rows")))


def test_a_check_is_stopped_at_once(embedded, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text((json.dumps(chat("what?")) + "\n") * 300_000)
    pool = ParserPool(private_bounds())
    check = DataCheck(pool, embedded, recipe_of(file), ("page", "check"))
    assert check.look() is None
    process = check._reading._process
    assert pool.stop(("page", "check"))
    assert process.poll() is not None
    with pytest.raises(ReadingStopped):
        finish(check)


def test_memory_and_time_of_a_check_are_bounded(embedded, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([chat("what?" * 1000)]) + " " * 300_000_000)
    with pytest.raises(InputError, match=r"a\.json.* 400 MiB"):
        finish(DataCheck(ParserPool(private_bounds(parse_bytes=400 << 20)), embedded, recipe_of(file)))
    with pytest.raises(InputError, match=r"a\.json.* 0\.1 s"):
        finish(DataCheck(ParserPool(private_bounds(parse_s=0.1)), embedded, recipe_of(file)))


def test_a_report_is_told_shortly(embedded, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(chat("what?")) + "\n" + '{"messages": 3}\n' * (TOLD + 50))
    (report,) = check_data(embedded, recipe_of(file))
    short = DataReport.from_json(json.loads(json.dumps(report.shorten().to_json())))
    assert (len(short.problems), short.more_problems) == (TOLD, 50)
    assert f"<b>skipped</b> {TOLD + 50} of {TOLD + 51}" in show_reports([short])
    assert show_reports([short]) == show_reports([report])
