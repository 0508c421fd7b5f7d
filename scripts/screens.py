"""``python -m scripts.screens FOLDER``: a picture of every panel and tab, light and dark, wide and 390 px, with one,
three and five images. Files are named width-theme-example-panel.png. What is wider than the window is said."""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from app import build_demo, open_models
from inspector.ui import launch_options
from scripts.chromium import launch_chromium

EXAMPLES = ("single", "three", "five")
PANELS = {
    "header": ".vi-header",
    "examples": ".vi-examples",
    "prompt": ".vi-prompt",
    "answer": ".vi-answer-panel",
    "viewer": "#viewer",
    "readout": "#readout",
}
TABS = ("See", "Attention", "Which image?", "Patches", "Batch", "Train")
TAB = ".vi-results"
FULLY = "three"
"""The example that all tests of “Which image?” are run on; the others get the verdict's."""
COLOURINGS = ("kind", "label", "mask", "loss", "attention")
RUN_MS = 240_000


def open_example(page: Page, name: str) -> None:
    page.click(f"#example-{name}")
    page.wait_for_function(
        "name => document.querySelector('#viewer').innerText.includes(name)", arg=f"{name}-1.png", timeout=120_000
    )
    page.wait_for_selector("#attention-summary b", state="attached", timeout=120_000)
    page.wait_for_timeout(1500)


def shoot_panels(page: Page, folder: Path, name: str) -> int:
    """All of one example; how many pictures that made."""
    made = 0

    def shoot(what: str, selector: str) -> None:
        nonlocal made
        page.locator(selector).first.screenshot(path=folder / f"{name}-{what}.png")
        made += 1

    page.screenshot(path=folder / f"{name}-page.png")
    for what, selector in PANELS.items():
        shoot(what, selector)
    for colouring in COLOURINGS:
        page.check(f"#strip input[value={colouring}]", force=True)
        shoot(f"strip-{colouring}", "#strip")
    page.click("#strip .vlm-plain")
    shoot("strip-unfolded", "#strip")
    page.click("#strip .vlm-plain")
    page.check("#strip input[value=kind]", force=True)
    for title in TABS:
        pick_tab(page, title)
        if title == "Attention":
            see_plots(page)
        if title == "Which image?":
            run_tests(page, every=name.endswith(f"-{FULLY}"))
        page.wait_for_timeout(1200)
        shoot(f"tab-{title.lower().strip('?').replace(' ', '-')}", TAB)
    pick_tab(page, TABS[0])
    return made + 1


def see_plots(page: Page) -> None:
    """They are drawn once somebody looks at them."""
    pick_tab(page, "Attention")
    page.locator("#own-scale").scroll_into_view_if_needed()
    page.wait_for_selector("#head-board .vlm-cell", timeout=RUN_MS)
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 2", timeout=RUN_MS)


def run_tests(page: Page, *, every: bool) -> None:
    """“Which image?” with its results in it."""
    page.click("#which-all" if every else "#which-start")
    last = "layouts" if every else "checks"
    page.wait_for_selector(f"#which-panel-{last} table", state="attached", timeout=RUN_MS)
    page.wait_for_function(
        "![...document.querySelectorAll('.wi-busy')].some(one => one.textContent.trim())", timeout=RUN_MS
    )


def pick_tab(page: Page, title: str) -> None:
    page.get_by_role("tab", name=title, exact=True).click()


def follow_run(page: Page, folder: Path, name: str) -> None:
    """The Train tab with a short run behind it."""
    pick_tab(page, "Train")
    page.fill("#train-steps input", "4")
    page.click("#train-start")
    page.wait_for_selector("#train-status .tr-done", timeout=RUN_MS)
    page.click("#train-compare")
    page.wait_for_selector("#train-result table", timeout=RUN_MS)
    page.locator(TAB).screenshot(path=folder / f"{name}-tab-train-run.png")


def shoot_all(browser: Browser, url: str, folder: Path, examples: list[str], train: bool) -> None:
    for width in (1280, 390):
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
            page.goto(f"{url.rstrip('/')}/?__theme={theme}")
            page.wait_for_selector("#strip button.tok", timeout=120_000)
            for example in examples:
                open_example(page, example)
                made = shoot_panels(page, folder, f"{width}-{theme}-{example}")
                wide = page.evaluate("document.documentElement.scrollWidth")
                print(
                    f"{width} px, {theme}, {example}: {made} pictures"
                    + (f"; the page is {wide} px wide and scrolls sideways" if wide > width else "")
                )
            if train:
                follow_run(page, folder, f"{width}-{theme}")
            page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--example", action="append", choices=[*EXAMPLES, "two", "per-turn", "tiles", "packed"])
    parser.add_argument("--train", action="store_true", help="with a short training run, too")
    parser.add_argument("--url", help="of an app that is running already")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    demo, url = None, options.url
    if url is None:
        demo = build_demo(open_models([]))
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        shoot_all(browser, url, options.folder, options.example or list(EXAMPLES), options.train)
        browser.close()
    if demo is not None:
        demo.close()


if __name__ == "__main__":
    main()
