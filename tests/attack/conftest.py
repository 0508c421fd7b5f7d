"""A server as strangers meet it: ``app.py --public`` in a process of its own, on this machine alone."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.attack.stranger import Stranger

ROOT = Path(__file__).parent.parent.parent
SECRET = "not-for-strangers-" + secrets.token_hex(8)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """Its address, process id, folders and what it printed; ended at the end."""
    folder = tmp_path_factory.mktemp("server")
    temporary = folder / "tmp"
    temporary.mkdir()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {
        **os.environ, "TMPDIR": str(temporary), "VLM_INSPECTOR_RUNS": str(folder / "runs"), "HF_TOKEN": SECRET,
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    environment.pop("GRADIO_TEMP_DIR", None)
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py"), "--public", "--port", str(port)],
            cwd=folder, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server didn't start:\n{(folder / 'output.txt').read_text()}")
            try:
                if httpx.get(f"{url}/config", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield {"url": url, "pid": process.pid, "folder": folder, "tmp": temporary, "output": folder / "output.txt"}
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def stranger(server: dict) -> Iterator[Stranger]:
    """One client of the server that follows no rule of gradio's."""
    with Stranger(server["url"]) as one:
        yield one
