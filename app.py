"""Starts VLM Inspector: ``python app.py [--model FOLDER …] [--port N] [--public]``."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from inspector.server.lean_gradio import write_no_stubs

# The hub's other way of sending files can't be stopped in the middle.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

# What modules make while they load stays for good; to look through it for garbage takes a fifth of the start.
if __name__ == "__main__":
    gc.disable()
write_no_stubs()  # before anything below imports gradio

import gradio as gr  # noqa: E402

from inspector.bounds import private_bounds, public_bounds  # noqa: E402
from inspector.encoder.store import EncoderStore  # noqa: E402
from inspector.images.link_shelf import apply_days  # noqa: E402
from inspector.runs.jobs import JobTable  # noqa: E402
from inspector.server.fetching import ANY, read_allowed, read_environment  # noqa: E402
from inspector.server.mcp_tools import offer_tools  # noqa: E402
from inspector.session import ModelStore  # noqa: E402
from inspector.ui import build_ui, launch_options, warm_up  # noqa: E402
from inspector.views.tools import TOOLS  # noqa: E402
from inspector.views.train import jobs_from  # noqa: E402
from model import InputError  # noqa: E402
from model.devices import add_placement  # noqa: E402


def name_models(sources: list[str]) -> dict[str, str]:
    """A short name for every model: the embedded one first, then hub ids as given and the last part of folders, with a
    number where two have the same (where they lie is the server's business)."""
    names = {"embedded": "embedded"}
    for source in dict.fromkeys(sources):
        short = Path(source).name if Path(source).is_dir() else source
        name = next(name for n in count(1) if (name := short if n == 1 else f"{short} ({n})") not in names)
        names[name] = source
    return names


def read_sources(options: list[str]) -> list[str]:
    """What --model named, else what VLM_INSPECTOR_MODELS does, by commas: a Space takes no arguments."""
    return options or [name for part in os.environ.get("VLM_INSPECTOR_MODELS", "").split(",") if (name := part.strip())]


def open_models(
    sources: list[str], device: str = "auto", dtype: str = "auto", quantize: str | None = None
) -> ModelStore:
    """The models, loaded so that the first question doesn't wait. InputError if one is broken."""
    store = ModelStore(name_models(sources), device=device, dtype=dtype, quantize=quantize)
    for name in store.names:
        store.get(name)
    return store


def open_jobs(public: bool) -> JobTable:
    """The training runs; they are kept in the folder VLM_INSPECTOR_RUNS, if that is set. ``public`` bounds what they
    may take. InputError if the folder can't be used."""
    return jobs_from(os.environ.get("VLM_INSPECTOR_RUNS"), public)


def build_demo(
    store: ModelStore,
    public: bool = False,
    jobs: JobTable | None = None,
    allowed: frozenset[str] | None = frozenset(),
    encoders: EncoderStore | None = None,
    tools: bool = False,
    parts: Sequence[str] = (),
) -> gr.Blocks:
    """The app over the models of ``store``, with ``jobs`` or else those of :func:`open_jobs`; ``allowed``: checkpoints
    that a person may open; ``encoders``: of the CLIP tab, beside the models' own; ``tools`` and ``parts``: as
    :func:`inspector.ui.build_ui` has them."""
    # Gradio keeps statistics of its events and would work them out anew, with pandas, after every single one.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000")
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    bounds = apply_days(public_bounds() if public else private_bounds())
    jobs = jobs or open_jobs(public)
    more: dict[str, Any] = {"allowed": allowed, "encoders": encoders, "tools": tools, "parts": parts}
    return build_ui(store, jobs, bounds, open_to_all=public, **more)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", default=[], metavar="M", help="checkpoint folder or hub id; repeat")
    parser.add_argument(
        "--encoder", action="append", default=[], metavar="E", help="CLIP or SigLIP for the tab “CLIP”; repeat"
    )
    parser.add_argument(
        "--part",
        action="append",
        default=[],
        metavar="P",
        help="image encoder or language model for “build a VLM”, folder or hub id; repeat",
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--public",
        action="store_true",
        help="listen on every interface, not on this machine alone, and bound training runs",
    )
    parser.add_argument(
        "--allow-hub",
        nargs="?",
        const=ANY,
        default=read_environment(),
        metavar="NAMES",
        help="let people open checkpoints on the page: these hub ids, by commas, or any and every folder (not with "
        "--public)",
    )
    parser.add_argument(
        "--mcp",
        action="store_true",
        help="offer the tokens and the verdict as tools of the Model Context Protocol, under /gradio_api/mcp/",
    )
    add_placement(parser)
    options = parser.parse_args(arguments)
    # Who stands behind a proxy is told in one place, inspector.persons, and not also by the web server, which would
    # believe whatever a client on this machine writes.
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "")
    try:
        allowed = read_allowed(options.allow_hub, options.public)
        store = open_models(read_sources(options.model), options.device, options.dtype, options.quantize)
        jobs = open_jobs(options.public)
        encoders = EncoderStore(options.encoder, device=options.device, dtype=options.dtype)
        if options.mcp:
            offer_tools(TOOLS)
        demo = build_demo(store, options.public, jobs, allowed, encoders, options.mcp, options.part)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    gc.freeze()
    gc.enable()
    name = "0.0.0.0" if options.public else "127.0.0.1"
    # What containers and Spaces send ends the server as Ctrl-C does, and the second one doesn't wait for runs to save.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serving = {"server_port": options.port, "server_name": name, "mcp_server": options.mcp}
        demo.launch(prevent_thread_lock=True, **serving, **launch_options())
        warm_up(store.get(store.names[0]))  # while the first browser is still reading the page
        threading.Event().wait()
    except KeyboardInterrupt:
        print("The server ends; runs save what they have.", file=sys.stderr)
    finally:
        jobs.close()
        demo.close()
    return 0


# A Space imports nothing: it runs this file, too, and wants the server on every interface.
if __name__ == "__main__":
    sys.exit(main(["--public"] if "SPACE_ID" in os.environ else None))
