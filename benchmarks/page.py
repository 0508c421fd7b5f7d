"""``python -m benchmarks page``: how soon the page is usable, how soon it answers, and what the token strip costs."""

from __future__ import annotations

import gzip
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.timing import SHAPE_222M, embedded_tokenizer
from inspector.experiments.image_edits import MAX_EDITS
from inspector.figures.payload import strip_payload
from inspector.row.ask import inspect
from inspector.row.prompt import Prompt, Turn
from model import VLM, VLMConfig, open_image
from model.checkpoint import save_vlm
from model.training.fresh import EXTRA_TOKENS, build_tokenizer, scratch_config
from scripts.chromium import launch_chromium

SIZES = [(384, 384)] * 4 + [(384, 256)]
"""Four images of 3 × 3 tiles and one of 2 × 3, with thumbnails: 3,008 image tokens at nanoVLM's 64 a tile."""
QUESTION = "In image {}, what colour is the shape?"
WAIT_MS = 300_000

WATCH = Path(__file__).with_suffix(".js")


def large_vlm() -> VLM:
    """The embedded model's shape with nanoVLM's 64 tokens a tile. Random weights: every answer token has a loss all the
    same."""
    tokenizer = build_tokenizer()
    shape = scratch_config(len(tokenizer) - len(EXTRA_TOKENS))
    wide = replace(shape, vit_img_size=128, mp_image_token_length=64, max_img_size=384, lm_max_position_embeddings=4096)
    return VLM(wide, tokenizer).eval()


