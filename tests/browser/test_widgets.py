"""The three widgets in a real browser, over a row of 3,000 tokens and five images that no model had to read."""

import base64
import io
import json
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from inspector.widgets import HeadBoard, ImageViewer, Readout, TokenStrip, encode

# Gradio leaves its port probe to the garbage collector and sets a pandas option that pandas has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
]

CELLS, PIXEL = (
    8,
    "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw==",
)
GRIDS = [(2, 3), (1, 1), (3, 2), (2, 2), (1, 3)]
EVIL = "<img src=x onerror='window.hacked=1'>"


class Row:
    """A row under construction: positions are counted, runs and texts coded, as the widgets want them."""

    def __init__(self):
        self.ids, self.spans, self.texts = [], [], {"1": "<|im_start|>", "2": "<|im_end|>", "3": "<|image|>"}
        self.trained, self.loss, self.tiles = [], [], {}

    def word(self, text):
        found = [token for token, known in self.texts.items() if known == text]
        return (
            int(found[0]) if found else self.texts.setdefault(str(len(self.texts) + 20), text) and len(self.texts) + 19
        )

    def put(self, kind, ids, title, message=None, image=None, tile=None, segment=0):
        start = len(self.ids)
        self.ids += ids
        self.spans.append(
            {
                "kind": kind,
                "start": start,
                "stop": len(self.ids),
                "message": message,
                "image": image,
                "tile": tile,
                "segment": segment,
                "title": title,
            }
        )
        return start

    def open(self, message, role, segment=0):
        self.put("special", [1], f"start of message {message + 1}", message, segment=segment)
        self.put("role", [self.word(role), self.word("\n")], f"role of message {message + 1}", message, segment=segment)

    def close(self, message, answer=(), segment=0):
        start = len(self.ids)
        if answer:
            self.put("answer", [self.word(w) for w in answer], "answer", message, segment=segment)
        self.put("special", [2, self.word("\n")], f"end of message {message + 1}", message, segment=segment)
        if answer:
            self.trained.append([start, len(self.ids)])
            self.loss.append([start, [0.25 * (i + 1) for i in range(len(self.ids) - start)]])


def make_payloads(key="first"):
    """Two packed samples behind 200 padding tokens: strip data and viewer data, exactly 3,000 positions."""
    row = Row()
    row.put("padding", [2] * 200, "padding", segment=None)
    row.open(0, "user")
    images = []
    for index, (rows, cols) in enumerate(GRIDS):
        names = [("thumbnail", None, None)] if rows * cols > 1 else []
        names += [(f"r{r + 1}c{c + 1}", r, c) for r in range(rows) for c in range(cols)]
        tiles = []
        for tile, (name, r, c) in enumerate(names):
            marker = "<|global_image|>" if tile == 0 else f"<row_{r + 1}_col_{c + 1}>"
            row.put("region", [row.word(marker)], f"image {index + 1} · marker of {name}", 0, index, tile)
            start = row.put("image", [3] * CELLS**2, f"image {index + 1} · tile {name}", 0, index, tile)
            box = (
                [0, 0, 640, 480]
                if r is None
                else [640 * c / cols, 480 * r / rows, 640 * (c + 1) / cols, 480 * (r + 1) / rows]
            )
            tiles.append({"name": name, "row": r, "col": c, "start": start, "box": box, "cells": [CELLS, CELLS, CELLS]})
        images.append(
            {
                "index": index,
                "name": EVIL if index == 0 else f"scene {index + 1}.png",
                "notes": [],
                "original": PIXEL,
                "resized": PIXEL,
                "thumbnail": PIXEL if len(names) > 1 else None,
                "original_size": [640, 480],
                "resized_size": [cols * 128, rows * 128],
                "grid": [rows, cols],
                "tile_px": [128, 128],
                "patch_px": 8,
                "seen": None,
                "tiles": tiles,
            }
        )
    ending = 13 + 13 + 3
    words = ["What", " colour", " is", EVIL, "\n", " unique", "ly"]
    words += [" and"] * (3000 - len(row.ids) - len(words) - ending)
    row.put("text", [row.word(w) for w in words], "text · message 1", 0)
    row.close(0)
    row.open(1, "assistant")
    row.close(1, [" red", "."])
    row.put("separator", [2], "separator after sample 1")
    separator = len(row.ids) - 1
    row.open(2, "user", 1)
    row.put("text", [row.word(" Really"), row.word("?")], "text · message 3", 2, segment=1)
    row.close(2, segment=1)
    row.open(3, "assistant", 1)
    row.put("text", [row.word(" and")] * (3000 - len(row.ids) - 3), "text", 3, segment=1)
    row.close(3, [" blue"], 1)
    runs = []
    for token in row.ids:
        if runs and runs[-1][0] == token:
            runs[-1][1] += 1
        else:
            runs.append([token, 1])
    data = {
        "key": key,
        "n": len(row.ids),
        "ids": runs,
        "texts": row.texts,
        "spans": row.spans,
        "trained": row.trained,
        "masked": [[0, 200], [separator, separator + 1]],
        "loss": row.loss,
    }
    return data, {"key": key, "images": images}


