"""``python -m benchmarks limits``: a public server with as much as possible at its limit at once.

Pages by the dozen with twelve images each are opened and stay open. Then huge pictures are decoded side by side, a zip
of 150 MB of JSON is unpacked and checked, the largest training run that the form gives, every experiment and the
battery run beside them. (All at once from the start, the pages' images would wait fairly behind the huge ones.) Printed
are the memory of the server and of its processes at their peak beside what the bounds add up to. What a small model
leaves of a bound unused (pages with megabytes of state) can't be reached this way; the sum covers it.
"""

from __future__ import annotations

import io
import json
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.soak import measure_rss
from inspector.bounds import format_memory, list_memory, public_bounds
from scripts.public_server import PublicServer, run_public_server
from scripts.stranger import Stranger

PAGES = 60
SECONDS = 240.0


def main(_: int) -> None:
    with tempfile.TemporaryDirectory(prefix="limits-") as name, run_public_server(Path(name)) as server:
        folder = Path(name)
        pages = _open_pages(server, folder)
        end = time.monotonic() + SECONDS
        tasks: list[Callable[[], None]] = [
            partial(_check_data, server, folder, end),
            partial(_train, server, end),
            partial(_run_all, server, folder, end),
            partial(_run_battery, server, end),
            *(partial(_plan_huge, server, folder, number, end) for number in range(4)),
        ]
        threads = [threading.Thread(target=_run_until, args=(task, end), daemon=True) for task in tasks]
        for thread in threads:
            thread.start()
        peak = own = 0
        while time.monotonic() < end:
            server_now, others = measure_rss(server.pid), {pid: measure_rss(pid) for pid in server.children}
            own, peak = max(own, server_now), max(peak, server_now + sum(others.values()))
            time.sleep(0.25)
        print(format_memory(public_bounds()))
        most = sum(size for _, size in list_memory(public_bounds()))
        both = f"{own / 1e9:.2f} GB, with its processes {peak / 1e9:.2f} GB of {most / 1e9:.1f} GB"
        print(f"measured over {SECONDS:g} s beside {len(pages)} open pages: the server at most {both}", flush=True)
        # What still waits for an answer is told soon that the server ends.
        late = time.monotonic() + 20
        for thread in threads:
            thread.join(max(0.0, late - time.monotonic()))


def _run_until(task: Callable[[], None], end: float) -> None:
    """The server is closed after ``end``, while the last answers are still on their way; before, that is a fault."""
    try:
        task()
    except httpx.HTTPError:
        if time.monotonic() < end:
            raise


def _noise(folder: Path, name: str, side: int) -> Path:
    path = folder / f"{name}.png"
    Image.effect_noise((side, side), 40).convert("RGB").save(path)
    return path


def _say(what: str, answer: dict[str, Any]) -> None:
    said = "done" if answer["success"] else answer["output"].get("error")
    print(f"{what}: {said}", flush=True)


def _open_pages(server: PublicServer, folder: Path) -> list[Stranger]:
    """Each has its answer, and stays open as long as it is held."""
    opened = []
    began = time.monotonic()
    for n in range(PAGES):
        page = Stranger(server.url, f"127.0.5.{n + 1}")
        files = [page.upload(_noise(folder, f"page-{n}-{k}", 512)) for k in range(12)]
        answer = page.call("ask", page.prepare("In image 2, what colour is the shape?", files))
        if not answer["success"]:
            _say(f"page {n}", answer)
        opened.append(page)
    memory = measure_rss(server.pid) / 1e9
    print(
        f"{len(opened)} pages were opened in {time.monotonic() - began:.0f} s, the server at {memory:.2f} GB",
        flush=True,
    )
    return opened


def _plan_huge(server: PublicServer, folder: Path, number: int, end: float) -> None:
    path = folder / f"huge-{number}.png"
    Image.new("RGBA", (9459, 9459 - number), (200, 30, 30, 120)).save(path)
    done = 0
    while time.monotonic() < end:
        with Stranger(server.url, f"127.0.6.{number + 1}") as person:
            # New bytes each time, so that nothing is known of it.
            with path.open("ab") as file:
                file.write(b"x")
            gallery = [{"image": person.upload(path), "caption": None}]
            try:
                done += person.call("plan_images", ["embedded", gallery, []])["success"]
            except httpx.HTTPError as error:
                print(f"huge picture: {type(error).__name__}", flush=True)
    print(f"{done} pictures of 89 million pixels were planned", flush=True)


def _check_data(server: PublicServer, folder: Path, end: float) -> None:
    line = (
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "What colour is it? " * 8},
                    {"role": "assistant", "content": "red " * 10},
                ]
            }
        )
        + "\n"
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.jsonl", line * (150_000_000 // len(line)))
    path = folder / "data.zip"
    path.write_bytes(packed.getvalue())
    with Stranger(server.url, "127.0.7.1") as person:
        _say("upload of 150 MB of JSON", person.call("train_upload", [person.upload(path), None]))
        values = person.defaults("train_check")
        fields = person.events["train_check"]["inputs"]
        values = [
            "my file" if person.component(n)["props"].get("elem_id") == "train-data" else value
            for n, value in zip(fields, values, strict=True)
        ]
        while time.monotonic() < end:
            _say("check of it", person.call("train_check", values))


def _train(server: PublicServer, end: float) -> None:
    """The largest form: every row that is given, the encoder trained."""
    wanted = {
        "train-data": "scenes: several pictures",
        "train-steps": 600,
        "train-vision-rate": 1e-4,
        "train-projector-rate": 1e-4,
        "train-decoder-rate": 1e-4,
    }
    with Stranger(server.url, "127.0.7.2") as person:
        values = []
        for number in person.events["train_start"]["inputs"]:
            props = person.component(number)["props"]
            value = wanted.get(props.get("elem_id", ""), props.get("value"))
            values.append(public_bounds().run_rows if props.get("label") == "Rows per batch" else value)
        answer = person.call("train_start", values)
        _say("the largest run was started", answer)
        if not answer["success"]:
            return
        job = str(answer["output"]["data"][1])
        while time.monotonic() < end:
            time.sleep(5)
        seen = person.call("job", [job])
        facts = seen["output"]["data"][0] if seen["success"] else seen["output"]
        print("the largest run:", facts.get("status"), facts.get("steps_done"), "steps", facts.get("error"), flush=True)


def _run_all(server: PublicServer, folder: Path, end: float) -> None:
    with Stranger(server.url, "127.0.7.3") as person:
        files = [person.upload(_noise(folder, f"all-{n}", 512)) for n in range(12)]
        _say("twelve images", person.call("ask", person.prepare("In image 2, what colour is the shape?", files)))
        while time.monotonic() < end:
            _say("every experiment", person.call("which_all", [None, None, 1, "", ""]))


def _run_battery(server: PublicServer, end: float) -> None:
    with Stranger(server.url, "127.0.7.4") as person:
        while time.monotonic() < end:
            _say("battery", person.call("battery", person.defaults("battery")))
