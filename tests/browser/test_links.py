"""Links and keeping: an address restores what was shown, and nothing that was there is lost by what comes in."""

import pytest
from PIL import Image

from tests.browser.steps import OPENED, QUESTION, WAIT_MS, ask, load_example, open_tab, wait_for_images

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

FIELD = "#link-text textarea, #link-text input"
TAB = "document.querySelector('.vi-results [role=tab][aria-selected=true]').dataset.tabId"
ADD = ".vi-image-buttons input[type=file]"


@pytest.fixture
def open_page(new_page, app_url):
    def open_it(address="", width=1440, height=900):
        page = new_page(width, height)
        page.goto(address or app_url)
        page.wait_for_selector(OPENED, timeout=WAIT_MS)
        page.wait_for_selector("#answer .vi-seen", timeout=WAIT_MS)
        return page

    return open_it


def take_link(page):
    page.evaluate("document.querySelector('#link-text textarea, #link-text input')?.setAttribute('data-old', '')")
    page.click("#link")
    page.wait_for_function(
        "field => document.querySelector(field)?.value.startsWith(location.origin)", arg=FIELD, timeout=WAIT_MS
    )
    return page.input_value(FIELD)


def write_pictures(folder):
    paths = []
    for name, colour in (("one", "red"), ("two", "blue")):
        picture = Image.new("RGB", (90, 70), "white")
        picture.paste(colour, (20, 20, 60, 60))
        picture.save(folder / f"own-{name}.png")
        paths.append(str(folder / f"own-{name}.png"))
    return paths


def test_a_link_restores_example_tab_token_layer_and_head(open_page):
    page = open_page()
    open_tab(page, "Attention")
    page.locator("#strip .tok >> nth=3").click()
    page.wait_for_function("vlmBus.heat.selected === 3", timeout=WAIT_MS)
    page.wait_for_selector("#head-board .vlm-cell", timeout=WAIT_MS)
    page.click("#head-board [data-layer='2'][data-head='1'] >> nth=0")
    page.wait_for_function("vlmBus.heat.label.includes('layer 2')", timeout=WAIT_MS)
    link = take_link(page)
    assert "example=three" in link
    other = open_page(link)
    other.wait_for_function("vlmBus.position === 3 && vlmBus.heat.label.includes('layer 2')", timeout=WAIT_MS)
    assert other.evaluate(TAB) == "Attention"
    assert other.evaluate("vlmBus.heat.label") == page.evaluate("vlmBus.heat.label")
    assert other.input_value(QUESTION) == page.input_value(QUESTION)
    assert page.errors == other.errors == []


def test_own_images_take_the_examples_place_a_link_keeps_them_and_undo_brings_the_example_back(open_page, tmp_path):
    page = open_page()
    before = page.input_value(QUESTION)
    page.set_input_files(ADD, write_pictures(tmp_path))
    wait_for_images(page, 2)
    page.fill(QUESTION, "In image 2, what colour is the shape?")
    ask(page)
    link = take_link(page)
    assert "kept for 30 days" in page.inner_text("#link-text")
    other = open_page(link)
    assert other.locator("#plans li b").all_inner_texts() == ["own-one.png", "own-two.png"]
    assert other.inner_text("#answer .vi-last .vi-answer") == page.inner_text("#answer .vi-last .vi-answer")
    page.click("#undo-images")
    wait_for_images(page, 3)
    assert page.input_value(QUESTION) == before
    # And forward again, by what was asked on this page.
    page.locator("#earlier-prompts input").click()
    page.get_by_role("option", name="2 images · In image 2").click()
    wait_for_images(page, 2)
    page.wait_for_function(f"document.querySelector(`{QUESTION}`).value.includes('image 2')", timeout=WAIT_MS)
    assert page.errors == other.errors == []


def test_what_a_link_asks_for_and_is_not_here_is_said_and_the_page_opens_all_the_same(open_page, app_url):
    page = open_page(f"{app_url}?images={'a' * 24}&model=nobody&ask1=What%20is%20it?")
    said = page.inner_text("#header-note")
    assert "aren't kept here any more" in said
    assert "nobody" in said
    assert page.input_value(QUESTION) == "What is it?"
    assert "layout" in open_page(f"{app_url}?layout=sideways").inner_text("#header-note")


def test_a_pasted_picture_comes_in_and_an_address_that_gives_none_is_said(open_page):
    page = open_page()
    page.evaluate(
        """async () => {
            const canvas = document.createElement("canvas");
            const blob = await new Promise(done => canvas.toBlob(done));
            const data = new DataTransfer();
            data.items.add(new File([blob], "pasted.png", { type: "image/png" }));
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
        }"""
    )
    wait_for_images(page, 1)
    assert page.inner_text("#plans li b") == "pasted.png"
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.setData("text/plain", `${location.origin}/nothing.png`);
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
        }"""
    )
    page.wait_for_selector("#refused-files li", timeout=WAIT_MS)
    assert "nothing.png" in page.inner_text("#refused-files")


def test_photographs_are_shown_whole_and_spoken_of(open_page):
    page = open_page("", 1280, 720)
    load_example(page, "photographs")
    assert "knows drawn shapes and nothing of photographs" in page.inner_text("#plans")
    assert page.locator("#viewer figure").count() == 3
    assert page.errors == []