DATA, VIEWER = make_payloads()
ANSWER = DATA["trained"][0][0]
FIRST = VIEWER["images"][0]["tiles"]


def heat_of(position, peak=None):
    """All attention on one position, a quarter of it; the rest is nowhere."""
    values = np.zeros(DATA["n"], "<f2")
    values[FIRST[1]["start"] if peak is None else peak] = 0.25
    return {
        "from": position,
        "label": "mean over layers and heads",
        "max": 0.25,
        "values": base64.b64encode(values.tobytes()).decode(),
    }


@pytest.fixture(scope="module")
def url():
    """The widgets alone on a page, with buttons for what Python may do to them."""
    with gr.Blocks() as demo:
        names = ("fill", "component", "again", "clear")
        fill, component, again, clear = (gr.Button(name, elem_id=name) for name in names)
        picked = gr.Textbox(elem_id="picked")
        viewer = ImageViewer(elem_id="viewer")
        Readout(elem_id="readout")
        strip = TokenStrip(elem_id="strip")
        fill.click(
            lambda: (gr.update(data=encode(DATA), heat=encode(heat_of(ANSWER))), gr.update(data=encode(VIEWER))),
            None,
            [strip, viewer],
        )
        component.click(
            lambda: (TokenStrip(data=encode(DATA), heat=encode(heat_of(ANSWER))), ImageViewer(data=encode(VIEWER))),
            None,
            [strip, viewer],
        )
        again.click(lambda: gr.update(heat=encode(heat_of(ANSWER + 1, FIRST[0]["start"]))), None, strip)
        clear.click(lambda: TokenStrip(heat=None), None, strip)

        def chosen(event: gr.EventData) -> str:
            return json.dumps(event.position)

        strip.select(chosen, None, picked, queue=False, show_progress="hidden")
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, run_history=False)
    yield address
    demo.close()


@pytest.fixture
def shown(new_page, url):
    """Opens a page of the given kind and fills it."""

    def show(button="fill", **kind):
        page = new_page(**kind)
        page.goto(f"{url}?__theme={'dark' if kind.get('dark') else 'light'}")
        page.click(f"#{button}")
        page.wait_for_selector("#strip .tok")
        return page

    return show


def position(page):
    return page.evaluate("vlmBus.position")


def select(page, position):
    """As any other part of the page would."""
    page.evaluate(
        """(position) => { vlmBus.position = position;
           document.dispatchEvent(new CustomEvent('vlm:select', { detail: { position, origin: 'page' } })); }""",
        position,
    )


def choose_mode(page, mode):
    page.locator(f"#strip input[value={mode}]").check(force=True)


def test_payload_is_what_the_target_names():
    assert DATA["n"] == 3000
    assert len(json.dumps(DATA)) < 25_000


