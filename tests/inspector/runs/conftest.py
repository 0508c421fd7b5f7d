"""Tables of jobs whose runs are a stand-in that only writes a run's folder."""

import pytest

from inspector.bounds import private_bounds
from inspector.runs.jobs import JobTable
from tests.stand_in import put_trainer


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
