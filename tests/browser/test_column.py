"""The prompt's column at the sizes of screens that it is shown on: Ask and Stop never leave its foot, and everything
above them can be reached."""

import pytest

from inspector.views.prompt import MAX_TURNS
from model.training.synthetic.examples import EXAMPLES
from tests.browser.steps import OPENED, WAIT_MS, wait_for_images

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SIZES = ((1920, 1080), (1440, 900), (1366, 768), (1280, 720), (1024, 768))
PHONE = (390, 844)

FAULTS = """
async () => {
    const column = document.querySelector(".vi-prompt"), faults = [];
    const name = node => node.id || node.ariaLabel || node.textContent.trim() || node.tagName;
    const inside = (box, frame) => box.left >= frame.left - 1 && box.right <= frame.right + 1
        && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
    const on_top = node => {
        const box = node.getBoundingClientRect();
        const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
        return top !== null && (node.contains(top) || top.closest("label")?.contains(node) === true);
    };
    const wide = document.documentElement;
    if (wide.scrollWidth > innerWidth) faults.push(`the page is ${wide.scrollWidth} px wide`);
    for (const node of [column, ...column.querySelectorAll(":scope > *, :scope > * > *")])
        if (node.clientWidth && node.scrollWidth > node.clientWidth)
            faults.push(`${node.className} is ${node.scrollWidth} px wide in ${node.clientWidth} px`);
    const foot = ["#ask", "#stop"].map(id => document.querySelector(id));
    const look_at_foot = when => {
        if (innerWidth < 900) return;
        for (const button of foot) {
            const box = button.getBoundingClientRect();
            if (!inside(box, { left: 0, top: 0, right: innerWidth, bottom: innerHeight })) faults.push(`${name(button)} is outside the window ${when}`);
            if (!inside(box, column.getBoundingClientRect())) faults.push(`${name(button)} is outside the column ${when}`);
            if (!on_top(button)) faults.push(`${name(button)} is covered ${when}`);
        }
    };
    scrollTo(0, 0);
    // Opening the settings may have scrolled the page; the column hears of the way back with the next frame.
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    look_at_foot("at first");
    const controls = [...column.querySelectorAll("button, input, textarea, summary")]
        .filter(node => node.checkVisibility() && node.getBoundingClientRect().width > 1);
    for (const control of controls) {
        control.scrollIntoView({ block: innerWidth < 900 ? "center" : "nearest" });
        if (!on_top(control)) faults.push(`${name(control)} is covered after scrolling to it`);
    }
    look_at_foot("after scrolling in the column");
    return { faults, controls: controls.length };
}
"""


@pytest.fixture
def page(new_page, app_url):
    page = new_page(1440, 900)
    page.goto(app_url)
    page.wait_for_selector(OPENED, timeout=WAIT_MS)
    return page


def resize(page, size):
    """Until the column has been fitted to the new window."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.evaluate(
        "() => new Promise(done => { scrollTo(0, 0); requestAnimationFrame(() => requestAnimationFrame(done)); })"
    )


def open_settings(page, wanted):
    slider = page.locator(".vi-prompt input[type=range] >> nth=0")
    if slider.is_visible() != wanted:
        page.locator(".vi-prompt").get_by_role("button", name="Generation settings").click()
        slider.wait_for(state="visible" if wanted else "hidden", timeout=WAIT_MS)


def look_at_all_sizes(page, least):
    """``least``: so many controls the column has at the least, so that a test which finds none can't pass."""
    for opened in (False, True):
        for size in (*SIZES, PHONE):
            resize(page, size)
            open_settings(page, opened)
            found = page.evaluate(FAULTS)
            where = f"{size[0]}x{size[1]}, settings {'open' if opened else 'closed'}"
            assert found["faults"] == [], where
            assert found["controls"] >= least + (5 if opened else 0), where


def test_ask_stays_at_the_foot_of_the_column_and_all_above_it_can_be_reached_in_every_example(page):
    for example in EXAMPLES:
        resize(page, SIZES[0])
        page.click(f"#example-{example.name}")
        page.wait_for_selector(f"#plans li b[title='{example.name}-1.png']", timeout=WAIT_MS)
        # Three buttons and one per image, two fields per turn and their two buttons, three layouts, settings, Ask, Stop.
        look_at_all_sizes(page, 3 + len(example.draw_images()) + 2 * len(example.turns) + 2 + 3 + 1 + 2)
    assert page.errors == []


def test_the_fullest_prompt_leaves_ask_in_sight_and_its_note_readable(page):
    page.click("#example-five")
    wait_for_images(page, 5)
    for turn in range(2, MAX_TURNS + 1):
        page.click("#add-turn")
        page.wait_for_selector(f"#question-{turn}", state="visible", timeout=WAIT_MS)
    look_at_all_sizes(page, 3 + 5 + 2 * 6 + 2 + 3 + 1 + 2)
    # The later turns have no question, which is said below the button that was pressed.
    resize(page, (1280, 720))
    page.click("#ask")
    page.wait_for_selector("#ask-note li", state="visible", timeout=WAIT_MS)
    look_at_all_sizes(page, 3 + 5 + 2 * 6 + 2 + 3 + 1 + 2)
    for size in SIZES:
        resize(page, size)
        box, said = page.locator("#ask-note").bounding_box(), page.locator("#ask-note li").bounding_box()
        assert box["y"] + box["height"] <= size[1]
        assert said["height"] <= box["height"]
        assert said["width"] >= 300
    assert page.errors == []


def test_the_foot_follows_the_window_when_the_page_or_what_is_above_the_column_changes(page):
    page.click("#example-per-turn")
    page.wait_for_selector("#plans li b[title='per-turn-1.png']", timeout=WAIT_MS)
    page.wait_for_function("document.querySelector('#viewer').innerText.includes('per-turn-1.png')", timeout=WAIT_MS)
    foot = "Math.round(document.querySelector('#ask').getBoundingClientRect().bottom)"
    at_foot = f"() => Math.abs(innerHeight - 8 - {foot}) <= 1"
    page.wait_for_function(at_foot, timeout=WAIT_MS)
    # The line that Share shows pushes the column down.
    page.click("#share")
    page.wait_for_selector("#share-command textarea, #share-command input", timeout=WAIT_MS)
    page.wait_for_function(at_foot, timeout=WAIT_MS)
    page.evaluate("scrollTo(0, 400)")
    page.wait_for_function(at_foot, timeout=WAIT_MS)
    assert page.evaluate("document.querySelector('.vi-prompt').getBoundingClientRect().top") == 8
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_function(f"() => {foot} <= innerHeight && {foot} > innerHeight - 200", timeout=WAIT_MS)
    assert page.errors == []


def test_the_note_of_the_prompt_is_not_cut_off(page):
    page.locator(".vi-prompt .vi-info summary").click()
    box = page.locator(".vi-prompt .vi-info > p").bounding_box()
    assert box["width"] == 400
    for x in (box["x"] + 4, box["x"] + box["width"] - 4):
        for y in (box["y"] + 4, box["y"] + box["height"] - 4):
            assert page.evaluate(
                "([x, y]) => document.elementFromPoint(x, y).closest('.vi-prompt .vi-info') !== null", [x, y]
            )
