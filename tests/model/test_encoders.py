"""Encoders behind one seam: transformers' own numbers from their checkpoints, and the VLM's encoder with its tower."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model import InputError, OpenedImage, load_vlm, save_vlm
from model.clip import DualEncoder
from model.encoders.opening import encoder_of, is_encoder, load_encoder
from model.encoders.text_tower import SHAPE, WEIGHTS, find_tower, save_tower
from model.families.vision_attention import ATTENTION
from model.training.synthetic import scenes as sc
from tests import tiny_checkpoints as made
from tests.tiny_encoders import NAMES, build_encoder

SIZES = ((50, 40), (40, 90), (33, 31))
TEXTS = ["a red circle", "a blue one", "x"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return {name: build_encoder(name, tmp_path_factory.mktemp(name)) for name in NAMES}


def read(encoder, pictures):
    return [encoder.encode_image(encoder.reader.process_image(OpenedImage(picture))) for picture in pictures]


@pytest.mark.parametrize("name", NAMES)
def test_similarities_are_transformers_own(encoders, name):
    one = encoders[name]
    pictures = [made.noise(*size, seed=n) for n, size in enumerate(SIZES)]
    theirs = one.run(pictures, TEXTS)
    images = torch.stack([image.embedding for image in read(one.ours, pictures)])
    texts = one.ours.encode_texts(TEXTS)
    torch.testing.assert_close(images, theirs.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, theirs.text_embeds, atol=1e-5, rtol=0)
    logits = images @ texts.T * one.ours.scale + one.ours.bias
    torch.testing.assert_close(logits, theirs.logits_per_image, atol=1e-5, rtol=0)
    assert float(theirs.logits_per_image.std()) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_transformers_own_and_reading_changes_nothing(encoders, name):
    one = encoders[name]
    picture = made.noise(40, 90, seed=2)
    processed = one.ours.reader.process_image(OpenedImage(picture))
    before = one.ours.encode_image(processed)
    rows, cols = before.grids[0].rows, before.grids[0].cols
    found = one.ours.read_attention(processed, 5)
    after = one.ours.encode_image(processed)
    assert torch.equal(before.embedding, after.embedding)
    assert found.shape == (2, 2, rows * cols)
    one.theirs.set_attn_implementation("eager")
    inputs = one.images([picture], return_tensors="pt")
    with torch.no_grad():
        theirs = one.theirs.vision_model(**inputs, output_attentions=True).attentions
    one.theirs.set_attn_implementation("sdpa")
    lead = int(name == "clip")
    for layer, pattern in enumerate(theirs):
        expected = pattern[0, :, lead + 5, lead : lead + rows * cols]
        torch.testing.assert_close(found[layer], expected, atol=1e-6, rtol=0)


def test_patches_of_clip_are_the_projection_of_their_states(encoders):
    one = encoders["clip"]
    picture = made.noise(50, 40)
    with torch.no_grad():
        states = one.theirs.vision_model(**one.images([picture], return_tensors="pt")).last_hidden_state[0, 1:]
        expected = one.theirs.visual_projection(one.theirs.vision_model.post_layernorm(states))
    (found,) = read(one.ours, [picture])
    torch.testing.assert_close(found.patches, F.normalize(expected, dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_a_patch_of_siglip_is_pooled_alone(encoders, name):
    one = encoders[name]
    picture = made.noise(50, 40)
    inputs = one.images([picture], return_tensors="pt")
    with torch.no_grad():
        states = one.theirs.vision_model(**inputs).last_hidden_state[0]
        expected = torch.cat([one.theirs.vision_model.head(state[None, None]) for state in states[:3]])
    (found,) = read(one.ours, [picture])
    torch.testing.assert_close(found.patches[:3], F.normalize(expected, dim=-1), atol=1e-5, rtol=0)


def test_clip_reads_the_middle_of_an_image(encoders):
    (found,) = read(encoders["clip"].ours, [made.noise(60, 40)])
    assert tuple(vars(found.grids[0].box).values()) == (10, 0, 50, 40)


def test_typed_text_is_no_special_token(encoders):
    ours = encoders["clip"].ours
    end = ours.tokenizer.eos_token
    ids = ours.tokenizer([f"a {end} b"], split_special_tokens=True)["input_ids"][0]
    assert ours.tokenizer.eos_token_id not in ids[:-1]
    assert not torch.allclose(*ours.encode_texts([f"a {end} b", "a"]))


def test_what_is_no_encoder_is_refused(encoders, tmp_path):
    folder = encoders["clip"].folder
    assert is_encoder(folder)
    assert not is_encoder("embedded")
    with pytest.raises(InputError, match="no encoder"):
        load_encoder("embedded")
    with pytest.raises(InputError, match="--encoder"):
        load_vlm(folder)
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="can hold code"):
        load_encoder(pickled)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    values = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**values, "crop_size": {"height": 24, "width": 24}}))
    with pytest.raises(InputError, match="32 × 32 px"):
        load_encoder(other)


# --- the encoder of a VLM ---


def test_the_embedded_tower_finds_the_caption_and_leaves_the_model_alone(embedded):
    before = embedded.fingerprint
    encoder = encoder_of(embedded)
    assert encoder.has_text
    assert embedded.fingerprint == before
    scene = sc.random_scene(np.random.default_rng(5), n_shapes=1, colour="red", kind="circle")
    (image,) = read(encoder, [sc.draw(scene)])
    texts = encoder.encode_texts(["a red circle", "a blue circle", "a red triangle"])
    assert (texts @ image.embedding).argmax() == 0
    assert (image.grids[0].rows, image.grids[0].cols) == (8, 8)
    phrase = encoder.encode_texts(["red circle"])[0]
    row, col = divmod(int((image.patches @ phrase).argmax()), 8)
    left, top, right, bottom = scene.shapes[0].box
    assert left - 8 < col * 8 < right
    assert top - 8 < row * 8 < bottom


def test_attention_of_a_vlm_s_encoder_adds_up(embedded):
    encoder = encoder_of(embedded)
    found = encoder.read_attention(embedded.process_image(made.noise(64, 64)), 9)
    assert found.shape == (4, 4, 64)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(4, 4))
    # A pattern times the values is what the block's attention gives before its output map.
    tiles = embedded.process_image(made.noise(64, 64)).tiles[:1]
    with torch.no_grad():
        attention = embedded.vision_encoder.blocks[0].attn
        x = embedded.vision_encoder.blocks[0].ln1(embedded.vision_encoder.patch_embedding(tiles))
        values = attention._project(x)[2][0]
        z = torch.einsum("hp,hpd->hd", found[0], values).flatten()
        torch.testing.assert_close(attention.out_proj(z), attention(x)[0, 9], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["idefics3", "llava", "llava next", "internvl", "qwen2.5 vl", "qwen3 vl", "gemma3"])
def test_other_families_have_patches_alone(tiny, name):
    vlm = tiny(name).vlm
    encoder = encoder_of(vlm)
    (image,) = read(encoder, [made.noise(150, 100)])
    assert image.embedding is None
    assert len(image.patches) == sum(grid.rows * grid.cols for grid in image.grids)
    torch.testing.assert_close(image.patches.norm(dim=-1), torch.ones(len(image.patches)))
    assert not encoder.has_text
    with pytest.raises(InputError):
        encoder.encode_texts(["a"])


@pytest.mark.parametrize("size", [(150, 100), (56, 56)])
@pytest.mark.parametrize(
    "name",
    [
        *("idefics3", "llava", "llava always", "llava next", "onevision", "internvl", "gemma3", "gemma3 rest"),
        *("qwen2 vl", "qwen2.5 vl", "qwen3 vl"),
    ],
)
def test_the_attention_of_other_encoders_is_transformers_own_put_together_by_cells(tiny, name, size, monkeypatch):
    """Their eager attention, in which every pattern is there whole, in the order in which their places lie."""
    vlm = tiny(name).vlm
    encoder = encoder_of(vlm)
    image = encoder.reader.process_image(OpenedImage(made.noise(*size)))
    before = encoder.encode_image(image).patches
    cells = len(before)
    chosen = [0, cells // 2, cells - 1]
    found = [encoder.read_attention(image, cell) for cell in chosen]
    assert torch.equal(encoder.encode_image(image).patches, before)

    parts, heads = whole_patterns(vlm, image, monkeypatch)
    assert found[0].shape == (encoder.n_layers, heads, cells)
    places = places_of_cells(name, vlm, image)
    assert len(places) == cells
    for cell, pattern in zip(chosen, found, strict=True):
        for layer in range(encoder.n_layers):
            rows = parts[layer][:, places[cell]].mean(dim=1)
            expected = torch.stack([rows[:, own].sum(dim=-1) for own in places], dim=-1)
            torch.testing.assert_close(pattern[layer], expected, atol=1e-5, rtol=0)


def whole_patterns(vlm, image, monkeypatch):
    """``[head place place]`` of each layer, of the part that stands for the image."""
    layers = []
    attentions = {id(module): n for n, block in enumerate(vlm.vision_blocks) for module in block.modules()}
    source = sys.modules[type(vlm.vision_blocks[0]).__module__]
    eager = source.eager_attention_forward

    def keep(module, *given, **more):
        output, weights = eager(module, *given, **more)
        layer = attentions[id(module)]
        if layer == len(layers):
            layers.append(weights[0])
        else:  # the next window of the same layer
            layers[layer] = torch.stack(
                [torch.block_diag(*pair) for pair in zip(layers[layer], weights[0], strict=True)]
            )
        return output, weights

    settings = {
        id(one.config): one.config for block in vlm.vision_blocks for one in block.modules() if hasattr(one, "config")
    }
    with monkeypatch.context() as patched:
        patched.setattr(source, "eager_attention_forward", keep)
        for config in settings.values():
            config._attn_implementation = "eager"
        encoder = vlm.for_images(1)
        inputs = encoder.encoder_inputs(image)
        encoder.encode([inputs[image.thumbnail_tile or 0]])
        for config in settings.values():
            config._attn_implementation = ATTENTION
    return layers, layers[0].shape[0]


def places_of_cells(name, vlm, image):
    """Where the patches of each cell of the shown part lie among the places of its encoder, counted out."""
    vlm = vlm.for_images(1)
    tile = image.thumbnail_tile or 0
    width = vlm.encoder_inputs(image)[tile].shape[2]
    rows, cols = vlm.count_cells(image, tile)
    each, across = vlm.cell_px // vlm.patch_px, width // vlm.patch_px
    if name.startswith("qwen"):
        order = [(r, c) for r in range(rows) for c in range(cols)]
        if "2.5" in name:  # windows of 2 × 2 cells
            order.sort(key=lambda place: (place[0] // 2, place[1] // 2))
        start = {place: 4 * n for n, place in enumerate(order)}
        return [[start[r, c] + n for n in range(4)] for r in range(rows) for c in range(cols)]
    lead = int(name.startswith(("llava", "internvl")))
    return [
        [lead + (r * each + y) * across + c * each + x for y in range(each) for x in range(each)]
        for r in range(rows)
        for c in range(cols)
    ]


def test_a_tower_comes_back_as_it_was_and_goes_with_its_encoder_only(tmp_path, golden, embedded):
    vlm = load_vlm(golden / "tiny_vlm")
    assert find_tower(vlm) is None
    torch.manual_seed(1)
    dual = DualEncoder(vlm.vision_encoder, vlm.tokenizer, head="mlp", width=16, n_layers=1, n_heads=2).eval()
    folder = tmp_path / "model"
    save_vlm(vlm, folder)
    save_tower(dual, folder)
    found = find_tower(load_vlm(folder))
    torch.testing.assert_close(found.embed_texts(["red", "a b"]), dual.embed_texts(["red", "a b"]))
    assert found.head == "mlp"
    other = embedded.redraw(3)
    assert find_tower(other) is None
    values = json.loads((folder / SHAPE).read_text())
    for change, sentence in (
        ({"head": "cubic"}, "linear, mlp"),
        ({"n_heads": 3}, "multiple"),
        ({"width": 0}, "from 1"),
    ):
        (folder / SHAPE).write_text(json.dumps({**values, **change}))
        with pytest.raises(InputError, match=sentence):
            find_tower(load_vlm(folder))
    (folder / SHAPE).write_text(json.dumps({**values, "n_layers": 2}))
    with pytest.raises(InputError, match="missing"):
        find_tower(load_vlm(folder))
    (folder / SHAPE).write_text(json.dumps(values))
    (folder / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(InputError, match="fetch it again"):
        find_tower(load_vlm(folder))
