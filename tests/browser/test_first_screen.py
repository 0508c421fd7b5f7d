"""What stands on the first screen, at the sizes that the page is shown at: Ask, the answer, the tabs and the first result
of the open one, without a press; and that it stays where it is."""

from itertools import pairwise

import pytest

from inspector.session import ModelStore
from inspector.ui import build_ui, launch_options
from model.training.synthetic.examples import EXAMPLES
from tests.browser.steps import OPENED, QUESTION, WAIT_MS, load_example, open_tab

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SIZES = ((1440, 900), (1280, 720))
HEADER = (".vi-header > .vi-title", "#provenance", "#models", ".vi-header > .vi-lessons", "#link", "#share", "#export")
WIDE = ((1920, 1080), (1440, 900), (1366, 768), (1280, 720))
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


def test_the_header_is_one_line_and_all_is_in_sight_also_with_a_long_name_of_a_model(new_page):
    name = "embedded, trained on colours and shapes, 240 steps"
    demo = build_ui(ModelStore({name: "embedded"}), allowed=None)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    page = new_page(1920, 1080)
    page.goto(url)
    page.wait_for_selector(OPENED, timeout=WAIT_MS)
    page.wait_for_selector("#viewer canvas", timeout=WAIT_MS)
    chip = page.locator("#provenance .vi-chip")
    chip.wait_for(timeout=WAIT_MS)
    assert chip.get_attribute("title") == name
    for width, height in WIDE:
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = [page.locator(selector).bounding_box() for selector in HEADER]
        for one, other in pairwise(boxes):
            assert one["x"] + one["width"] <= other["x"], width
            assert abs(one["y"] + one["height"] / 2 - other["y"] - other["height"] / 2) <= 2, width
        assert chip.locator("> b").evaluate("node => node.scrollWidth > node.clientWidth"), width
        for selector in ("#ask", "#answer .vi-last .vi-answer", ".tab-container[role=tablist]"):
            assert look(page, selector), f"{selector}: {width}"
        assert look(page, FIRST["See"], 90), width
    assert page.errors == []
    demo.close()


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
    # Unfolding is another thing than selecting.
    tokens = page.eval_on_selector_all("#strip .tok", "all => all.map(one => Number(one.dataset.p))")
    places = [*tokens[:3], *tokens[-4:]]
    for place in places:
        page.evaluate("place => document.querySelector(`#strip .tok[data-p='${place}']`).click()", place)
        page.wait_for_function("place => vlmBus.heat.selected === place", arg=place, timeout=WAIT_MS)
        page.wait_for_timeout(200)
    canvas = page.locator("#viewer canvas >> nth=1").bounding_box()
    page.mouse.click(canvas["x"] + 20, canvas["y"] + 20)
    page.wait_for_timeout(800)
    assert page.evaluate("vlmBus.position") not in places
    assert page.evaluate("moved") == 0


def test_every_tab_can_be_reached_on_a_phone(open_page):
    page = open_page(390, 844)
    bar = page.locator(".vi-results .tab-container[role=tablist]")
    names = bar.get_by_role("tab").all_inner_texts()
    assert {"See", "Attention", "Which image?", "Patches", "Batch", "Train"} <= set(names)
    for name in names:
        tab = bar.get_by_role("tab", name=name, exact=True)
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


def test_from_the_first_edit_on_what_is_drawn_is_said_to_be_of_the_earlier_prompt(open_page):
    page = open_page(1440, 900)
    earlier = "document.querySelector('.vi-results').hasAttribute('data-earlier')"
    dimmed = "getComputedStyle(document.querySelector('#viewer')).opacity"
    assert page.evaluate(earlier) is False
    assert not page.locator("#earlier").is_visible()
    before = page.input_value(QUESTION)
    page.fill(QUESTION, f"{before} Say it in one word.")
    page.wait_for_function(earlier, timeout=WAIT_MS)
    assert page.evaluate(dimmed) == "0.45"
    assert page.locator("#earlier").inner_text() == "for the earlier prompt · Ask again"
    # Taken back, it is the prompt that was asked; and an image moved is another prompt.
    page.fill(QUESTION, before)
    page.wait_for_function(f"!{earlier}", timeout=WAIT_MS)
    page.locator("#plans .vi-grip >> nth=2").focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_function(earlier, timeout=WAIT_MS)
    for tab in ("Attention", "Which image?", "Batch"):
        open_tab(page, tab)
        assert look(page, "#earlier")
        assert page.evaluate("getComputedStyle(document.querySelector('.tabitem')).opacity") == "0.45"
    page.click("#earlier .vi-again")
    page.wait_for_function(f"!{earlier}", timeout=WAIT_MS)
    page.wait_for_function(f"{dimmed} === '1'", timeout=WAIT_MS)
    assert page.errors == []


def test_a_tile_and_its_marker_light_each_other(open_page):
    page = open_page(1440, 900)
    load_example(page, "tiles")
    marker = "#strip .tok.k-region:has-text('row_2_col_3')"
    page.locator(marker).click()
    ring = "document.querySelector('#viewer .vlm-ring-in.vlm-chosen')"
    sides = f"['x', 'y', 'width', 'height'].map(side => Number({ring}.getAttribute(side)).toFixed(3))"
    assert page.evaluate(sides) == ["0.667", "0.500", "0.333", "0.500"]
    assert "r2c3 ×16" in page.inner_text("#strip .chip.vlm-kin")
    # From the picture to the row, by pointing and by clicking.
    box = page.locator("#viewer canvas >> nth=0").bounding_box()
    page.mouse.move(box["x"] + 0.05 * box["width"], box["y"] + 0.05 * box["height"])
    assert "row_1_col_1" in page.inner_text("#strip .tok.vlm-lit")
    page.mouse.click(box["x"] + 0.05 * box["width"], box["y"] + 0.05 * box["height"])
    assert "row_1_col_1" in page.inner_text("#strip .tok.vlm-kin")
    # Apart, each tile has its name, and the cells are still those of the row.
    page.check("#viewer input[value=apart]", force=True)
    assert page.locator("#viewer .vlm-tile .vlm-facts").all_inner_texts() == [
        f"r{row}c{col}" for row in (1, 2) for col in (1, 2, 3)
    ]
    page.locator(marker).click()
    assert page.locator("#viewer .vlm-tile:has(.vlm-chosen:not([style*='none']))").inner_text() == "r2c3"
    assert "192×128 → 192×128 px (to whole tiles of 64×64) → 2×3 tiles + thumbnail (at most 3×3 here)" in (
        page.inner_text("#viewer figcaption")
    )
    assert page.errors == []
