"""Edits of images: the edited prompt read anew, whole rows with the tokens cut, and identities between edits."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from inspector.__main__ import main
from inspector.experiments.image_edits import (
    MAX_EDITS,
    ImageEdit,
    find_covered,
    find_hidden,
    place_tokens,
    read_edit,
    run_edits,
)
from inspector.images.full_size import PixelEdit, cut_out, edit_image
from inspector.images.image_file import ImageFile
from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.image_exchange import ImageExchanges
from inspector.interventions.target import image_keys, open_case
from inspector.row.ask import inspect
from inspector.row.prompt import Prompt, Turn
from inspector.row.token_table import locate_cell
from inspector.server.state_size import count_bytes
from model import Cut, InputError, OpenedImage
from tests.example_cases import example_case, whole_row


class WholePicture:
    """A geometry that hands the picture over as it is."""

    def reduce(self, picture):
        return (np.array(picture),)


def edited(pixels, *edits):
    """``pixels [height width 3]`` uint8 with the edits, at full size."""
    _, (found,) = edit_image(OpenedImage(Image.fromarray(pixels)), edits, WholePicture())
    return found


@pytest.fixture(scope="module")
def three(embedded):
    return example_case(embedded, "three")


@pytest.fixture(scope="module")
def tiles(embedded):
    return example_case(embedded, "tiles")


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- pixels ---


def test_paints_fill_the_rectangle_and_nothing_else():
    pixels = noise(30, 20)
    mean = np.rint(pixels.reshape(-1, 3).mean(axis=0))
    for how, colour in (("grey", (128, 128, 128)), ("black", (0, 0, 0)), ("mean", mean)):
        found, expected = edited(pixels, PixelEdit(how, (4, 5, 21, 17))), pixels.copy()
        expected[5:17, 4:21] = colour
        assert (found == expected).all()
    kept = edited(pixels, PixelEdit("keep", (4, 5, 21, 17)))
    expected = np.broadcast_to(mean, pixels.shape).copy()
    expected[5:17, 4:21] = pixels[5:17, 4:21]
    assert (kept == expected).all()


@pytest.mark.parametrize("size", [(40, 30), (900, 700)])
def test_a_blur_leaves_the_mean_and_nothing_finer(size):
    width, height = size
    pixels = noise(*size)
    rectangle = (width // 8, height // 8, width // 2, height // 2)
    left, top, right, bottom = rectangle
    found = edited(pixels, PixelEdit("blur", rectangle))
    inside, before = (one[top:bottom, left:right].astype(float) for one in (found, pixels))
    assert inside.mean() == pytest.approx(before.mean(), abs=2)
    assert inside.std(axis=(0, 1)).max() < before.std() / 5
    found[top:bottom, left:right] = pixels[top:bottom, left:right]
    assert (found == pixels).all()


def test_the_same_place_of_another_image():
    pixels, other = noise(32, 32), noise(32, 32, seed=1)
    part = cut_out(OpenedImage(Image.fromarray(other)), (8, 4, 20, 30), (12, 26))
    found = edited(pixels, PixelEdit("paste", (8, 4, 20, 30), part))
    assert (found[4:30, 8:20] == other[4:30, 8:20]).all()
    assert cut_out(OpenedImage(Image.new("RGB", (8, 8))), (0, 0, 8, 8), (8192, 4096)).size == (2048, 1024)


def test_edits_are_made_one_after_the_other():
    black, white = (noise(8, 8) * 0 + value for value in (0, 255))
    grey = PixelEdit("grey", (0, 0, 4, 8))
    found = edited(white.astype(np.uint8), grey, PixelEdit("black", (2, 0, 8, 8)))
    assert (found[:, :2] == 128).all()
    assert (found[:, 2:] == black[:, 2:]).all()


# --- answers ---


@pytest.mark.parametrize(("name", "number"), [("three", 3), ("five", 2), ("tiles", 1), ("per-turn", 3), ("packed", 3)])
@pytest.mark.parametrize("how", ["blur", "grey", "mean", "black", "keep"])
def test_an_edit_is_the_edited_prompt_read_anew_and_the_cut_a_whole_row(embedded, name, number, how):
    case = example_case(embedded, name)
    own = case.prompt.images[number - 1]
    width, height = own.size
    rectangle = (width // 4, height // 4, width, height // 2)
    study = run_edits(case, [f"image {number}: {how} {','.join(map(str, rectangle))}"])
    (step,) = study.steps
    images = list(case.prompt.images)
    images[number - 1] = OpenedImage(Image.fromarray(edited(np.array(own.pixels), PixelEdit(how, rectangle))))
    anew = open_case(embedded, inspect(embedded, replace(case.prompt, images=tuple(images))), case.turn)
    assert step.pixels.logprob == pytest.approx(whole_row(anew), abs=1e-4)
    assert step.pixels.answer == anew.text(anew.greedy_ids)
    assert step.pixels.change == pytest.approx(whole_row(anew) - whole_row(case), abs=1e-4)
    assert step.pixels.flipped == (anew.greedy_ids != case.greedy_ids)
    keys = find_hidden(case, study.edits)
    rows = [p for p in range(keys[0], case.target.scored[1]) if p not in keys]
    assert step.tokens == len(keys) > 0
    assert step.cut.logprob == pytest.approx(whole_row(case, [Cut(rows, keys)]), abs=1e-4)


def test_all_of_an_image_cut_is_the_image_taken_away_and_pasted_the_image_exchanged(three):
    for number, other in ((3, 1), (1, 2)):
        (step,) = run_edits(three, [f"image {number}: paste 0,0,64,64 from image {other}"]).steps
        (ablated,) = three.prefix_cache.run([ImageAblations(three).of_answer(frozenset({number}))])
        assert step.cut.logprob == pytest.approx(ablated.logprob, abs=1e-4)
        exchanges, target = ImageExchanges(three), three.target
        replaced = {number: exchanges.of_prompt(three.find_reachable(number), other).features}
        ids = three.prefix_cache.ids[target.start : target.scored[1]]
        (exchanged,) = three.prefix_cache.run([exchanges.of_ending(replaced, target, ids, target.scored)])
        assert step.pixels.logprob == pytest.approx(exchanged.logprob, abs=1e-4)


def test_to_keep_all_changes_nothing(three):
    (step,) = run_edits(three, ["image 3: keep 0,0,64,64"]).steps
    assert (step.tokens, step.pixels.flipped, step.cut.flipped) == (0, False, False)
    assert (step.pixels.change, step.cut.change) == pytest.approx((0, 0), abs=1e-4)


def test_edits_of_halves_are_the_edit_of_the_whole(three):
    halves = run_edits(three, ["image 3: black 0,0,32,64", "image 1: grey 0,0,9,9", "image 3: black 32,0,64,64"])
    whole = run_edits(three, ["image 1: grey 0,0,9,9", "image 3: black 0,0,64,64"])
    for one, other in ((halves.steps[-1].pixels, whole.steps[-1].pixels), (halves.steps[-1].cut, whole.steps[-1].cut)):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.answer == other.answer
    assert halves.steps[-1].tokens == whole.steps[-1].tokens


def test_what_is_known_of_the_same_edits_is_kept(three):
    texts = ["image 3: black 0,0,32,64", "image 3: grey 0,0,64,64"]
    known = run_edits(three, texts)
    again = run_edits(three, [*texts, "image 2: mean 0,0,9,9"], known)
    assert all(one is other for one, other in zip(again.steps, known.steps, strict=False))
    last, anew = again.steps[2], run_edits(three, again.texts).steps[2]
    assert (last.edit, last.tokens, last.pixels.answer) == (anew.edit, anew.tokens, anew.pixels.answer)
    assert (last.pixels.logprob, last.cut.logprob) == pytest.approx((anew.pixels.logprob, anew.cut.logprob), abs=1e-5)
    other = run_edits(three, ["image 3: black 0,0,32,64", "image 3: blur 0,0,64,64"], known)
    assert other.steps[0] is known.steps[0]
    assert other.steps[1] is not known.steps[1]
    assert again.without_last.edits == known.edits
    assert count_bytes(again) < 1 << 20


def test_a_study_of_another_turn_is_made_anew(embedded):
    first, second = (example_case(embedded, "per-turn", turn) for turn in (1, 2))
    known = run_edits(first, ["image 1: black 0,0,64,64"])
    again = run_edits(second, known.texts, known)
    assert (again.turn, again.answer) == (2, second.text(second.answer_ids))
    assert again.to_json() == run_edits(second, known.texts).to_json()


# --- which tokens ---


def test_a_rectangle_of_a_cell_covers_its_token_and_the_thumbnail_s(tiles):
    row = tiles.prefix_cache.row
    placed = place_tokens(row, 1)
    assert [one.position for one in placed] == list(tiles.structure.images[0].tokens)
    for grid in row.grids:
        box = grid.cell_box(2, 1)
        edges = tuple(round(edge) for edge in (box.left, box.top, box.right, box.bottom))
        found = [locate_cell(row, p) for p in sorted(find_covered(placed, edges))]
        own = [cell for cell in found if cell.tile == grid.tile]
        assert [(cell.row, cell.col) for cell in own] == [(2, 1)]
        # A cell of a tile is a part of one of the thumbnail, which is one or more cells of tiles.
        assert sum(cell.tile_name == "thumbnail" for cell in found) == 1


def test_a_rectangle_between_centres_covers_the_cells_that_it_touches(tiles):
    row = tiles.prefix_cache.row
    found = [locate_cell(row, p) for p in sorted(find_covered(place_tokens(row, 1), (15, 15, 17, 16)))]
    names = [cell.tile_name for cell in found]
    assert names == ["thumbnail", "r1c1", "r1c1"]


def test_to_keep_hides_the_rest_and_all_cells_take_their_marks_along(three):
    row, block = three.prefix_cache.row, three.structure.images[0]
    cell = ImageEdit(1, "keep", (16, 16, 32, 32))
    (covered,) = find_covered(place_tokens(row, 1), cell.rectangle)
    assert set(find_hidden(three, [cell])) == set(block.tokens) - {covered}
    assert find_hidden(three, [cell, replace(cell, how="black")]) == image_keys(block)


# --- the language ---


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("image 1: blur 10,20,30,40", ImageEdit(1, "blur", (10, 20, 30, 40))),
        ("  Image 3:  KEEP 0, 0 ,64,64 ", ImageEdit(3, "keep", (0, 0, 64, 64))),
        ("image 2: paste 0,0,1,1 from image 1", ImageEdit(2, "paste", (0, 0, 1, 1), 1)),
    ],
)
def test_a_line_is_an_edit_and_an_edit_a_line(three, text, edit):
    assert read_edit(three, text) == edit
    assert read_edit(three, edit.text) == edit


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no edit"),
        ("blur 1,2,3,4", "no edit"),
        ("image 1: blur 1,2,3", "no edit"),
        ("image 1: blur 1.5,2,3,4", "no edit"),
        ("image 1: smear 1,2,3,4", "smear"),
        ("image 1: blur 10,20,10,40", "no size"),
        ("image 1: blur 10,20,30,20", "no size"),
        ("image 1: blur 30,20,10,40", "no size"),
        ("image 1: blur -1,20,30,40", "0,0,64,64"),
        ("image 1: blur 0,20,65,40", "0,0,64,64"),
        ("image 9: blur 10,20,30,40", "image 9"),
        ("image 1: paste 10,20,30,40", "from image"),
        ("image 1: blur 10,20,30,40 from image 2", "from image"),
        ("image 1: paste 10,20,30,40 from image 1", "2, 3"),
        ("image 1: paste 10,20,30,40 from image 4", "2, 3"),
        ("image 1: blur 10,20,30,40" + " " * 300, "325"),
    ],
)
def test_what_is_no_edit_is_refused(three, text, word):
    with pytest.raises(InputError, match=word):
        run_edits(three, [text])


def test_more_edits_than_are_taken_an_unseen_image_and_no_other_image(embedded, three):
    with pytest.raises(InputError, match=str(MAX_EDITS)):
        run_edits(three, ["image 1: blur 10,20,30,40"] * (MAX_EDITS + 1))
    packed = example_case(embedded, "packed", 1, document_mask=True)
    with pytest.raises(InputError, match="image 2"):
        run_edits(packed, ["image 2: blur 0,0,9,9"])
    with pytest.raises(InputError, match="no other image"):
        run_edits(example_case(embedded, "single"), ["image 1: paste 0,0,9,9 from image 2"])


# --- files and the command ---


@pytest.fixture
def files(three, tmp_path):
    paths = []
    for number, image in enumerate(three.prompt.images, start=1):
        paths.append(tmp_path / f"{number}.png")
        image.pixels.save(paths[-1])
    return paths


TEXTS = ["image 3: blur 0,0,48,48", "image 3: paste 16,16,48,64 from image 1", "image 2: keep 10,20,40,60"]


def test_files_are_edited_where_they_are_decoded(embedded, three, files):
    images = tuple(map(ImageFile, files))
    case = open_case(embedded, inspect(embedded, replace(three.prompt, images=images)))
    assert run_edits(case, TEXTS).to_json() == run_edits(three, TEXTS).to_json()
    files[2].unlink()
    with pytest.raises(InputError, match="upload it again"):
        run_edits(case, TEXTS)


def test_the_command_prints_the_same(three, files, capsys):
    question = three.prompt.turns[0].user
    asked = ["edit", *(word for path in files for word in ("--image", str(path))), "--ask", question]
    assert main([*asked, "--answer", "yellow", *(word for text in TEXTS for word in ("--edit", text))]) == 0
    assert json.loads(capsys.readouterr().out) == run_edits(three, TEXTS).to_json()
    assert main([*asked, "--edit", "image 1: blur 3,3,3,9"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_text_prompt_has_nothing_to_edit(embedded):
    case = open_case(embedded, inspect(embedded, Prompt((), (Turn("What?", "red"),))))
    with pytest.raises(InputError, match="none"):
        run_edits(case, ["image 1: blur 0,0,9,9"])
