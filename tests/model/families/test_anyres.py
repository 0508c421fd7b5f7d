"""LLaVA-NeXT and LLaVA-OneVision: one grid of several tiles, and what several images change."""

import json

import pytest
import torch

from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn, prepare_row
from model import InputError, OpenedImage, load_vlm
from model.families.anyres_images import AnyresImages
from tests import tiny_checkpoints as made

SIZES = ((56, 56), (56, 112), (112, 56), (112, 112))


@pytest.mark.parametrize(
    ("size", "chosen", "resized", "cells"),
    [
        ((56, 56), (56, 56), (56, 56), (4, 4)),
        ((200, 100), (56, 112), (112, 56), (4, 8)),
        ((100, 210), (112, 56), (54, 112), (8, 4)),
        ((300, 200), (112, 112), (112, 75), (6, 8)),
        ((60, 300), (112, 56), (23, 112), (8, 2)),
    ],
)
def test_sizes_and_grids(size, chosen, resized, cells):
    """Worked out by hand: an image of 300 × 200 is 112 × 74.7 px in 112 × 112, and one row of cells is black at either
    end."""
    images = AnyresImages(56, 4, SIZES, 3)
    assert images.choose_size(size) == (chosen, resized)
    assert images.count_cells(size) == cells


def test_of_a_very_narrow_image_no_cell_is_left_and_that_is_said():
    """As in transformers: the row holds the whole image and line breaks then."""
    images = AnyresImages(56, 4, SIZES, 3)
    assert images.count_cells((1, 300)) == (4, 0)
    assert "no cell" in images.lay_out((1, 300)).notes[0]


def test_a_grid_of_many_tiles_is_shrunk():
    assert AnyresImages(56, 4, SIZES, 3, most=2).count_cells((112, 112)) == (5, 5)  # 8 / √2
    assert AnyresImages(56, 4, SIZES, 3, most=4).count_cells((112, 112)) == (8, 8)


def asked(vlm, sizes, layout="images-first", turns=1):
    images = tuple(OpenedImage(made.noise(*size, seed=n)) for n, size in enumerate(sizes))
    prompt = Prompt(images, (Turn("What is it?"),) * turns, layout)
    return ask_and_inspect(vlm, prompt, GenerationSettings(2))


def tokens_of(inspection):
    return [sum(len(span) for span in inspection.row.spans if span.image == n) for n in range(2)]


def test_several_images_of_a_sample_are_one_square_each(tiny):
    vlm = tiny("onevision").vlm
    alone, both = asked(vlm, [(100, 60)]), asked(vlm, [(100, 60), (64, 64)])
    assert tokens_of(alone)[0] == 16 + 4 * (8 + 1)
    assert tokens_of(both) == [16 + 1, 16 + 1]
    assert both.row.images[0].notes == ("padded to the model's size",)
    # Packed, each has a sample of its own.
    apart = asked(vlm, [(100, 60), (64, 64)], "packed", 2)
    assert tokens_of(apart)[0] == tokens_of(alone)[0]
    assert tokens_of(apart)[1] > 17


def test_an_earlier_turn_is_asked_as_it_will_stand_in_the_row(tiny):
    vlm = tiny("onevision").vlm
    inspection = asked(vlm, [(100, 60), (64, 64)], "per-turn", 2)
    assert inspection.faithful
    first = prepare_row(vlm, inspection.prompt, answering=0)
    assert first.input_ids.tolist() == inspection.row.input_ids[: len(first)].tolist()
    assert tokens_of(inspection) == [17, 17]


def test_changed_pictures_of_a_study_are_cut_as_the_prompt_s(tiny):
    vlm = tiny("onevision").vlm
    case = open_case(vlm, asked(vlm, [(100, 60), (64, 64)]))
    assert case.vlm.geometry != vlm.geometry
    assert case.vlm.fingerprint == vlm.fingerprint
    assert len(case.vlm.process_image(made.noise(90, 30)).boxes) == 1


def test_features_are_the_model_s(tiny):
    checkpoint = tiny("onevision shrinks")
    vlm, pictures = checkpoint.vlm, [made.noise(300, 200)]
    (image,) = checkpoint.row(pictures).images
    (mine,) = vlm.arrange_features(image, vlm.encode(vlm.encoder_inputs(image)))
    inputs = checkpoint.inputs(pictures)
    with torch.no_grad():
        theirs = checkpoint.model.model.get_image_features(
            inputs["pixel_values"], inputs["image_sizes"], batch_num_images=inputs["batch_num_images"]
        ).pooler_output[0]
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        ("onevision", "config.json", {"vision_feature_select_strategy": "default"}),
        ("onevision", "config.json", {"vision_aspect_ratio": "pad"}),
        ("llava next", "config.json", {"image_grid_pinpoints": [[56, 56]]}),
        ("llava next", "processor_config.json", {"image_grid_pinpoints": [[60, 60]]}),
        ("onevision", "preprocessor_config.json", {"size": {"height": 60, "width": 60}}),
        ("onevision", "preprocessor_config.json", {"size": {"height": 56, "width": 84}}),
        ("onevision", "preprocessor_config.json", {"size": {"height": 70, "width": 70}, "crop_size": 56}),
        ("llava next", "processor_config.json", {"size": {"shortest_edge": 70}}),
    ],
)
def test_settings_that_are_not_known_are_refused(copy_of, name, file, change):
    folder = copy_of(name)
    path = folder / file
    values = json.loads(path.read_text())
    target = values.get("image_processor", values) if file == "processor_config.json" else values
    target.update(change)
    path.write_text(json.dumps(values))
    with pytest.raises(InputError):
        load_vlm(folder)
