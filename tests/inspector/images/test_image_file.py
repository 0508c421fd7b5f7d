"""Images of prompts stay in their files: what is kept of them, what needs the file again, and that nothing changes."""

import gc
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from inspector.bounds import private_bounds
from inspector.experiments import occlusion
from inspector.figures.payload import data_uri, viewer_payload
from inspector.figures.report import write_report
from inspector.images import full_size
from inspector.images.decoder import DECODER
from inspector.images.image_file import ImageFile, ImageShelf
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.row.prompt import Prompt, Turn, check_pixels
from inspector.server.state_size import count_bytes
from inspector.session import Answering, ModelStore, Shown
from inspector.views import prompt as prompt_view
from inspector.which_image.counterfactuals import measure_counterfactuals
from inspector.which_image.image_effects import measure_dependence
from inspector.which_image.question_contrast import measure_selection
from inspector.which_image.study import study_answer
from model import InputError, OpenedImage, open_image, process_image
from model.image import geometry_of, resize_image
from model.training.synthetic.examples import EXAMPLES

GONE = r"1\.png.*uploaded"


@pytest.fixture
def files(tmp_path):
    """The pictures of an example with three images."""
    paths = []
    for number, picture in enumerate(EXAMPLES[1].draw_images(), start=1):
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    return paths


@pytest.fixture
def runs(monkeypatch):
    """Which files were decoded."""
    decoded = []
    run = DECODER.run
    monkeypatch.setattr(DECODER, "run", lambda path, *rest: decoded.append(path.name) or run(path, *rest))
    return decoded