def measure_payload(vlm: VLM) -> None:
    """The token strip's JSON for five images."""
    images = tuple(open_image(Image.new("RGB", size, "red")) for size in SIZES)
    made = inspect(vlm, Prompt(images, (Turn(QUESTION.format(3), "red"),)))
    text = json.dumps(strip_payload(made, "key"))
    print(
        f"token strip, {len(made.row):,} tokens, {len(images)} images: {len(text) / 1000:.1f} kB of JSON "
        f"({len(gzip.compress(text.encode())) / 1000:.1f} kB compressed)",
        flush=True,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _processor_seconds(process: int) -> float:
    """What a process has used so far, its own and the kernel's on its behalf. Says more than the clock on a machine
    that others use."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _running_app(*arguments: str) -> Iterator[tuple[str, int, float, float]]:
    """What ``make app`` runs, in a process of its own: address, process id, when it was started, when it listened."""
    port = _free_port()
    start = time.perf_counter()
    app = subprocess.Popen([sys.executable, "app.py", "--port", str(port), *arguments], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if app.poll() is not None or time.perf_counter() - start > WAIT_MS / 1000:
                    raise
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/", app.pid, start, time.perf_counter()
    finally:
        app.terminate()
        app.wait(20)


def _answer(page: Page) -> float:
    """Seconds from pressing Ask to the finished answer on the page."""
    page.evaluate("document.querySelector('#answer .vi-answers').dataset.stale = 'yes'")
    start = time.perf_counter()
    page.click("#ask")
    page.wait_for_function(
        "() => { const shown = document.querySelector('#answer .vi-answers');"
        " return shown && !shown.dataset.stale && shown.innerText.includes('p of each'); }",
        timeout=WAIT_MS,
    )
    return time.perf_counter() - start


def measure_start(browser: Browser, repeats: int) -> None:
    """From the command to a page where Ask can be pressed, to the first answer, and the same example asked again."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    with _running_app() as (address, process, start, listening):
        page.goto(address)
        page.wait_for_selector("#ask:enabled", timeout=WAIT_MS)
        usable = time.perf_counter()
        page.wait_for_selector("#strip button.tok", timeout=WAIT_MS)
        answered, used = time.perf_counter(), _processor_seconds(process)
        print(
            f"from the start of app.py to a listening server {listening - start:.1f} s, to a page that can be asked "
            f"{usable - start:.1f} s; the example that it opens with is answered and drawn {answered - usable:.1f} s "
            f"later; the server used {used:.1f} s of processor time for all of it",
            flush=True,
        )
        times = [_answer(page) for _ in range(repeats)]
        print(
            f"the first example asked again: {statistics.median(times):.2f} s, the median of {repeats}, "
            f"at most {max(times):.2f} s",
            flush=True,
        )
        measure_maps(page, repeats, "embedded model")
        measure_edits(page, repeats)
    page.close()


def measure_maps(page: Page, repeats: int, model: str) -> None:
    """From the click on a token to the maps of all its layers and heads on the screen, in the tab Attention."""
    page.get_by_role("tab", name="Attention").click()
    page.wait_for_selector("#head-board .vlm-cell", timeout=WAIT_MS)
    page.wait_for_timeout(2000)
    times = []
    for number in range(repeats + 1):
        times.append(
            page.evaluate(
                """async number => {
                    const nodes = [...document.querySelectorAll("#strip button.tok")];
                    performance.clearMarks("vlm:board");
                    const start = performance.now();
                    nodes[nodes.length - 5 - (number % 6)].click();
                    while (!performance.getEntriesByName("vlm:board").length) {
                        if (performance.now() - start > 60000) throw new Error("no map came");
                        await new Promise(requestAnimationFrame);
                    }
                    await new Promise(requestAnimationFrame);
                    return performance.now() - start;
                }""",
                number,
            )
        )
        page.wait_for_timeout(1500)  # what is drawn behind the maps is over
    print(
        f"{model}: a token clicked, to the maps of its layers and heads on the screen: "
        f"{statistics.median(times[1:]):.0f} ms, the median of {repeats}, at most {max(times[1:]):.0f} ms",
        flush=True,
    )


def measure_edits(page: Page, repeats: int) -> None:
    """From pressing Edit to the answer to the edited picture on the page, one edit on top of the other."""
    page.get_by_role("tab", name="Patches").click()
    page.wait_for_function("document.querySelector('#edit-line input, #edit-line textarea')?.value")
    times = []
    for count in range(1, min(repeats, MAX_EDITS) + 1):
        start = time.perf_counter()
        page.click("#edit-start")
        page.wait_for_function(
            "count => document.querySelectorAll('#edit-panel .ed-rail li').length === count", arg=count, timeout=WAIT_MS
        )
        times.append(time.perf_counter() - start)
    print(
        f"a picture edited, to its new answer on the page: {statistics.median(times):.2f} s, the median of "
        f"{len(times)}, at most {max(times):.2f} s",
        flush=True,
    )


def measure_beside_job(browser: Browser, repeats: int) -> None:
    """The same example asked while nothing else happens, then while a training job runs, started on the page."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    with _running_app() as (address, *_):
        page.goto(address)
        page.wait_for_selector("#strip button.tok", timeout=WAIT_MS)
        _answer(page)
        idle = [_answer(page) for _ in range(repeats)]
        page.get_by_role("tab", name="Train").click()
        page.fill("#train-steps input", "5000")
        page.click("#train-start")
        # Its first loss: until then the job only loads.
        page.wait_for_selector("#train-chart canvas:visible", timeout=WAIT_MS)
        busy = [_answer(page) for _ in range(repeats)]
        page.click("#train-stop")
        page.wait_for_selector("#train-status .tr-done, #train-status .tr-stopped", timeout=WAIT_MS)
    page.close()
    one, other = statistics.median(idle), statistics.median(busy)
    print(
        f"the first example asked again: {one:.2f} s idle, {other:.2f} s while a training job runs, medians of "
        f"{repeats}: {other / one:.2f} × as long",
        flush=True,
    )


def _ask_about(page: Page, address: str, files: Sequence[Path]) -> None:
    """The page with the model “large” and these images."""
    page.goto(address)
    page.wait_for_selector("#strip button.tok", timeout=WAIT_MS)
    page.click("#models > button, #models .label-wrap")
    page.get_by_label("Model", exact=True).first.click()
    page.get_by_role("option", name="large").click()
    page.click("#models > button, #models .label-wrap")
    page.click("#clear-images")
    page.wait_for_function("document.querySelectorAll('#plans li').length === 0", timeout=WAIT_MS)
    page.set_input_files("#images input[type=file]", [str(file) for file in files])
    page.wait_for_function("n => document.querySelectorAll('#plans li').length === n", arg=len(files), timeout=WAIT_MS)


def measure_large_maps(browser: Browser, repeats: int) -> None:
    """As :func:`measure_maps`, of 30 layers × 9 heads over three images, in a model of 222 million weights drawn at
    random."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_vlm(VLM(VLMConfig(**SHAPE_222M), embedded_tokenizer()).eval(), folder / "large")
        for number, size in enumerate([(640, 480), (480, 640), (512, 512)], start=1):
            Image.effect_noise(size, 40 * number).convert("RGB").save(folder / f"{number}.png")
        with _running_app("--model", str(folder / "large")) as (address, *_):
            _ask_about(page, address, [folder / f"{n}.png" for n in range(1, 4)])
            _answer(page)
            measure_maps(page, repeats, "222M shape, 3 images")
    page.close()


def measure_strip(browser: Browser, vlm: VLM, repeats: int) -> None:
    """From the message that brings the finished row to the strip on the screen, 3,000 tokens in five images: asked on
    the page, with a checkpoint of its own."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.add_init_script(path=WATCH)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_vlm(vlm, folder / "large")
        for number, size in enumerate(SIZES, start=1):
            Image.new("RGB", size, (40 * number, 200 - 30 * number, 90)).save(folder / f"{number}.png")
        with _running_app("--model", str(folder / "large")) as (address, *_):
            _ask_about(page, address, [folder / f"{n}.png" for n in range(1, 6)])
            times, tokens = [], 0
            for number in range(repeats):
                # Another question each time, or the browser would find most of the page as it is.
                page.fill("#question-1 textarea, #question-1 input", QUESTION.format(1 + number % len(SIZES)))
                page.evaluate("watchStrip(); performance.clearMarks()")
                page.click("#ask")
                painted = page.evaluate("painted")
                answered = page.evaluate("performance.getEntriesByName('answered')[0].startTime")
                times.append(painted["at"] - answered)
                tokens = painted["tokens"]
                page.wait_for_timeout(1000)
            print(
                f"token strip, {tokens:,} tokens, 5 images: on the screen {statistics.median(times):.0f} ms after "
                f"the row's message, the median of {repeats}, at most {max(times):.0f} ms",
                flush=True,
            )
    page.close()


def main(repeats: int) -> None:
    vlm = large_vlm()
    measure_payload(vlm)
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        measure_start(browser, repeats)
        measure_beside_job(browser, repeats)
        measure_strip(browser, vlm, repeats)
        measure_large_maps(browser, repeats)
        browser.close()
