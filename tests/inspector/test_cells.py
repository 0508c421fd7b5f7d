"""The map between cells of an image and tokens of the row, on every grid of the golden table that tiles of 64 make."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from inspector.row.token_table import locate_cell, position_of_cell
from model import AttentionReader, Conversation, Cut, Message, Tap, load_vlm

# 3 × 3 never comes out of upstream's size formula: the longer side goes up to a whole 256 for anything that large.
GRIDS = [(rows, cols) for rows in range(1, 5) for cols in range(1, 5) if (rows, cols) != (3, 3)]


@pytest.fixture(scope="module")
def vlm(golden):
    return load_vlm(golden / "tiny_vlm")


@pytest.fixture(scope="module")
def size_of_grid(golden):
    """(rows, cols) to the largest (width, height) of the table that is cut so: a cell must be some pixels wide."""
    sizes = {}
    for height, width, new_height, new_width in load_file(golden / "resize_table.safetensors")["p64_max256_F"].tolist():
        if max(height, width) <= 400:
            grid = (new_height // 64, new_width // 64)
            sizes[grid] = max(sizes.get(grid, (0, 0)), (width, height), key=lambda size: size[0] * size[1])
    return sizes


def prepare(vlm, image):
    return vlm.prepare(Conversation((Message("user", "x", (image,)),)))


def test_the_table_has_these_grids_and_no_others(size_of_grid):
    assert sorted(size_of_grid) == GRIDS


@pytest.mark.parametrize("grid", GRIDS, ids="{0[0]}x{0[1]}".format)
def test_painting_a_cell_and_ablating_its_token_round_trip(vlm, size_of_grid, grid):
    black = Image.new("RGB", size_of_grid[grid])
    sample, cells = prepare(vlm, black), vlm.config.cells_per_side
    batch = vlm.collate([sample])
    side = vlm.config.tile_px // cells
    with torch.no_grad():
        before = vlm.embed(batch)[0]
    assert sample.images[0].grid == grid
    count = len(sample.images[0].tiles)
    for tile in {int(sample.images[0].has_thumbnail), count // 2, count - 1}:
        row, col = (tile + 1) % cells, (2 * tile + 1) % cells
        position = position_of_cell(vlm.place(sample), 0, tile, row, col)
        cell = locate_cell(vlm.place(sample), position)
        assert (cell.image, cell.tile, cell.row, cell.col) == (0, tile, row, col)
        painted = black.copy()
        painted.paste("white", tuple(round(x) for x in (cell.box.left, cell.box.top, cell.box.right, cell.box.bottom)))
        # Pixels: of all the tiles but the thumbnail, the painted cell of this tile is the brightest.
        other = prepare(vlm, painted)
        means = other.images[0].tiles.mean(1).unfold(1, side, side).unfold(2, side, side).mean((-1, -2))
        means[: sample.images[0].has_thumbnail] = 0
        assert torch.unravel_index(means.argmax(), means.shape) == (tile, row, col)
        # Embeddings: what the language model reads changes most at the cell's own token.
        with torch.no_grad():
            moved = (vlm.embed(vlm.collate([other]))[0] - before).norm(dim=-1)
        start = position - row * cells - col
        assert start + int(moved[start : start + cells**2].argmax()) == position
    # Ablating the last of these tokens takes its share, and no other's, out of what the row's end reads.
    end = len(sample) - 1
    shares = []
    for cuts in ((), (Cut((end,), (position,)),)):
        reader = AttentionReader([end], torch.zeros(len(sample), dtype=torch.long), 1, keep_patterns=True)
        with torch.no_grad():
            vlm.hidden(batch, Tap(reader, cuts))
        shares.append(reader.reading.patterns[0, :, 0])
    assert (shares[0][:, position] > 0).all()
    assert [int(p) for p in (shares[1] == 0).all(0).nonzero()] == [position]
    kept = torch.arange(len(sample)) != position
    rest = 1 - shares[0][:, position : position + 1]
    assert torch.allclose(shares[1][:, kept], shares[0][:, kept] / rest, atol=1e-6)
