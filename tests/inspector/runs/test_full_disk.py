"""A disk that takes nothing: one sentence, and what was there stays."""

import errno

import pytest

from inspector.bounds import private_bounds
from inspector.runs import job_folder, job_keeper, jobs
from inspector.runs.job_folder import JobFolder
from inspector.runs.job_queue import JobQueue
from inspector.runs.jobs import JobTable
from model import InputError
from tests.stand_in import put_trainer, recipe, until, wait_for

FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")


@pytest.fixture(params=[FULL, READ_ONLY], ids=["full", "read-only"])
def fill(request, monkeypatch):
    """From now on nothing can be written; the words that say so."""

    def fill():
        def refuse(*_args, **_options):
            raise OSError(request.param.errno, request.param.strerror)

        for module in (job_folder, job_keeper, jobs):
            monkeypatch.setattr(module, "write_text", refuse)
        return request.param.strerror

    return fill


@pytest.fixture
def table(tmp_path, monkeypatch):
    put_trainer(tmp_path, monkeypatch)
    table = JobTable(tmp_path / "jobs", private_bounds(), nice=0)
    yield table
    table.close()


def test_a_run_that_cannot_be_written_is_not_started(table, fill):
    words = fill()
    with pytest.raises(InputError, match=words):
        table.start("me", recipe())
    assert [path.name for path in table.root.iterdir() if not path.name.startswith(".")] == []
    assert JobQueue(table.root).ids() == []


def test_a_queue_that_cannot_be_written(table, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JobQueue, "add", refuse)
    with pytest.raises(InputError, match="No space"):
        table.start("me", recipe())
    assert [path.name for path in table.root.iterdir() if not path.name.startswith(".")] == []


def test_what_is_asked_of_a_run_is_refused_and_the_run_goes_on(table, fill, monkeypatch):
    (table.root.parent / "mode").write_text("hold")
    job = table.start("me", recipe())
    wait_for(table, job, "running")
    words = fill()
    for ask in (table.pause, table.stop):
        with pytest.raises(InputError, match=words):
            ask(job)
    assert table.read(job).status == "running"


def test_a_run_that_ended_on_a_full_disk_is_over_and_frees_its_place(table, fill, monkeypatch):
    job = table.start("me", recipe())
    fill()
    state = wait_for(table, job, "done")
    until(lambda: not table._keeper.workers)
    assert JobQueue(table.root).ids() == []
    assert [point[0] for point in table.progress(job).train] == [1, 2, 3]
    assert state.error is None


def test_a_run_that_cannot_go_on_for_want_of_room_keeps_its_state(table, fill, monkeypatch):
    (table.root.parent / "mode").write_text("hold")
    job = table.start("me", recipe())
    until(lambda: (table.run_folder(job) / "state" / "latest").exists())
    table.stop(job)
    wait_for(table, job, "stopped")
    until(lambda: not table._keeper.workers)
    before = JobFolder(table.root / job).read()
    with pytest.MonkeyPatch.context():
        words = fill()
        with pytest.raises(InputError, match=words):
            table.resume(job, "me")
    assert JobFolder(table.root / job).read() == before
    assert table.read(job).can_resume
