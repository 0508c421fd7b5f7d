"""A lecture, a keyboard, a phone: the page where it isn't used with a mouse at a desk."""

import pytest

from inspector.lessons.course import LESSONS
from tests.browser.steps import OPENED, WAIT_MS, assert_nothing_serious

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SMALL = """() => [...document.querySelectorAll("button, a, summary, select, [role=tab]")]
    .filter(node => node.checkVisibility() && node.getBoundingClientRect().width > 1 && !node.closest(".vi-skip"))
    .filter(node => Math.min(node.getBoundingClientRect().width, node.getBoundingClientRect().height) < 24)
    .map(node => node.id || node.className || node.textContent)"""
FOCUSED = "document.activeElement.getAttribute('role') + ' ' + document.activeElement.dataset.tabId"


@pytest.fixture
def open_page(new_page, app_url):
    def open_it(query="", width=1440, height=900, **options):
        page = new_page(width, height, **options)
        page.goto(app_url + query)
        page.wait_for_selector(OPENED, timeout=WAIT_MS)
        page.wait_for_selector("#answer .vi-seen", timeout=WAIT_MS)
        return page

    return open_it


def wait_for_lesson(page, number):
    page.wait_for_function(
        "question => document.querySelector('#lesson-text b')?.textContent === question",
        arg=LESSONS[number].question,
        timeout=WAIT_MS,
    )


def test_a_lecture_is_in_large_print_without_the_readout_and_keys_go_through_the_lesson(open_page):
    page = open_page("?present")
    assert not page.locator("#readout").is_visible()
    page.keyboard.press("ArrowRight")
    wait_for_lesson(page, 0)
    # Of 14 px.
    size = "parseFloat(getComputedStyle(document.querySelector('.vi-lesson')).fontSize)"
    assert page.evaluate(f"{size} * document.querySelector('#lesson-text').currentCSSZoom") >= 18
    page.keyboard.press("PageDown")
    wait_for_lesson(page, 1)
    page.keyboard.press("ArrowLeft")
    wait_for_lesson(page, 0)
    for size in ((1440, 900), (1280, 720)):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    page.click(".vi-present-switch")
    page.wait_for_selector("#readout", state="visible", timeout=WAIT_MS)
    assert "present" not in page.url
    assert page.errors == []


def test_arrows_move_the_selection_and_not_the_lesson_where_they_do_so_already(open_page):
    page = open_page("?present")
    page.locator("#strip .tok >> nth=1").click()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("vlmBus.position === 2", timeout=WAIT_MS)
    assert page.inner_text("#lesson-text") == ""


def test_the_pipeline_has_this_prompts_shapes_and_a_switch_for_each_stage(open_page):
    page = open_page("?lesson=parts")
    wait_for_lesson(page, 0)
    boxes = page.locator(".vi-pipeline li").all_inner_texts()
    assert [box.split("\n")[0].split(" (")[0] for box in boxes] == [
        "images",
        "tiles",
        "image encoder",
        "projector",
        "row of tokens",
        "language model",
        "next token",
    ]
    for text in ("3 × [3 64 64]", "48 image tokens of 192 numbers", "[91 192]", "4 layers × 4 heads", "“yellow”"):
        assert text in " ".join(boxes)
    trained = ".vi-pipeline li:has(.vi-trains:not([hidden])) .vi-trains"
    for stage, parts in (("asked", 0), ("stage-1", 1), ("stage-2", 2), ("all", 3)):
        page.check(f".vi-pipeline input[value={stage}]")
        assert sum(one.is_visible() for one in page.locator(trained).all()) == parts, stage
    assert_nothing_serious(page)
    assert page.errors == []


def test_the_first_key_skips_to_the_tabs(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "vi-skip"
    page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) == "tab See"


def test_on_a_phone_a_tap_goes_to_what_changed_and_nothing_is_too_small_for_a_finger(open_page):
    page = open_page("", 390, 844, has_touch=True)
    assert page.evaluate(SMALL) == []
    tops = "['#plans', '#question-1', '#answer'].map(one => document.querySelector(one).getBoundingClientRect().top)"
    places = page.evaluate(tops)
    assert places == sorted(places)
    page.tap("#ask")
    near = "() => { const top = document.querySelector('.vi-answer-panel').getBoundingClientRect().top; return top >= -5 && top < 400; }"
    page.wait_for_function(near, timeout=WAIT_MS)
    bar = page.locator(".vi-results > .tabs > .tab-wrapper").bounding_box()
    assert bar["y"] + bar["height"] == 844
    page.locator("#strip .tok >> nth=2").tap()
    page.wait_for_function("document.querySelector('#readout').getBoundingClientRect().top < 800", timeout=WAIT_MS)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.errors == []
