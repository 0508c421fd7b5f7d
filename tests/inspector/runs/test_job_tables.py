"""A folder of jobs over its life: sweeping, odd folders, limits, the table's own thread; what trains is a stand-in that
only writes a run's folder."""

import gc
import os
import threading
import time

import pytest

from inspector.runs.job_folder import JobFolder
from inspector.runs.job_queue import JobQueue
from inspector.runs.jobs import JobTable
from model import InputError
from tests.stand_in import recipe, until, wait_for

# --- sweeping ---


def make_old(folder):
    long_ago = time.time() - 90_000
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (long_ago, long_ago))


def test_16_a_sweep_takes_what_is_old_and_no_living_run_whoevers(mode, make, tmp_path):
    mode("hold")
    other = make(runs_at_once=2)
    lives, pauses = other.start("a", recipe()), other.start("b", recipe())
    for job in (lives, pauses):
        wait_for(other, job, "running")
    other.pause(pauses)
    wait_for(other, pauses, "paused")
    waits = other.start("c", recipe())
    # A run that somebody trains by hand holds its own folder only.
    by_hand = JobFolder(other.root / "by-hand")
    by_hand.path.mkdir()
    by_hand.run.path.mkdir()
    by_hand.run.lock()
    half_made = other.root / "half-made"
    half_made.mkdir()
    for job in (lives, pauses, waits, "by-hand", "half-made"):
        make_old(other.root / job)
    table = make(run_hours=24)
    table._keeper.sweep()
    assert {path.name for path in other.root.iterdir() if not path.name.startswith(".")} == {
        lives,
        pauses,
        waits,
        "by-hand",
    }
    by_hand.run.unlock()
    make_old(by_hand.path)
    table._keeper.sweep()
    assert not by_hand.path.exists()


def test_17_a_sweep_comes_by_itself_and_takes_ended_runs(mode, make):
    table = make(run_hours=1e-9, sweep_s=0.05)
    job = table.start("me", recipe())
    until(lambda: not (table.root / job).exists())


def test_18_uploads_of_a_run_that_was_stopped_while_it_waited_go(mode, make):
    mode("hold")
    table = make(keep_uploads=False)
    table.start("a", recipe())
    folder = table.uploads / "mine"
    folder.mkdir()
    job = table.start("b", recipe(), folder)
    table.stop(job)
    assert not folder.exists()
    assert table.read(job).status == "stopped"


def test_19_the_oldest_ended_go_first_where_room_is_short_and_live_ones_never(mode, make):
    table = make()
    jobs = [table.start("me", recipe()) for _ in range(2)]
    for job in jobs:
        wait_for(table, job, "done")
        (table.root / job / "run" / "weights").write_bytes(bytes(40_000))
    table.close()
    mode("hold")
    table = make(runs_bytes=70_000, run_hours=24)
    new = table.start("me", recipe())
    assert [(table.root / job).exists() for job in (*jobs, new)] == [False, True, True]
    (table.root / new / "run" / "weights").write_bytes(bytes(80_000))
    with pytest.raises(InputError, match="fill"):
        table.start("other", recipe())
    assert table.read(new).live


def test_20_a_private_server_removes_nothing_to_make_room(mode, make):
    table = make(runs_bytes=1000)
    job = table.start("me", recipe())
    wait_for(table, job, "done")
    (table.root / job / "run" / "weights").write_bytes(bytes(2000))
    with pytest.raises(InputError, match="fill"):
        table.start("me", recipe())
    assert (table.root / job).exists()


# --- the folder itself ---


def test_21_a_relative_folder(mode, tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    table = make("runs")
    job = table.start("me", recipe())
    wait_for(table, job, "done")
    monkeypatch.chdir("/")
    assert table.read(job).status == "done"


def test_22_a_linked_folder_keeps_a_living_run(mode, tmp_path, make):
    mode("hold")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    table = make(tmp_path / "link")
    job = table.start("me", recipe())
    wait_for(table, job, "running")
    for again in (table, make(tmp_path / "real"), make(tmp_path / "link")):
        assert again.read(job).status == "running"
        with pytest.raises(InputError, match="running"):
            again.resume(job, "me")
    assert (table.root / job / "run" / "run.json").exists()


def test_23_a_folder_that_cannot_be_used_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder"):
        JobTable(tmp_path / "file")


# --- limits over a run's life ---


def test_24_pausing_and_resuming_gain_no_minutes(mode, make):
    mode("hold")
    table = make(run_minutes=0.05, run_grace_s=1)
    job = table.start("me", recipe())
    wait_for(table, job, "running")
    table.pause(job)
    wait_for(table, job, "paused")
    state = wait_for(table, job, "stopped")  # a paused run doesn't hold its place for ever
    assert JobFolder(table.root / job).read().spent_s >= 3
    assert state.can_resume is False
    with pytest.raises(InputError, match=r"0\.05 minutes"):
        table.resume(job, "me")


def test_25_what_was_taken_before_counts(mode, make):
    mode("hold")
    table = make()
    job = table.start("me", recipe())
    wait_for(table, job, "running")
    table.stop(job)
    wait_for(table, job, "stopped")
    before = JobFolder(table.root / job).read().spent_s
    assert before > 0
    table.resume(job, "me")
    wait_for(table, job, "running")
    table.stop(job)
    wait_for(table, job, "stopped")
    assert JobFolder(table.root / job).read().spent_s > before


def test_26_who_resumes_needs_a_place(mode, make):
    mode("hold")
    table = make(runs_per_person=1, runs_waiting=1)
    job = table.start("me", recipe())
    wait_for(table, job, "running")
    table.stop(job)
    wait_for(table, job, "stopped")
    assert JobFolder(table.root / job).read().person is None  # who it was is forgotten
    other = table.start("me", recipe())
    with pytest.raises(InputError, match="You have"):
        table.resume(job, "me")
    table.start("you", recipe())
    with pytest.raises(InputError, match=r"^1 runs"):
        table.resume(job, "a third one")
    assert table.read(job).can_resume
    table.stop(other)


def test_27_one_that_doesnt_end_when_its_time_is_over_is_ended(mode, make):
    mode("deaf")
    table = make(run_minutes=0.005, run_grace_s=0.2)
    job = table.start("me", recipe())
    state = wait_for(table, job, "interrupted", "failed")
    assert "0.2 s" in state.error


def test_28_a_process_that_takes_too_much_memory_is_ended_with_a_sentence(mode, make):
    mode("eat")
    table = make(run_bytes=300 << 20)
    job = table.start("me", recipe())
    state = wait_for(table, job, "interrupted", "failed")
    assert " 300 MiB " in state.error


# --- the table's own thread ---


def test_29_the_thread_ends_with_the_table_and_keeps_no_process_alive(tmp_path, mode):
    table = JobTable(tmp_path / "jobs")
    thread = table._keeper._thread
    assert thread.is_alive()
    assert thread.daemon
    del table
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    assert thread not in threading.enumerate()


def test_30_what_stands_in_the_queue_and_is_no_job_holds_nobody_up(mode, make):
    table = make()
    queue = JobQueue(table.root)
    queue.add("gone")
    (table.root / ".queue" / "no entry").touch()
    (table.root / ".queue" / "00000000000000000001-a*b").touch()
    damaged = table.root / "damaged"
    damaged.mkdir()
    (damaged / "job.json").write_text("[")
    queue.add("damaged")
    job = table.start("me", recipe())
    wait_for(table, job, "done")
    until(lambda: queue.ids() == [])
    assert "damaged" in table.read("damaged").error
