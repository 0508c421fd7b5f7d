"""Restart, SIGTERM, several servers on one folder: servers are processes of their own here, which are ended
as the world ends them; what trains is a stand-in that only writes a run's folder."""

import contextlib
import json
import multiprocessing
import os
import signal
from multiprocessing import forkserver
from pathlib import Path

import pytest

from inspector.runs.job_folder import JobFolder
from inspector.runs.processes import find_process
from model import InputError
from tests.stand_in import recipe, serve_table, until, wait_for

ROOT = Path(__file__).parents[3]


class Server:
    """A server in a process of its own: ``server.ask("table.read(…)")`` is evaluated there."""

    def __init__(self, forks, root, python, **bounds):
        self.connection, other = forks.Pipe()
        self.process = forks.Process(target=serve_table, args=(str(root), bounds, str(python), other))
        self.process.start()
        other.close()
        self.root = Path(self.connection.recv())

    def ask(self, expression):
        self.connection.send(expression)
        return self.connection.recv()

    def end(self, number):
        os.kill(self.process.pid, number)
        self.process.join(60)
        assert not self.process.is_alive()
        self.connection.close()


@pytest.fixture(scope="session")
def forks():
    """Makes processes in which everything that a server needs is loaded already."""
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        context.set_forkserver_preload(["tests.stand_in", "inspector.runs.jobs"])
        forkserver.ensure_running()
    return context


@pytest.fixture
def serve(forks, tmp_path, mode):
    """Servers in processes of their own."""
    servers = []

    def serve(root=None, **bounds):
        servers.append(Server(forks, tmp_path / "jobs" if root is None else root, tmp_path / "python", **bounds))
        return servers[-1]

    yield serve
    for server in servers:
        if server.process.is_alive():
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
    with pytest.raises(InputError, match="You have"):
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
    with pytest.raises(InputError, match=r"0\.01 minutes"):
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
    assert "server" in state.error


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
    with pytest.raises(InputError, match="running"):
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
    with pytest.raises(InputError, match="You have"):
        two.start("me", recipe())
    two.start("you", recipe())
    with pytest.raises(InputError, match=r"^1 runs"):
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