def test_data_lies_in_the_page_as_text():
    assert encode({"n": 1, "text": "é\u2028"}) == '{"n":1,"text":"\\u00e9\\u2028"}'
    assert encode(None) is None
    with pytest.raises(ValueError, match="JSON"):
        encode({"loss": float("nan")})


def test_property_names_are_no_events():
    # Gradio takes a quoted word in the script for an event, and would send a function for the property's value.
    for kind in (TokenStrip, ImageViewer, Readout, HeadBoard):
        widget = kind(render=False)
        assert not any(hasattr(widget, name) for name in ("data", "heat"))
        assert widget.api_info()["type"] == "object"


def test_empty_widgets_say_what_will_appear(new_page, url):
    page = new_page()
    page.goto(url)
    page.wait_for_selector("#strip .vlm-empty")
    assert "every position that the model reads" in page.inner_text("#strip")
    assert "Upload an image" in page.inner_text("#viewer")
    assert page.errors == []


@pytest.mark.parametrize("button", ["fill", "component"])
def test_every_position_is_there_and_selected_where_python_says(shown, button):
    page = shown(button)
    covered = page.evaluate(
        """[...document.querySelectorAll('#strip .line button')].reduce((sum, { dataset }) => {
             const span = vlmBus.row.spans[dataset.span];
             return sum + (span ? span.stop - span.start : 1); }, 0)"""
    )
    assert covered == 3000
    assert position(page) == ANSWER
    assert page.errors == []
    assert page.requests_out == []


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(shown, dark):
    page = shown(dark=dark)
    page.evaluate((Path(__file__).parent / "axe.min.js").read_text())
    for mode in ("kind", "label", "mask", "loss", "attention"):
        choose_mode(page, mode)
        # Contrast has its own test below: over 3,000 tokens axe takes a minute for it.
        found = page.evaluate(
            """axe.run({ include: [['#strip'], ['#viewer'], ['#readout']] },
                       { rules: { 'color-contrast': { enabled: false } }, resultTypes: ['violations'] })"""
        )["violations"]
        assert [rule["id"] for rule in found] == [], mode


def test_three_thousand_tokens_are_drawn_once(shown):
    """`python -m benchmarks page` tells how long that takes."""
    page = shown()
    drawn = page.evaluate("performance.getEntriesByName('vlm:strip').length")
    assert drawn == 2, "once empty, once filled"


def test_all_runs_open_at_once(shown):
    page = shown()
    page.click("#strip .vlm-plain")
    assert page.locator("#strip .tok").count() == 3000
    page.click("#strip .vlm-plain")
    assert page.locator("#strip .tok.k-image").count() == 0


def test_heat_alone_does_not_send_the_tokens_again(shown):
    page = shown()
    page.evaluate("document.querySelector('#strip .tok').marked = true")
    network, pieces = page.context.new_cdp_session(page), []
    network.send("Network.enable")
    network.on("Network.dataReceived", lambda piece: pieces.append(piece["dataLength"]))
    page.click("#again")
    page.wait_for_function(f"vlmBus.heat && vlmBus.heat.from === {ANSWER + 1}")
    assert 8_000 < sum(pieces) < 12_000, "8,000 characters of heat and an envelope"
    assert page.evaluate("document.querySelector('#strip .tok').marked") is True
    assert position(page) == ANSWER, "heat that comes late doesn't move the selection"


def test_heat_can_be_taken_away(shown):
    page = shown()
    assert page.locator("#viewer .vlm-ramp").is_visible()
    page.click("#clear")
    page.wait_for_function("vlmBus.heat === null")
    assert not page.locator("#viewer .vlm-ramp").is_visible()


def test_typed_text_and_file_names_stay_text(shown):
    page = shown()
    assert EVIL in page.inner_text("#viewer")
    assert EVIL.replace(" ", "·") in page.inner_text("#strip .line")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0


