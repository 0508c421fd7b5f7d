"""``python -m benchmarks memory``: what images cost the server, each part in a process of its own.

The baseline of every number is what stands nearest: an image opened in the server's process, its pixels, float32 tiles
and the batch of them kept with the answer.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import SHAPE_222M, embedded_tokenizer, measure, report
from inspector.bounds import public_bounds
from inspector.experiments.image_edits import run_edits
from inspector.figures.payload import viewer_payload
from inspector.images.image_file import SHELF, PromptImage
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.row.feature_store import FEATURES
from inspector.row.prompt import Prompt, Turn
from inspector.row.row_store import ROWS
from inspector.server.state_size import count_bytes
from inspector.session import ModelStore, Shown
from inspector.views.prompt import plan_images
from model import VLM, VLMConfig, load_vlm, open_image

PHOTO = (4000, 3000)
LARGE = (9459, 9459)
SHAPE_TILES = {
    **SHAPE_222M,
    "vit_img_size": 512,
    "mp_pixel_shuffle_factor": 4,
    "mp_image_token_length": 64,
    "max_img_size": 2048,
    "resize_to_max_side_len": True,
    "vit_hidden_dim": 96,
    "vit_inter_dim": 96,
    "vit_n_blocks": 1,
    "lm_n_blocks": 2,
}
"""nanoVLM's 222M as far as images go: 12 tiles and a thumbnail for a photo. It has few layers, so that this takes
seconds: of a layer nothing is kept but the decoder's attention of one row, :data:`ATTENTION_MB` for all 30."""
ATTENTION_MB = 30 * 9 * 2573 * 4 / 1e6
KINDS = ("L", "RGB", "RGBA")
SAMPLE_S = 0.02


