"""Sizes, tiles and boxes against nanoVLM's own numbers."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model import InputError, TokenGrid, VLMConfig, plan_image, process_image
from model.image import resize_image

# tile side → (pixel shuffle factor, image tokens)
_SHUFFLE = {512: (4, 64), 256: (4, 16), 224: (2, 49), 64: (2, 4)}
CONFIGS = [
    "p512_max2048_F",
    "p512_max2048_T",
    "p512_max1536_F",
    "p512_max1024_F",
    "p512_max512_F",
    "p224_max224_F",
    "p256_max256_F",
    "p64_max256_F",
    "p64_max256_T",
    "p64_max512_T",
]


def config_named(name: str, **changes) -> VLMConfig:
    tile, longest, flag = name.removeprefix("p").replace("max", "").split("_")
    factor, tokens = _SHUFFLE[int(tile)]
    values = {
        "vit_img_size": int(tile),
        "max_img_size": int(longest),
        "resize_to_max_side_len": flag == "T",
        "mp_pixel_shuffle_factor": factor,
        "mp_image_token_length": tokens,
        **changes,
    }
    return VLMConfig(**values)


def sha256(values: np.ndarray | torch.Tensor | bytes) -> str:
    data = values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "preprocess.json").read_text())


@pytest.fixture(scope="module")
def pictures(golden):
    """As upstream reads them: alpha dropped, not laid over white."""
    names = json.loads((golden / "images.json").read_text())
    return {name: Image.open(golden / "images" / f"{name}.png").convert("RGB") for name in names}


def test_pictures_are_the_ones_upstream_read(golden, pictures):
    for name, facts in json.loads((golden / "images.json").read_text()).items():
        assert sha256(pictures[name].tobytes()) == facts["sha256_raw_rgb"], name


@pytest.mark.parametrize("name", CONFIGS)
def test_every_size_of_the_table(golden, name):
    config = config_named(name)
    table = load_file(golden / "resize_table.safetensors")[name].tolist()
    assert len(table) == 1225
    for height, width, new_height, new_width in table:
        rows, cols = new_height // config.tile_px, new_width // config.tile_px
        if max(rows, cols) > 8:  # the tokenizer has no marker for a ninth row or column
            with pytest.raises(InputError, match=f"row_{rows}_col_{cols}"):
                plan_image((width, height), config)
            continue
        plan = plan_image((width, height), config)
        assert plan.resized_size == (new_width, new_height), (width, height)
        assert plan.grid == (rows, cols)
        assert plan.has_thumbnail == ((rows, cols) != (1, 1))
        assert plan.tiles == rows * cols + plan.has_thumbnail
        assert plan.tokens == plan.tiles * (config.tokens_per_tile + 1)


def test_upstreams_rounding_surprise_is_kept():
    assert plan_image((1092, 1092), config_named("p512_max2048_F")).resized_size == (1536, 2048)


@pytest.mark.parametrize("name", CONFIGS)
def test_tiles_are_upstreams_to_the_bit(name, expected, pictures, golden):
    config = config_named(name)
    thumbnails = load_file(golden / "preprocess.safetensors")
    for picture_name, facts in expected["configs"][name]["images"].items():
        picture = pictures[picture_name]
        rows, cols = facts["grid_hw"]
        resized = resize_image(picture, config)
        assert list(resized.size) == facts["resized_wh"], picture_name
        assert sha256(resized.tobytes()) == facts["resized_u8_sha256"], picture_name
        if max(rows, cols) > 8:
            continue
        processed = process_image(picture, config)
        assert list(processed.original_size) == facts["in_wh"], picture_name
        assert processed.grid == (rows, cols), picture_name
        assert len(processed.tiles) == len(processed.boxes) == facts["n_tiles"], picture_name
        assert processed.tiles.dtype == torch.float32
        first = int(processed.has_thumbnail)
        assert [sha256(tile) for tile in processed.tiles[first:]] == facts["tiles_sha256"], picture_name
        if not first:
            continue
        thumbnail = processed.tiles[0]
        y, x = torch.tensor(expected["pixel_positions_yx"]).T
        pixels = torch.tensor(facts["thumbnail"]["px"])
        torch.testing.assert_close(thumbnail[:, y, x].T, pixels, atol=2e-6, rtol=0)
        mean = torch.tensor(facts["thumbnail"]["mean_rgb"])
        torch.testing.assert_close(thumbnail.mean(dim=(1, 2)), mean, atol=2e-6, rtol=0)
        if (whole := thumbnails.get(f"{name}.{picture_name}.thumbnail")) is not None:
            torch.testing.assert_close(thumbnail, whole, atol=2e-6, rtol=0)
        if (part := thumbnails.get(f"{name}.{picture_name}.thumbnail_every4th")) is not None:
            torch.testing.assert_close(thumbnail[:, ::4, ::4], part, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("side", "generation"), [(224, "v0.1"), (256, "v0.2")])
def test_before_july_2025_an_image_is_one_stretched_square(side, generation, expected, pictures):
    config = config_named(f"p{side}_max{side}_F", generation=generation)
    for name, digest in expected["legacy"][f"bilinear_{side}"].items():
        processed = process_image(pictures[name], config)
        assert processed.grid == (1, 1)
        assert not processed.has_thumbnail
        assert sha256(processed.tiles[0]) == digest, name


def test_a_checkpoint_without_the_thumbnails_token_drops_it(pictures):
    extra = {"image_token": "<|image|>", "r1c1": "<row_1_col_1>", "r1c2": "<row_1_col_2>"}
    with_token = process_image(pictures["small_100x37"], config_named("p64_max256_F"))
    without = process_image(
        pictures["small_100x37"], config_named("p64_max256_F", generation="2025-07", vlm_extra_tokens=extra)
    )
    assert not without.has_thumbnail
    assert torch.equal(without.tiles, with_token.tiles[1:])
    assert without.boxes == with_token.boxes[1:]


@pytest.mark.parametrize("name", ["p64_max256_F", "p64_max256_T", "p224_max224_F"])
def test_tile_boxes_cover_the_original_image_exactly_once(name, pictures):
    config = config_named(name)
    for picture_name, picture in pictures.items():
        processed = process_image(picture, config)
        rows, cols = processed.grid
        width, height = picture.size
        boxes = processed.boxes
        if processed.has_thumbnail:
            assert (boxes[0].left, boxes[0].top, boxes[0].right, boxes[0].bottom) == (0, 0, width, height)
            boxes = boxes[1:]
        for index, box in enumerate(boxes):
            row, col = divmod(index, cols)
            assert box.left == (boxes[index - 1].right if col else 0), picture_name
            assert box.top == (boxes[index - cols].bottom if row else 0), picture_name
            assert col < cols - 1 or box.right == pytest.approx(width)
            assert row < rows - 1 or box.bottom == pytest.approx(height)
        area = sum((box.right - box.left) * (box.bottom - box.top) for box in boxes)
        assert area == pytest.approx(width * height), picture_name


def test_cells_cover_their_tile_and_refuse_what_lies_outside(pictures):
    config = config_named("p64_max256_F")
    processed = process_image(pictures["rgba_200x150"], config)
    assert processed.grid == (3, 4)
    # Tile 6 is row 1, column 1 of 200 x 150 pixels in 4 columns and 3 rows: 50 px wide and high, cells of 25.
    boxes = [
        processed.boxes[6].part(config.cells_per_side, config.cells_per_side, row, col)
        for row in range(2)
        for col in range(2)
    ]
    assert [(b.left, b.top, b.right, b.bottom) for b in boxes] == [
        (50, 50, 75, 75),
        (75, 50, 100, 75),
        (50, 75, 75, 100),
        (75, 75, 100, 100),
    ]
    with pytest.raises(IndexError):
        TokenGrid(0, 6, 0, 2, 2, processed.boxes[6], False).cell_box(2, 0)


@pytest.mark.parametrize("size", [(200, 150), (301, 777), (640, 480), (90, 90), (64, 64), (500, 64)])
def test_a_bright_cell_of_the_original_lights_up_that_cell_of_the_tile(size):
    config = config_named("p64_max256_F")
    blank = process_image(Image.new("RGB", size), config)
    cells, side = config.cells_per_side, config.tile_px // config.cells_per_side
    for tile in range(int(blank.has_thumbnail), len(blank.tiles)):
        for row, col in ((0, 0), (cells - 1, 0), (cells - 1, cells - 1)):
            box = blank.boxes[tile].part(cells, cells, row, col)
            picture = Image.new("RGB", size)
            picture.paste("white", (round(box.left), round(box.top), round(box.right), round(box.bottom)))
            tiles = process_image(picture, config).tiles[int(blank.has_thumbnail) :]
            brightness = tiles.mean(dim=1).unfold(1, side, side).unfold(2, side, side).mean(dim=(-2, -1))
            found = np.unravel_index(int(brightness.argmax()), brightness.shape)
            assert found == (tile - int(blank.has_thumbnail), row, col)
            assert brightness.max() > 0.9
