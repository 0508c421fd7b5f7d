"""Edits of a picture as a person makes them: drawn, moved by keys, typed, taken back."""

import pytest

from tests.browser.steps import OPENED, QUESTION, WAIT_MS, ask, assert_nothing_serious, open_tab

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

FRAME, LINE = "#edit-board .vlm-ed-frame", "#edit-line textarea, #edit-line input"


@pytest.fixture
def open_board(new_page, app_url):
    """The page with three images and the board on the third, which the question is about."""

    def open_it(dark=False, **options):
        page = new_page(dark=dark, **options)
        page.goto(f"{app_url}?__theme={'dark' if dark else 'light'}")
        page.wait_for_selector(OPENED, timeout=WAIT_MS)
        open_tab(page, "Patches")
        page.check("#edit-board .vlm-ed-images input[value='2']", force=True)
        wait_for_line(page, "image 3: blur 16,16,48,48")
        page.locator(FRAME).scroll_into_view_if_needed()
        return page

    return open_it


def wait_for_line(page, line):
    page.wait_for_function(
        "([field, line]) => document.querySelector(field).value === line", arg=[LINE, line], timeout=WAIT_MS
    )


def choose(page, way):
    page.check(f"#edit-board .vlm-switch input[value={way}]", force=True)


def drag(page, start, stop):
    """From and to shares of the image's width and height."""
    box = page.locator(FRAME).bounding_box()
    spots = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, stop)]
    page.mouse.move(*spots[0])
    page.mouse.down()
    page.mouse.move(*spots[1], steps=4)
    page.mouse.up()


def edit(page, count):
    page.click("#edit-start")
    page.wait_for_function(
        "count => document.querySelectorAll('#edit-panel .ed-rail li').length === count", arg=count, timeout=WAIT_MS
    )


def test_a_rectangle_is_drawn_moved_resized_and_typed(open_board):
    page = open_board()
    choose(page, "black")
    drag(page, (0.02, 0.02), (0.2, 0.1))
    wait_for_line(page, "image 3: black 0,0,16,16")
    drag(page, (0.1, 0.1), (0.62, 0.62))
    wait_for_line(page, "image 3: black 32,32,48,48")
    drag(page, (0.75, 0.75), (0.99, 0.9))
    wait_for_line(page, "image 3: black 32,32,64,64")
    page.mouse.move(
        *(lambda b: (b["x"] + 0.3 * b["width"], b["y"] + 0.3 * b["height"]))(page.locator(FRAME).bounding_box())
    )
    page.mouse.down()
    page.mouse.up()
    wait_for_line(page, "image 3: black 16,16,32,32")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowDown")
    wait_for_line(page, "image 3: black 0,16,16,48")
    page.uncheck("#edit-board .vlm-ed-snap input")
    page.locator(FRAME).focus()
    page.keyboard.press("ArrowRight")
    wait_for_line(page, "image 3: black 1,16,17,48")
    page.fill("#edit-board .vlm-ed-side >> nth=2", "900")
    page.keyboard.press("Tab")
    wait_for_line(page, "image 3: black 1,16,64,48")
    choose(page, "paste")
    page.select_option("#edit-board select", "1")
    wait_for_line(page, "image 3: paste 1,16,64,48 from image 2")
    assert page.errors == []


def test_edits_add_up_are_taken_back_and_go_with_the_answer(open_board):
    page = open_board()
    choose(page, "black")
    drag(page, (0.02, 0.02), (0.9, 0.9))
    wait_for_line(page, "image 3: black 0,0,64,64")
    edit(page, 1)
    page.wait_for_function("document.querySelector('#edit-board img').src.startsWith('data:')")
    shown = page.inner_text("#edit-panel")
    assert "yellow" in shown and "nats" in shown and "--edit 'image 3: black 0,0,64,64'" in shown
    before = page.get_attribute("#edit-board img", "src")
    choose(page, "paste")
    wait_for_line(page, "image 3: paste 0,0,64,64 from image 2")
    edit(page, 2)
    page.wait_for_function("before => document.querySelector('#edit-board img').src !== before", arg=before)
    assert page.inner_text("#edit-panel .ed-cards figure:nth-child(2) b") == "blue"
    page.click("#edit-undo")
    page.wait_for_function("document.querySelectorAll('#edit-panel .ed-rail li').length === 1")
    assert page.get_attribute("#edit-board img", "src") == before
    page.fill(LINE, "image 3: black 5,5,5,9")
    page.click("#edit-start")
    page.wait_for_selector("#edit-note li:has-text('no size')")
    assert page.locator("#edit-panel .ed-rail li").count() == 1
    page.fill(QUESTION, "In image 1, what colour is the shape?")
    ask(page)
    page.wait_for_function("!document.querySelector('#edit-panel .ed-cards')", timeout=WAIT_MS)
    assert page.get_attribute("#edit-board img", "src") != before
    assert page.errors == []


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 390)])
def test_nothing_scrolls_sideways_and_axe_finds_nothing_serious(open_board, dark, width):
    page = open_board(dark=dark, width=width)
    edit(page, 1)
    edit(page, 2)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert_nothing_serious(page)
    assert page.errors == []