def make_photos(folder: Path) -> list[Path]:
    """Three JPEGs of 12 megapixels, with the noise of a camera."""
    paths = []
    for number in range(3):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(PHOTO, Image.Resampling.BICUBIC)).astype(np.int16)
        pixels += rng.integers(-8, 9, pixels.shape, dtype=np.int16)
        paths.append(folder / f"photo-{number}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=92)
    return paths


def make_large(folder: Path, mode: str) -> list[Path]:
    """Three PNGs of 89 megapixels in few bytes."""
    paths = []
    for number in range(3):
        paths.append(folder / f"large-{mode}-{number}.png")
        Image.new(mode, LARGE, number if mode == "L" else (number, 0, 0, 90)[: len(mode)]).save(paths[-1])
    return paths


# --- memory of this process and of those that it started ---


def held_mb(processes: Sequence[int]) -> float:
    total = 0
    for process in processes:
        try:
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except OSError:
            continue  # it has ended
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total / 1e6


def family() -> list[int]:
    """This process and its children."""
    own = os.getpid()
    lists = (Path(f"/proc/{own}/task/{task}/children") for task in os.listdir(f"/proc/{own}/task"))
    return [own, *(int(child) for path in lists if path.exists() for child in path.read_text().split())]


@contextmanager
def watching() -> Iterator[Callable[[], float]]:
    """The most that all of them together held, MB."""
    peak, over = [held_mb(family())], threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            peak[0] = max(peak[0], held_mb(family()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        over.set()
        thread.join()


# --- the parts ---


def measure_session(shape: str, keep_pixels: bool, folder: Path, sessions: int) -> None:
    """What one more session holds after a question about three photos: the system's count, and our own."""
    torch.set_grad_enabled(False)
    vlm = load_vlm("embedded") if shape == "embedded" else VLM(VLMConfig(**SHAPE_TILES), embedded_tokenizer()).eval()
    paths = sorted(folder.glob("photo-*.jpg"))
    kept: list[Any] = []

    def ask() -> Any:
        images = tuple(open_image(path) if keep_pixels else SHELF.find(path) for path in paths)
        inspection = ask_and_inspect(vlm, Prompt(images, (Turn("What color is it?"),)), GenerationSettings(2))
        page = Shown("m", inspection, 0, attend(vlm, inspection, inspection.first_answer_position))
        tiles = [image.tiles for image in inspection.row.images] if keep_pixels else []
        return page, tiles, inspection.batch if keep_pixels else None

    ask()
    gc.collect()
    before = held_mb([os.getpid()])
    for _ in range(sessions):
        kept.append(ask())
    gc.collect()
    grown = (held_mb([os.getpid()]) - before) / sessions
    name = "pixels, tiles and batch kept" if keep_pixels else "ours"
    layers = "" if shape == "embedded" else f"; with all its layers {ATTENTION_MB:.1f} MB more"
    print(
        f"kept per session, three 12-MP photos, {shape:9} {name:29} {grown:7.1f} MB by the system, "
        f"{count_bytes(kept[0][0]) / 1e6:6.1f} MB counted (without tiles and batch){layers}",
        flush=True,
    )


def measure_person(folder: Path) -> None:
    """What one person's question about three photos leaves at nanoVLM's 460M-8k shape, with random weights: in the
    page's state, and in the server's bounded stores."""
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    shape = VLMConfig(lm_chat_template=load_vlm("embedded").config.lm_chat_template)
    vlm = VLM(shape, embedded_tokenizer()).eval()
    images = tuple(SHELF.find(path) for path in sorted(folder.glob("photo-*.jpg")))
    began = time.perf_counter()
    inspection = ask_and_inspect(vlm, Prompt(images, (Turn("What color is it?"),)), GenerationSettings(2))
    page = Shown("m", inspection, 0, attend(vlm, inspection, inspection.first_answer_position))
    took = time.perf_counter() - began
    read = ROWS.read(vlm, inspection.row, False)
    shared = sum(part.nbytes for part in read.embedded.features)  # with the feature store
    state, keys, rows, features = (
        size / 1e6
        for size in (count_bytes(page), read.cache.nbytes, ROWS.counts().nbytes - shared, FEATURES.counts().nbytes)
    )
    print(
        f"kept of one person at {vlm.n_parameters / 1e6:.0f}M-8k, three 12-MP photos, {len(inspection.row):,} tokens, "
        f"{took:.0f} s: state of the page {state:.1f} MB; in the server's stores keys and values {keys:.1f} MB, the "
        f"rest of the row {rows - keys:.1f} MB, features {features:.1f} MB; together {state + rows + features:.1f} MB "
        f"= keys and values + {state + rows + features - keys:.1f} MB",
        flush=True,
    )


def measure_plans(mode: str, in_process: bool, folder: Path) -> None:
    """Two requests one after the other with three large pictures each, then four at the same time."""
    paths = sorted(folder.glob(f"large-{mode}-*.png"))
    store = ModelStore({"embedded": "embedded"})
    store.get("embedded")

    def plan(part: Sequence[Path]) -> None:
        if in_process:
            for path in part:
                open_image(path).pixels.copy().thumbnail((96, 96))
        else:
            plan_images(store, "embedded", [(str(path), None) for path in part], public_bounds())

    def forget() -> None:
        for path in paths:  # the shelf would know them the second time
            os.utime(path)

    plan(paths[:1])
    gc.collect()
    before = held_mb(family())
    for _ in range(2):
        forget()
        thread = threading.Thread(target=plan, args=(paths,))
        thread.start()
        thread.join()
    grown = held_mb(family()) - before
    forget()
    with watching() as peak:
        threads = [threading.Thread(target=plan, args=(paths[n % 3 :] + paths[: n % 3],)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        highest = peak()
    name = "in the server's process" if in_process else "ours"
    print(
        f"three 89-MP PNGs, {mode:4} {name:24} growth after two requests {grown:7.0f} MB, peak of four at once "
        f"{highest:7.0f} MB, {highest - before:7.0f} above what was there",
        flush=True,
    )


def measure_edits(folder: Path) -> None:
    """One edit after another of a 12-MP photo among three, as large as it is: the most that was held meanwhile, in the
    server and in the processes that decode, and what stays of it on the page."""
    torch.set_grad_enabled(False)
    vlm = VLM(
        VLMConfig(**SHAPE_TILES, lm_chat_template=load_vlm("embedded").config.lm_chat_template), embedded_tokenizer()
    )
    images = tuple(SHELF.find(path) for path in sorted(folder.glob("photo-*.jpg")))
    inspection = ask_and_inspect(vlm.eval(), Prompt(images, (Turn("What color is it?"),)), GenerationSettings(2))
    whole = "0,0,{},{}".format(*PHOTO)
    study = None
    for edit in (f"image 1: {how} {whole}" for how in ("blur", "mean", "keep", "paste")):
        edit += " from image 2" if "paste" in edit else ""
        case = open_case(vlm, inspection, max_new_tokens=2)
        before, began = held_mb(family()), time.perf_counter()
        with watching() as peak:
            study = run_edits(case, [edit])
            took = time.perf_counter() - began
            highest = peak()
        print(
            f"a 12-MP photo edited, {edit:44} {took:5.2f} s, {highest - before:6.0f} MB above what was there, "
            f"{count_bytes(study) / 1e6:.2f} MB kept on the page",
            flush=True,
        )


def compare_times(folder: Path, repeats: int) -> None:
    """A question about three photos with the pictures for the viewer, as the page asks it."""
    torch.set_grad_enabled(False)
    vlm = load_vlm("embedded")
    paths = sorted(folder.glob("photo-*.jpg"))
    for path in paths:
        SHELF.find(path).facts  # noqa: B018  # as the page does when they are added

    def ask(images: tuple[PromptImage, ...]) -> None:
        inspection = ask_and_inspect(vlm, Prompt(images, (Turn("What color is it?"),)), GenerationSettings(8))
        viewer_payload(vlm, inspection, ["", "", ""], "key")

    report(
        "Ask with three 12-MP photos",
        *measure(
            lambda: ask(tuple(SHELF.find(path) for path in paths)),
            lambda: ask(tuple(open_image(path) for path in paths)),
            repeats,
        ),
        "opened in the process",
    )


def main(repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photos(folder)
        parts: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
            *((measure_session, ("embedded", keep, folder, 4)) for keep in (False, True)),
            *((measure_session, ("222M", keep, folder, 2)) for keep in (False, True)),
        ]
        parts += [(measure_edits, (folder,)), (measure_person, (folder,))]
        for mode in KINDS:
            make_large(folder, mode)
            parts += [(measure_plans, (mode, in_process, folder)) for in_process in (False, True)]
        parts.append((compare_times, (folder, repeats)))
        for part, arguments in parts:
            process = get_context("spawn").Process(target=part, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)
