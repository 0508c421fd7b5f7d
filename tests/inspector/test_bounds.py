"""One table of bounds: what the README shows is what the code holds."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from inspector.bounds import (
    Bounds,
    format_bound,
    format_bounds,
    format_memory,
    list_memory,
    private_bounds,
    public_bounds,
)

README = Path(__file__).parent.parent.parent / "README.md"


def test_a_public_server_gives_no_more_than_a_private_one():
    public, private = public_bounds(), private_bounds()
    for field in fields(Bounds):
        narrow, wide = getattr(public, field.name), getattr(private, field.name)
        assert wide is None or narrow <= wide, field.name


def test_a_public_server_fits_into_twelve_gigabytes():
    parts = list_memory(public_bounds())
    assert len(parts) == 11
    assert sum(size for _, size in parts) <= 12e9
    small = public_bounds(
        sessions=10,
        sessions_bytes=0,
        previews_bytes=0,
        features_bytes=0,
        rows_bytes=0,
        words_bytes=0,
        private_model_bytes=0,
        decoders=0,
        parsers=0,
        runs_at_once=2,
        run_bytes=500_000_000,
    )
    assert sum(size for _, size in list_memory(small)) == (1 << 30) + 10 * 600_000 + 1_000_000_000
    assert "2 that train 1.00 GB; together 2.1 GB." in format_memory(small)
    with pytest.raises(ValueError, match="no bound"):
        list_memory(private_bounds())


def test_changes_replace_single_bounds():
    assert public_bounds(queue=3).queue == 3
    assert private_bounds(run_minutes=1.0).run_minutes == 1.0
    assert public_bounds(queue=3).images == public_bounds().images


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "s", "none"),
        (True, "", "yes"),
        (False, "", "no"),
        (40 << 20, "bytes", "40 MiB"),
        (2 << 30, "bytes", "2 GiB"),
        (1536 << 20, "bytes", "1.5 GiB"),
        (300_000_000, "pixels", "300 million pixels"),
        (20_000, "files", "20,000 files"),
        (12, "", "12"),
        (60.0, "s", "60 s"),
        (1_000_000, "steps", "1,000,000 steps"),
    ],
)
def test_a_bound_in_words(value, unit, text):
    assert format_bound(value, unit) == text


def test_readme_and_command_show_the_table():
    table = format_bounds()
    assert "| `images` | 12 | 12 | images in a prompt |" in table
    assert len(table.splitlines()) == 2 + len(fields(Bounds)) + 2
    printed = subprocess.run(
        [sys.executable, "-m", "inspector", "bounds"],
        cwd=README.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert printed.stdout == table + "\n"
    assert table in README.read_text("utf-8")
