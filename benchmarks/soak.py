"""``python -m benchmarks soak --minutes 30``: a public server under twenty people for half an hour.

Each person has an address and images of their own, asks, looks at tokens, tests, exports, reloads, and closes the page
in the middle of things; two of them train all the time. Printed: answers, errors, how long answers took beside the same
answer alone, and memory and temporary files over time. Exit status 1 if anything failed that a person would notice, or
if what the server holds grows.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image

from scripts.public_server import PublicServer, run_public_server
from scripts.stranger import Stranger

CLIENTS, JOBS = 20, 2
EXPERIMENTS = ("which_image", "which_all", "which_pathways", "which_regions", "which_heads")
EXPECTED = (
    "Stopped, for something new was asked",
    "runs are waiting already",
    "You have a run that isn't over",
    "requests of this page",
    "runs of yours",
)
"""Refusals that a person reads as what they are."""
SLOWER = 20.0
"""An answer may take so many times as long as alone, at the 95th percentile."""
GROWTH = 0.10
SLACK_BYTES, SLACK_FILES = 64 << 20, 20


@dataclass
class Log:
    """What happened so far; shared by all threads."""

    answers: list[float] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, answer: dict) -> bool:
        """Counts an event's last message; whether it succeeded."""
        with self.lock:
            if answer["success"]:
                self.done[what] += 1
                return True
            sentence = str(answer["output"].get("error"))
            known = any(part in sentence for part in EXPECTED)
            (self.refused if known else self.errors)[f"{what}: {sentence[:160]}"] += 1
            return False


@dataclass(frozen=True)
class Sample:
    """One look at the server: memory of its process and of those it started, its temporary files, its runs' bytes."""

    seconds: float
    server: int
    workers: int
    files: int
    bytes: int
    runs: int


def measure_rss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS")), 0)


def _measure_folder(folder: Path) -> tuple[int, int]:
    """Files in it and their bytes."""
    count = size = 0
    for path in folder.rglob("*"):
        try:
            count, size = count + 1, size + path.stat().st_size
        except OSError:
            continue  # it has just gone
    return count, size


def look(server: PublicServer, began: float) -> Sample:
    files, size = _measure_folder(server.temporary)
    workers = sum(map(measure_rss, server.children))
    runs = _measure_folder(server.runs)[1]
    return Sample(time.monotonic() - began, measure_rss(server.pid), workers, files, size, runs)


def be_a_person(number: int, server: PublicServer, folder: Path, log: Log, end: float) -> None:
    """Asks, looks, tests, exports, reloads and closes, each with their own images, until ``end``."""
    chance = random.Random(number)
    images = []
    for n in range(chance.randint(1, 3)):
        path = folder / f"person-{number}-{n}.png"
        size = (64 * chance.randint(2, 8), 64 * chance.randint(2, 8))
        Image.effect_noise(size, 30 + number).convert("RGB").save(path)
        images.append(path)
    while time.monotonic() < end:
        try:
            with Stranger(server.url, f"127.0.1.{number + 1}") as person, person.opened():
                _use_page(person, images, chance, log, end)
        except (httpx.HTTPError, AssertionError) as error:
            with log.lock:
                log.errors[f"connection: {type(error).__name__}: {str(error)[:120]}"] += 1
            time.sleep(1)


def _use_page(person: Stranger, images: list[Path], chance: random.Random, log: Log, end: float) -> None:
    person.http.get("/").raise_for_status()
    files = [person.upload(path) for path in images]
    for _ in range(chance.randint(1, 6)):  # then it is closed, and another opened
        if time.monotonic() > end:
            return
        began = time.monotonic()
        question = f"In image {chance.randint(1, len(images))}, what colour is the shape?"
        if log.note("ask", person.call("ask", person.prepare(question, files))):
            with log.lock:
                log.answers.append(time.monotonic() - began)
        time.sleep(chance.uniform(0.5, 3))
        for _ in range(chance.randint(0, 4)):
            controls = person.defaults("select_token")
            log.note("select_token", person.call("select_token", controls, {"position": chance.randint(0, 40)}))
        what = chance.random()
        if what < 0.25:
            log.note("which_image", person.call("which_image", [None, None, 1, "", ""]))
        elif what < 0.35:  # leaves in the middle of it
            person.join("which_all", [None, None, 1, "", ""])
            time.sleep(chance.uniform(0.2, 2))
            return
        elif what < 0.45:
            log.note("export", person.call("export", [None]))
        elif what < 0.55:
            log.note("batch_files", person.call("batch_files", [None, "row"]))


