"""What a person does with the page, in a real Chromium."""

import json
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from inspector import ui
from inspector.row import ask as ask_module
from tests.browser.steps import OPENED, QUESTION, ask, assert_nothing_serious, open_tab, wait_for_images

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def open_page(new_page, app_url):
    def open_it(dark=False, **options):
        page = new_page(dark=dark, **options)
        page.goto(f"{app_url}?__theme={'dark' if dark else 'light'}")
        page.wait_for_selector(OPENED, timeout=60_000)
        return page

    return open_it


def run_example(page, name):
    page.click(f"#example-{name}")
    files = f"{name}-1.png"
    page.wait_for_function(
        "name => document.querySelector('#viewer')?.innerText.includes(name)", arg=files, timeout=60_000
    )
    page.wait_for_timeout(500)


def test_something_real_is_there_when_the_page_opens(open_page):
    page = open_page()
    assert "In image 3, what colour is the shape?" in page.inner_text("#answer")
    assert page.locator("#viewer figure").count() == 3
    assert "attention of token" in page.inner_text("#viewer")
    open_tab(page, "Attention")
    page.wait_for_selector("#attention-summary >> text=attention of token", timeout=60_000)
    assert page.errors == []
    assert page.requests_out == []


def test_a_token_lights_its_cell_and_a_cell_its_token(open_page):
    page = open_page()
    page.click("#strip .chip >> nth=1")  # unfolds image 2
    page.locator("#strip .tok.k-image >> nth=5").click()
    readout = page.inner_text("#readout")
    assert "image 2" in readout
    assert "row 2, column 2" in readout
    canvas = page.locator("#viewer canvas >> nth=2")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.1})
    readout = page.inner_text("#readout")
    assert "image 3" in readout
    assert "row 1, column 4" in readout
    open_tab(page, "Attention")
    page.wait_for_selector("#attention-summary", timeout=60_000)
    page.wait_for_function(
        "document.querySelector('#attention-summary').innerText.includes(`token ${vlmBus.position} `)", timeout=60_000
    )
    assert page.errors == []


def test_the_plots_follow_the_selection_and_the_next_answer(open_page):
    page = open_page()
    open_tab(page, "Attention")
    plots = "[...document.querySelectorAll('.js-plotly-plot')]"
    numbers = (
        f"[...{plots}.map(plot => JSON.stringify(plot.data.map(trace => trace.y))), "
        "[...document.querySelectorAll('#head-board .vlm-cell')].map(cell => cell.style.background).join()]"
    )
    changed = f"known => {numbers}.length === 3 && {numbers}.every((one, n) => one !== known[n])"

    def look_until_changed(known):
        page.locator("#own-scale").scroll_into_view_if_needed()
        page.wait_for_function(changed, arg=known, timeout=60_000)
        return page.evaluate(numbers)

    answer = look_until_changed(["", "", ""])
    page.locator("#strip .tok >> nth=0").click()
    first = look_until_changed(answer)
    page.fill(QUESTION, "In image 2, what shape is it?")
    ask(page)
    assert look_until_changed(first) != answer
    assert page.errors == []


def test_what_is_slow_to_draw_waits_until_somebody_looks_and_is_the_newest_then(open_page):
    page = open_page(height=640)  # the board stands below it
    page.wait_for_timeout(1500)
    drawn = []
    page.on("request", lambda request: drawn.append(request) if "/queue/join" in request.url else None)
    page.evaluate("document.querySelector('#strip .tok').click()")
    page.wait_for_function("vlmBus.heat.selected === 0", timeout=60_000)
    page.wait_for_timeout(500)
    assert len(drawn) == 1
    with page.expect_request(lambda request: "/queue/join" in request.url, timeout=60_000):
        open_tab(page, "Attention")
    page.wait_for_selector("#head-board .vlm-cell", timeout=60_000)
    # The plots stand below the maps and wait, too.
    page.wait_for_timeout(500)
    assert len(drawn) == 2
    to_the_end = "window.scrollTo(0, document.documentElement.scrollHeight)"
    page.evaluate(to_the_end)
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 2", timeout=60_000)
    assert len(drawn) == 3
    # The first token sees nothing but itself: no layer and no head gives an image anything.
    colours = "[...document.querySelectorAll('#head-board .vlm-cell')].map(cell => cell.style.background)"
    assert set(page.evaluate(colours)) == {"rgb(68, 1, 84)"}
    page.get_by_role("tab", name="Batch").click()
    page.wait_for_selector("#batch-rows .vi-scroll", timeout=60_000)
    assert len(drawn) == 4
    # Back on the tab nothing is newer.
    page.get_by_role("tab", name="Attention").click()
    page.wait_for_timeout(500)
    assert len(drawn) == 4
    # What is older than the selection steps back until it is looked at again.
    look = "getComputedStyle(document.querySelector('.js-plotly-plot').closest('.row')).opacity"
    assert page.evaluate(look) == "1"
    open_tab(page, "Batch")
    page.evaluate("document.querySelectorAll('#strip .tok')[1].click()")
    page.wait_for_function(f"{look} === '0.35'", timeout=60_000)
    open_tab(page, "Attention")
    page.evaluate(to_the_end)
    page.wait_for_function(f"{look} === '1'", timeout=60_000)
    assert len(drawn) == 7
    # Another scale is drawn though it may come to the same numbers for the heat.
    before = page.evaluate("window.before = vlmBus.heat")
    with page.expect_request(lambda request: "/queue/join" in request.url and len(drawn) == 9, timeout=60_000):
        page.check("#own-scale input")
    assert page.evaluate("vlmBus.heat !== before && vlmBus.heat.max") == before["max"]
    assert page.errors == []


