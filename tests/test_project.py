"""The files around the code agree with each other: dependencies, pins, Spaces front matter, what ships."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.pin_space import pin_space

ROOT = Path(__file__).parent.parent


def _pins(name: str) -> dict[str, str]:
    """`name==version` lines of a requirements file, comments dropped."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if line}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def front_matter() -> dict[str, str]:
    text = (ROOT / "README.md").read_text()
    block = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert block, "README.md must begin with the Spaces front matter"
    pairs = (line.split(":", 1) for line in block.group(1).splitlines() if ":" in line)
    return {key.strip(): value.strip().strip("'\"") for key, value in pairs}


def _requirements(project: dict) -> list[Requirement]:
    return [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["test"]]


def test_every_direct_dependency_is_pinned_inside_its_range(project):
    pins = _pins("constraints.txt")
    for requirement in _requirements(project):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin in constraints.txt"
        assert pin in requirement.specifier, f"{requirement.name}=={pin} is outside {requirement.specifier}"


def test_torch_is_the_version_that_the_numbers_were_made_with():
    assert _pins("constraints.txt")["torch"] == "2.13.0"


def test_a_space_installs_all_that_the_app_needs_at_the_tested_versions(project):
    pins, space = _pins("constraints.txt"), _pins("requirements.txt")
    direct = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]} - {"gradio"}
    assert direct <= set(space)
    assert {"starlette", "uvicorn", "python-multipart", "tokenizers"} <= set(space)  # what our dependencies depend on
    assert "gradio" not in space
    assert space == {name: pins[name] for name in space}
    assert (ROOT / "requirements.txt").read_text() == pin_space()


def test_front_matter_names_the_pinned_gradio_and_the_app(front_matter):
    assert front_matter["sdk"] == "gradio"
    assert front_matter["sdk_version"] == _pins("constraints.txt")["gradio"]
    assert front_matter["app_file"] == "app.py"
    assert front_matter["license"] == "apache-2.0"


def test_readme_gives_the_two_commands():
    text = (ROOT / "README.md").read_text()
    for command in ("make app", "make test"):
        assert re.search(rf"^ *{command}$", text, re.MULTILINE), f"README.md does not give `{command}` on a line"


def _tracked() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:  # an unpacked archive has no history to ask
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_sizes_of_what_ships():
    sizes = {path: path.stat().st_size for path in _tracked()}
    golden = sum(size for path, size in sizes.items() if (ROOT / "tests" / "golden") in path.parents)
    embedded = sum(size for path, size in sizes.items() if (ROOT / "model" / "embedded") in path.parents)
    assert golden <= 10_000_000
    assert embedded <= 16_000_000


def test_no_pickles_ship():
    endings = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
    assert [path for path in _tracked() if path.suffix in endings] == []
