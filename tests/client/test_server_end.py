"""The app as it is started, with a run of its own trainer: asked to end it lets the run save, and leaves nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gradio_client import Client

from inspector.bounds import private_bounds
from inspector.runs.jobs import JobTable
from tests.client.test_train import PERSON, fields
from tests.stand_in import recipe, wait_for

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
ROOT = Path(__file__).parents[2]


def until(found, process, seconds=600):
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    return value


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(("number", "kept"), [(signal.SIGTERM, "runs"), (signal.SIGINT, "")])
def test_the_app_is_asked_to_end(tmp_path, number, kept):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = tmp_path / "temporary"
    places.mkdir()
    environment = {
        **os.environ,
        "TMPDIR": str(places),
        "VLM_INSPECTOR_RUNS": kept,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    # The folder of the runs is relative, to the place that the app is started in.
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "--port", str(port)],
        cwd=tmp_path,
        text=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        until(lambda: answers(port), process)
        client = Client(f"http://127.0.0.1:{port}/", verbose=False)
        job = client.predict("custom", PERSON, *fields(steps=100_000, eval_every=0), api_name="/train_start")[1]
        root = tmp_path / "runs" if kept else next(places.glob("vlm-inspector-jobs-*"))
        metrics = root / job / "run" / "metrics.jsonl"
        until(lambda: metrics.exists() and '"step"' in metrics.read_text(), process)
        worker = json.loads((root / job / "run" / "run.json").read_text())["pid"]
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally:
        if process.poll() is None:  # the way that is tested, or its run would train for ever
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert not Path(f"/proc/{worker}").exists()
    assert list(places.glob("vlm-inspector-jobs-*")) == []
    if kept:
        assert json.loads((root / job / "run" / "run.json").read_text())["status"] == "stopped"
        assert (root / job / "run" / "model" / "model.safetensors").is_file()
        table = JobTable(root)
        assert (table.read(job).status, table.read(job).can_resume) == ("stopped", True)
        table.close()


def test_the_trainer_itself_ends_where_it_takes_more_memory_than_it_is_given(tmp_path):
    table = JobTable(tmp_path, private_bounds(run_bytes=100 << 20), nice=0, threads=1)
    job = table.start("me", recipe())
    error = wait_for(table, job, "failed", "interrupted").error
    table.close()
    assert " 100 MiB " in error
