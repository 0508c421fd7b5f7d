"""The Chromium that scripts and benchmarks drive."""

from __future__ import annotations

import shutil
from os import environ

from playwright.sync_api import Browser, Playwright


def launch_chromium(playwright: Playwright) -> Browser:
    """The one that VLM_INSPECTOR_CHROMIUM names, else the system's, else Playwright's own."""
    path = environ.get("VLM_INSPECTOR_CHROMIUM") or shutil.which("chromium")
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
