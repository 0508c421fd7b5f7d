"""``python -m benchmarks pages``: what two hundred pages leave behind that were opened, asked and closed.

Each has two photos of its own and an answer, and is held open as a browser holds it. Before them come as many as fill
the stores of features and rows up to their bounds, so that what a server takes once isn't taken for what a page leaves;
that growth is printed too.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks.soak import measure_rss
from scripts.public_server import PublicServer, run_public_server
from scripts.stranger import Stranger

FIRST, PAGES, TOGETHER = 560, 200, 10
MINUTES = 4
"""After the last one is closed: a public server forgets a page that is gone after two."""


def main(_: int) -> None:
    with tempfile.TemporaryDirectory(prefix="pages-") as name, run_public_server(Path(name)) as server:
        for first, count, which in ((0, FIRST, "first"), (FIRST, PAGES, "next")):
            before = measure_rss(server.pid)
            began = time.monotonic()
            _visit(server, Path(name), first, first + count)
            last, took = measure_rss(server.pid), time.monotonic() - began
            print(f"the {which} {count} pages opened, asked and closed in {took:.0f} s: {_grown(before, last)}")
            for minute in range(1, MINUTES + 1):
                time.sleep(60)
                print(f"{minute} min after the last: {_grown(before, measure_rss(server.pid))}", flush=True)


def _grown(before: int, now: int) -> str:
    return f"the server from {before / 1e6:.0f} to {now / 1e6:.0f} MB ({(now - before) / 1e6:+.0f} MB)"


def _visit(server: PublicServer, folder: Path, first: int, stop: int) -> None:
    for start in range(first, stop, TOGETHER):
        opened = [(Stranger(server.url, f"127.0.8.{n % 50 + 1}"), n) for n in range(start, start + TOGETHER)]
        beats = [page.opened() for page, _ in opened]
        for beat in beats:
            beat.__enter__()
        for page, n in opened:
            files = []
            for k in range(2):
                path = folder / f"{n}-{k}.jpg"
                Image.effect_noise((640, 480), 40 + n).convert("RGB").save(path)
                files.append(page.upload(path))
                path.unlink()
            answer = page.call("ask", page.prepare("In image 2, what colour is the shape?", files))
            assert answer["success"], answer
        for beat in beats:
            beat.__exit__(None, None, None)
        for page, _ in opened:
            page.close()
