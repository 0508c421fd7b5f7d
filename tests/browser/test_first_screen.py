"""What stands on the first screen, at the sizes that the page is shown at: Ask, the answer, the tabs and the first result
of the open one, without a press; and that it stays where it is."""

import pytest

from model.training.synthetic.examples import EXAMPLES
from tests.browser.steps import OPENED, WAIT_MS, load_example

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SIZES = ((1440, 900), (1280, 720))
FIRST = {"See": "#viewer canvas", "Attention": "#viewer canvas", "Which image?": "#lab-board .wi-board-picture"}
"""The first result of a tab that has one without a press."""
IN_SIGHT = """
([selector, least]) => {
    const box = document.querySelector(selector).getBoundingClientRect();
    const shown = Math.min(box.bottom, innerHeight) - Math.max(box.top, 0);
    return box.width > 0 && shown >= Math.min(box.height, least) && shown > 0;
}
"""


@pytest.fixture
def open_page(new_page, app_url):
    def open_it(width, height, **options):
        page = new_page(width, height, **options)
        page.goto(app_url)
        page.wait_for_selector(OPENED, timeout=WAIT_MS)
        return page

    return open_it


def look(page, selector, least=10_000):
    """Whether what ``selector`` names is in the window: all of it, or so many pixels of its height."""
    return page.evaluate(IN_SIGHT, [selector, least])


@pytest.mark.parametrize("size", SIZES, ids=["1440x900", "1280x720"])
def test_ask_answer_tabs_and_the_first_result_are_there_in_every_example(open_page, size):
    page = open_page(*size)
    for example in EXAMPLES:
        load_example(page, example.name)
        for tab, first in FIRST.items():
            page.get_by_role("tab", name=tab, exact=True).click()
            page.wait_for_selector(first, timeout=WAIT_MS)
            where = f"{example.name}, {tab}"
            assert page.evaluate("scrollY") == 0, where
            for selector in ("#ask", "#answer .vi-last .vi-answer", ".tab-container[role=tablist]"):
                assert look(page, selector), f"{selector}: {where}"
            assert look(page, first, 90), where
        page.get_by_role("tab", name="See", exact=True).click()
    assert page.errors == []


def test_images_are_the_largest_thing_on_the_page(open_page):
    page = open_page(1440, 900)
    widths = "[...document.querySelectorAll('#viewer .vlm-pictures > .vlm-frame')].map(one => one.clientWidth)"
    assert min(page.evaluate(widths)) >= 280
    load_example(page, "single")
    assert min(page.evaluate(widths)) >= 480


def test_selecting_a_token_moves_nothing(open_page):
    page = open_page(1280, 720)
    page.wait_for_timeout(1500)
    # Every shift counts here, also those that Chromium excuses because a person has just pressed something.
    page.evaluate(
        "() => { window.moved = 0; new PerformanceObserver(list => list.getEntries().forEach(one => { moved += one.value; }))"
        ".observe({ type: 'layout-shift' }); }"
    )
    places = [0, 1, 20, 40, 88, 89]
    for place in places:
        page.evaluate("place => document.querySelector(`#strip [data-p='${place}']`).click()", place)
        page.wait_for_function("place => vlmBus.heat.selected === place", arg=place, timeout=WAIT_MS)
        page.wait_for_timeout(200)
    canvas = page.locator("#viewer canvas >> nth=1").bounding_box()
    page.mouse.click(canvas["x"] + 20, canvas["y"] + 20)
    page.wait_for_timeout(800)
    assert page.evaluate("vlmBus.position") not in places
    assert page.evaluate("moved") == 0


def test_every_tab_can_be_reached_on_a_phone(open_page):
    page = open_page(390, 844)
    tabs = page.get_by_role("tab")
    names = tabs.all_inner_texts()
    assert {"See", "Attention", "Which image?", "Patches", "Batch", "Train"} <= set(names)
    for name in names:
        tab = page.get_by_role("tab", name=name, exact=True)
        tab.click()
        assert tab.get_attribute("aria-selected") == "true"
        box = tab.bounding_box()
        assert min(box["width"], box["height"]) >= 24
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.errors == []


def test_the_selected_token_is_in_sight_in_every_tab(open_page):
    page = open_page(1280, 720)
    for tab in ("Attention", "Which image?", "Batch", "Train"):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(700)
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        page.wait_for_timeout(200)
        chosen = page.locator("#strip .vlm-sel").bounding_box()
        assert page.evaluate(
            "([x, y]) => document.elementFromPoint(x, y)?.closest('.vlm-sel') !== null",
            [chosen["x"] + chosen["width"] / 2, chosen["y"] + chosen["height"] / 2],
        ), tab
        page.evaluate("scrollTo(0, 0)")
    assert page.errors == []
