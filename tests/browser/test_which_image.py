"""“Which image?” as a person uses it, in a real Chromium."""

import re
import time

import pytest
from PIL import Image

from inspector.experiments import pathways
from inspector.views import lab
from tests.browser.steps import OPENED, QUESTION, assert_nothing_serious, open_tab, wait_for_images

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

PANELS = ("structure", "dependence", "matrix", "selection", "swaps", "attention", "checks")
MORE = ("where", "cues", "heads", "regions", "permutations", "layouts")


@pytest.fixture
def open_study(new_page, app_url):
    """The page with an example answered and the tab open."""

    def open_it(example="three", dark=False, **options):
        page = new_page(dark=dark, **options)
        page.goto(f"{app_url}?__theme={'dark' if dark else 'light'}")
        page.wait_for_selector(OPENED, timeout=60_000)
        if example != "three":
            page.click(f"#example-{example}")
            page.wait_for_function(
                "name => document.querySelector('#viewer')?.innerText.includes(name)",
                arg=f"{example}-1.png",
                timeout=60_000,
            )
        page.wait_for_timeout(500)
        open_tab(page, "Which image?")
        page.wait_for_selector("#which-start", timeout=60_000)
        return page

    return open_it


def study(page, turn=1):
    """Presses the button and waits until the last test of that turn is in."""
    page.click("#which-start")
    page.wait_for_function(
        "turn => { const said = document.querySelector('#which-verdict').innerText;"
        " return said.includes(`Turn ${turn}, `) && !said.includes('So far')"
        " && document.querySelector('#which-panel-checks table'); }",
        arg=turn,
        timeout=120_000,
    )
    still(page)


def still(page):
    """Nothing is running."""
    page.wait_for_function(
        "![...document.querySelectorAll('.wi-busy')].some(one => one.textContent.trim())", timeout=120_000
    )


def open_item(page, key):
    """In the list of tests."""
    page.click(f"#item-{key} .wi-fold")
    page.wait_for_selector(f"#which-panel-{key}", timeout=60_000)


def open_lab(page):
    """What cuts single things; the scissors are there without it."""
    page.check("#lab-switch input")
    page.wait_for_selector("#lab-line", timeout=60_000)


def cancel(page):
    """At once: a click of Playwright's waits until the button has come to rest, and results push it about."""
    page.dispatch_event("#which-cancel", "click")


def widths(page, selector):
    return page.eval_on_selector_all(selector, "bars => bars.map(bar => bar.getBoundingClientRect().width)")


def test_the_verdict_in_words_then_bars_then_the_rest(open_study):
    page = open_study()
    assert "Press “Which image?”" in page.inner_text("#which-verdict")
    assert "This row has 3 images" in page.inner_text("#which-panel-structure")
    study(page)
    verdict = page.inner_text("#which-verdict")
    assert "Image 3, and the question selects it" in verdict
    assert re.search(r"image 3: without it log p falls by at least \d+\.\d\d nats", verdict)
    drawn = widths(page, "#which-panel-dependence .wi-fill")
    # Taken away, then exchanged.
    assert len(drawn) == 6
    assert drawn[2] == max(drawn[:3]) > 50
    assert drawn[5] == max(drawn[3:]) > 50
    for key in PANELS:
        assert page.locator(f"#which-panel-{key} .vi-empty").count() == 0, key
    assert page.locator("#which-panel-selection tbody tr").count() == 6
    assert page.locator("#which-panel-swaps .wi-cards img").count() == 6
    open_item(page, "checks")
    page.click("#which-panel-checks summary")
    assert "must hold on this very prompt" in page.inner_text("#which-panel-checks")
    assert page.errors == []
    assert page.requests_out == []


@pytest.fixture
def slow_routes(monkeypatch):
    """Half a second between its parts, so that a run is still on its way when it is cancelled."""
    measure = pathways.measure_routes

    def slowly(*arguments):
        for part in measure(*arguments):
            yield part
            time.sleep(0.5)

    monkeypatch.setattr(pathways, "measure_routes", slowly)


