"""Opening another model on the page: it is told, picked, and the last answer stays beside the next one."""

import pytest

from inspector.session import ModelStore
from inspector.ui import build_ui, launch_options
from tests.browser.steps import OPENED, WAIT_MS, ask, assert_nothing_serious
from tests.tiny_encoders import build_encoder

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def url():
    demo = build_ui(ModelStore({"embedded": "embedded"}), allowed=None)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    demo.close()


def open_source(page, source):
    page.click("#models > button, #models .label-wrap")
    page.fill("#model-source input", source)
    page.keyboard.press("Enter")
    page.click("#model-open")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_another_model_keeps_the_prompt_and_the_last_answer(new_page, url, tiny, width, dark):
    other = new_page(width, 900, dark)  # somebody else's, opened before
    page = new_page(width, 900, dark)
    for one in (other, page):
        one.goto(url)
        one.wait_for_selector(OPENED, timeout=WAIT_MS)
    assert page.get_by_role("tab", name="Two models").count() == 0
    question = page.input_value("#question-1 textarea, #question-1 input")
    tokens = page.inner_text("#plans")
    folder = tiny("llava").folder
    open_source(page, str(folder))
    page.wait_for_selector(f"#model-note >> text=“{folder.name}” is open", timeout=WAIT_MS)
    page.wait_for_selector("#former-answer .vi-former", timeout=WAIT_MS)
    assert page.inner_text("#former-answer") == f"embedded said to “{question}”: yellow"
    page.wait_for_function(
        "(before) => document.querySelector('#plans').innerText !== before", arg=tokens, timeout=WAIT_MS
    )
    assert "16 tokens" in page.inner_text("#plans")
    assert page.input_value("#question-1 textarea, #question-1 input") == question
    ask(page)
    assert folder.name in page.inner_text("#provenance")
    assert "yellow" in page.inner_text("#former-answer")
    assert "LLaVA" in page.inner_text("#models-card")
    page.get_by_role("tab", name="Two models").wait_for(timeout=WAIT_MS)
    # The other page needs no reload: its list is read anew when it is unfolded.
    other.click("#models > button, #models .label-wrap")
    other.wait_for_selector("#models-card >> text=LLaVA", timeout=WAIT_MS)
    other.get_by_role("tab", name="Two models").wait_for(timeout=WAIT_MS)
    assert other.errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert_nothing_serious(page)
    assert page.errors == []


def test_what_can_t_be_opened_is_said_there(new_page, url):
    page = new_page(1280, 900)
    page.goto(url)
    page.wait_for_selector(OPENED, timeout=WAIT_MS)
    open_source(page, "no name at all")
    page.wait_for_selector("#model-note >> text=owner/name", timeout=WAIT_MS)
    assert page.inner_text("#answer").count("yellow") >= 1


def test_an_encoder_of_images_and_texts_is_offered_in_the_clip_tab(new_page, url, tmp_path):
    folder = build_encoder("clip", tmp_path / "tiny-clip").folder
    page = new_page(1280, 900)
    page.goto(url)
    page.wait_for_selector(OPENED, timeout=WAIT_MS)
    open_source(page, str(folder))
    page.wait_for_selector("#model-note >> text=tab CLIP", timeout=WAIT_MS)
    page.click("#models > button, #models .label-wrap")  # it lies over the tabs
    page.get_by_role("tab", name="CLIP").click()
    page.wait_for_selector("#clip-encoder", timeout=WAIT_MS)
    assert page.input_value("#clip-encoder input") == "tiny-clip"
    page.click("#clip-start")
    page.wait_for_selector("#clip-matrix table", timeout=WAIT_MS)
    page.wait_for_selector("#clip-note >> text=CLIP", timeout=WAIT_MS)
    assert page.errors == []
