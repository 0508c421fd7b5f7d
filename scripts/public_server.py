"""``app.py --public`` in a process of its own, as strangers meet it; for attack tests and the soak."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
START_S = 120.0
END_S = 60.0


@dataclass(frozen=True)
class PublicServer:
    """``temporary`` is its folder for temporary files, ``runs`` that of the training jobs, ``output`` what it says."""

    url: str
    pid: int
    temporary: Path
    runs: Path
    output: Path

    @property
    def children(self) -> list[int]:
        """Processes that it started, and those that they started."""
        found, waiting = [], [self.pid]
        while waiting:
            try:
                tasks = list(Path(f"/proc/{waiting.pop()}/task").iterdir())
                started = [int(word) for task in tasks for word in (task / "children").read_text().split()]
            except OSError:  # it has just ended
                continue
            found += started
            waiting += started
        return found


def find_port() -> int:
    """One that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_public_server(folder: Path, **environment: str) -> Iterator[PublicServer]:
    """Started with everything it keeps in ``folder``; asked to end (SIGTERM) at the end. RuntimeError with its last
    words if it doesn't start."""
    temporary, runs, output = folder / "tmp", folder / "runs", folder / "output.txt"
    temporary.mkdir()
    port = find_port()
    own = {**os.environ, "TMPDIR": str(temporary), "VLM_INSPECTOR_RUNS": str(runs), "PYTHONPATH": str(ROOT)}
    own.pop("GRADIO_TEMP_DIR", None)
    command = [sys.executable, str(ROOT / "app.py"), "--public", "--port", str(port)]
    with output.open("wb") as said:
        process = subprocess.Popen(command, cwd=folder, env={**own, **environment}, stdout=said, stderr=said)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The server didn't start: {output.read_text('utf-8')[-2000:]}")
            try:
                httpx.get(f"{url}/config", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield PublicServer(url, process.pid, temporary, runs, output)
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
