"""What InternVL alone does: its grids, and one run of image tokens for all tiles."""

import json
from itertools import pairwise

import numpy as np
import pytest
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from model import InputError, load_vlm
from model.families.internvl_images import NearestGridImages
from tests import tiny_checkpoints as made


@pytest.mark.parametrize("limits", [(1, 12), (1, 6), (2, 4), (3, 3), (1, 1)])
def test_grids_are_transformers_own(limits):
    geometry = NearestGridImages(tile=56, fewest=limits[0], most=limits[1], filter=3)
    sides = np.random.default_rng(0).integers(1, 700, (300, 2)).tolist()
    for width, height in [*sides, (56, 56), (112, 112), (79, 79), (80, 80), (1, 2000), (2000, 1), (300, 200)]:
        cols, rows = get_optimal_tiled_canvas((height, width), (56, 56), *limits) if limits[1] > 1 else (1, 1)
        assert geometry.lay_out((width, height)).grid == (rows, cols), (width, height)


def test_nothing_stands_between_the_tiles_of_an_image(tiny):
    row = tiny("internvl").row([made.noise(300, 200), made.noise(20, 20)])
    for number, tiles in ((0, 7), (1, 1)):
        spans = [span for span in row.spans if span.image == number]
        assert [span.kind for span in spans] == ["region", *["image"] * tiles, "region"]
        assert all(one.stop == other.start for one, other in pairwise(spans))
    assert [grid.is_thumbnail for grid in row.grids] == [False] * 6 + [True, False]


def test_a_tile_that_is_no_square_or_has_half_cells_is_refused(tiny):
    vlm = tiny("internvl").vlm
    processor = tiny("internvl").processor.image_processor
    for size, words in (({"height": 56, "width": 84}, "equal sides"), ({"height": 60, "width": 60}, "does not divide")):
        changed = type(processor)(**{**processor.to_dict(), "size": size})
        with pytest.raises(InputError, match=words):
            vlm.read_geometry(changed)


def test_a_class_token_among_the_patches_is_refused(copy_of):
    folder = copy_of("internvl")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vision_feature_select_strategy": "full"}))
    with pytest.raises(InputError):
        load_vlm(folder)
