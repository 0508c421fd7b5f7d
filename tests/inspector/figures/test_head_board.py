"""Small maps of all heads: each square is its cell's share, they stay small, and large images are told in squares."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from inspector.figures.head_board import MAP_PIXELS, board_payload, lay_out_cells, merge_cells, show_head_table
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend, find_readers
from inspector.row.prompt import Prompt, Turn
from model import OpenedImage
from tests import tiny_checkpoints as made
from tests.example_cases import example_prompt


@pytest.fixture(scope="module")
def tiles(embedded):
    """One wide image in six tiles and a thumbnail."""
    return ask_and_inspect(embedded, example_prompt("tiles"), GenerationSettings())


def read_squares(payload):
    """Of each head, by the atlas and the tops, as the browser reads them: ``[head square]``."""
    data = base64.b64decode(payload["atlas"].partition(",")[2])
    tops = np.frombuffer(base64.b64decode(payload["tops"]), "<f2").astype(np.float32)
    return np.asarray(Image.open(io.BytesIO(data)), np.float32) / 255 * tops[:, None]


def test_every_square_is_the_share_of_its_cell(embedded, tiles):
    found = attend(embedded, tiles, len(tiles.row) - 1)
    payload = board_payload(tiles.row, found, layer=None, head=None)
    (image, thumbnail), squares = payload["frames"], read_squares(payload)
    assert (image["rows"], image["cols"], thumbnail["rows"], thumbnail["cols"]) == (8, 12, 4, 4)
    pattern = found.pattern.reshape(len(squares), -1)
    for grid in tiles.row.grids:
        for row in range(grid.rows):
            for col in range(grid.cols):
                place = tiles.row.images[0].place_of(grid.tile)
                at = 8 * 12 + row * 4 + col if place is None else (place[0] * 4 + row) * 12 + place[1] * 4 + col
                shares = pattern[:, grid.position(row, col)]
                # A byte of the largest, and what half precision leaves of that.
                assert squares[:, at] == pytest.approx(shares, abs=0.003, rel=0.002)
    measures = {one["name"]: np.frombuffer(base64.b64decode(one["values"]), "<f2") for one in payload["measures"]}
    assert measures["image share"] == pytest.approx(found.image_share.ravel(), abs=1e-3)
    assert measures["entropy"] == pytest.approx(found.entropy.ravel(), abs=3e-3)
    assert measures["sink share"] == pytest.approx(found.sink_share.ravel(), abs=1e-3)


def test_the_report_has_every_head_s_share(embedded, tiles):
    found = attend(embedded, tiles, len(tiles.row) - 1)
    table = show_head_table(found)
    shares = re.findall(r">([^>]+) %</td>", table)
    assert len(shares) == found.image_share.size
    assert all(
        float(said.strip("< ")) == pytest.approx(100 * share, abs=0.05)
        for said, share in zip(shares, found.image_share.ravel(), strict=True)
    )


def test_a_square_over_several_cells_is_the_largest_and_none_is_left_out(tiles):
    frame = lay_out_cells(tiles.row)[0]
    merged = merge_cells(frame, 5)
    assert merged.positions.shape == (2, 3, 25)
    assert set(merged.positions.ravel()) == set(frame.positions.ravel())
    assert set(merged.positions[0, 0]) == set(frame.positions[:5, :5].ravel())


def test_thirty_layers_of_nine_heads_take_less_than_400_kb_whatever_is_in_them(embedded, tiles):
    found = attend(embedded, tiles, len(tiles.row) - 1)
    noise = np.random.default_rng(0).random((120, 36, len(tiles.row)), np.float32)
    payload = board_payload(tiles.row, replace(found, pattern=noise), layer=None, head=None)
    assert payload["side"] == 2
    assert sum(one["rows"] * one["cols"] for one in payload["frames"]) * len(noise) * 36 <= MAP_PIXELS
    assert len(json.dumps(payload)) < 400_000


def test_readers_have_the_one_measure_and_a_prompt_without_images_no_maps(embedded, tiles):
    cell = tiles.row.grids[0].start
    found = find_readers(embedded, tiles, cell)
    payload = board_payload(tiles.row, found, layer=0, head=1)
    (measure,) = payload["measures"]
    values = np.frombuffer(base64.b64decode(measure["values"]), "<f2").reshape(found.received.shape)
    assert values == pytest.approx(found.received, rel=1e-3, abs=1e-6)
    text = ask_and_inspect(embedded, Prompt((), (Turn("What is it?"),)), GenerationSettings(3))
    empty = board_payload(text.row, attend(embedded, text, len(text.row) - 1), layer=None, head=None)
    assert (empty["frames"], empty["atlas"]) == ([], None)


@pytest.mark.parametrize("name", ["idefics3", "llava", "llava next", "onevision", "internvl", "qwen2.5 vl", "gemma3"])
def test_every_image_token_of_a_cell_has_a_square_in_any_family(tiny, name):
    vlm = tiny(name).vlm
    images = tuple(OpenedImage(made.noise(*size)) for size in [(100, 60), (64, 64)])
    row = ask_and_inspect(vlm, Prompt(images, (Turn("What is it?"),)), GenerationSettings(2)).row
    cells = [position for frame in lay_out_cells(row) for position in frame.positions.ravel()]
    assert sorted(cells) == sorted(position for grid in row.grids for position in grid.positions)