@pytest.fixture
def slow_attend(monkeypatch):
    """Reading attention takes a while, so that a person is faster."""
    attend = ui.attend

    def slowly(*arguments, **options):
        time.sleep(0.7)
        return attend(*arguments, **options)

    monkeypatch.setattr(ui, "attend", slowly)


def test_the_last_of_several_quick_selections_and_choices_is_the_one_that_is_shown(open_page, slow_attend):
    page = open_page()
    open_tab(page, "Attention")
    for token in ("#strip .tok >> nth=0", "#strip .tok >> nth=1", "#strip .tok.trained >> nth=1"):
        page.locator(token).click()
        # Longer than the strip waits for the next one.
        page.wait_for_timeout(200)
    answer = page.evaluate("vlmBus.position")
    page.wait_for_function("answer => vlmBus.heat.selected === answer", arg=answer, timeout=60_000)
    summary = "said => document.querySelector('#attention-summary').innerText.includes(said)"
    page.wait_for_function(summary, arg=f"token {answer - 1} ", timeout=60_000)
    for change, box in (
        (page.check, "exclude-sinks"),
        (page.check, "own-scale"),
        (page.check, "own-row"),
        (page.uncheck, "exclude-sinks"),
    ):
        change(f"#{box} input")
    page.wait_for_function("answer => vlmBus.heat.from === answer", arg=answer, timeout=60_000)
    page.wait_for_function(summary, arg="Sinks (included)", timeout=60_000)
    assert page.evaluate("vlmBus.heat.shared") is False
    assert page.errors == []


@pytest.fixture
def slow_generate(monkeypatch):
    """A second between tokens, and before the first."""
    answer = ask_module.answer_row

    def slowly(*arguments, **options):
        for step in answer(*arguments, **options):
            time.sleep(1)
            yield step

    monkeypatch.setattr(ask_module, "answer_row", slowly)


def stop(page):
    """Until it has come to the server: a step that is being computed can't be broken off."""
    with page.expect_response(lambda response: "/cancel" in response.url, timeout=60_000):
        page.click("#stop")


