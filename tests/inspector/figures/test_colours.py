"""An image has one colour, wherever it is drawn, and its neighbours have others."""

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from inspector import widgets
from inspector.figures.colours import IMAGE_COLOURS

# Linear sRGB as seen with each kind of colour blindness (Machado, Oliveira & Fernandes 2009, severity 1).
EYES = {
    "usual": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(colour):
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear sRGB, D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(rgb, 0.009, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_browser_draws_the_same_colours():
    script = (Path(widgets.__file__).parent / "selection.js").read_text("utf-8")
    found = re.search(r"const IMAGE_COLOURS = (\[.*?\]);", script)
    assert tuple(json.loads(found[1])) == IMAGE_COLOURS


@pytest.mark.parametrize("eyes", EYES)
def test_no_two_images_look_alike(eyes):
    """Two colours of a distance (CIE76) of 10 are told apart side by side."""
    seen = [lab(np.array(EYES[eyes]) @ linear(colour)) for colour in IMAGE_COLOURS]
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) >= 10


@pytest.mark.parametrize("ground", ["#ffffff", "#0a0f1e"])
def test_every_colour_stands_out_from_the_page(ground):
    """3 : 1, as WCAG 2 asks of what isn't text."""
    luminance = [float(linear(colour) @ [0.2126, 0.7152, 0.0722]) + 0.05 for colour in (*IMAGE_COLOURS, ground)]
    *colours, page = luminance
    assert min(max(one, page) / min(one, page) for one in colours) >= 3
