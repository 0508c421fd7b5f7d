"""What the app is told by its arguments and its environment."""

from pathlib import Path

import pytest

from app import name_models, read_sources


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