def photo(path, size=(4000, 3000)):
    """Large, and no two parts alike, as photos are."""
    noise = Image.fromarray(np.random.default_rng(size[0]).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    noise.resize(size, Image.Resampling.BICUBIC).save(path, quality=85)
    return path


def ask(vlm, images, question=EXAMPLES[1].turns[0]):
    return ask_and_inspect(vlm, Prompt(tuple(images), (Turn(question),)), GenerationSettings(4))


def test_a_file_is_what_open_image_makes_of_it(tmp_path, embedded):
    path = photo(tmp_path / "photo.jpg", (1500, 900))
    opened, file = open_image(path), ImageFile(path)
    assert file.size == (1500, 900)
    assert file.count_pixels() == 1_350_000
    assert file.notes == ()
    assert file.pixels.tobytes() == opened.pixels.tobytes()
    assert file.preview.size == (768, 461)
    one, two = file.process(embedded), process_image(opened, embedded.config)
    assert one.tiles.equal(two.tiles)
    assert (one.grid, one.boxes, one.original_size, one.notes) == (two.grid, two.boxes, two.original_size, two.notes)


def test_what_a_model_sees_is_found_again_while_somebody_keeps_it(files, embedded, runs):
    file = ImageFile(files[0])
    processed = file.process(embedded)
    assert file.process(embedded) is processed
    assert file.size == (64, 64)
    assert runs == ["1.png"]
    del processed
    gc.collect()
    file.process(embedded)
    assert runs == ["1.png", "1.png"]


def test_a_question_decodes_each_image_once(files, embedded, runs):
    ask(embedded, [ImageFile(path) for path in files])
    assert runs == ["1.png", "2.png", "3.png"]


def test_a_file_and_a_drawn_picture_give_the_same_answer_and_the_same_page(files, embedded):
    drawn = ask(embedded, [open_image(path) for path in files])
    filed = ask(embedded, [ImageFile(path) for path in files])
    assert filed.prompt.turns == drawn.prompt.turns
    assert filed.table == drawn.table
    names = [path.name for path in files]
    assert viewer_payload(embedded, filed, names, "k") == viewer_payload(embedded, drawn, names, "k")


def test_the_viewers_pictures_of_a_photo_are_those_of_its_full_size(tmp_path, embedded):
    path = photo(tmp_path / "photo.jpg", (1500, 900))
    whole = open_image(path).pixels
    preview = whole.copy()
    preview.thumbnail((768, 768))
    (shown,) = viewer_payload(embedded, ask(embedded, [ImageFile(path)]), ["photo.jpg"], "k")["images"]
    assert shown["original"] == data_uri(preview)
    assert shown["resized"] == data_uri(resize_image(whole, embedded.config))
    assert shown["original_size"] == [1500, 900]


def test_an_uploaded_file_that_is_gone_costs_only_what_needs_its_pixels(files, embedded):
    inspection = ask(embedded, [ImageFile(path) for path in files])
    files[0].unlink()
    assert viewer_payload(embedded, inspection, ["1", "2", "3"], "k")["images"][0]["original_size"] == [64, 64]
    assert write_report(
        inspection, model="m", names=["1", "2", "3"], turn=1, verdict="", panels=[], facts={}, seen=None
    )
    assert ask(embedded, inspection.prompt.images).prompt.turns == inspection.prompt.turns
    case = open_case(embedded, inspection)
    with pytest.raises(InputError, match=GONE):
        list(occlusion.measure_regions(case, 1, 0.1))
    with pytest.raises(InputError, match=GONE):
        inspection.prompt.images[0].pixels  # noqa: B018


def test_another_file_in_its_place_is_not_taken_for_it(files, embedded):
    file = ImageFile(files[0])
    files[0].unlink()
    Image.new("RGB", (9, 9), "blue").save(files[0])
    with pytest.raises(InputError, match=GONE):
        file.process(embedded)


def test_regions_of_a_file_are_those_of_the_picture(files, embedded):
    floor = 0.1
    found = [
        next(
            step.pixels
            for step in occlusion.measure_regions(open_case(embedded, ask(embedded, [image])), 1, floor)
            if step.pixels is not None
        )
        for image in (open_image(files[0]), ImageFile(files[0]))
    ]
    assert found[0] == found[1]


def test_a_swap_keeps_a_preview_of_what_came(tmp_path, embedded):
    paths = [photo(tmp_path / f"{size[0]}.jpg", size) for size in ((1600, 1200), (1200, 1600))]
    kept = [
        [
            (swap.image, swap.partner, swap.fall, swap.answer, swap.picture.size)
            for swap in measure_counterfactuals(case, measure_selection(case, 1))
        ]
        for case in (
            open_case(embedded, ask(embedded, images))
            for images in ([open_image(p) for p in paths], [ImageFile(p) for p in paths])
        )
    ]
    assert kept[0] == kept[1]
    assert [size for *_, size in kept[0]] == [(768, 576), (576, 768)]


def test_median_and_paint_are_those_of_the_pixels(embedded):
    noise = np.random.default_rng(2).integers(0, 256, (91, 70, 3), dtype=np.uint8)
    opened, geometry = OpenedImage(Image.fromarray(noise)), geometry_of(embedded.config)
    expected = np.median(noise.reshape(-1, 3), axis=0).round().astype(np.uint8)
    assert full_size.find_median(opened) == tuple(expected.tolist())
    (painted,) = full_size.paint_over(opened, [[(0, 0, 30, 91), (5, 5, 5, 9)], []], (1, 2, 3), geometry)
    noise[:, :30] = (1, 2, 3)
    assert painted[0].tobytes() == resize_image(Image.fromarray(noise), embedded.config).tobytes()
    assert painted[1].tobytes() == resize_image(opened.pixels, embedded.config).tobytes()


def test_of_three_photos_little_is_kept(tmp_path, embedded):
    """Three of 12 megapixels: 172 MB in a session that keeps their pixels and tiles."""
    images = tuple(ImageFile(photo(tmp_path / f"{n}.jpg", (4000, 3000 + n))) for n in range(3))
    inspection = ask(embedded, images)
    shown = Shown("embedded", inspection, 0, attend(embedded, inspection, 3))
    assert 300_000 < count_bytes(shown) < 5_000_000
    *_, found = study_answer(embedded, inspection, max_new_tokens=4)
    assert count_bytes(replace(found, case=None)) < 10_000_000
    assert count_bytes(Answering("embedded", inspection.prompt, (), GenerationSettings(), ((),))) < 2_000_000


def test_bytes_of_a_state_are_each_counted_once():
    array = np.zeros((1000, 1000), dtype=np.float32)
    assert 4_000_000 <= count_bytes((array, [array, {"again": array[:10]}])) < 4_001_000
    assert 4_000_000 <= count_bytes(Image.new("RGB", (1000, 1000))) < 4_001_000
    assert count_bytes("x" * 1000) > 1000
    assert count_bytes([]) < 200


def test_a_gallery_that_changes_opens_only_what_is_new(files, runs):
    store = ModelStore({"embedded": "embedded"})
    gallery = [(str(path), None) for path in files]
    first = prompt_view.plan_images(store, "embedded", gallery[:2], private_bounds())
    assert runs == ["1.png", "2.png"]
    second = prompt_view.plan_images(store, "embedded", gallery, private_bounds())
    assert runs == ["1.png", "2.png", "3.png"]
    assert first[0] == gallery[:2]
    assert second[0] == gallery
    asked, names = prompt_view.read_prompt(gallery, 1, "images-first", False, ["what?", *[""] * 11], private_bounds())
    assert names == ["1.png", "2.png", "3.png"]
    assert [image.size for image in asked.images] == [(64, 64)] * 3
    assert len(runs) == 3


def test_the_shelf_is_bounded_and_knows_files_that_changed(files, runs):
    shelf = ImageShelf(limit=1)
    one = shelf.find(files[0])
    assert shelf.find(files[0]) is one
    shelf.find(files[1])
    assert shelf.find(files[0]) is not one
    before = shelf.find(files[2])
    Image.new("RGB", (9, 9), "blue").save(files[2])
    assert shelf.find(files[2]) is not before
    assert runs == []
    files[2].unlink()
    with pytest.raises(InputError, match=r"3\.png.*read"):
        shelf.find(files[2])


def test_too_many_pixels_in_a_prompt_are_refused_before_any_is_decoded(tmp_path, runs):
    paths = []
    for n in range(3):
        paths.append(tmp_path / f"{n}.png")
        Image.new("1", (1000, 1000 + n)).save(paths[-1])
    bounds = private_bounds(prompt_pixels=3_000_000)
    gallery = [(str(path), None) for path in paths]
    with pytest.raises(InputError, match=r"3\.003 million.* 3 million"):
        prompt_view.read_prompt(gallery, 1, "images-first", False, ["what?", *[""] * 11], bounds)
    assert runs == []
    prompt_view.read_prompt(gallery[:2], 1, "images-first", False, ["what?", *[""] * 11], bounds)
    with pytest.raises(InputError, match="3 million"):
        check_pixels([OpenedImage(Image.new("1", (2000, 2000)))], bounds)


def test_a_damaged_picture_is_said_when_it_is_asked_about(tmp_path, embedded):
    buffer = io.BytesIO()
    Image.effect_noise((300, 300), 60).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:9000])
    with pytest.raises(InputError, match=r"cut\.png.*damaged"):
        ask(embedded, [ImageFile(tmp_path / "cut.png")])


def test_the_noise_floor_needs_no_file(files, embedded):
    inspection = ask(embedded, [ImageFile(path) for path in files])
    for path in files:
        path.unlink()
    assert measure_dependence(open_case(embedded, inspection)).noise_floor >= 0
