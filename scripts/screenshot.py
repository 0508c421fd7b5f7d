"""``python -m scripts.screenshot OUT.png``: the page with an example answered, as README shows it."""

from __future__ import annotations

import argparse

from playwright.sync_api import sync_playwright

from app import build_demo, open_models
from inspector.ui import launch_options
from scripts.chromium import launch_chromium
from scripts.screens import open_example


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--example", default="three", help="name of an example (model/training/synthetic/examples.py)")
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    demo = build_demo(open_models([]))
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        page = browser.new_page(viewport={"width": options.width, "height": 900})
        page.goto(f"{url}?__theme={'dark' if options.dark else 'light'}")
        page.wait_for_selector("#strip button.tok")
        open_example(page, options.example)
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(1500)
        page.screenshot(path=options.out, full_page=True)
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()