def train(number: int, server: PublicServer, log: Log, end: float) -> None:
    """Starts one run after the other."""
    while time.monotonic() < end:
        try:
            with Stranger(server.url, f"127.0.2.{number + 1}") as person:
                answer = person.call("train_teach_word", ["purple", "128, 0, 128", None])
                if log.note("train_teach_word", answer):
                    job = answer["output"]["data"][0]
                    while time.monotonic() < end:
                        seen = person.call("job", [job])
                        if not seen["success"] or seen["output"]["data"][0]["status"] in ("done", "failed", "stopped"):
                            log.note(f"run {seen['output']['data'][0]['status']}" if seen["success"] else "job", seen)
                            break
                        time.sleep(2)
            time.sleep(2)
        except (httpx.HTTPError, AssertionError) as error:
            with log.lock:
                log.errors[f"trainer: {type(error).__name__}: {str(error)[:120]}"] += 1


def soak(minutes: float, clients: int) -> bool:
    """Whether everything held; prints what it measured."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name, run_public_server(Path(name)) as server:
        folder = Path(name)
        log, alone = Log(), _answer_alone(server, folder)
        began = time.monotonic()
        end = began + 60 * minutes
        threads = [threading.Thread(target=be_a_person, args=(n, server, folder, log, end)) for n in range(clients)]
        threads += [threading.Thread(target=train, args=(n, server, log, end)) for n in range(JOBS)]
        for thread in threads:
            thread.start()
        samples = []
        while time.monotonic() < end:
            time.sleep(min(10.0, max(0.0, end - time.monotonic())))
            samples.append(look(server, began))
            if len(samples) % 6 == 0:
                _print_sample(samples[-1])
        for thread in threads:
            thread.join(120)
        stuck = sum(thread.is_alive() for thread in threads)
        return _judge(log, samples, alone, stuck, server)


def _answer_alone(server: PublicServer, folder: Path) -> float:
    path = folder / "alone.png"
    Image.effect_noise((192, 192), 40).convert("RGB").save(path)
    times = []
    with Stranger(server.url) as person:
        files = [person.upload(path)] * 2
        for _ in range(6):
            began = time.monotonic()
            answer = person.call("ask", person.prepare("In image 2, what colour is the shape?", files))
            assert answer["success"], answer
            times.append(time.monotonic() - began)
    return statistics.median(times[1:])


def _print_sample(sample: Sample) -> None:
    mib = {name: getattr(sample, name) >> 20 for name in ("server", "workers", "bytes", "runs")}
    print(
        f"{sample.seconds / 60:5.1f} min   server {mib['server']:6,} MiB   workers {mib['workers']:6,} MiB   "
        f"temporary {sample.files:5} files {mib['bytes']:5,} MiB   runs {mib['runs']:5,} MiB",
        flush=True,
    )


def _judge(log: Log, samples: list[Sample], alone: float, stuck: int, server: PublicServer) -> bool:
    faults = [f"{count} × {what}" for what, count in log.errors.items()]
    if stuck:
        faults.append(f"{stuck} clients never came back")
    said = server.output.read_text("utf-8", "replace")
    if tracebacks := said.count("Traceback (most recent call last)"):
        faults.append(f"{tracebacks} tracebacks in what the server said")
        print(said[-20_000:])
    print("done: " + ", ".join(f"{what} {count}" for what, count in log.done.most_common()))
    refused = ", ".join(f"{count} × {what}" for what, count in log.refused.items())
    print(f"refused with a sentence: {refused or 'none'}")
    times = sorted(log.answers)
    p50, p95 = times[len(times) // 2], times[int(0.95 * len(times))]
    print(f"answers: {len(times)}, alone {alone:.2f} s, p50 {p50:.2f} s, p95 {p95:.2f} s = {p95 / alone:.1f} × alone")
    if p95 > SLOWER * alone:
        faults.append(f"p95 is {p95 / alone:.1f} × the answer alone, over {SLOWER:g}")
    # What is kept fills up at first; from then on it must stay.
    third = len(samples) // 3
    for what, slack in (("server", SLACK_BYTES), ("bytes", SLACK_BYTES), ("files", SLACK_FILES)):
        middle = statistics.median(getattr(sample, what) for sample in samples[third : 2 * third])
        last = statistics.median(getattr(sample, what) for sample in samples[2 * third :])
        print(f"{what}: {middle:,.0f} in the second third, {last:,.0f} in the last")
        if last > (1 + GROWTH) * middle + slack:
            faults.append(f"{what} grew from {middle:,.0f} to {last:,.0f}")
    print("\n".join(f"FAULT {fault}" for fault in faults) or "no fault")
    return not faults
