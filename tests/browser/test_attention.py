"""The tab “Attention” in a real Chromium: the map that is the control, the small maps, stretches, and the other side."""

import pytest

from tests.browser.steps import OPENED, WAIT_MS, assert_nothing_serious, open_tab

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

HEAT = "label => window.vlmBus.heat.label === label"


@pytest.fixture
def open_board(new_page, app_url):
    def open_it(dark=False, **options):
        page = new_page(dark=dark, **options)
        page.goto(f"{app_url}?__theme={'dark' if dark else 'light'}")
        page.wait_for_selector(OPENED, timeout=WAIT_MS)
        open_tab(page, "Attention")
        page.locator("#own-scale").scroll_into_view_if_needed()
        page.wait_for_selector("#head-board .vlm-mini-map", timeout=WAIT_MS)
        return page

    return open_it


def picked(page):
    return page.input_value("#layer input"), page.input_value("#head input")


def test_a_square_of_the_map_and_a_small_map_choose_the_head_that_is_shown(open_board):
    page = open_board()
    page.click("#head-board .vlm-cell[data-layer='2'][data-head='3']")
    page.wait_for_function(HEAT, arg="layer 2, head 3", timeout=WAIT_MS)
    page.wait_for_function("document.querySelector('#layer input').value === '2'", timeout=WAIT_MS)
    assert picked(page) == ("2", "3")
    assert "(layer 2, head 3)" in page.inner_text("#attention-summary")
    assert "layer 2, head 3" in page.inner_text("#head-board .vlm-large")
    page.click("#head-board .vlm-mini-map[data-layer='1'][data-head='0']")
    page.wait_for_function(HEAT, arg="layer 1, head 0", timeout=WAIT_MS)
    # What is chosen stays marked, also by the pickers, once it is drawn anew.
    page.click("#strip .tok >> nth=30")
    page.wait_for_function("window.vlmBus.heat.from === window.vlmBus.position", timeout=WAIT_MS)
    page.locator("#own-scale").scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    assert page.get_attribute("#head-board .vlm-cell.vlm-picked", "data-layer") == "1"
    assert page.errors == []


def test_arrows_move_over_the_map_and_escape_gives_the_mean(open_board):
    page = open_board()
    page.focus("#head-board .vlm-heads")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    page.wait_for_function(HEAT, arg="layer 1, head 0", timeout=WAIT_MS)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(HEAT, arg="layer 0, mean over heads", timeout=WAIT_MS)
    page.keyboard.press("Escape")
    page.wait_for_function(HEAT, arg="mean over layers and heads", timeout=WAIT_MS)
    assert page.evaluate("window.vlmBus.position") is not None
    page.focus("#head-board .vlm-mini-map.vlm-picked, #head-board .vlm-mini-map[tabindex='0']")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_function(HEAT, arg="layer 1, head 1", timeout=WAIT_MS)
    assert page.errors == []


def test_small_maps_are_sorted_by_share_and_the_map_is_coloured_by_another_number(open_board):
    page = open_board()
    shares = "[...document.querySelectorAll('#head-board .vlm-mini-map b')].map(one => parseFloat(one.textContent.replace('<', '')))"
    assert page.evaluate(shares) != sorted(page.evaluate(shares), reverse=True)
    # Not under the strip, which stays at the window's top.
    page.locator("#head-board").evaluate("board => board.scrollIntoView({ block: 'center' })")
    page.check("#head-board input[value=share]", force=True)
    assert page.evaluate(shares)[:4] == sorted(page.evaluate(shares), reverse=True)[:4]
    colours = "[...document.querySelectorAll('#head-board .vlm-cell')].map(cell => cell.style.background).join()"
    before = page.evaluate(colours)
    page.check("#head-board .vlm-board-map input[value='1']", force=True)
    assert page.evaluate(colours) != before
    assert "nats" in page.inner_text("#head-board .vlm-board-map")
    assert page.errors == []


def test_shift_and_two_numbers_select_a_stretch(open_board):
    page = open_board()
    text = page.locator("#strip .tok.k-text")
    first, last = (int(text.nth(n).get_attribute("data-p")) for n in (2, 6))
    text.nth(6).click()
    text.nth(2).click(modifiers=["Shift"])
    page.wait_for_function(
        "([first, last]) => vlmBus.heat.first === first && vlmBus.heat.from === last",
        arg=[first, last],
        timeout=WAIT_MS,
    )
    assert page.locator("#strip .vlm-also").count() == 5
    page.wait_for_function("n => document.querySelector('#stretch-first input').value === String(n)", arg=first)
    page.keyboard.press("Shift+ArrowLeft")
    page.wait_for_function("first => vlmBus.heat.first === first", arg=first - 1, timeout=WAIT_MS)
    page.fill("#stretch-first input", "3")
    page.fill("#stretch-last input", "5")
    page.click("#stretch-look")
    page.wait_for_function("vlmBus.heat.first === 3 && vlmBus.heat.from === 5", timeout=WAIT_MS)
    page.locator("#strip .tok >> nth=0").click()
    page.wait_for_function("vlmBus.heat.first === 0 && vlmBus.heat.from === 0", timeout=WAIT_MS)
    assert page.locator("#strip .vlm-also").count() == 0
    assert page.errors == []


def test_the_other_side_shows_who_looks_at_a_cell_and_goes_with_the_next_answer(open_board):
    page = open_board()
    cell = page.evaluate("vlmBus.images[2].tiles[0].start + 5")
    page.evaluate(
        "cell => { document.dispatchEvent(new CustomEvent('vlm:select', {detail: {position: (vlmBus.position = cell), origin: 'page'}})); }",
        cell,
    )
    page.wait_for_function("cell => vlmBus.heat.from === cell", arg=cell, timeout=WAIT_MS)
    page.get_by_label("which later tokens look at it").check()
    page.wait_for_function("vlmBus.heat.readers", timeout=WAIT_MS)
    # Nothing that stands before the cell can look at it, and what comes behind does.
    assert page.evaluate("cell => Math.max(...vlmBus.heat.values.slice(0, cell))", cell) == 0
    assert page.evaluate("cell => Math.max(...vlmBus.heat.values.slice(cell + 1))", cell) > 0
    page.get_by_role("tab", name="Patches").click()
    page.click("#readers-start")
    page.wait_for_selector("#readers-panel table", timeout=WAIT_MS)
    page.click("#ask")
    page.wait_for_function("vlmBus.heat && !vlmBus.heat.readers", timeout=WAIT_MS)
    page.wait_for_function("!document.querySelector('#readers-panel table')", timeout=WAIT_MS)
    page.get_by_role("tab", name="Attention").click()
    assert page.get_by_label("what it looks at").is_checked()
    assert page.errors == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_scrolls_sideways_and_axe_finds_nothing_serious(open_board, dark, width):
    page = open_board(dark, width=width)
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 2", timeout=WAIT_MS)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert_nothing_serious(page)