def test_stop_keeps_the_answer_as_far_as_it_came_and_looks_at_it(open_page, slow_generate):
    page = open_page()
    assert "yellow" in page.inner_text("#answer .vi-last .vi-answer")
    page.fill(QUESTION, "Describe the shapes in image 1.")
    page.click("#ask")
    # The question is there at once, with nothing said yet.
    page.wait_for_function("document.querySelector('#answer .vi-answer').innerText === '…'", timeout=60_000)
    page.wait_for_function("document.querySelectorAll('#answer .vi-token').length === 2", timeout=60_000)
    stop(page)
    page.wait_for_selector(
        "#ask-note >> text=/^Stopped after [23] tokens; this is the answer as far as it came.$/", timeout=60_000
    )
    said = page.inner_text("#answer .vi-last .vi-answer")
    count = page.locator("#answer .vi-last button.vi-token").count()
    assert count in (2, 3)
    assert "p of each token" in said
    # The tokens are those of this answer, and each of its tokens has its place among them.
    page.wait_for_function(
        "vlmBus.row.texts && [...document.querySelectorAll('#strip .tok')]"
        ".some(one => one.textContent.includes('Describe'))",
        timeout=60_000,
    )
    words = page.eval_on_selector_all(
        "#answer .vi-last button.vi-token", "all => all.map(one => [Number(one.dataset.vlmPosition), one.textContent])"
    )
    for position, word in words:
        assert page.evaluate("place => vlmBus.row.text(place)", position) == word
    # Stopped before its first token: what was there stays, and it can be asked again.
    page.fill(QUESTION, "In image 2, what shape is it?")
    page.click("#ask")
    page.wait_for_function("document.querySelector('#answer .vi-answer').innerText === '…'", timeout=60_000)
    stop(page)
    page.wait_for_selector("#ask-note >> text=Stopped before the first token", timeout=60_000)
    assert "Describe the shapes in image 1." in page.inner_text("#answer")
    # An example can be stopped as well.
    page.click("#example-five")
    page.wait_for_function("document.querySelectorAll('#answer .vi-token').length === 1", timeout=60_000)
    stop(page)
    page.wait_for_function("document.querySelectorAll('#viewer figure').length === 5", timeout=60_000)
    assert "Stopped after" in page.inner_text("#ask-note")
    ask(page)
    assert page.errors == []


def test_a_turn_is_added_by_every_click_and_taken_away_again(open_page):
    page = open_page()
    turns = "count => [...document.querySelectorAll('[id^=question-]')].filter(one => one.checkVisibility()).length === count"
    page.dblclick("#add-turn")
    page.wait_for_function(turns, arg=3, timeout=60_000)
    page.dblclick("#drop-turn")
    page.wait_for_function(turns, arg=1, timeout=60_000)
    assert page.errors == []


def test_selecting_works_without_the_server(open_page):
    page = open_page()
    page.context.set_offline(True)
    page.locator("#strip .tok >> nth=0").click()
    assert "<|im_start|>" in page.inner_text("#readout")


def test_keyboard_moves_opens_and_finds(open_page):
    page = open_page()
    page.locator("#strip .tok >> nth=0").click()
    page.keyboard.press("ArrowRight")
    assert "user" in page.inner_text("#readout")
    # Escape clears from wherever the keys go, but not while something is typed.
    page.locator("#ask").focus()
    page.keyboard.press("Escape")
    assert page.evaluate("vlmBus.position") is None
    page.locator("#strip .tok >> nth=0").click()
    page.locator(QUESTION).focus()
    page.keyboard.press("Escape")
    page.keyboard.type("/")
    assert page.evaluate("vlmBus.position") == 0
    assert page.input_value(QUESTION).count("/") == 1
    page.locator("#strip .tok >> nth=0").focus()
    page.keyboard.press("/")
    page.keyboard.type("colour")
    page.keyboard.press("Enter")
    assert "colour" in page.inner_text("#readout")
    folded = page.locator("#strip .tok.k-image").count()
    page.locator("#strip .chip >> nth=0").focus()
    page.keyboard.press("Enter")
    assert page.locator("#strip .tok.k-image").count() == folded + 16
    viewer = page.locator("#viewer canvas >> nth=0")
    viewer.focus()
    page.keyboard.press("ArrowRight")
    readout = page.inner_text("#readout")
    assert "image 1" in readout
    assert "row 1, column 1" in readout
    selected = page.evaluate("vlmBus.position")
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate("vlmBus.position") == selected
    page.keyboard.press("ArrowDown")
    assert "row 2, column 2" in page.inner_text("#readout")


@pytest.mark.parametrize("mode", ["label", "mask", "loss", "attention"])
def test_colourings(open_page, mode):
    page = open_page()
    page.check(f"#strip input[value={mode}]")
    css = {"label": ".trained", "mask": ".seen", "loss": ".hot", "attention": ".hot"}[mode]
    assert page.locator(f"#strip .line {css}").count() >= 3


def test_packed_row_names_its_separators_and_the_batch_its_padding(open_page):
    page = open_page()
    run_example(page, "packed")
    assert page.locator("#strip .k-separator").count() >= 2
    page.get_by_role("tab", name="Batch").click()
    page.get_by_label("one sample per turn, padded").check()
    page.wait_for_function("document.querySelectorAll('#batch-rows .vi-scroll').length === 3", timeout=60_000)
    assert "✓" in page.inner_text("#lint")
    page.click("#make-files")
    page.wait_for_selector("#batch-files a", timeout=60_000)
    text = page.inner_text("#batch-files")
    assert "batch.json" in text.replace("\n", "")
    assert page.errors == []


