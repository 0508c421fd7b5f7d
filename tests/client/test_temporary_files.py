"""Twenty calls of everything that hands a file over or takes one: nothing grows but gradio's own cache."""

import os
import re
import tempfile
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app import build_demo, open_models
from inspector.files import CACHE, open_cache
from inspector.ui import launch_options
from model import InputError, load_vlm, save_vlm
from model.training.recipe import RECIPES

# gradio's and httpx's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
CALLS = 20


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """With a temporary folder of its own: others use the machine's."""
    folder, before = tmp_path_factory.mktemp("temporary"), (tempfile.tempdir, os.environ.get(CACHE))
    (folder / "cache").mkdir()
    tempfile.tempdir, os.environ[CACHE] = str(folder), str(folder / "cache")
    demo = build_demo(open_models([]))
    demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield demo
    demo.close()
    tempfile.tempdir = before[0]
    os.environ.pop(CACHE) if before[1] is None else os.environ.update({CACHE: before[1]})


@pytest.fixture
def client(demo, tmp_path):
    return Client(demo.local_url, verbose=False, download_files=str(tmp_path / "downloads"))


@pytest.fixture
def asked(client):
    client.predict(question_1="What?", max_new_tokens=1, api_name="/ask")
    return client


def temporary() -> set[Path]:
    """Everything directly in the temporary folder but what the client itself makes there for each call."""
    client = re.compile("[0-9a-f]{40}")
    return {path for path in Path(tempfile.gettempdir()).iterdir() if not client.fullmatch(path.name)}


def cached() -> list[Path]:
    return [path for path in open_cache().rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["export", "batch_files"])
def test_exports_leave_nothing_outside_the_cache(asked, name):
    before, files = temporary(), len(cached())
    for _ in range(CALLS):
        assert asked.predict(api_name=f"/{name}")
    assert temporary() - before == set()
    made = {"export": 1, "batch_files": 2}[name]
    assert len(cached()) - files == made * CALLS, "one copy of each, served from where it was made"


def test_what_was_made_is_known_to_gradios_sweep(asked, demo):
    before = set(cached())
    asked.predict(api_name="/export")
    (made,) = set(cached()) - before
    assert any(str(made) in known for known in demo.temp_file_sets)
    assert demo.delete_cache == (60, 86_400)


def test_reports_leave_nothing_outside_the_cache(asked):
    asked.predict(api_name="/which_image")
    before, files = temporary(), len(cached())
    for _ in range(CALLS):
        assert asked.predict(api_name="/which_report")
    assert temporary() - before == set()
    assert len(cached()) - files == CALLS


def test_archives_of_runs_leave_nothing_outside_the_cache(client, demo, tmp_path, monkeypatch):
    from inspector.runs.jobs import JobTable

    save_vlm(load_vlm("embedded"), tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.toml").write_bytes((RECIPES / "teach_word.toml").read_bytes())
    state = type("State", (), {"run": {}})()
    monkeypatch.setattr(JobTable, "run_folder", lambda self, job: tmp_path / "run")
    monkeypatch.setattr(JobTable, "read", lambda self, job: state)
    before, files = temporary(), len(cached())
    for _ in range(3):
        assert client.predict("any", api_name="/train_export")
    assert temporary() - before == set()
    assert len(cached()) - files == 3


def test_files_that_come_in_leave_no_empty_ones(client, tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(path)
    (tmp_path / "rows.csv").write_text("image,caption\n")
    before = temporary()
    for _ in range(CALLS):
        client.predict(gallery=[], files=[handle_file(str(path))], api_name="/add_images")
        client.predict(handle_file(str(tmp_path / "rows.csv")), api_name="/train_upload")
    assert [file for file in cached() if file.stat().st_size == 0] == []
    assert temporary() - before == set()


def test_a_full_disk_is_a_sentence(asked, monkeypatch):
    def full(*_):
        raise InputError("The file can't be written (No space left on device); try again later, or tell somebody.")

    monkeypatch.setattr("inspector.files.new_folder", full)
    with pytest.raises(AppError, match="No space left on device"):
        asked.predict(api_name="/batch_files")
    _, note = asked.predict(api_name="/export")
    assert "No space left on device" in note
