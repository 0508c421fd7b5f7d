"""What this server gives: one table for images, prompts, queues, uploads, runs and memory. No gradio here.

``python -m inspector bounds`` prints it as the README shows it. None is no bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

MIB = 1 << 20
GIB = 1 << 30


def _bound(public: Any, private: Any, unit: str, what: str) -> Any:
    return field(default=private, metadata={"public": public, "unit": unit, "what": what})


@dataclass(frozen=True)
class Bounds:
    """Each field's default is the bound of a private server; :func:`public_bounds` has those of a public one. The
    metadata of a field say what is bounded, and in which unit."""

    # One prompt. What a person can't ask on the page no program can ask either.
    images: int = _bound(12, 12, "", "images in a prompt")
    turns: int = _bound(6, 6, "", "turns in a prompt")
    text: int = _bound(20_000, 20_000, "characters", "text of one question or answer")
    field_text: int = _bound(200_000, 200_000, "characters", "text of any field, before it is looked at")
    answer_tokens: int = _bound(128, 512, "tokens", "longest answer that is generated")
    file_bytes: int = _bound(40 * MIB, 40 * MIB, "bytes", "one uploaded file")
    prompt_pixels: int = _bound(300_000_000, 600_000_000, "pixels", "all images of a prompt together")
    decoding_pixels: int = _bound(100_000_000, 200_000_000, "pixels", "decoded at the same time, everybody's together")
    decoders: int = _bound(2, 4, "processes", "that decode images")
    decode_bytes: int = _bound(2 * GIB, 2 * GIB, "bytes", "memory of a process that decodes images")
    decode_s: float = _bound(20, 60, "s", "of the processor for opening one image")
    decode_wait_s: float = _bound(60, 300, "s", "longest wait for an image to be opened")

    # Memory that stays between requests.
    preview_px: int = _bound(768, 768, "px", "long side of the preview that is kept of an image")
    previews_bytes: int = _bound(64 * MIB, 256 * MIB, "bytes", "previews of images that were opened, everybody's")
    sessions: int = _bound(800, 800, "", "pages whose state is kept")
    pages_per_address: int = _bound(400, 800, "", "pages of one address whose state is kept")
    # A lecture hall of 300 people behind one address may open the page within a minute, and some of them twice.
    openings_per_minute: int = _bound(
        400, 4000, "a minute", "pages that one address opens; as many calls that name no session"
    )
    unfetched_bytes: int = _bound(16 * MIB, 128 * MIB, "bytes", "answers that wait to be fetched by one page")
    session_bytes: int = _bound(64 * MIB, 512 * MIB, "bytes", "state of one page")
    sessions_bytes: int = _bound(512 * MIB, 4 * GIB, "bytes", "state of all pages together")
    features_bytes: int = _bound(128 * MIB, 1 * GIB, "bytes", "what models made of images, everybody's")
    rows_bytes: int = _bound(384 * MIB, 4 * GIB, "bytes", "keys and values of rows that were read, everybody's")
    words_bytes: int = _bound(32 * MIB, 128 * MIB, "bytes", "states of sentences that image tokens are compared with")
    session_idle_s: float = _bound(3600, 86_400, "s", "state of an open page that isn't used is kept")
    closed_session_s: float = _bound(120, 120, "s", "state of a closed page is kept, for a reload")
    private_model_bytes: int = _bound(512 * MIB, 8 * GIB, "bytes", "weights of runs that were opened for use")

    # Turns.
    queue: int = _bound(200, 400, "events", "waiting, everybody's together")
    queue_per_page: int = _bound(12, 48, "events", "waiting or running of one page")
    queue_per_address: int = _bound(60, 400, "events", "waiting or running of one address")
    streams_per_address: int = _bound(800, 4000, "", "requests of one address that are open (two for a page at work)")
    ask_wait_s: float = _bound(60, 600, "s", "longest wait of a question for its turn")
    test_wait_s: float = _bound(600, 36_000, "s", "longest wait of a test, an experiment or the battery for its turn")
    study_s: float = _bound(300, 7200, "s", "one “Which image?”, “Run all” or comparison")
    battery_s: float = _bound(900, 36_000, "s", "one run of the battery")

    # Disk.
    upload_bytes_per_person: int = _bound(200 * MIB, 4 * GIB, "bytes", "uploads of one person that are kept")
    upload_bytes: int = _bound(2 * GIB, 16 * GIB, "bytes", "uploads that are kept, everybody's together")
    unpacked_bytes: int = _bound(500 * MIB, 500 * MIB, "bytes", "an archive, unpacked")
    unpacked_files: int = _bound(20_000, 20_000, "files", "in an archive")
    runs_bytes: int | None = _bound(8 * GIB, None, "bytes", "folders of all runs together")
    cache_hours: float = _bound(2, 24, "h", "uploaded images and made files are kept")
    made_s: float = _bound(600, 86_400, "s", "exports, batches and reports that were made are kept")
    made_bytes: int = _bound(1 * GIB, 4 * GIB, "bytes", "exports, batches and reports that were made and not fetched")
    link_days: float = _bound(7, 30, "days", "images of a link are kept, where links keep any")
    links: int = _bound(1000, 1000, "", "links whose images are kept")
    link_bytes: int = _bound(1 * GIB, 4 * GIB, "bytes", "images of links, everybody's together")
    link_bytes_per_person: int = _bound(64 * MIB, 1 * GIB, "bytes", "images of one person's links")
    sweep_s: float = _bound(60, 60, "s", "between two sweeps of what is too old")

    # Data of strangers, parsed in a process of their own.
    parse_s: float = _bound(60, 600, "s", "reading or checking one data file")
    parse_bytes: int = _bound(1 * GIB, 4 * GIB, "bytes", "memory of the process that reads a data file")
    parsers: int = _bound(1, 2, "", "data files read at the same time")

    # Runs.
    runs_at_once: int = _bound(1, 1, "", "training processes at the same time")
    runs_per_person: int | None = _bound(1, None, "", "runs of one person that wait or train")
    runs_waiting: int = _bound(8, 20, "", "runs that wait, everybody's together")
    run_steps: int = _bound(600, 1_000_000, "steps", "of one run, all stages together")
    # Loading and pauses count: a paused run holds its place and its memory, and would hold them for ever.
    run_minutes: float | None = _bound(10, None, "min", "of one run, over its whole life, pauses included")
    run_grace_s: float = _bound(60, 60, "s", "a run whose time is over may take to save")
    close_s: float = _bound(8, 8, "s", "a server that ends waits for its runs to save")
    run_rows: int = _bound(64, 4096, "rows", "of a micro-batch")
    run_tokens: int = _bound(16_384, 4_194_304, "tokens", "of a micro-batch: rows × the longest row")
    run_accumulate: int = _bound(16, 1024, "", "micro-batches in a step")
    run_lora_rank: int = _bound(64, 1024, "", "rank of an adapter")
    run_cache_bytes: int = _bound(512 * MIB, 4 * GIB, "bytes", "what a run's frozen encoder made of pictures")
    run_bytes: int | None = _bound(3 * GIB, None, "bytes", "memory of a training process")
    run_hours: float | None = _bound(24, None, "h", "a run that has ended is kept")
    keep_uploads: bool = _bound(False, True, "", "a run's uploads are kept when it has ended")
    hub_bytes: int = _bound(16 * GIB, 256 * GIB, "bytes", "a checkpoint that is fetched from the hub")
    hub_data: bool = _bound(False, True, "", "data sets of the hub may be named")


def private_bounds(**changes: Any) -> Bounds:
    """For a server on one's own machine; ``changes`` replace single bounds."""
    return replace(Bounds(), **changes)