def test_images_are_added_moved_and_removed(open_page, tmp_path):
    page = open_page()
    page.click("#clear-images")
    # The field that is there before is another one than the one after.
    wait_for_images(page, 0)
    paths = []
    for number, (colour, size) in enumerate((("red", (90, 90)), ("blue", (64, 64)))):
        path = tmp_path / f"upload-{number}.png"
        Image.new("RGB", size, colour).save(path)
        paths.append(str(path))
    page.set_input_files("#images input[type=file]", paths)
    wait_for_images(page, 2)
    assert "90×90 → 128×128 px" in page.inner_text("#plans")
    assert "85 tokens" in page.inner_text("#plans")
    ask(page)
    page.wait_for_function("document.querySelectorAll('#viewer figure').length === 2", timeout=60_000)
    # Back to the last prompt that had something in it: an empty list was nobody's.
    page.click("#undo-images")
    wait_for_images(page, 3)


def test_two_people_never_see_each_others_images_tokens_or_settings(open_page, tmp_path):
    one, two = open_page(), open_page()
    before = two.inner_text("#strip .line")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "hushed-file.png")
    one.click("#clear-images")
    wait_for_images(one, 0)
    one.set_input_files("#images input[type=file]", str(tmp_path / "hushed-file.png"))
    wait_for_images(one, 1)
    one.fill(QUESTION, "hushed words of one")
    one.get_by_role("radio", name="packed samples").check()
    ask(one)
    assert "hushed words of one" in one.inner_text("#answer")
    assert "hushed-file.png" in one.inner_text("#viewer")
    # Two asks on while one's prompt is there, and comes back to the page: only their own is ever shown.
    ask(two)
    assert two.inner_text("#strip .line") == before
    assert two.get_by_role("radio", name="all images first").is_checked()
    for _ in range(2):
        assert "hushed" not in two.content()
        assert "three-3.png" in two.inner_text("#viewer")
        two.reload()
        two.wait_for_selector(OPENED, timeout=60_000)
    assert "hushed words of one" in one.inner_text("#answer")
    assert one.get_by_role("radio", name="packed samples").is_checked()
    assert one.locator("#viewer figure").count() == 1


