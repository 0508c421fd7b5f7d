"""``python -m benchmarks uploads``: how long others wait while somebody uploads 150 MB of JSON in a small zip.

One client uploads, another asks for the page and for a light event all the while. VLM_INSPECTOR_BEFORE may name a
checkout of another version, which is measured first, in the same way.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

SIZE = 150_000_000
"""Bytes of JSON."""
WAIT_S = 300
QUIET_S = 5.0
BEFORE = "VLM_INSPECTOR_BEFORE"


def make_zip(folder: Path) -> Path:
    """150 MB of rows that are all alike, so that they pack well."""
    row = json.dumps(
        {"id": 1, "conversations": [{"from": "human", "value": "why " * 20}, {"from": "gpt", "value": "so"}]}
    )
    path = folder / "large.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("large.json", "w") as file:
        file.write(b"[" + row.encode())
        chunk = (", " + row).encode() * 1000
        for _ in range(SIZE // len(chunk)):
            file.write(chunk)
        file.write(b"]")
    return path


@contextmanager
def running_app(folder: Path) -> Iterator[str]:
    """The address of a public server from the checkout in ``folder``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(folder), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    app = subprocess.Popen(
        [sys.executable, "app.py", "--public", "--port", str(port)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + WAIT_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=WAIT_S).close()
                break
            except OSError:
                if app.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        app.terminate()
        app.wait(20)


def watch(ask: Callable[[], object], stop: threading.Event) -> tuple[threading.Thread, list[float]]:
    """Asks again and again; the seconds that each answer took."""
    waits: list[float] = []

    def go() -> None:
        while not stop.is_set():
            start = time.perf_counter()
            ask()
            waits.append(time.perf_counter() - start)
            time.sleep(0.02)

    thread = threading.Thread(target=go)
    thread.start()
    return thread, waits


def measure(folder: Path, upload: Path) -> None:
    """Prints the worst waits with nothing else going on, and during the upload."""
    with running_app(folder) as address:
        client, other = Client(address, verbose=False), Client(address, verbose=False)
        asks: dict[str, Callable[[], object]] = {
            "GET /": lambda: urllib.request.urlopen(address, timeout=WAIT_S).read(),
            "/pick_layout": lambda: other.predict("images-first", api_name="/pick_layout"),
        }
        for name, during in (("nothing else", None), ("an upload", upload)):
            stop = threading.Event()
            watched = {ask: watch(asks[ask], stop) for ask in asks}
            start = time.perf_counter()
            said = ""
            if during is None:
                time.sleep(QUIET_S)
            else:
                try:
                    said = f", read as {client.predict(handle_file(during), api_name='/train_upload')}"
                except AppError as error:
                    said = f", refused: {error}"
            took = time.perf_counter() - start
            stop.set()
            for thread, _ in watched.values():
                thread.join()
            worst = ", ".join(f"{ask} {max(waits):.2f} s (of {len(waits)})" for ask, (_, waits) in watched.items())
            print(f"{folder.name}, {name} for {took:.1f} s{said}: worst wait {worst}", flush=True)


def main(repeats: int) -> None:
    here = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as name:
        upload = make_zip(Path(name))
        print(f"{SIZE / 1e6:.0f} MB of JSON in a zip of {upload.stat().st_size / 1000:.0f} kB", flush=True)
        for folder in (*([Path(os.environ[BEFORE])] if os.environ.get(BEFORE) else []), here):
            for _ in range(min(repeats, 3)):
                measure(folder, upload)