def test_arrows_enter_and_escape(shown):
    page = shown()
    page.locator(f"#strip [data-p='{ANSWER}']").focus()
    page.keyboard.press("ArrowRight")
    assert position(page) == ANSWER + 1
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert position(page) == ANSWER - 1
    page.wait_for_function(f"document.querySelector('#picked textarea, #picked input').value === '{ANSWER - 1}'")
    page.keyboard.press("Home")
    assert position(page) == 0
    chip = page.locator("#strip .chip").first
    assert chip.get_attribute("aria-expanded") == "false"
    page.keyboard.press("Enter")
    assert page.locator("#strip .chip").first.get_attribute("aria-expanded") == "true"
    assert page.locator("#strip .tok.k-padding").count() == 200
    page.keyboard.press("Escape")
    assert position(page) is None
    assert page.locator("#strip .line [tabindex='0']").count() == 1


def test_slash_finds_a_phrase_across_tokens(shown):
    page = shown()
    page.locator("#strip .tok").first.focus()
    page.keyboard.press("/")
    page.keyboard.type("uniquely")
    page.keyboard.press("Enter")
    assert page.evaluate("vlmBus.row.text(vlmBus.position)") == " unique"
    assert "1 of 1" in page.inner_text("#strip .vlm-found")
    page.fill("#strip .vlm-find", "#17")
    page.keyboard.press("Enter")
    assert position(page) == 17


def test_padding_and_separator_are_explained(shown):
    text = shown().inner_text("#strip .line")
    assert "its padding token is <|im_end|>" in text
    assert "one masked <|im_end|> after each sample" in text


def test_labels_show_the_shift(shown):
    page = shown()
    choose_mode(page, "label")
    before = page.locator(f"#strip [data-p='{ANSWER - 1}']")
    assert before.get_attribute("data-next") == "→ ·red"
    assert "learns to say next" in page.inner_text("#readout")
    assert f"predicted at {ANSWER - 1}" in page.inner_text("#readout")
    assert page.locator("#strip .tok.trained").count() == 4 + 3


def test_readout_names_the_token(shown):
    page = shown()
    select(page, FIRST[2]["start"] + CELLS + 3)
    text = page.inner_text("#readout")
    # Second tile of the first row of a 2 x 3 grid over 640 x 480: x from 213.3, 26.67 to a cell; y 30 to a cell.
    assert "tile r1c2, row 2, column 4" in text
    assert "x 293.3–320, y 30–60 px" in text
    assert "-100" in text
    assert "ignored by the loss" in text


def test_a_cell_and_its_token_select_each_other(shown):
    page = shown()
    frame = page.locator("#viewer .vlm-frame").first
    box = frame.bounding_box()
    # Third column of tiles, second row of tiles, first cell: tile r2c3 is the seventh with the thumbnail.
    frame.click(position={"x": box["width"] * (2 / 3 + 0.01), "y": box["height"] * 0.51})
    assert position(page) == FIRST[6]["start"]
    assert page.locator("#strip .vlm-sel").get_attribute("data-p") == str(FIRST[6]["start"])
    page.wait_for_function(f"document.querySelector('#picked textarea, #picked input').value === '{FIRST[6]['start']}'")
    page.locator(f"#strip .chip[data-p='{FIRST[1]['start']}']").click()
    page.locator(f"#strip .tok[data-p='{FIRST[1]['start'] + 1}']").click()
    ring = page.locator("#viewer .vlm-frame").first.locator(".vlm-ring-in.vlm-chosen")
    assert (float(ring.get_attribute("x")), float(ring.get_attribute("y"))) == (1 / 24, 0)


def test_cells_by_keyboard(shown):
    page = shown()
    select(page, None)
    page.locator("#viewer canvas").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert position(page) == FIRST[1]["start"] + CELLS + 1
    assert "row 2, column 2" in page.inner_text("#viewer .vlm-tooltip")


