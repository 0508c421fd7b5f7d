"""Restart, SIGTERM, several servers on one folder, sweeping: servers are processes of their own here, which are ended
as the world ends them; what trains is a stand-in that only writes a run's folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inspector.bounds import private_bounds
from inspector.runs.job_folder import JobFolder
from inspector.runs.job_queue import JobQueue
from inspector.runs.jobs import JobTable
from inspector.runs.processes import find_process
from model import InputError
from tests.stand_in import put_trainer, recipe, until, wait_for

ROOT = Path(__file__).parents[3]
SERVER = """
import sys, signal, threading
from inspector.bounds import private_bounds
from inspector.runs.jobs import JobTable
from model import InputError
from tests.stand_in import TRAINER, put_trainer, recipe, until, wait_for
signal.signal(signal.SIGTERM, signal.default_int_handler)
table = JobTable(sys.argv[1] or None, private_bounds(**eval(sys.argv[2])), nice=0)
print(table.root, flush=True)
try:
    for line in sys.stdin:
        try: print(repr(eval(line)), flush=True)
        except InputError as error: print("InputError", error, flush=True)
except KeyboardInterrupt: pass
table.close()
"""


class Server:
    """A server in a process of its own: ``server.ask("table.read(…)")`` is evaluated there."""

    def __init__(self, root, environment, **bounds):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(root), repr(bounds)],
            text=True,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.root = Path(self.process.stdout.readline().strip())

    def ask(self, expression):
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(60)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def mode(tmp_path, monkeypatch):
    """How the stand-in trains, from now on."""
    return put_trainer(tmp_path, monkeypatch).write_text


@pytest.fixture
def make(tmp_path, mode):
    """Tables in this process, on one folder."""
    tables = []

    def make(root=None, **bounds):
        tables.append(JobTable(root or tmp_path / "jobs", private_bounds(**bounds), nice=0))
        return tables[-1]

    yield make
    for table in tables:
        table.close()


@pytest.fixture
def serve(tmp_path, mode):
    """Servers in processes of their own."""
    real = Path(sys.prefix) / "bin" / "python"
    servers = []

    def serve(root=None, **bounds):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(real))
            code = SERVER.replace("import sys,", f"import sys; sys.executable = {str(tmp_path / 'python')!r}\nimport")
            patch.setitem(globals(), "SERVER", code)
            servers.append(Server(tmp_path / "jobs" if root is None else root, environment, **bounds))
        return servers[-1]

    yield serve
    for server in servers:
        if server.process.poll() is None:
            server.end(signal.SIGTERM)


START = """table.start("{person}", __import__("model.training.recipe", fromlist=["x"]).read_recipe({path!r}){more})"""


@pytest.fixture
def start_on(tmp_path):
    def start_on(server, person="me", more=""):
        path = tmp_path / "recipe.toml"
        path.write_text(recipe().to_toml())
        answer = server.ask(START.format(person=person, path=str(path), more=more))
        assert not answer.startswith("InputError"), answer
        return answer.strip("'")

    return start_on


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def read_pid(root, job):
    return until(lambda: find_process(root / job))


# --- restart ---


def test_01_the_queue_is_there_after_a_kill_in_its_order(mode, serve, start_on, make):
    mode("hold")
    server = serve()
    one, two, three = (start_on(server, person) for person in ("a", "b", "c"))
    until(lambda: (server.root / one / "run" / "run.json").exists())
    server.end(signal.SIGKILL)
    table = make()
    assert [table.read(job).status for job in (one, two, three)] == ["running", "queued", "queued"]
    assert [table.read(job).position for job in (two, three)] == [1, 2]
    mode("quick")
    table.stop(one)
    assert wait_for(table, three, "done").status == "done"
    assert table.read(two).status == "done"
    ended = [JobFolder(table.root / job).read().ended for job in (one, two, three)]
    assert ended == sorted(ended)


def test_02_a_process_of_the_former_server_holds_its_place(mode, serve, start_on, make):
    mode("hold")
    server = serve()
    job = start_on(server)
    until(lambda: (server.root / job / "run" / "run.json").exists())
    server.end(signal.SIGKILL)
    table = make(runs_at_once=1)
    other = table.start("other", recipe())
    assert table.read(other).status == "queued"
    assert table.read(job).status == "running"
    pid = read_pid(table.root, job)
    table.stop(job)
    wait_for(table, job, "stopped")
    wait_for(table, other, "running")
    assert not alive(pid)


def test_03_and_counts_for_its_person(mode, serve, start_on, make):
    mode("hold")
    server = serve()
    job = start_on(server, "me")
    server.end(signal.SIGKILL)
    table = make(runs_per_person=1)
    with pytest.raises(InputError, match="You have a run that isn't over"):
        table.start("me", recipe())
    table.start("other", recipe())
    table.stop(job)


def test_04_and_ends_with_its_minutes(mode, serve, start_on, make):
    mode("hold")
    server = serve()
    job = start_on(server)
    until(lambda: (server.root / job / "run" / "run.json").exists())
    server.end(signal.SIGKILL)
    table = make(run_minutes=0.01)
    assert wait_for(table, job, "stopped").can_resume is False
    with pytest.raises(InputError, match=r"it has used the 0\.01 minutes"):
        table.resume(job, "me")


def test_05_and_its_uploads_go_when_it_ends(mode, serve, start_on, make):
    mode("hold")
    server = serve(keep_uploads=False)
    folder = server.root / "uploads" / "mine"
    folder.mkdir(parents=True)
    job = start_on(server, more=f", __import__('pathlib').Path({str(folder)!r})")
    server.end(signal.SIGKILL)
    table = make(keep_uploads=False)
    assert folder.exists()
    read_pid(table.root, job)
    os.killpg(read_pid(table.root, job), signal.SIGKILL)
    until(lambda: not folder.exists())
    assert not table.read(job).live


def test_06_a_run_that_ended_without_a_server_is_over(mode, serve, start_on, make):
    mode("hold")
    server = serve()
    job, waiting = start_on(server), start_on(server)
    until(lambda: (server.root / job / "run" / "state" / "latest").exists())
    server.end(signal.SIGKILL)
    os.killpg(read_pid(server.root, job), signal.SIGKILL)
    mode("quick")
    table = make()
    state = wait_for(table, job, "interrupted")
    assert state.can_resume
    wait_for(table, waiting, "done")
    table.resume(job, "me")
    wait_for(table, job, "done")


def test_07_a_run_that_was_killed_before_its_first_record_starts_again(mode, make):
    mode("die")
    table = make()
    job = table.start("me", recipe())
    state = wait_for(table, job, "failed")
    assert "SIGKILL" in state.error
    assert state.can_resume
    mode("quick")
    table.resume(job, "me")
    assert wait_for(table, job, "done").error is None
    assert [point[0] for point in table.progress(job).train] == [1, 2, 3]


def test_08_also_after_a_restart(mode, serve, start_on, make):
    mode("load")
    server = serve()
    job = start_on(server)
    pid = read_pid(server.root, job)
    server.end(signal.SIGKILL)
    os.killpg(pid, signal.SIGKILL)
    mode("quick")
    table = make()
    assert wait_for(table, job, "failed").can_resume
    table.resume(job, "me")
    wait_for(table, job, "done")


# --- the server is asked to end ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["09_SIGTERM", "10_SIGINT"])
def test_a_server_that_is_asked_to_end_lets_runs_save(mode, serve, start_on, make, number):
    mode("hold")
    server = serve()
    job, waiting = start_on(server), start_on(server)
    until(lambda: (server.root / job / "run" / "state" / "latest").exists())
    pid = read_pid(server.root, job)
    server.end(number)
    assert not alive(pid)
    assert json.loads((server.root / job / "run" / "run.json").read_text())["status"] == "stopped"
    mode("quick")
    table = make()
    assert table.read(job).status == "stopped"
    table.resume(job, "me")
    wait_for(table, job, "done")
    wait_for(table, waiting, "done")


def test_11_one_that_doesnt_save_in_time_is_ended(mode, serve, start_on, make):
    mode("deaf")
    server = serve(close_s=0.3)
    job = start_on(server)
    until(lambda: (server.root / job / "run" / "state" / "latest").exists())
    pid = read_pid(server.root, job)
    server.end(signal.SIGTERM)
    assert not alive(pid)
    state = make().read(job)
    assert (state.status, state.can_resume) == ("interrupted", True)
    assert state.error == "The server was ended while this run trained. Resume goes on from the last saved state."


@pytest.mark.parametrize("how", ["hold", "load", "deaf"])
def test_12_a_temporary_folder_goes_with_its_server(mode, serve, start_on, how):
    mode(how)
    server = serve("", close_s=0.3)
    pid = read_pid(server.root, start_on(server))
    server.end(signal.SIGTERM)
    assert not alive(pid)
    assert not server.root.exists()


# --- several servers ---


def test_13_a_second_server_looks_and_steers_and_starts_nothing_twice(mode, make):
    mode("hold")
    one, two = make(), make()
    assert (one._keeper.serves, two._keeper.serves) == (True, False)
    job = two.start("a", recipe())
    waiting = two.start("b", recipe())
    wait_for(two, job, "running")
    assert one.read(job).status == "running"
    assert [table.read(waiting).position for table in (one, two)] == [1, 1]
    with pytest.raises(InputError, match="it is running"):
        two.resume(job, "a")
    two.pause(job)
    wait_for(one, job, "paused")
    two.resume(job, "a")
    wait_for(one, job, "running")
    assert (table_workers(one), table_workers(two)) == ([job], [])
    mode("quick")
    two.stop(job)
    wait_for(one, waiting, "done")
    assert two.read(job).status == "stopped"
    assert [len(table.progress(waiting).train) for table in (one, two)] == [3, 3]


def table_workers(table):
    return list(table._keeper.workers)


def test_14_a_second_server_asks_the_same_limits(mode, make):
    mode("hold")
    one, two = make(runs_per_person=1, runs_waiting=1), make(runs_per_person=1, runs_waiting=1)
    job = one.start("me", recipe())
    wait_for(two, job, "running")
    with pytest.raises(InputError, match="You have a run"):
        two.start("me", recipe())
    two.start("you", recipe())
    with pytest.raises(InputError, match="1 runs are waiting"):
        one.start("them", recipe())


def test_15_the_second_server_takes_over(mode, serve, start_on, make):
    mode("hold")
    server = serve()
    job, waiting = start_on(server), start_on(server)
    until(lambda: (server.root / job / "run" / "run.json").exists())
    table = make()
    pid = read_pid(table.root, job)
    assert not table._keeper.serves
    server.end(signal.SIGKILL)
    until(lambda: table._keeper.serves)
    assert table.read(job).status == "running"
    assert read_pid(table.root, job) == pid
    mode("quick")
    table.stop(job)
    wait_for(table, waiting, "done")


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
    with pytest.raises(InputError, match=r"fill the .* that they are given; try again"):
        table.start("other", recipe())
    assert table.read(new).live


def test_20_a_private_server_removes_nothing_to_make_room(mode, make):
    table = make(runs_bytes=1000)
    job = table.start("me", recipe())
    wait_for(table, job, "done")
    (table.root / job / "run" / "weights").write_bytes(bytes(2000))
    with pytest.raises(InputError, match="fill the"):
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
        with pytest.raises(InputError, match="it is running"):
            again.resume(job, "me")
    assert (table.root / job / "run" / "run.json").exists()


def test_23_a_folder_that_cannot_be_used_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Jobs can't be kept in .*; name another folder"):
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
    with pytest.raises(InputError, match=r"it has used the 0\.05 minutes"):
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
    with pytest.raises(InputError, match="You have a run that isn't over"):
        table.resume(job, "me")
    table.start("you", recipe())
    with pytest.raises(InputError, match="1 runs are waiting"):
        table.resume(job, "a third one")
    assert table.read(job).can_resume
    table.stop(other)


def test_27_one_that_doesnt_end_when_its_time_is_over_is_ended(mode, make):
    mode("deaf")
    table = make(run_minutes=0.005, run_grace_s=0.2)
    job = table.start("me", recipe())
    state = wait_for(table, job, "interrupted", "failed")
    assert state.error.startswith("The run's time was over and it didn't end within 0.2 s.")


def test_28_a_process_that_takes_too_much_memory_is_ended_with_a_sentence(mode, make):
    mode("eat")
    table = make(run_bytes=300 << 20)
    job = table.start("me", recipe())
    state = wait_for(table, job, "interrupted", "failed")
    assert state.error.startswith(
        "The run needs more than 300 MiB of memory, which is all that a run is given here; "
        "take fewer rows or shorter ones."
    )


# --- the table's own thread ---


def test_29_the_thread_ends_with_the_table_and_keeps_no_process_alive(tmp_path, mode):
    import gc
    import threading

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
