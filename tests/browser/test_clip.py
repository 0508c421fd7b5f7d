"""The CLIP tab in a browser: it fills itself, a temperature moves the losses, a patch lights up its like."""

import pytest

from tests.browser.steps import OPENED, WAIT_MS, assert_nothing_serious

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def open_tab(page, url):
    page.goto(url)
    page.wait_for_selector(OPENED, timeout=WAIT_MS)
    page.get_by_role("tab", name="CLIP").click()
    page.wait_for_selector("#clip-matrix table", timeout=WAIT_MS)


def test_the_tab_fills_itself_and_answers_to_a_click(new_page, app_url):
    page = new_page(1440, 900)
    open_tab(page, app_url)
    assert len(page.input_value("#clip-captions textarea").splitlines()) == 3
    assert page.locator("#clip-matrix .cl-own").count() == 9
    assert page.locator("#clip-zero-shot .cl-own").count() == 3
    before = page.inner_text("#clip-matrix .cl-sums")
    page.fill("#clip-temperature input[type=number]", "1")
    page.press("#clip-temperature input[type=number]", "Tab")
    page.click("#clip-start")
    page.wait_for_function(
        "before => document.querySelector('#clip-matrix .cl-sums').innerText !== before", arg=before, timeout=WAIT_MS
    )
    assert "temperature\n1.000" in page.inner_text("#clip-matrix .cl-sums")
    grid = page.locator("#clip-board .cl-pick").nth(1)
    grid.click(position={"x": 5, "y": 5})
    page.wait_for_selector("#clip-attention .cl-map", timeout=WAIT_MS)
    assert page.locator("#clip-board .cl-heat").count() == 3
    assert page.locator("#clip-attention .cl-map").count() == 4
    # The new drawing has the focus where the old one had it, and the arrows go on from there.
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('#clip-board .cl-chosen[data-image="1"][data-row="0"][data-col="1"]', timeout=WAIT_MS)
    assert_nothing_serious(page)
    assert page.errors == []


def test_a_phone_shows_all_of_it(new_page, app_url):
    page = new_page(390, 844, dark=True)
    page.goto(f"{app_url}?lesson=clip")
    page.wait_for_selector("#clip-matrix table", timeout=WAIT_MS)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert_nothing_serious(page)
    assert page.errors == []