def test_cancel_stops_what_runs_and_keeps_what_is_there(open_study, slow_routes):
    page = open_study()
    study(page)
    page.click("#which-all")
    # The first thing drawn, while more is to come.
    page.wait_for_selector("#which-panel-where table", state="attached", timeout=60_000)
    assert page.inner_text("#which-panel-where .wi-busy")
    cancel(page)
    open_item(page, "where")
    page.wait_for_selector("#which-panel-where >> text=Stopped: this is what had been found by then.", timeout=60_000)
    still(page)
    assert "Image 3" in page.inner_text("#which-verdict")
    assert page.locator("#which-panel-selection table").count() == 2
    page.wait_for_timeout(1500)
    assert page.locator("#which-panel-where table").count()
    assert page.locator("#which-panel-layouts .vi-empty").count() == 1
    # What was cancelled can be run again, and so can what never was.
    page.click("#which-where")
    page.wait_for_selector("#which-panel-where >> text=Stopped", state="detached", timeout=60_000)
    still(page)
    page.click("#which-heads")
    page.wait_for_selector("#which-panel-heads .wi-lead", timeout=60_000)
    assert page.errors == []


def test_a_new_question_takes_its_turn_at_once_and_clears_what_was_said_of_the_old(open_study):
    page = open_study()
    study(page)
    page.click("#which-all")
    # What is folded is drawn late, so what runs is read off any panel.
    page.wait_for_function(
        "[...document.querySelectorAll('.wi-busy')].some(one => one.textContent.trim())", timeout=60_000
    )
    page.fill(QUESTION, "In image 1, what colour is the shape?")
    page.click("#ask")
    page.wait_for_function(
        "document.querySelector('#which-verdict').innerText.includes('Press “Which image?”')", timeout=60_000
    )
    still(page)
    page.wait_for_selector("#which-panel-selection .vi-empty", state="attached", timeout=60_000)
    study(page)
    assert "“red” depends on image 1" in page.inner_text("#which-verdict")


def test_any_turn_can_be_explained(open_study):
    page = open_study("per-turn")
    page.get_by_label("1: green").check()
    study(page)
    assert "the mask alone decides" in page.inner_text("#which-verdict").lower()
    assert page.locator("#which-panel-matrix tbody tr").count() == 3
    # What question 1 can't see has no number, in every panel that speaks of it.
    assert page.locator("#which-panel-matrix td.wi-none").count() == 3
    page.get_by_label("3: brown").check()
    study(page, 3)
    assert "depends on image 3" in page.inner_text("#which-verdict")


def test_dragging_over_the_board_chooses_all_on_the_way(open_study):
    page = open_study()
    open_lab(page)
    pictures = [page.locator(f'#lab-board .wi-tile[data-thing="image {n}"]') for n in (1, 2, 3)]
    page.locator("#lab-board").scroll_into_view_if_needed()
    centres = [
        (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        for box in (picture.bounding_box() for picture in pictures)
    ]
    line = "text => document.querySelector('#lab-line textarea, #lab-line input').value === text"

    def drag(*places):
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=6)
        page.mouse.up()

    drag(*centres)
    page.wait_for_function(line, arg="image 1, image 2, image 3 -> question", timeout=60_000)
    # The first one is switched off, so all are; and back on the first the click that ends there changes nothing.
    drag(centres[0], centres[1], centres[0])
    page.wait_for_function(line, arg="image 3 -> question", timeout=60_000)
    pictures[2].focus()
    page.keyboard.press("Space")
    page.wait_for_function(line, arg="", timeout=60_000)
    assert page.errors == []


