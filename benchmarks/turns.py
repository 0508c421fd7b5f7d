"""``python -m benchmarks turns``: how long one person waits for others, on a public server.

An answer alone is the baseline; beside it the same answer while somebody else runs every experiment on twelve images,
while somebody has sent two hundred questions, and how soon a place is free after the page that held it was closed.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from scripts.public_server import PublicServer, run_public_server
from scripts.stranger import Stranger

QUESTION = "In image 2, what colour is the shape?"
NOTHING_MORE: list[Any] = [None, None, 1, "", ""]
"""What the tests take: the page's state, which the server has, turn 1, no contrast and no reference."""


def main(repeats: int) -> None:
    with tempfile.TemporaryDirectory(prefix="turns-") as name, run_public_server(Path(name)) as server:
        images = _draw_images(Path(name), 12)
        with Stranger(server.url, "127.0.3.1") as person:
            files = [person.upload(path) for path in images[:2]]
            alone = [_ask(person, files) for _ in range(repeats + 1)][1:]
            _print("an answer alone", alone, alone)
            _print(
                "… behind another's “Run all” of 12 images",
                _behind_run_all(server, person, files, images, repeats),
                alone,
            )
            _print("… behind 200 questions of one client", _behind_many(server, person, files, images, repeats), alone)
        _print("a place is free after its page was closed", [_free(server, images[:4]) for _ in range(repeats)], alone)


def _draw_images(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{n}.png" for n in range(count)]
    for n, path in enumerate(paths):
        Image.effect_noise((192, 192), 40 + n).convert("RGB").save(path)
    return paths


def _ask(person: Stranger, files: list[dict[str, Any]]) -> float:
    began = time.monotonic()
    answer = person.call("ask", person.prepare(QUESTION, files))
    assert answer["success"], answer
    return time.monotonic() - began


def _behind_run_all(
    server: PublicServer, person: Stranger, files: list[dict[str, Any]], images: list[Path], repeats: int
) -> list[float]:
    with Stranger(server.url, "127.0.3.2") as other:
        _ask(other, [other.upload(path) for path in images])
        other.join("which_all", NOTHING_MORE)
        running = threading.Event()
        follower = threading.Thread(target=_follow_until_closed, args=(other, running), daemon=True)
        follower.start()
        assert running.wait(300), "“Run all” never began"
        times = [_ask(person, files) for _ in range(repeats)]
        assert follower.is_alive(), "“Run all” had ended by then: nothing was measured"
        return times


def _follow(other: Stranger, running: threading.Event) -> None:
    for message in other.messages():
        if message["msg"] == "process_generating":
            running.set()
        if message["msg"] == "process_completed":
            return


def _behind_many(
    server: PublicServer, person: Stranger, files: list[dict[str, Any]], images: list[Path], repeats: int
) -> list[float]:
    times = []
    for n in range(repeats):
        with Stranger(server.url, f"127.0.4.{n + 1}") as other:
            own = [other.upload(path) for path in images[:2]]
            taken = [other.join("ask", other.prepare(QUESTION, own)).status_code for _ in range(200)].count(200)
            times.append(_ask(person, files))
            if n == 0:
                print(f"of 200 questions of one page {taken} are taken", flush=True)
    return times


def _free(server: PublicServer, images: list[Path]) -> float:
    """Seconds from the closing of a page that runs every experiment until the next one's begins."""
    with Stranger(server.url, "127.0.3.2") as leaving, Stranger(server.url, "127.0.3.3") as waiting:
        for one in (leaving, waiting):
            _ask(one, [one.upload(path) for path in images])
        leaving.join("which_all", NOTHING_MORE)
        running = threading.Event()
        threading.Thread(target=_follow_until_closed, args=(leaving, running), daemon=True).start()
        assert running.wait(300), "“Run all” never began"
        waiting.join("which_all", NOTHING_MORE)
        stream = waiting.messages()
        assert next(stream)["msg"] == "estimation", "the place was free"
        began = time.monotonic()
        leaving.close()
        assert any(message["msg"] == "process_starts" for message in stream)
        return time.monotonic() - began


def _follow_until_closed(page: Stranger, running: threading.Event) -> None:
    try:
        _follow(page, running)
    except (httpx.HTTPError, OSError):
        return  # what it waited for was closed, as it was meant to be


def _print(name: str, times: list[float], alone: list[float]) -> None:
    middle = statistics.median(times)
    ratio = middle / statistics.median(alone)
    print(f"{name:48} median {middle:6.2f} s   worst {max(times):6.2f} s   {ratio:5.2f} × alone", flush=True)
