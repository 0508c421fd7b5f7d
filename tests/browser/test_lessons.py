"""Following the post: a question loads what shows it, opens the place and answers with the prompt's own numbers."""

import pytest
from PIL import Image

from inspector.lessons.course import LESSONS, find_lesson
from inspector.lessons.shown_prompt import ShownPrompt
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn
from model import open_image
from tests.browser.steps import OPENED, QUESTION, WAIT_MS, ask, assert_nothing_serious, wait_for_images

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


@pytest.mark.parametrize("key", ["clip", "zero-shot", "heads", "frozen"])
def test_what_a_link_outlines_is_in_the_window_when_everything_above_it_has_come(new_page, app_url, key):
    page = new_page(1280, 720)
    open_page(page, f"{app_url}?lesson={key}")
    wait_for_lesson(page, key)
    page.wait_for_timeout(2500)
    target = next(lesson.target for lesson in LESSONS if lesson.key == key)
    box = page.locator(f"#{target}").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + min(box["height"], 300) <= 720
    # Whoever scrolls is left alone from then on.
    page.mouse.move(900, 500)
    page.mouse.wheel(0, -4000)
    page.wait_for_function("scrollY === 0", timeout=WAIT_MS)
    page.evaluate("document.querySelector('.vi-results').style.paddingBottom = '90px'")
    page.wait_for_timeout(300)
    assert page.evaluate("scrollY") == 0
    assert page.errors == []


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
        "() => document.querySelector('#lesson-text').innerText.includes('1 image (192 × 128 px)')",
        timeout=WAIT_MS,
    )
    assert page.errors == []


def test_questions_of_every_tab_are_answered_on_own_images_with_their_numbers(new_page, app_url, embedded, tmp_path):
    sizes = ((300, 200), (60, 60))
    paths = [str(tmp_path / f"own-{number}.png") for number in (1, 2)]
    for path, size, colour in zip(paths, sizes, ("teal", "red"), strict=True):
        Image.new("RGB", size, colour).save(path)
    question = "What colour is image 2?"
    page = new_page(1280, 720)
    open_page(page, app_url)
    page.set_input_files(".vi-image-buttons input[type=file]", paths)
    wait_for_images(page, 2)
    page.fill(QUESTION, question)
    ask(page)
    prompt = Prompt(tuple(open_image(path) for path in paths), (Turn(question),))
    shown = ShownPrompt(embedded, ask_and_inspect(embedded, prompt, GenerationSettings()))
    for key in ("projector", "marker", "stage-1", "padding", "which-image", "clip"):
        number = find_lesson(key)
        lesson = LESSONS[number]
        page.click("#lesson input")
        page.get_by_role("option", name=f"{number + 1}. {lesson.question}").click()
        wait_for_lesson(page, key)
        page.click("#lesson-mine")
        page.wait_for_function(
            "said => document.querySelector('#lesson-text .vi-lesson')?.innerText.includes(said)",
            arg=lesson.tell(shown),
            timeout=WAIT_MS,
        )
        page.locator(f"#{lesson.target}.vi-lesson-target").wait_for(timeout=WAIT_MS)
        assert lesson.tab in selected_tabs(page)
    assert page.input_value(QUESTION) == question
    assert page.errors == []


def test_an_unknown_question_in_a_link_opens_the_page_as_ever(new_page, app_url):
    page = new_page(390, 844)
    open_page(page, f"{app_url}?lesson=nothing")
    assert page.inner_text("#lesson-text") == ""
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.errors == []
