"""Fixtures that every kind of test shares: golden data, the embedded model, a real browser."""

import gc
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

# Gradio takes the first free port from this one on, and two processes that look at once find the same one: each begins
# where the system gives it a port. Read when gradio is imported.
with socket.socket() as _probe:
    _probe.bind(("127.0.0.1", 0))
    os.environ["GRADIO_SERVER_PORT"] = str(_probe.getsockname()[1])

from inspector.server.lean_gradio import write_no_stubs

write_no_stubs()  # as the app does: it takes a third of the import of gradio

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from model import VLM
    from tests.stand_in_hub import Hub
    from tests.tiny_checkpoints import Tiny


_LOCAL = (
    "http://127.0.0.1",
    "http://localhost",
    "ws://127.0.0.1",
    "ws://localhost",
    "data:",
    "blob:",
    "about:",
    "file:",
)


@pytest.fixture(scope="session", autouse=True)
def loaded_for_good() -> None:
    """What modules made while they were loaded is looked through for garbage no more, as in the app: some tests and
    every end of a training stage collect it, half a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums are taken in one order, and parallel test processes don't fight over cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the numbers that nanoVLM's own code computed (its README says how)."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def embedded() -> "VLM":
    """The model that ships with the repo. Shared: a test that changes weights must load its own."""
    from model import load_vlm

    return load_vlm("embedded")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Callable[[str], Tiny]]":
    """Tiny random checkpoints of other families by name (see tests/tiny_checkpoints.py), each made at first use."""
    from tests.tiny_checkpoints import build, processors_without_video

    @cache
    def make(name: str) -> "Tiny":
        return build(name, tmp_path_factory.mktemp(name.replace(" ", "-")))

    with processors_without_video():
        yield make


@pytest.fixture
def copy_of(tiny: "Callable[[str], Tiny]", tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint folder of :func:`tiny` that a test may spoil."""
    return lambda name: Path(shutil.copytree(tiny(name).folder, tmp_path / "copy"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Iterator[Hub]":
    """A stand-in for the hub, with a cache of its own."""
    from huggingface_hub import constants

    from tests.stand_in_hub import Hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    found = Hub()
    yield found
    found.close()


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Executable of the Chromium to drive; `make test` finds or installs one and names it here."""
    path = os.environ.get("VLM_INSPECTOR_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no Chromium: run `make browser`, or name one in VLM_INSPECTOR_CHROMIUM")
    return path


@pytest.fixture(scope="session")
def browser(chromium_path: str) -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers seldom allow Chromium's own sandbox or a large /dev/shm.
        chromium = playwright.chromium.launch(
            executable_path=chromium_path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser: "Browser") -> "Iterator[Callable[..., Page]]":
    """Makes pages, each in its own context (no shared storage): `new_page(width=390, dark=True)`.

    `page.errors` lists what the page threw or wrote with console.error; `page.requests_out` every request that left
    this machine. Width and height are CSS pixels; further keywords go to Playwright's new_context."""
    contexts = []

    def make(width: int = 1280, height: int = 900, dark: bool = False, **context_options: Any) -> "Page":
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **context_options
        )
        contexts.append(context)
        page = context.new_page()
        page.errors = errors = []  # type: ignore[attr-defined]
        page.requests_out = requests_out = []  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith(_LOCAL) else requests_out.append(request.url))
        return page

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def page(new_page: "Callable[..., Page]") -> "Page":
    """One page at 1280 x 900, light."""
    return new_page()


@pytest.fixture(scope="module")
def app_url() -> Iterator[str]:
    """Address of the running app on the embedded model."""
    from app import build_demo, open_models
    from inspector.ui import launch_options

    demo = build_demo(open_models([]))
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    demo.close()


@pytest.fixture(scope="module")
def train_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an app whose training runs get a processor's full time."""
    from inspector.runs.jobs import JobTable
    from inspector.session import ModelStore
    from inspector.ui import build_ui, launch_options

    jobs = JobTable(tmp_path_factory.mktemp("runs"), nice=0, threads=1)
    demo = build_ui(ModelStore({"embedded": "embedded"}), jobs)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    jobs.close()
    demo.close()
