"""What stands for ``python -m model.training`` where training itself doesn't matter: it writes a run's folder, the same
every time. The file “mode” beside it, read when it starts, says how (processes get no environment but what is named):
“quick” to its end, “hold” after its second step until it is asked for something, “deaf” as that but asked in vain,
“load” without a word, “die” at once, “eat” much memory."""

import contextlib
import signal
import sys
import time

from inspector.bounds import private_bounds
from inspector.runs.jobs import JobTable
from inspector.runs.presets import PRESETS, read_form, write_recipe
from model import InputError

TRAINER = """
import json, os, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
beside = pathlib.Path(sys.argv[0]).with_name("mode")
mode = beside.read_text() if beside.exists() else "quick"
stop = []
if mode == "deaf": signal.signal(signal.SIGTERM, signal.SIG_IGN)
else: signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
while mode == "load" and not stop: time.sleep(0.01)
if mode == "load": os.kill(os.getpid(), signal.SIGKILL)
if mode == "die": os.kill(os.getpid(), signal.SIGKILL)
def save(status, step):
    (out / "run.tmp").write_text(json.dumps({
        "format": 1, "id": "x", "created": "2026-01-01", "status": status, "step": step, "stage": "s",
        "stage_index": 0, "pid": os.getpid(), "error": None, "fingerprint": None, "base_fingerprint": "b" * 64}))
    os.replace(out / "run.tmp", out / "run.json")
def asked():
    try: return (out / "control").read_text().strip()
    except FileNotFoundError: return "run"
save("running", 0)
for step in range(1, 4):
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "step", "stage": "s", "step": step, "steps": 3, "loss": 1.0}) + "\\n")
    (out / "state" / "x").mkdir(parents=True, exist_ok=True)
    for part in ("values.json", "tensors.safetensors"): (out / "state" / "x" / part).touch()
    (out / "state" / "latest").write_text("x")
    if mode == "eat":
        eaten = bytearray(600 << 20)
    while True:
        if mode != "deaf" and (stop or asked() == "stop"): save("stopped", step); sys.exit(0)
        if asked() == "pause":
            save("paused", step)
            while asked() == "pause" and not stop: time.sleep(0.01)
            save("running", step)
        if mode == "quick" or step < 2: break
        time.sleep(0.01)
save("done", 3)
"""


def recipe(**changes):
    values = {"seed": 0, "base": "embedded", "path": "", "source": "auto", **PRESETS["instruction tuning"].values}
    return write_recipe(read_form(**{**values, "steps": 4, **changes}), "embedded", "a run")


def put_trainer(folder, monkeypatch):
    """The stand-in in the interpreter's place; the file beside it that says how it trains."""
    script = folder / "python"
    script.write_text(f"#!{sys.executable}\n{TRAINER}")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return script.with_name("mode")


def until(found, seconds=60):
    """Waits for a true value and returns it."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def wait_for(table, job, *statuses):
    end = time.monotonic() + 60
    while (state := table.read(job)).status not in statuses:
        assert time.monotonic() < end, state
        time.sleep(0.02)
    return state


def serve_table(root, bounds, python, connection):
    """A server of jobs, for a process of its own, until it is asked to end: evaluates what comes through ``connection``
    and sends back the answer's text. ``python``: what runs are started with."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.executable = python
    table = JobTable(root or None, private_bounds(**bounds), nice=0)
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        connection.send(str(table.root))
        while True:
            expression = connection.recv()
            try:
                connection.send(repr(eval(expression)))
            except InputError as error:
                connection.send(f"InputError {error}")
    table.close()