def test_cutting_by_hand_and_taking_it_back(open_study):
    page = open_study()
    open_lab(page)
    whole = page.locator('#lab-board [data-thing="image 3"]')
    whole.focus()
    page.keyboard.press("Enter")
    assert whole.get_attribute("aria-pressed") == "true"
    wait = "text => document.querySelector('#lab-line textarea, #lab-line input').value === text"
    page.wait_for_function(wait, arg="image 3 -> question", timeout=60_000)
    page.get_by_label("everything after it").check()
    page.wait_for_function(wait, arg="image 3 -> later", timeout=60_000)
    page.click("#lab-cut")
    page.wait_for_selector("#lab-result .wi-lab-answers", timeout=60_000)
    old, new = page.locator(".wi-lab-answers b").all_inner_texts()[:2]
    assert old == "yellow"
    assert new != "yellow"
    assert "--cut 'image 3 -> later'" in page.inner_text("#lab-result .wi-command")
    # A cut that takes nothing away from the old answer, written by hand, then two steps back.
    page.fill("#lab-line textarea, #lab-line input", "image 1 -> question @layers 0")
    page.click("#lab-cut")
    page.wait_for_function("document.querySelectorAll('#lab-result tbody tr').length === 3", timeout=60_000)
    page.click("#lab-undo")
    page.wait_for_function("document.querySelectorAll('#lab-result tbody tr').length === 2", timeout=60_000)
    assert page.locator(".wi-lab-answers b").all_inner_texts()[:2] == [old, new]
    page.click("#lab-undo")
    page.wait_for_selector("#lab-result .vi-empty", timeout=60_000)
    page.fill("#lab-line textarea, #lab-line input", "image 7 -> question")
    page.click("#lab-cut")
    page.wait_for_selector("#lab-note >> text=There is no image 7", timeout=60_000)
    assert page.errors == []


def test_scissors_cut_an_image_in_one_click_and_the_answer_flips_beside_it(open_study):
    page = open_study(width=1280, height=720)
    scissors = page.locator('#lab-board [data-snip="image 3"]')
    board = page.locator("#lab-board").bounding_box()
    assert board["y"] + board["height"] <= 720
    scissors.click()
    page.wait_for_selector("#lab-result .wi-lab-answers", timeout=60_000)
    old, new = page.locator(".wi-lab-answers b").all_inner_texts()[:2]
    assert old == "yellow"
    assert new != "yellow"
    # Said by the server, which may refuse a cut.
    page.wait_for_selector('[data-snip="image 3"][aria-pressed=true]', timeout=60_000)
    assert page.locator("[data-snip][aria-pressed=true]").count() == 1
    page.click('#lab-board [data-snip="image 1"]')
    page.wait_for_function("document.querySelectorAll('#lab-result tbody tr').length === 3", timeout=60_000)
    scissors.click()
    page.wait_for_function("document.querySelectorAll('#lab-result tbody tr').length === 2", timeout=60_000)
    assert page.locator(".wi-lab-answers b").all_inner_texts()[1] == "yellow"
    page.click("#lab-clear")
    page.wait_for_function("!document.querySelector('[data-snip][aria-pressed=true]')", timeout=60_000)
    assert page.errors == []


def test_the_list_of_tests_has_one_open_and_the_verdict_stays_in_sight(open_study):
    page = open_study(width=1440, height=900)
    page.click("#which-all")
    page.wait_for_selector("#which-panel-layouts table", state="attached", timeout=240_000)
    still(page)
    opened = "[...document.querySelectorAll('.wi-fold[aria-expanded=true]')].map(one => one.closest('.wi-item').id)"
    assert page.evaluate(opened) == ["item-dependence"]
    for key in ("matrix", "where", "cues"):
        page.click(f"#item-{key} .wi-fold")
        assert page.evaluate(opened) == [f"item-{key}"]
        assert page.locator(f"#which-panel-{key}").is_visible()
        assert page.locator(".wi-item [id^=which-panel]:visible").count() == 1
    # Far down the list the verdict is still read.
    page.locator("#item-battery .wi-fold").scroll_into_view_if_needed()
    box = page.locator("#which-verdict .wi-headline").bounding_box()
    assert 0 <= box["y"] <= 200
    page.click("#item-cues .wi-fold")
    assert page.evaluate(opened) == []
    assert page.evaluate("document.documentElement.scrollHeight") <= 3 * 900
    assert page.errors == []


