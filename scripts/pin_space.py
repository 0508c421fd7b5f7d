"""``python -m scripts.pin_space > requirements.txt``: all that a Space installs, at the versions that are tested.

A Space reads requirements.txt alone, no constraints file beside it, so what our dependencies depend on stands there as
well. Gradio is left out: a Space installs it by ``sdk_version`` in README.md.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
HEAD = "# Made by scripts/pin_space.py; a Space installs gradio itself, by sdk_version in README.md."


def list_run_time() -> list[str]:
    """Names of all packages that the app needs to run, found in what is installed here."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting: list[tuple[str, frozenset[str]]] = [("vlm-inspector", frozenset())]
    while waiting:
        name, extras = one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        for requirement in map(Requirement, distribution(name).requires or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return sorted({name for name, _ in found} - {"vlm-inspector", "gradio"})


def pin_space() -> str:
    """The text of requirements.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = {canonicalize_name(line.split("==")[0]): line for line in lines if "==" in line}
    return "\n".join([HEAD, *(pins[name] for name in list_run_time())]) + "\n"


if __name__ == "__main__":
    print(pin_space(), end="")