def test_heat_lies_on_its_own_cell_and_on_the_thumbnail(shown):
    page = shown()
    bright = """(k) => {
      const canvas = document.querySelectorAll('#viewer .vlm-frame canvas')[k], found = [];
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 250) found.push(i / 4);
      return found;
    }"""
    assert page.evaluate(bright, 0) == [0]
    assert page.evaluate(bright, 1) == []
    page.click("#again")
    page.wait_for_function(f"vlmBus.heat.from === {ANSWER + 1}")
    assert page.evaluate(bright, 0) == []
    assert page.evaluate(bright, 1) == [0]
    assert "25.0 % of it goes to images" in page.inner_text("#viewer")
    assert page.inner_text("#viewer .vlm-ticks").split("\n") == ["0 %", "25.0 %"]
    assert page.locator("#viewer .vlm-hots span").all_inner_texts() == ["25.0 %"]


def test_heat_covers_a_cell_by_its_share_and_leaves_the_rest_alone(shown):
    page = shown()
    page.click("#again")
    page.wait_for_function(f"vlmBus.heat.from === {ANSWER + 1}")
    page.add_style_tag(content=".vlm-hots, .vlm-frame svg { display: none !important; }")
    frame = page.locator("#viewer .vlm-frame").nth(1)

    def look(opacity):
        page.evaluate(
            "(value) => document.querySelector('#viewer .vlm-stage').style.setProperty('--opacity', value)", opacity
        )
        return np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert("RGB"), int)

    apart = np.abs(look(1) - look(0)).max(axis=-1)
    rows, cols = FIRST[1]["cells"][:2]
    high, wide = apart.shape[0] // rows, apart.shape[1] // cols
    assert apart[2 : high - 2, 2 : wide - 2].min() > 60, "the hot cell is plainly covered"
    assert apart[high + 2 :].max() == 0, "cells without a share are untouched"


def test_image_tabs(shown):
    page = shown()
    assert page.locator("#viewer .vlm-card").count() == 5
    page.locator("#viewer [role=tab]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer .vlm-card").count() == 1
    assert page.locator("#viewer [role=tab]:focus").get_attribute("data-image") == "0"
    select(page, VIEWER["images"][3]["tiles"][0]["start"])
    assert page.get_attribute("#viewer .vlm-card", "data-image") == "3", "a selected cell brings its image up"


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_scrolls_sideways_on_a_phone(shown, dark):
    page = shown(width=390, dark=dark)
    for mode in ("kind", "label", "mask", "loss", "attention"):
        choose_mode(page, mode)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), mode
    assert page.errors == []


CONTRAST = """() => {
  const linear = (c) => (c / 255 <= .03928 ? c / 255 / 12.92 : ((c / 255 + .055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
  const pen = canvas.getContext('2d', { willReadFrequently: true });
  // The browser itself lays the translucent grounds over each other.
  const over = (grounds) => {
    pen.clearRect(0, 0, 1, 1);
    for (const ground of grounds) { pen.fillStyle = ground; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const faint = [];
  for (const node of document.querySelectorAll('.vlm *')) {
    const texts = [...node.childNodes].filter((child) => child.nodeType === 3 && child.textContent.trim());
    if (!texts.length || !node.getClientRects().length) continue;
    const grounds = [];
    for (let up = node; up; up = up.parentElement) grounds.unshift(getComputedStyle(up).backgroundColor);
    const both = [over(grounds), over([...grounds, getComputedStyle(node).color])].map(luminance);
    const ratio = (Math.max(...both) + .05) / (Math.min(...both) + .05);
    if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${node.className} ${node.textContent.slice(0, 30)}`);
  }
  return faint.slice(0, 5);
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_stands_out_from_its_ground(shown, dark):
    page = shown(dark=dark)
    for mode in ("kind", "label", "mask", "loss", "attention"):
        choose_mode(page, mode)
        page.wait_for_timeout(100)
        assert page.evaluate(CONTRAST) == [], mode
