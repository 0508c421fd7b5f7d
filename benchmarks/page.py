"""``python -m benchmarks page``: how soon the page is usable, how soon it answers, and what the token strip costs."""

from __future__ import annotations

import gzip
import json
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import replace

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from inspector.analysis.inspection import inspect
from inspector.analysis.prompt import Prompt, Turn
from inspector.figures.payload import strip_payload
from model import VLM, open_image
from model.training.scratch import EXTRA_TOKENS, build_tokenizer, scratch_config
from scripts.chromium import launch_chromium


def measure_payload() -> None:
    """The token strip's JSON for five images of nanoVLM's 64 tokens a tile: four of 3 × 3 tiles and one of 3 × 2, with
    thumbnails. Random weights: every answer token has a loss all the same."""
    tokenizer = build_tokenizer()
    shape = scratch_config(len(tokenizer) - len(EXTRA_TOKENS))
    vlm = VLM(replace(shape, vit_img_size=128, mp_image_token_length=64, max_img_size=384), tokenizer).eval()
    sizes = [(384, 384)] * 4 + [(384, 256)]
    images = tuple(open_image(Image.new("RGB", size, "red")) for size in sizes)
    made = inspect(vlm, Prompt(images, (Turn("In image 3, what colour is the shape?", "red"),)))
    text = json.dumps(strip_payload(made, "key"))
    print(f"token strip, {len(made.row):,} tokens, {len(images)} images: {len(text) / 1000:.1f} kB of JSON "
          f"({len(gzip.compress(text.encode())) / 1000:.1f} kB compressed)", flush=True)  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answer(page: Page) -> float:
    """Seconds from pressing Ask to the finished answer on the page."""
    page.evaluate("document.querySelector('#answer .vi-answers').dataset.stale = 'yes'")
    start = time.perf_counter()
    page.click("#ask")
    page.wait_for_function(
        "() => { const shown = document.querySelector('#answer .vi-answers');"
        " return shown && !shown.dataset.stale && shown.innerText.includes('p of each'); }"
    )
    return time.perf_counter() - start


def measure_page(repeats: int) -> None:
    """What ``make app`` runs, in a process of its own, looked at by a real Chromium."""
    port = _free_port()
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        app = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], stdout=subprocess.DEVNULL)
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if app.poll() is not None or time.perf_counter() - start > 120:
                        raise
                    time.sleep(0.05)
            listening = time.perf_counter() - start
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_selector("#strip button.tok")
            print(f"from the start of app.py to a listening server {listening:.1f} s, to a usable page "
                  f"{time.perf_counter() - start:.1f} s", flush=True)  # fmt: skip
            times = [_answer(page) for _ in range(repeats)]
            print(f"the first example asked again: {statistics.median(times):.2f} s, the median of {repeats}, "
                  f"at most {max(times):.2f} s", flush=True)  # fmt: skip
        finally:
            app.terminate()
            app.wait(20)
            browser.close()


def main(repeats: int) -> None:
    measure_payload()
    measure_page(repeats)
