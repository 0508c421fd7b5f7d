"""Data files through the app's own events: taken in, checked, refused, stopped; nothing stays in gradio's folder."""

import json
import os
import time
import zipfile
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from inspector.bounds import private_bounds
from inspector.runs.jobs import JobTable
from model import InputError

# gradio's and httpx's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


# The form's fields in the page's order: preset, base, data, steps, path, format, four rates, stage, LoRA, packing,
# rows, evaluation, seed; then encoder, language model and projector of what is built.
FORM = ("custom", "embedded", "my file", 3, "", "auto", 0.0, 1e-3, 1e-3, 0.0, "instruction", 0, "off", 2, 2, 0)
PARTS = ("embedded", "embedded", "linear")


def chat(question):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]}


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def children():
    """The processes that this one started to read data."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == os.getpid() and b"-m" in words and words[words.index(b"-m") + 1].startswith(b"inspector."):
            found.add(int(folder.name))
    return found


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    from inspector.session import ModelStore
    from inspector.ui import build_ui, launch_options

    cache = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        jobs = JobTable(tmp_path_factory.mktemp("runs"), private_bounds(parsers=2), nice=0, threads=1)
        demo = build_ui(ModelStore({"embedded": "embedded"}), jobs)
        _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
        yield address, jobs, cache
        demo.close()


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*.*") if path.is_file())


def test_an_upload_is_taken_in_and_checked_and_replaced(app, tmp_path):
    url, jobs, cache = app
    client = Client(url, verbose=False)
    (tmp_path / "a.jsonl").write_text(json.dumps(chat("what?")) + "\n")
    assert client.predict(handle_file(tmp_path / "a.jsonl"), api_name="/train_upload") == "chat"
    (first,) = jobs.uploads.iterdir()
    assert "a.jsonl" not in files_in(cache)
    modules, reports, _ = client.predict(*FORM, api_name="/train_check")
    assert "image encoder" in modules
    assert "<b>a.jsonl</b>: 1 read, 1 usable" in reports
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("b.jsonl", json.dumps(chat("why?")))
    assert client.predict(handle_file(tmp_path / "b.zip"), api_name="/train_upload") == "chat"
    (second,) = jobs.uploads.iterdir()
    assert first != second
    assert "b.zip" not in files_in(cache)


def test_a_refused_upload_is_one_sentence_and_leaves_nothing(app, tmp_path):
    url, jobs, cache = app
    before = set(jobs.uploads.iterdir())
    client = Client(url, verbose=False)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../evil.jsonl", "{}")
    with pytest.raises(AppError, match="archive"):
        client.predict(handle_file(tmp_path / "bad.zip"), api_name="/train_upload")
    assert set(jobs.uploads.iterdir()) == before
    assert "bad.zip" not in files_in(cache)


def test_no_other_file_of_the_disk_is_taken_in(app, tmp_path):
    url, jobs, _ = app
    before = set(jobs.uploads.iterdir())
    (tmp_path / "mine.jsonl").write_text(json.dumps(chat("what?")) + "\n")
    client = Client(url, verbose=False)
    said = set()
    for path in (tmp_path / "mine.jsonl", tmp_path / "none.jsonl"):
        with pytest.raises(AppError) as refused:
            client.predict({"path": str(path)}, api_name="/train_upload")
        said.add(str(refused.value).replace(path.name, "…"))
    assert len(said) == 1
    assert set(jobs.uploads.iterdir()) == before
    assert (tmp_path / "mine.jsonl").is_file()


def test_only_files_in_gradios_folder_are_admitted(tmp_path):
    from inspector.server.admission import admit_file

    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "out.jsonl").write_text("x")
    (inside / "a.jsonl").write_text("x")
    (inside / "link.jsonl").symlink_to(tmp_path / "out.jsonl")
    os.mkfifo(inside / "fifo.jsonl")
    assert admit_file(str(inside / "a.jsonl"), inside) == inside.resolve() / "a.jsonl"
    for path in (
        tmp_path / "out.jsonl",
        inside / "link.jsonl",
        inside / "gone.jsonl",
        inside,
        inside / "fifo.jsonl",
        "",
        None,
        "a\0b",
        inside / ".." / "out.jsonl",
        inside / ("a" * 5000),
    ):
        with pytest.raises(InputError, match="uploaded"):
            admit_file(None if path is None else str(path), inside)


def test_a_long_check_ends_when_something_else_is_asked_for_or_the_client_goes(app, tmp_path):
    url, _, _ = app
    client = Client(url, verbose=False)
    (tmp_path / "long.jsonl").write_text((json.dumps(chat("what?")) + "\n") * 300_000)
    client.predict(handle_file(tmp_path / "long.jsonl"), api_name="/train_upload")
    first = client.submit(*FORM, api_name="/train_check")
    wait_until(children)
    old = children()
    second = client.submit(*FORM, api_name="/train_check")
    wait_until(lambda: not old & children())
    wait_until(children)
    wait_until(first.done)
    second.cancel()
    wait_until(lambda: not children(), 5)


def test_a_closed_page_ends_its_check(app, tmp_path):
    url, _, _ = app
    client = Client(url, verbose=False)
    (tmp_path / "long.jsonl").write_text((json.dumps(chat("what?")) + "\n") * 300_000)
    client.predict(handle_file(tmp_path / "long.jsonl"), api_name="/train_upload")
    number = next(item["id"] for item in client.config["dependencies"] if item["api_name"] == "train_check")
    values = [*FORM[:1], None, *FORM[1:], *PARTS]  # a program sends nothing for the state between them
    with httpx.Client(base_url=f"{url}gradio_api/", timeout=60) as browser:
        asked = {"data": values, "fn_index": number, "session_hash": client.session_hash}
        browser.post("queue/join", json=asked).raise_for_status()
        with browser.stream("GET", "queue/data", params={"session_hash": client.session_hash}) as stream:
            lines = stream.iter_lines()
            next(lines)
            wait_until(children)
    wait_until(lambda: not children(), 10)
