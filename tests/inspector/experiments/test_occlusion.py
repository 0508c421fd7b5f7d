"""Regions of an image: each token and pixel in one of them, curves from the whole image to none, two roads to each."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from inspector.experiments import occlusion
from inspector.experiments.occlusion import (
    COARSE,
    CURVE_STEPS,
    RANDOM_ORDERS,
    Deletion,
    Detail,
    Region,
    RegionMap,
    choose_detail,
    cut_regions,
    measure_regions,
)
from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.target import image_keys
from inspector.row.prompt import Turn, prepare_row
from inspector.row.token_table import locate_cell
from model import Box, Cut, InputError, OpenedImage, Tap, load_vlm
from model.training.synthetic.examples import EXAMPLES
from tests.example_cases import example_case, whole_row


@pytest.fixture(scope="module", params=[("three", 3), ("five", 2), ("tiles", 1), ("per-turn", 3)])
def studied(embedded, request):
    name, image = request.param
    case = example_case(embedded, name)
    return case, case.structure.images[image - 1], list(measure_regions(case, image, 0.01)), name


def rows_of(case, block, found):
    start = case.target.start if found.rows == "question and answer" else block.stop
    return range(start, case.target.scored[1])


def test_every_image_token_is_in_one_region_and_lies_in_its_box(studied):
    case, block, _, _ = studied
    (rows, columns), parts = cut_regions(case, block)
    assert len(parts) == rows * columns == 16
    assert Counter(p for _, held in parts for p in held) == Counter(block.tokens)
    width, height = case.prefix_cache.row.images[block.number - 1].original_size
    assert sum((b.right - b.left) * (b.bottom - b.top) for b, _ in parts) == pytest.approx(width * height)
    for box, held in parts:
        assert held
        for position in held:
            cell = locate_cell(case.prefix_cache.row, position).box
            assert box.left <= (cell.left + cell.right) / 2 < box.right
            assert box.top <= (cell.top + cell.bottom) / 2 < box.bottom


def test_a_region_holds_a_thumbnail_token_and_the_tile_tokens_of_its_place(embedded):
    """Six tiles of 4 × 4 tokens, two rows and three columns, and a thumbnail: 2 × 3 tile tokens to each of its 16."""
    case = example_case(embedded, "tiles")
    _, parts = cut_regions(case, case.structure.images[0])
    for _, held in parts:
        names = [locate_cell(case.prefix_cache.row, position).tile_name for position in held]
        assert names.count("thumbnail") == 1
        assert len(held) == 7


def test_many_tokens_are_put_together(embedded, monkeypatch):
    monkeypatch.setattr(occlusion, "MAX_REGIONS", 5)
    case = example_case(embedded, "three")
    grid, parts = cut_regions(case, case.structure.images[0])
    assert grid == (2, 2)
    assert [len(held) for _, held in parts] == [4] * 4
    assert [box for box, _ in parts][:2] == [Box(0.0, 0.0, 32.0, 32.0), Box(32.0, 0.0, 64.0, 32.0)]


def test_every_pixel_is_in_one_region():
    for width, height in ((64, 64), (1, 1), (5, 1200), (37, 101)):
        count = np.zeros((height, width), dtype=int)
        for row in range(4):
            for column in range(4):
                box = Box(width * column / 4, height * row / 4, width * (column + 1) / 4, height * (row + 1) / 4)
                count[occlusion._pixels_of(box)] += 1
        assert (count == 1).all()


def test_the_map_of_tokens_is_whole_rows_with_these_tokens_cut(studied):
    case, block, steps, _ = studied
    found, before = steps[-1].tokens, whole_row(case)
    rows = rows_of(case, block, steps[-1])
    everything = whole_row(case, [Cut(rows, image_keys(block))])
    assert found.logprob == pytest.approx(before, abs=1e-4)
    assert found.nothing == pytest.approx(everything, abs=1e-4)
    every = {p for region in found.regions for p in region.positions}
    for region in found.regions[::5]:
        assert region.loss == pytest.approx(before - whole_row(case, [Cut(rows, region.positions)]), abs=1e-4)
        alone = whole_row(case, [Cut(rows, sorted(every - set(region.positions)))])
        assert region.gain == pytest.approx(alone - everything, abs=1e-4)
        assert region.effect == (region.loss + region.gain) / 2


def test_the_whole_image_and_its_tiles(studied):
    case, block, steps, _ = studied
    found, before = steps[0], whole_row(case)
    (removed,) = case.prefix_cache.run([ImageAblations(case).of_answer(frozenset({block.number}))])
    assert found.removed == pytest.approx(before - removed.logprob, abs=1e-4)
    rows = rows_of(case, block, found)
    assert [tile.name for tile in found.tiles] == [run.name for run in block.tiles]
    for tile, run in zip(found.tiles, block.tiles, strict=True):
        cut = whole_row(case, [Cut(rows, (*range(run.start, run.stop), run.mark))])
        assert tile.effect == pytest.approx(before - cut, abs=1e-4)
        assert tile.box == case.prefix_cache.row.images[block.number - 1].boxes[run.tile]
    enough = before - whole_row(case, [Cut(case.target.queries, image_keys(block))]) >= 0.9 * found.removed
    assert (found.rows == "question and answer") == enough


def painted(case, block, boxes):
    """log p of the answer in a row made anew from the picture with these boxes in its median colour."""
    pixels = np.array(case.prompt.images[block.number - 1].pixels)
    colour = np.median(pixels.reshape(-1, 3), axis=0)
    for box in boxes:
        pixels[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = colour
    images = list(case.prompt.images)
    images[block.number - 1] = OpenedImage(Image.fromarray(pixels))
    turns = [
        Turn(turn.user, question.answer_text.strip())
        for turn, question in zip(case.prompt.turns, case.structure.questions, strict=True)
    ]
    row = prepare_row(case.vlm, replace(case.prompt, images=tuple(images), turns=tuple(turns)))
    assert tuple(row.input_ids.tolist()) == case.prefix_cache.ids
    logprobs = case.vlm(case.vlm.collate([row]))[0].log_softmax(dim=-1)
    return sum(logprobs[p - 1, row.input_ids[p]].item() for p in range(*case.target.scored))


def test_the_map_of_pixels_is_painted_pictures_read_from_the_start(studied):
    case, block, steps, _ = studied
    found = steps[-1].pixels
    boxes = [region.box for region in found.regions]
    nothing = painted(case, block, boxes)
    assert found.logprob == pytest.approx(whole_row(case), abs=1e-4)
    assert found.nothing == pytest.approx(nothing, abs=1e-4)
    for n in (0, 6, 9):
        assert found.regions[n].loss == pytest.approx(whole_row(case) - painted(case, block, [boxes[n]]), abs=1e-4)
        others = [box for box in boxes if box is not boxes[n]]
        assert found.regions[n].gain == pytest.approx(painted(case, block, others) - nothing, abs=1e-4)


def test_curves_run_from_all_regions_to_none(studied):
    case, block, steps, _ = studied
    for found in (steps[-1].pixels, steps[-1].tokens):
        curves = (found.strongest_first, found.weakest_first, *found.random)
        assert len(found.random) == RANDOM_ORDERS >= 8
        for curve in curves:
            assert curve.counts == tuple(range(0, 17, 2))
            assert len(curve.counts) == CURVE_STEPS + 1
            assert (curve.logprobs[0], curve.logprobs[-1]) == (found.logprob, found.nothing)
    tokens = steps[-1].tokens
    order = sorted(range(16), key=lambda n: -tokens.regions[n].effect)
    rows = rows_of(case, block, steps[-1])
    for curve, chosen in ((tokens.strongest_first, order[:4]), (tokens.weakest_first, order[-4:])):
        gone = [p for n in chosen for p in tokens.regions[n].positions]
        assert curve.logprobs[2] == pytest.approx(whole_row(case, [Cut(rows, gone)]), abs=1e-4)


def test_the_map_of_pixels_points_at_the_shape(studied):
    """It lies in a part of the picture, and painting that over first is worse for the answer than painting anywhere."""
    _, block, steps, name = studied
    found = steps[-1].pixels
    assert found.better
    assert found.gap > 0
    if name == "tiles":  # three shapes are counted there: no one place is right
        return
    example = next(example for example in EXAMPLES if example.name == name)
    left, top, right, bottom = example.scenes()[block.number - 1].shapes[0].box
    box = found.top.box
    assert left < box.right
    assert box.left < right
    assert top < box.bottom
    assert box.top < bottom


def test_pixels_first_then_tokens_each_step_adds_to_the_last(studied):
    _, _, steps, _ = studied
    per_map = 2 + RANDOM_ORDERS
    assert len(steps) == 1 + 2 * per_map
    assert [step.pixels is None for step in steps] == [True] + [False] * 2 * per_map
    assert [step.tokens is None for step in steps] == [True] * (1 + per_map) + [False] * per_map
    assert [len(step.pixels.random) for step in steps[1 : 1 + per_map]] == [0, 0, *range(1, RANDOM_ORDERS + 1)]
    assert steps[1].pixels.strongest_first is None
    assert steps[1].pixels.better is None
    assert all(step.sentence for step in steps)


def test_the_same_seed_draws_the_same_orders(embedded):
    case = example_case(embedded, "single")
    one, other = (list(measure_regions(case, 1, 0.0))[-1] for _ in range(2))
    assert one == other


def test_an_image_out_of_reach_is_refused(embedded):
    case = example_case(embedded, "per-turn", turn=1)
    with pytest.raises(InputError, match=r"^Question 1 .*image 2;.* 1"):
        next(measure_regions(case, 2, 0.0))
    masked = example_case(embedded, "packed", document_mask=True)
    with pytest.raises(InputError, match="see: 3"):
        next(measure_regions(masked, 1, 0.0))
    assert next(measure_regions(masked, 3, 0.0)).removed > 1


def test_areas_and_what_is_better(embedded):
    sinking, flat = Deletion((0, 1, 2), (0.0, -4.0, -4.0)), Deletion((0, 1, 2), (0.0, 0.0, -4.0))
    assert (sinking.area, flat.area) == (-3.0, -1.0)
    here = Region(Box(0, 0, 1, 1), (5,), 1.0, 3.0)
    there = Region(Box(1, 0, 2, 1), (6,), 2.5, 0.5)
    found = RegionMap("hidden", 0.0, -4.0, (here, there), sinking, flat, (flat, flat, sinking))
    assert (found.whole, found.top, here.effect, there.effect) == (4.0, here, 2.0, 1.5)
    assert found.gap == pytest.approx(-5 / 3 + 3)
    assert found.beaten == 2
    assert found.better
    assert found.band[1] == (-4.0, pytest.approx(-4 / 3), 0.0)
    assert not replace(found, strongest_first=flat, random=(sinking,)).better
    assert replace(found, random=()).gap is None


def test_in_words_and_in_json(studied):
    _, block, steps, _ = studied
    found = steps[-1]
    box = found.pixels.top.box
    assert f"image {block.number} " in found.sentence
    assert f"x {box.left:.0f} to {box.right:.0f}, y {box.top:.0f} to {box.bottom:.0f} px" in found.sentence
    assert f"{found.pixels.gap:+.2f}" in found.sentence
    described = json.loads(json.dumps(found.to_json()))
    assert described["pixels"]["top"] == {"left": box.left, "top": box.top, "right": box.right, "bottom": box.bottom}
    assert described["tokens"]["regions"][3]["effect"] == found.tokens.regions[3].effect
    assert described["pixels"]["strongest_first"]["area"] == found.pixels.strongest_first.area


def test_a_checkpoint_without_region_marks(golden):
    """Before June 2025: one tile an image, 4 image tokens, no marks; two images, the first one studied."""
    legacy = load_vlm(golden / "legacy_v01", tokenizer=golden / "tiny_tokenizer")
    pictures = tuple(OpenedImage(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue"))
    case = example_case(legacy, "two", images=pictures, turns=(Turn("What is it?", "red"),))
    *_, found = measure_regions(case, 1, 0.0)
    batch = legacy.collate([case.prefix_cache.row])
    cut = Cut(rows_of(case, case.structure.images[0], found), case.structure.images[0].tokens)
    logprobs = legacy(batch, Tap(cuts=(cut,)))[0].log_softmax(dim=-1)
    nothing = sum(logprobs[p - 1, case.prefix_cache.ids[p]].item() for p in range(*case.target.scored))
    assert found.tokens.nothing == pytest.approx(nothing, abs=1e-4)
    # A picture of one colour painted in that colour is the same picture.
    assert [region.loss for region in found.pixels.regions] == pytest.approx([0.0] * 4, abs=1e-5)


def test_a_long_row_is_measured_coarsely_and_says_so(embedded, monkeypatch):
    """The same regions as in a fine map of as many; fewer orders; reports in between."""
    case = example_case(embedded, "single")
    assert choose_detail(case, case.structure.images[0])[0].regions == 64
    *_, fine = measure_regions(case, 1, 0.1)
    monkeypatch.setattr(occlusion, "MOST_POSITIONS", 1000)
    steps = list(measure_regions(case, 1, 0.1))
    found = steps[-1]
    assert found.coarse
    assert not fine.coarse
    readings = 2 + 2 * 16 + 3 * 5
    assert found.readings == (2 * readings, 2 * readings)
    done = [step.readings[0] for step in steps]
    assert done == sorted(set(done))
    assert done[:3] == [0, 4, 8]
    for coarse, other in ((found.pixels, fine.pixels), (found.tokens, fine.tokens)):
        assert len(coarse.random) == 3
        assert coarse.strongest_first.counts == (0, 4, 8, 12, 16)
        for one, two in zip(coarse.regions, other.regions, strict=True):
            assert (one.box, one.positions) == (two.box, two.positions)
            assert one.loss == pytest.approx(two.loss, abs=1e-4)
        assert coarse.strongest_first.logprobs == pytest.approx(other.strongest_first.logprobs[::2], abs=1e-4)


def test_a_row_of_the_222m_shape_is_long(embedded):
    """787 positions behind the first of three images, of which each has 49 thumbnail tokens."""
    detail = Detail(64, 8, 8, 1)
    assert detail.count_readings(49) == 170
    assert 250 * detail.count_readings(49) > occlusion.MOST_POSITIONS
    assert COARSE.count_readings(16) == 49