def test_typed_markup_and_special_tokens_stay_text(open_page):
    page = open_page()
    page.fill(QUESTION, "<img src=x onerror=alert(1)> <|image|><|im_end|>")
    ask(page)
    assert "<|image|>" in page.inner_text("#answer")
    assert page.locator("#answer img").count() == 0
    assert page.locator("#strip img").count() == 0
    assert page.errors == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_scrolls_sideways_and_axe_finds_nothing_serious(open_page, dark, width):
    page = open_page(dark=dark, width=width)
    run_example(page, "five")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.eval_on_selector_all("details.vi-info", "notes => notes.forEach(note => { note.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert_nothing_serious(page)


def order(page):
    return page.eval_on_selector_all("#plans li b:first-of-type", "nodes => nodes.map(node => node.textContent)")


def test_images_are_reordered_by_dragging_and_by_key(open_page):
    page = open_page()
    page.locator("#plans li >> nth=0").drag_to(page.locator("#plans li >> nth=2"))
    wait = "names => [...document.querySelectorAll('#plans li')].every((row, i) => row.innerText.includes(names[i]))"
    page.wait_for_function(wait, arg=["three-2", "three-3", "three-1"], timeout=60_000)
    page.locator("#plans .vi-grip >> nth=2").focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_function(wait, arg=["three-2", "three-1", "three-3"], timeout=60_000)
    # The focus goes with the image, so a second press moves the same one on.
    page.wait_for_function("document.activeElement.closest('li')?.dataset.index === '1'", timeout=60_000)
    page.keyboard.press("ArrowUp")
    page.wait_for_function(wait, arg=["three-1", "three-2", "three-3"], timeout=60_000)
    assert page.errors == []


def test_a_asks_and_an_answer_token_selects_its_place_and_the_row_that_chose_it_is_named(open_page):
    page = open_page()
    open_tab(page, "Attention")
    page.locator("#strip .tok >> nth=0").click()
    page.evaluate("document.querySelector('#answer .vi-answers').dataset.stale = 'yes'")
    page.keyboard.press("a")
    page.wait_for_function(
        "!document.querySelector('#answer .vi-answers').dataset.stale && document.querySelector('#answer button')",
        timeout=60_000,
    )
    page.click("#answer button.vi-token >> nth=0")
    place = int(page.get_attribute("#answer button.vi-token >> nth=0", "data-vlm-position"))
    page.wait_for_function("place => vlmBus.position === place && vlmBus.heat.from === place - 1", arg=place)
    assert f"token {place - 1}, whose output chose token {place}" in page.inner_text("#viewer")
    page.wait_for_function("document.querySelector('#attention-summary').innerText.includes('whose output chose')")
    page.check("#own-row input")
    page.wait_for_function("place => vlmBus.heat.from === place", arg=place)
    assert page.evaluate("vlmBus.position") == place
    # Typing the letter is typing.
    page.fill(QUESTION, "")
    page.type(QUESTION, "a banana")
    assert page.input_value(QUESTION) == "a banana"


def test_every_panel_says_how_it_was_computed_and_what_it_cannot_show(open_page):
    page = open_page()
    tabs = {"Attention": "#own-scale", "Patches": "#words-start", "Batch": "#lint"}
    for tab, drawn in tabs.items():
        open_tab(page, tab)
        page.wait_for_selector(drawn, timeout=60_000)
    open_tab(page, "See")
    named = page.eval_on_selector_all("details.vi-info summary", "nodes => nodes.map(node => node.ariaLabel)")
    panels = ["Lessons", "Prompt", "Answer", "Seen or guessed", "Images", "Selected token", "Tokens", "Attention"]
    panels += ["Layers × heads", "Words on patches", "Who looks at it", "Edit the picture", "Batch"]
    assert sorted(name.split(":")[0] for name in named if name) == sorted(panels)
    note = page.locator("#strip details.vi-info")
    note.locator("summary").focus()
    page.keyboard.press("Enter")
    assert note.locator("p").is_visible()
    assert "not what the answer depends on" in note.inner_text()
    selected = page.evaluate("vlmBus.position")
    page.keyboard.press("Escape")
    assert not note.locator("p").is_visible()
    assert page.evaluate("document.activeElement.closest('details') !== null")
    # The first Escape closed the note and left the selection.
    assert page.evaluate("vlmBus.position") == selected
    note.locator("summary").click()
    page.click("#answer")
    assert not note.locator("p").is_visible()


def test_export_downloads_the_facts_and_share_gives_the_command_that_repeats_them(open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    with page.expect_download(timeout=60_000) as download:
        page.click("#export")
    assert download.value.suggested_filename == "inspection.json"
    facts = json.loads(Path(download.value.path()).read_text())
    assert facts["turns"][0]["user"] == "In image 3, what colour is the shape?"
    assert facts["sequence"]["length"] == page.evaluate("vlmBus.row.n")
    page.click("#share")
    page.wait_for_selector("#share-command textarea, #share-command input", timeout=60_000)
    line = (
        "python -m inspector inspect --image three-1.png --image three-2.png --image three-3.png "
        "--ask 'In image 3, what colour is the shape?' --json -"
    )
    assert page.input_value("#share-command textarea, #share-command input") == line
    page.wait_for_function(
        "line => navigator.clipboard.readText().then(text => text === line)", arg=line, timeout=60_000
    )
    with page.expect_download(timeout=60_000) as download:
        page.click("#bundle")
    assert download.value.suggested_filename == "vlm-inspector.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        assert {"1-three-1.png", "study.ipynb", "commands.txt", "inspection.json"} <= set(archive.namelist())
    assert page.errors == []


def test_an_image_is_removed_by_its_own_button_and_comes_back_by_undo(open_page):
    page = open_page()
    names = "names => JSON.stringify(names) === JSON.stringify([...document.querySelectorAll('#plans li b')].map(b => b.textContent))"
    page.click("#plans .vi-remove >> nth=1")
    page.wait_for_function(names, arg=["three-1.png", "three-3.png"], timeout=60_000)
    page.wait_for_function("document.activeElement.ariaLabel === 'Remove image 2, three-3.png'", timeout=60_000)
    page.click("#undo-images")
    page.wait_for_function(names, arg=["three-1.png", "three-2.png", "three-3.png"], timeout=60_000)
    for left in (2, 1, 0):
        page.click("#plans .vi-remove >> nth=0")
        wait_for_images(page, left)
    # The way in is there again.
    page.wait_for_selector("#images button", timeout=60_000)
    assert page.locator("#images").is_visible()
    assert page.errors == []
