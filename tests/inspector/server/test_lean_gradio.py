"""Gradio without its stub files: components work as before, and nothing is written beside their source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
COMPONENT = """
import gradio as gr


class Plain(gr.HTML):
    EVENTS = ["change", "greet"]
"""
CHECK = """
import sys
sys.path.insert(0, {folder!r})
{first}
import plain
import gradio.component_meta
with __import__("gradio").Blocks():
    made = plain.Plain("hello")
    made.greet(lambda: None, None, None)
print(made.value, gradio.component_meta.create_or_modify_pyi.__module__)
"""
LEAN = "from inspector.server.lean_gradio import write_no_stubs; write_no_stubs(); write_no_stubs()"


def run(folder: Path, first: str) -> tuple[str, list[str]]:
    """What a process that runs ``first`` and then defines and uses a component says, and the files beside its class."""
    folder.mkdir()
    (folder / "plain.py").write_text(COMPONENT)
    done = subprocess.run(
        [sys.executable, "-B", "-c", CHECK.format(folder=str(folder), first=first)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), sorted(file.name for file in folder.iterdir())


def test_no_stub_is_written_whether_gradio_is_there_already_or_not(tmp_path: Path):
    assert run(tmp_path / "before", LEAN) == ("hello inspector.server.lean_gradio", ["plain.py"])
    assert run(tmp_path / "after", f"import gradio; {LEAN}") == ("hello inspector.server.lean_gradio", ["plain.py"])


def test_gradio_alone_still_writes_one(tmp_path: Path):
    """The day it doesn't, the module under test has no reason left."""
    assert run(tmp_path / "plain", "") == ("hello gradio.component_meta", ["plain.py", "plain.pyi"])
