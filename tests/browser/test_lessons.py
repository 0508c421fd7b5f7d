"""Following the post: a question loads what shows it, opens the place and answers with the prompt's own numbers."""

import pytest

from inspector.lessons.course import LESSONS
from tests.browser.steps import OPENED, WAIT_MS, assert_nothing_serious

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def open_page(page, url):
    page.goto(url)
    page.wait_for_selector(OPENED, timeout=WAIT_MS)


def wait_for_lesson(page, key):
    lesson = next(lesson for lesson in LESSONS if lesson.key == key)
    page.wait_for_function(
        "([question]) => document.querySelector('#lesson-text b')?.textContent === question",
        arg=[lesson.question],
        timeout=WAIT_MS,
    )
    page.wait_for_selector(f"#{lesson.target}.vi-lesson-target", timeout=WAIT_MS)
    return page.inner_text("#lesson-text")


def selected_tabs(page):
    return page.locator("[role=tab][aria-selected=true]").all_inner_texts()


def test_a_link_opens_the_page_at_its_question(new_page, app_url):
    page = new_page(1440, 900)
    open_page(page, f"{app_url}?lesson=padding")
    said = wait_for_lesson(page, "padding")
    assert "102 times “<|im_end|>” (id 2)" in said
    assert "Batch" in selected_tabs(page)
    assert page.is_checked("#arrangement input[value=padded]")
    assert "[2, 136]" in page.inner_text("#tensors").replace("×", ",").replace("  ", " ")
    assert page.errors == []
    assert_nothing_serious(page)


def test_next_and_back_go_through_the_questions_and_my_prompt_keeps_the_page(new_page, app_url):
    page = new_page(1280, 900)
    open_page(page, app_url)
    before = page.inner_text("#answer")
    page.click("#lesson-next")
    said = wait_for_lesson(page, LESSONS[0].key)
    assert "91 positions of 192 numbers" in said
    page.click("#lesson-next")
    wait_for_lesson(page, LESSONS[1].key)
    page.click("#lesson-back")
    wait_for_lesson(page, LESSONS[0].key)
    page.click("#example-tiles")
    page.wait_for_function("(old) => document.querySelector('#answer').innerText !== old", arg=before, timeout=WAIT_MS)
    page.wait_for_function("() => document.querySelector('#answer').innerText.includes('3')", timeout=WAIT_MS)
    page.click("#lesson-mine")
    page.wait_for_function(
        "() => document.querySelector('#lesson-text').innerText.includes('1 image (the first of 192 × 128 px)')",
        timeout=WAIT_MS,
    )
    assert page.errors == []


def test_an_unknown_question_in_a_link_opens_the_page_as_ever(new_page, app_url):
    page = new_page(390, 844)
    open_page(page, f"{app_url}?lesson=nothing")
    assert page.inner_text("#lesson-text") == ""
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.errors == []
