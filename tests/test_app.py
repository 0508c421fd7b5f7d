"""What the app is told by its arguments and its environment."""

from pathlib import Path

import pytest

from app import build_demo, name_models, open_models, read_sources
from inspector.runs.jobs import JobTable


def test_folders_of_one_name_are_told_apart_without_their_places(tmp_path: Path):
    folders = [tmp_path / "a" / "m", tmp_path / "b" / "m"]
    for folder in folders:
        folder.mkdir(parents=True)
    sources = [*map(str, folders), str(folders[0]), "owner/name"]
    assert name_models(sources) == {
        "embedded": "embedded",
        "m": str(folders[0]),
        "m (2)": str(folders[1]),
        "owner/name": "owner/name",
    }


@pytest.mark.parametrize(
    ("options", "variable", "found"),
    [([], "", []), ([], " a, owner/b ,,", ["a", "owner/b"]), (["c"], "a", ["c"])],
)
def test_arguments_come_before_the_environment(options, variable, found, monkeypatch):
    monkeypatch.setenv("VLM_INSPECTOR_MODELS", variable)
    assert read_sources(options) == found


def test_the_days_of_links_reach_the_page(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("VLM_INSPECTOR_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("VLM_INSPECTOR_LINK_DAYS", "3")
    jobs = JobTable(tmp_path / "runs")
    demo = build_demo(open_models([]), public=True, jobs=jobs)
    jobs.close()
    assert demo.links.promise == "Images that you brought are kept for 3 days; whoever has the link sees them."
    foot = next(block.value for block in demo.blocks.values() if getattr(block, "elem_id", "") == "bounds")
    assert "3 days" in foot
