"""The battery: intervals, gates, and what it says of a model that routes and of one that does not."""

import html
import json
from pathlib import Path

import pytest

from inspector.__main__ import main
from inspector.figures.battery import show_battery, show_progress
from inspector.ground_truth.items import GUESSES, build_items
from inspector.ground_truth.run import ask_guesses, choose_size, run_battery, try_item
from inspector.ground_truth.scores import Share, format_battery, read_battery
from model import InputError, load_vlm


@pytest.mark.parametrize(
    ("count", "total", "interval"),
    # Newcombe 1998, table I: 81/263 and 15/148; and the edges, where Wald's interval fails.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (29, 29, (0.8830, 1.0))],
)
def test_wilson_intervals(count, total, interval):
    assert Share(count, total).interval == pytest.approx(interval, abs=2e-4)
    assert Share(0, 0).interval is None


@pytest.fixture(scope="module")
def steps(embedded):
    with pytest.MonkeyPatch.context() as patch:
        # Each takes seconds, and all are tried alike.
        patch.setattr("inspector.ground_truth.run.REGION_ITEMS", 2)
        return list(run_battery(embedded, cells=["ordinal digit", "ordinal vs content"], n_each=2, seed=3))


def test_progress_comes_item_by_item_and_keeps_what_was_found(steps):
    assert [progress.done for progress in steps] == sorted(progress.done for progress in steps)
    assert steps[-1].battery.finished
    assert not steps[-2].battery.finished
    assert steps[0].total == steps[-1].total == steps[-1].done
    assert [cell.cell for cell in steps[-1].battery.cells] == ["ordinal digit", "ordinal vs content"]
    assert f"0 of {steps[0].total} " in show_progress(steps[0])


def test_stopped_by_the_keyboard_it_prints_what_was_found(steps, monkeypatch, capsys):
    def broken_off(count):
        def run(*_args, **_options):
            yield from steps[:count]
            raise KeyboardInterrupt

        return run

    monkeypatch.setattr("inspector.__main__.run_battery", broken_off(3))
    assert main(["battery", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(json.dumps(steps[2].battery.to_json()))
    assert err.endswith("\nstopped\n")
    monkeypatch.setattr("inspector.__main__.run_battery", broken_off(0))
    assert main(["battery"]) == 2
    assert "battery" in capsys.readouterr().err


def test_a_conflict_has_no_right_answer_and_says_whom_the_answer_follows(steps):
    conflict = steps[-1].battery.cells[1]
    assert conflict.right.total == 0
    assert [name for name, _ in conflict.followed] == ["ordinal", "content", ""]
    assert sum(share.count for _, share in conflict.followed) == 2


def test_results_are_kept_as_json_and_drawn(steps):
    battery = steps[-1].battery
    assert read_battery(json.loads(json.dumps(battery.to_json()))) == battery
    assert "ordinal digit" in format_battery(battery)
    card = show_battery(battery, "<b>")
    assert "&lt;b&gt;" in card


def test_what_a_model_can_t_be_tried_on_is_said_and_the_rest_goes_on(embedded, monkeypatch):
    def refuse(dtype):
        raise InputError("It can't be copied; do without.")

    monkeypatch.setattr("inspector.ground_truth.run.REGION_ITEMS", 0)
    monkeypatch.setattr("inspector.ground_truth.run.ask_guesses", lambda vlm: {"color": "red"})
    monkeypatch.setattr(embedded, "convert", refuse)
    *_, last = run_battery(embedded, cells=["ordinal digit", "guessed"], n_each=1)
    battery = last.battery
    assert battery.finished
    assert last.done == last.total
    assert [cell.cell for cell in battery.cells] == ["ordinal digit"]
    assert [note.split()[0] for note in battery.notes] == ["“guessed”", "Bfloat16"]
    assert read_battery(json.loads(json.dumps(battery.to_json()))) == battery
    assert {score.name: score.share.total for score in battery.scores}["an image named on random weights"] == 1
    for note in battery.notes:
        assert note in format_battery(battery)
        assert note in html.unescape(show_battery(battery))


def test_no_second_copy_where_memory_is_short(embedded, monkeypatch):
    monkeypatch.setattr("inspector.ground_truth.run.REGION_ITEMS", 0)
    monkeypatch.setattr("inspector.ground_truth.run.measure_free_ram", lambda: 1 << 20)
    *_, last = run_battery(embedded, cells=["ordinal digit"], n_each=1)
    assert [("copy" in note, "1.0 MB" in note) for note in last.battery.notes] == [(True, True)] * 2


def test_the_embedded_model_s_guesses_and_size(embedded):
    assert ask_guesses(embedded) == GUESSES
    assert choose_size(embedded) == 1


def test_bfloat16_is_tried_on_every_cell(steps):
    assert [progress.cell for progress in steps].count("in bfloat16") == 4  # two items of each of the two cells
    (halved,) = [score for score in steps[-1].battery.scores if score.name == "the same verdict in bfloat16"]
    assert halved.share.total == 4


def test_two_items_are_too_few_to_reach_or_miss_a_target(steps):
    assert {score.ok for score in steps[-1].battery.scores if score.share.total < 24} == {None}


def test_the_control_is_never_said_to_be_routed_by_the_question():
    """Plain knockout of the right answer would name the asked image every time."""
    control = load_vlm(Path(__file__).parents[2] / "control")
    trials = [try_item(control, item) for item in build_items(["ordinal digit"], 4, 5)]
    assert [trial.kind for trial in trials].count("selected") == 0
    assert all(trial.gold_named == trial.image for trial in trials)
    contrasts = [trial.contrast for trial in trials if trial.contrast is not None]
    assert contrasts
    assert max(map(abs, contrasts)) < 0.5


def test_an_unknown_cell_is_refused(embedded):
    with pytest.raises(InputError, match="“nothing”"):
        list(run_battery(embedded, cells=["nothing"]))