def test_of_quick_choices_none_is_dropped(open_study, monkeypatch):
    compose = lab.compose_cut

    def slowly(*arguments):
        time.sleep(0.5)
        return compose(*arguments)

    monkeypatch.setattr(lab, "compose_cut", slowly)
    page = open_study()
    open_lab(page)
    for number in (1, 2, 3):
        page.click(f'#lab-board .wi-tile[data-thing="image {number}"]')
    line = "text => document.querySelector('#lab-line textarea, #lab-line input').value === text"
    page.wait_for_function(line, arg="image 1, image 2, image 3 -> question", timeout=60_000)
    for layer in (0, 1, 3):
        page.get_by_label(str(layer), exact=True).and_(page.locator("#lab-layers input")).check()
    page.wait_for_function(line, arg="image 1, image 2, image 3 -> question @layers 0-1,3", timeout=60_000)
    assert page.errors == []


def test_tiles_and_the_selected_token_can_be_hidden(open_study):
    page = open_study("tiles")
    open_lab(page)
    page.click('#lab-board [data-thing="image 1 tile r1c2"]')
    page.click('#lab-board [data-thing="image 1 tile thumbnail"]')
    line = "#lab-line textarea, #lab-line input"
    wait = "([where, text]) => document.querySelector(where).value === text"
    page.wait_for_function(wait, arg=[line, "image 1 tile r1c2, image 1 tile thumbnail -> question"], timeout=60_000)
    page.locator("#strip .tok >> nth=0").click()
    page.wait_for_function("vlmBus.heat.selected === 0", timeout=60_000)
    page.click("#lab-add")
    page.wait_for_function(
        "where => document.querySelector(where).value.includes('tokens 0 ->')", arg=line, timeout=60_000
    )


def test_no_image_and_one_image_say_what_can_be_said(open_study, tmp_path):
    page = open_study()
    page.click("#clear-images")
    wait_for_images(page, 0)
    page.click("#ask")
    page.wait_for_function(
        "document.querySelector('#which-panel-structure').innerText.includes('text only')", timeout=60_000
    )
    study(page)
    assert re.search("No image needed|can't depend on an image", page.inner_text("#which-verdict"))
    path = tmp_path / "one.png"
    Image.new("RGB", (64, 64), "red").save(path)
    page.set_input_files("#images input[type=file]", str(path))
    wait_for_images(page, 1)
    page.click("#ask")
    page.wait_for_function(
        "document.querySelector('#which-panel-structure').innerText.includes('one image')", timeout=60_000
    )
    study(page)
    assert page.inner_text("#which-verdict .wi-sentence")
    for key in MORE:
        page.click(f"#which-{key}")
        page.wait_for_function(
            "key => !document.querySelector(`#which-panel-${key} .vi-empty`)", arg=key, timeout=90_000
        )
        still(page)
    assert page.errors == []


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)], ids=["390-light", "1280-dark"])
def test_nothing_scrolls_sideways_and_axe_finds_nothing_serious(open_study, dark, width):
    page = open_study(dark=dark, width=width)
    study(page)
    page.click("#which-all")
    page.wait_for_selector("#which-panel-layouts table", state="attached", timeout=240_000)
    still(page)
    # All of them open at once, as they never are for a person.
    page.evaluate("document.querySelectorAll('.wi-item').forEach(item => { item.dataset.fold = 'open'; })")
    open_lab(page)
    page.click('#lab-board [data-thing="image 2"]')
    page.wait_for_function("document.querySelector('#lab-line textarea, #lab-line input').value", timeout=60_000)
    page.click("#lab-cut")
    page.wait_for_selector("#lab-result table", timeout=60_000)
    page.evaluate(
        "document.querySelectorAll('#which-verdict details, .wi-panel details').forEach(one => one.open = true)"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert_nothing_serious(page)
    assert page.errors == []
