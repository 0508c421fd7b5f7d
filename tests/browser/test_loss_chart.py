"""The curves of runs, laid over one another in a real browser: what is drawn where."""

import math

import gradio as gr
import pytest

from inspector.figures.training import overlay_payload
from inspector.runs.progress import Progress
from inspector.widgets import LossChart, encode
from tests.browser.steps import assert_nothing_serious

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
]
STEPS, SPIKE = 400, 300
TOP, BOTTOM, LEFT = 12, 34, 56
"""What the chart leaves free around the curves, in pixels."""


def curve(first, spike=None):
    """A loss that falls from ``first`` within a hundred steps."""
    train = [(n, first * math.exp(-(n - 1) / 25) + 0.1, 1e-3, 1.0) for n in range(1, STEPS + 1)]
    if spike is not None:
        train[SPIKE] = (SPIKE + 1, spike, 1e-3, 1.0)
    return Progress(train=tuple(train), held_out=((0, first * 1.05), (STEPS, 0.2)))


@pytest.fixture(scope="module")
def url():
    runs = [("low", curve(2.0)), ("high", curve(9.0, spike=500.0))]
    with gr.Blocks() as demo:
        fill = gr.Button("fill", elem_id="fill")
        chart = LossChart(elem_id="chart")
        fill.click(lambda: gr.update(data=encode(overlay_payload(runs))), None, chart)
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, run_history=False)
    yield address
    demo.close()


HIGHEST = """([colour, from, to]) => {
  const canvas = document.querySelector('#chart canvas'), ratio = window.devicePixelRatio;
  const data = canvas.getContext('2d').getImageData(from * ratio, 0, (to - from) * ratio, canvas.height);
  const probe = document.createElement('i'); probe.style.color = colour; document.body.append(probe);
  const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map(Number); probe.remove();
  for (let at = 0; at < data.data.length; at += 4) {
    const d = data.data;
    if (d[at + 3] > 200 && Math.abs(d[at] - r) + Math.abs(d[at + 1] - g) + Math.abs(d[at + 2] - b) < 40)
      return Math.floor(at / 4 / data.width) / ratio;
  }
  return null;
}"""


@pytest.mark.parametrize("log", [False, True])
def test_curves_over_one_another_are_whole(new_page, url, log):
    page = new_page()
    page.goto(url)
    page.click("#fill")
    page.wait_for_selector("#chart canvas:visible")
    if log:
        page.locator("#chart input[type=checkbox]").check()
    colours = page.eval_on_selector_all(
        "#chart .vlm-curves i", "marks => marks.map((mark) => mark.style.getPropertyValue('--curve'))"
    )
    height = page.eval_on_selector("#chart .vlm-chart", "(frame) => frame.getBoundingClientRect().height")
    low, high = (page.evaluate(HIGHEST, [colour, LEFT - 5, LEFT + 30]) for colour in colours)
    # The held-out loss before the first step, 9.45, is a dot of 4 px whose middle is inside the chart.
    assert TOP - 4 < high < TOP + 16
    if not log:
        bottom = height - BOTTOM
        middle = bottom - (bottom - TOP) * 2.1 / (9.45 * 1.05)
        assert low + 4 == pytest.approx(middle, abs=2), "a spike of 500 flattens neither"
    assert page.errors == []


def test_the_chart_of_several_runs_names_them_and_reads_aloud(new_page, url):
    page = new_page(dark=True)
    page.goto(f"{url}?__theme=dark")
    page.click("#fill")
    page.wait_for_selector("#chart canvas:visible")
    assert page.locator("#chart .vlm-curves span").all_inner_texts()[:2] == ["low", "high"]
    page.locator("#chart .vlm-chart").focus()
    page.keyboard.press("Home")
    assert "high: step 1: loss 9.1" in page.inner_text("#chart .vlm-read")
    assert_nothing_serious(page)
