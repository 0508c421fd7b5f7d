"""One app for all browser tests."""

import pytest


@pytest.fixture(scope="session")
def app_url():
    from app import build_demo
    from inspector.ui import launch_options

    demo = build_demo([])
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    demo.close()
