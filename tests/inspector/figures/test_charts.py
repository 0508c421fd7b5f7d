"""Numbers as HTML: signs, scales, and text that reads on every colour."""

import re

import pytest

from inspector.figures.charts import Bar, HeatRow, Line, bars, curves, heat_cell, heat_table, table
from inspector.figures.which_image import say_with_code
from inspector.row.numbers import say


def luminance(red, green, blue):
    parts = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    high, low = sorted((luminance(*one), luminance(*other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("value", "text"), [(-1.234, "−1.23"), (-0.001, "0.00"), (0.0, "0.00"), (8.875, "8.88"), (1e-9, "0.00")]
)
def test_numbers(value, text):
    assert say(value) == text


def test_signs():
    assert [say(value, 1, sign=True) for value in (2.0, -2.0, 0.01, -0.01)] == ["+2.0", "−2.0", "0.0", "0.0"]


@pytest.mark.parametrize("share", [n / 40 for n in range(-40, 41)])
def test_text_reads_on_every_cell(share):
    """Diverging, on the light and on the dark ground of the style sheet, and viridis."""
    cell = heat_cell(share, 1.0)
    hue = tuple(int(part) for part in re.search(r"--heat:rgb\((\d+) (\d+) (\d+)\)", cell).groups())
    part = float(re.search(r"--share:([\d.]+)%", cell).group(1)) / 100
    for ground, dark in (((247, 247, 247), False), ((0x1B, 0x25, 0x36), True)):
        shown = [part * a + (1 - part) * b for a, b in zip(hue, ground, strict=True)]
        ink = (255, 255, 255) if dark or "wi-strong" in cell else (0, 0, 0)
        assert contrast(shown, ink) >= 4.5
    viridis = heat_cell(abs(share), 1.0, shares=True)
    red, green, blue, ink = re.search(r"background:#(..)(..)(..);color:#(f|0)", viridis).groups()
    shown = [int(part, 16) for part in (red, green, blue)]
    assert contrast(shown, (255, 255, 255) if ink == "f" else (0, 0, 0)) >= 4.5


def test_bars_have_one_scale_from_0():
    drawn = bars([Bar(1, 4.0, "4"), Bar(2, -1.0, "-1", tick=-1.0), Bar(3, None, "none")], noise=0.5, label="effects")
    fills = re.findall(r'wi-fill" style="left:([\d.]+)%;width:([\d.]+)%', drawn)
    assert [(float(a), float(b)) for a, b in fills] == [(20.0, 80.0), (0.0, 20.0)]
    assert re.findall(r'wi-zero" style="left:([\d.]+)%', drawn) == ["20.00"] * 3
    assert re.findall(r'wi-noise" style="left:([\d.]+)%', drawn) == ["30.00", "10.00"] * 3
    assert drawn.count('aria-label="image ') == 3


def test_cells_without_a_value_are_hatched_and_say_why():
    drawn = heat_table(["", "a", "b"], [HeatRow("row", (1.0, None), "it can't be seen")], "a table")
    assert 'class="wi-cell wi-none" title="it can&#x27;t be seen">–' in drawn
    assert drawn.count("<th scope=col>") == 2


def test_a_gap_parts_a_curve():
    drawn = curves(
        [0, 1, 2, 3, 4], [Line("one", (0.0, -1.0, None, -2.0, -3.0), "#000")], x_name="x", y_name="y", label="l"
    )
    assert drawn.count("<polyline") == 2
    assert ">−3.00<" in drawn
    assert "<polyline" not in curves([], [], x_name="x", y_name="y", label="l")


def test_what_was_typed_is_escaped():
    assert say_with_code("the `<image: 0>` text & more") == "the <code>&lt;image: 0&gt;</code> text &amp; more"
    assert 'aria-label="&quot;&gt;&lt;script&gt;"' in table(["a"], [["b"]], '"><script>')
