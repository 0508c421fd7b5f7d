"""Patches like one another, where the encoder looks from one, and which patch a command line means."""

import pytest
import torch

from inspector.encoder.inputs import read_images
from inspector.encoder.patches import find_alike, find_patch, read_encoder_attention
from inspector.encoder.study import read_place
from model import InputError, OpenedImage
from model.encoders.opening import encoder_of
from tests import tiny_checkpoints as made
from tests.example_cases import example_prompt


@pytest.fixture(scope="module")
def own(embedded):
    encoder = encoder_of(embedded)
    return encoder, read_images(encoder, example_prompt("five").images)


def test_a_patch_is_most_like_itself_and_likeness_is_mutual(own):
    _, images = own
    here, there = find_alike(images, 0, 20), find_alike(images, 3, 5)
    assert here.maps[0].cosines[20] == pytest.approx(1)
    assert here.maps[3].cosines[5] == pytest.approx(there.maps[0].cosines[20])
    assert [cosine for _, cosine in here.nearest] == sorted((c for _, c in here.nearest), reverse=True)
    assert (0, 20) not in [(place.image, place.patch) for place, _ in here.nearest]
    assert (here.chosen.row, here.chosen.col) == (2, 4)


def test_every_layer_s_shares_add_up(own):
    encoder, images = own
    for layer in range(encoder.n_layers):
        found = read_encoder_attention(encoder, images, 1, 12, layer)
        assert [sum(head) for head in found.heads] == pytest.approx([1] * encoder.n_heads)
    last = read_encoder_attention(encoder, images, 1, 12)
    assert last.layer == encoder.n_layers - 1
    assert last.heads == found.heads


@pytest.mark.parametrize(("image", "patch"), [(5, 0), (-1, 0), (0, 64), (0, -1)])
def test_what_is_no_patch(own, image, patch):
    with pytest.raises(InputError):
        find_alike(own[1], image, patch)


@pytest.mark.parametrize("layer", [4, -1])
def test_what_is_no_layer(own, layer):
    with pytest.raises(InputError, match="0 to 3"):
        read_encoder_attention(*own, 0, 0, layer)


def test_places_as_they_are_typed(own):
    assert read_place("2:0,7") == (1, 0, 7)
    assert find_patch(own[1], 1, 2, 7) == 23
    for text in ("2", "2:1", "a:0,0", "0:1,1", ""):
        with pytest.raises(InputError, match="IMAGE:ROW,COLUMN"):
            read_place(text)
    with pytest.raises(InputError, match="rows 0 to 7"):
        find_patch(own[1], 0, 8, 0)
    with pytest.raises(InputError, match="1 to 5"):
        find_patch(own[1], 7, 0, 0)


def test_an_image_that_is_dark_but_for_one_square_is_unlike_there(tiny):
    """Of a family whose image tokens stand for its patches."""
    picture = made.noise(64, 64)
    picture.paste((0, 0, 0), (0, 0, 64, 64))
    picture.paste((255, 255, 255), (32, 32, 64, 64))
    vlm = tiny("llava").vlm
    encoder = encoder_of(vlm)
    images = read_images(encoder, [OpenedImage(picture)])
    grid = images.encoded[0].grids[0]
    found = torch.tensor(find_alike(images, 0, 0).maps[0].cosines).view(grid.rows, grid.cols)
    half = grid.rows // 2
    assert float(found[half:, half:].max()) < float(found[:half, :half].max())
