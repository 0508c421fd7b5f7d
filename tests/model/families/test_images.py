"""Where each image token lies on its image, and what of an image a family doesn't get."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inspector.images.image_file import ImageFile
from inspector.row.token_table import locate_cell, position_of_cell, tile_name
from model import InputError, TokenGrid
from model.families.llava_anyres import LlavaNext
from tests import tiny_checkpoints as made

SIZES = [(256, 256), (300, 200), (200, 300), (640, 480), (512, 128), (130, 520), (97, 203), (1000, 333), (64, 64)]


def corners(grid: TokenGrid) -> list[tuple[int, int]]:
    return sorted({(row, col) for row in (0, grid.rows // 2, grid.rows - 1) for col in (0, grid.cols - 1)})


@pytest.mark.parametrize("size", SIZES)
def test_a_bright_cell_is_bright_where_its_token_is(any_tiny: made.Tiny, size):
    """A picture black but for one cell of a tile: what the encoder reads of that tile is brightest in that cell."""
    vlm = any_tiny.vlm
    for grid in any_tiny.row([Image.new("RGB", size)]).grids:
        for at, col in corners(grid):
            pixels = np.zeros((size[1], size[0], 3), np.uint8)
            box = grid.cell_box(at, col)
            left, top = (int(np.floor(edge + 0.5)) for edge in (box.left, box.top))
            right, bottom = (int(np.floor(edge + 0.5)) for edge in (box.right, box.bottom))
            pixels[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)] = 255
            tile = read_tile(vlm, vlm.process_image(Image.fromarray(pixels)), grid)
            down, across = np.nonzero(tile > (tile.min() + tile.max()) / 2)
            middle = (down.mean() + 0.5) / tile.shape[0] * grid.rows, (across.mean() + 0.5) / tile.shape[1] * grid.cols
            assert tuple(map(int, middle)) == (at, col), (grid, at, col)


def read_tile(vlm, image, grid: TokenGrid) -> np.ndarray:
    """``[height width]``: what the encoder reads of what a grid stands for."""
    tiles = [tile[0].numpy() for tile in vlm.encoder_inputs(image)]
    if not isinstance(vlm, LlavaNext) or grid.is_thumbnail:
        return tiles[grid.tile]
    # One grid over all tiles, without the rows or columns that are black.
    (tall, wide), _ = vlm.geometry.choose_size(image.original_size)
    side = vlm.geometry.tile
    rows = [np.concatenate(tiles[1:][n : n + wide // side], axis=1) for n in range(0, len(tiles) - 1, wide // side)]
    whole = np.concatenate(rows)
    cells, skipped = tall // 14, vlm.geometry._count_skipped(image.original_size, tall // side, wide // side)
    assert cells * 14 == tall
    down, across = (14 * count for count in skipped)
    return whole[down : tall - down, across : wide - across]


@pytest.mark.parametrize("size", SIZES)
def test_every_image_token_with_a_place_is_found_by_it(any_tiny: made.Tiny, size):
    row = any_tiny.row([made.noise(*size)])
    for grid in row.grids:
        for at, col in corners(grid):
            position = position_of_cell(row, 0, grid.tile, at, col)
            cell = locate_cell(row, position)
            assert (cell.tile, cell.row, cell.col) == (grid.tile, at, col)
            assert int(row.input_ids[position]) == any_tiny.vlm.image_token_id
    placed = {position for grid in row.grids for position in grid.positions}
    tokens = set((row.input_ids == any_tiny.vlm.image_token_id).nonzero()[:, 0].tolist())
    assert placed <= tokens
    assert sum(any_tiny.vlm.count_tokens(row.images[0])) == len(tokens)


@pytest.mark.parametrize("size", SIZES)
def test_a_plan_says_what_comes(any_tiny: made.Tiny, size):
    vlm, row = any_tiny.vlm, any_tiny.row([made.noise(*size)])
    plan, (image,) = vlm.plan_image(size), row.images
    assert (plan.original_size, plan.resized_size, plan.grid) == (size, image.resized_size, image.grid)
    assert (plan.tiles, plan.has_thumbnail, plan.seen) == (len(image.boxes), image.has_thumbnail, image.seen)
    assert image.resized.shape == (plan.resized_size[1], plan.resized_size[0], 3)
    assert plan.tokens == sum(len(span) for span in row.spans if span.image == 0)


def test_the_thumbnail_is_last(tiny):
    row = tiny("idefics3").row([made.noise(300, 200)])
    (image,) = row.images
    assert image.grid == (3, 4)
    assert [tile_name(row, 0, tile) for tile in (0, 11, 12)] == ["r1c1", "r3c4", "thumbnail"]
    assert [grid.is_thumbnail for grid in row.grids] == [False] * 12 + [True]
    assert (row.grids[-1].box.right, row.grids[-1].box.bottom) == (300, 200)
    assert len(image.pictures) == len(image.tiles) == 13


def test_what_a_centre_crop_leaves_out_is_said(tiny):
    wide = tiny("llava").vlm.process_image(made.noise(300, 100))
    assert (wide.seen.left, wide.seen.right) == pytest.approx((100, 200), abs=1)
    assert (wide.seen.top, wide.seen.bottom) == (0, 100)
    assert wide.notes == ("cut off outside x 100–200, y 0–100 px",)
    assert wide.boxes == (wide.seen,)
    square = tiny("llava").vlm.process_image(made.noise(300, 300))
    assert (square.seen, square.notes) == (None, ())


def test_geometry_travels_to_a_process_without_torch(any_tiny: made.Tiny, tmp_path: Path):
    """As in the process that decodes: the package ``model`` empty, nothing of torch or transformers loaded."""
    geometry = any_tiny.vlm.geometry
    assert pickle.loads(pickle.dumps(geometry)) == geometry
    made.noise(120, 90).save(tmp_path / "a.png")
    (tmp_path / "geometry").write_bytes(pickle.dumps(geometry))
    code = (
        "import pickle, sys, types\n"
        "package = sys.modules['model'] = types.ModuleType('model'); package.__path__ = [sys.argv[1] + '/model']\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "geometry = pickle.load(open(sys.argv[2] + '/geometry', 'rb'))\n"
        "from PIL import Image\n"
        "geometry.reduce(Image.open(sys.argv[2] + '/a.png')); geometry.lay_out((5, 7))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    home = str(Path(__file__).parents[3])
    subprocess.run([sys.executable, "-c", code, home, str(tmp_path)], check=True, timeout=60)
    # And through the real one, to the same end.
    file = ImageFile(tmp_path / "a.png").process(any_tiny.vlm)
    assert file.digest == any_tiny.vlm.process_image(made.noise(120, 90)).digest


def test_an_image_without_pixels_is_refused(any_tiny: made.Tiny):
    with pytest.raises(InputError, match="each side must be at least 1"):
        any_tiny.vlm.plan_image((0, 5))