def public_bounds(**changes: Any) -> Bounds:
    """For a server that anybody can reach; ``changes`` replace single bounds."""
    return replace(Bounds(**{f.name: f.metadata["public"] for f in fields(Bounds)}), **changes)


SERVER_BYTES = 1 * GIB
"""The server itself with the embedded model and what its passes take while everybody's turn is on; see
``python -m benchmarks limits``. A larger model adds its weights and as much again for its passes."""
PAGE_BYTES = 600_000
"""What gradio keeps of one page beside its state."""


def list_memory(bounds: Bounds) -> list[tuple[str, int]]:
    """What each part takes at most when every bound is at its limit at once, in bytes. ValueError where a part has no
    bound."""
    if bounds.run_bytes is None:
        raise ValueError("a server whose training processes have no bound has none")
    return [
        ("the server, with the embedded model", SERVER_BYTES),
        (f"{bounds.sessions:,} pages, as gradio keeps them", bounds.sessions * PAGE_BYTES),
        ("their state", bounds.sessions_bytes),
        ("previews of images", bounds.previews_bytes),
        ("image features", bounds.features_bytes),
        ("keys and values of rows", bounds.rows_bytes),
        ("states of sentences", bounds.words_bytes),
        ("models of runs that are in use", bounds.private_model_bytes),
        (f"{bounds.decoders} processes that decode images", bounds.decoders * bounds.decode_bytes),
        (f"{bounds.parsers} that read data", bounds.parsers * bounds.parse_bytes),
        (f"{bounds.runs_at_once} that train", bounds.runs_at_once * bounds.run_bytes),
    ]


def format_memory(bounds: Bounds) -> str:
    """The sum of :func:`list_memory`, in a sentence."""
    parts = list_memory(bounds)
    listed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts)
    return f"With every bound at its limit at once: {listed}; together {sum(size for _, size in parts) / 1e9:.1f} GB."


def format_bounds() -> str:
    """The table of both servers in Markdown, and what a public one may take together."""
    lines = ["| bound | `--public` | private | what |", "| --- | --- | --- | --- |"]
    for f in fields(Bounds):
        values = (getattr(bounds, f.name) for bounds in (public_bounds(), private_bounds()))
        public, private = (format_bound(value, f.metadata["unit"]) for value in values)
        lines.append(f"| `{f.name}` | {public} | {private} | {f.metadata['what']} |")
    return "\n".join([*lines, "", format_memory(public_bounds())])


def format_bound(value: float | None, unit: str) -> str:
    """A bound with its unit, as people read it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "bytes":
        for size, name in ((GIB, "GiB"), (MIB, "MiB")):
            if value >= size:
                return f"{value / size:g} {name}"
    if unit == "pixels":
        return f"{value / 1e6:g} million pixels"
    number = f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return f"{number} {unit}".strip()
