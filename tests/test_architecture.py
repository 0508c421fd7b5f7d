"""Imports point one way (down the stair of folders) and do no work."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([ROOT / "app.py", *(ROOT / "model").rglob("*.py"), *(ROOT / "inspector").rglob("*.py")])

# The stair: whoever stands on a floor imports what is on lower floors, and its own.
FLOORS = (
    {"inspector.row"},
    {"inspector.interventions"},
    {"inspector.which_image"},
    {"inspector.experiments", "inspector.encoder"},
    {"inspector.ground_truth"},
    {"inspector.runs", "inspector.lessons"},
    {"inspector.session"},
    {"inspector.figures", "inspector.widgets"},
    {"inspector.export"},
    {"inspector.views"},
    {"inspector.ui"},
)
"""`inspector.server`, `images`, `intake` and what lies beside them serve every floor."""

PAGE = {"gradio", "gradio_client", "plotly"}

# (who, may not import). The longest matching "who" is not special: every rule that matches applies.
FORBIDDEN = {
    "model": {"gradio", "gradio_client", "plotly", "inspector", "app"},
    "inspector": {"app"},
    **{floor: PAGE for floors in FLOORS[:7] for floor in floors},
    "inspector.figures": {"gradio", "gradio_client", "torch", "transformers", "inspector.widgets"},
    "inspector.widgets": {"torch", "transformers", "plotly", "inspector.figures"},
    # Views pass handles around; what is inside a tensor is the analysis's business.
    "inspector.views": {"torch", "transformers", "numpy", "safetensors"},
    "inspector.ui": {"torch", "transformers", "numpy", "plotly"},
    "app": {"torch", "transformers", "plotly"},
}


def _module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _imports(path: Path) -> set[str]:
    """Absolute names of everything the file imports, also inside functions and under TYPE_CHECKING."""
    package = _module_name(path).split(".") if path.name == "__init__.py" else _module_name(path).split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update({module} | {f"{module}.{alias.name}" for alias in node.names})
    return names


@pytest.mark.parametrize("path", SOURCES, ids=_module_name)
def test_imports_point_one_way(path):
    module = _module_name(path)
    imported = _imports(path)
    for height, floors in enumerate(FLOORS):
        if any(_within(module, floor) for floor in floors):
            above = {floor for higher in FLOORS[height + 1 :] for floor in higher}
            wrong = {name for name in imported if any(_within(name, floor) for floor in above)}
            assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}, which stands above it"
    for who, forbidden in FORBIDDEN.items():
        if _within(module, who):
            wrong = {name for name in imported for package in forbidden if _within(name, package)}
            assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}"


def test_the_rules_catch_a_relative_import(tmp_path, monkeypatch):
    offender = tmp_path / "inspector" / "row" / "attention.py"
    offender.parent.mkdir(parents=True)
    offender.write_text("from ..figures import heat\nfrom . import shares\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert _imports(offender) == {
        "inspector.figures",
        "inspector.figures.heat",
        "inspector.row",
        "inspector.row.shares",
    }


def test_no_drawer_for_everything():
    assert [path for path in SOURCES if path.stem in {"utils", "util", "helpers", "misc", "common"}] == []


_IMPORT_ALL = """
import importlib, io, random, sys, threading, warnings
import numpy, torch
warnings.simplefilter("error")
import gradio, plotly.graph_objects, transformers          # what they start is theirs; only ours is counted
state = random.getstate(), torch.random.get_rng_state(), numpy.random.get_state()[1].copy()
threads, grad, dtype = set(threading.enumerate()), torch.is_grad_enabled(), torch.get_default_dtype()
sys.stdout = sys.stderr = captured = io.StringIO()
for name in sys.argv[1:]:
    importlib.import_module(name)
sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
assert captured.getvalue() == "", f"output: {captured.getvalue()!r}"
assert set(threading.enumerate()) == threads, f"threads: {set(threading.enumerate()) - threads}"
assert random.getstate() == state[0] and torch.equal(torch.random.get_rng_state(), state[1]), "a seed was set"
assert (numpy.random.get_state()[1] == state[2]).all(), "numpy's seed was set"
assert (torch.is_grad_enabled(), torch.get_default_dtype()) == (grad, dtype), "torch's defaults were changed"
"""


def test_importing_does_no_work(tmp_path):
    """No output, no threads, no seeds, no global settings; `__main__` modules are programs, not libraries.

    app.py is left out: a Space asks it for a ready `demo`."""
    names = [_module_name(path) for path in SOURCES if path.name not in {"__main__.py", "app.py"}]
    command = [sys.executable, "-c", _IMPORT_ALL, *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_model_needs_no_user_interface():
    """`import model` works where gradio, plotly and inspector can't be imported at all."""
    code = (
        "import sys\n"
        "for name in ('gradio', 'gradio_client', 'plotly', 'inspector'): sys.modules[name] = None\n"
        "import model\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


ABOVE_THE_SEAM = ("row", "interventions", "which_image", "experiments", "figures", "widgets", "export", "views")


def _is_model(node: ast.expr) -> bool:
    return "vlm" in (getattr(node, "id", ""), getattr(node, "attr", ""))


@pytest.mark.parametrize("folder", ABOVE_THE_SEAM)
def test_no_analysis_knows_a_family(folder):
    """Whatever looks at a model asks :class:`model.InspectableVLM`, so that another family can stand behind it."""
    found = []
    for path in (ROOT / "inspector" / folder).rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        names = {node.attr for node in nodes if node.attr not in ("config", "generation") or _is_model(node.value)}
        imported = {name for name in _imports(path) if _within(name, "model")}
        wrong = names & {"decoder", "vision_encoder", "MP", "cells_per_side", "renderer", "config", "generation"}
        wrong |= {name for name in names if name.startswith(("lm_", "vit_", "mp_"))}
        wrong |= imported & {"model.VLM", "model.VLMConfig", "model.families.nanovlm", "model.config"}
        found += [f"{path.name}: {name}" for name in sorted(wrong)]
    assert found == []
