"""Pixels, hidden states, logits, losses, gradients and generated ids against nanoVLM's own numbers."""

import hashlib
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from model import Batch, Conversation, InputError, Message, VLMConfig, load_vlm, process_image, save_vlm
from model.backbones import import_llama, import_siglip
from model.generate import filter_logits, generate_batch
from model.image import plan_image

PREPROCESSING = ["p512_max2048_F", "p512_max1536_F", "p512_max512_F", "p224_max224_F", "p256_max256_F",
                 "p64_max256_F", "p64_max256_T", "p64_max512_T"]  # fmt: skip


def image_config(tile, longest, to_max):
    patch = tile // 8
    return VLMConfig(vit_img_size=tile, vit_patch_size=patch, mp_pixel_shuffle_factor=1, mp_image_token_length=64,
                     max_img_size=longest, resize_to_max_side_len=to_max)  # fmt: skip


def batch_of(ids, mask, tiles, labels=None):
    return Batch(ids, mask.bool(), torch.full_like(ids, -100) if labels is None else labels,
                 torch.arange(ids.shape[1]).expand(ids.shape), torch.zeros_like(ids), tiles,
                 torch.zeros(len(tiles), dtype=torch.long))  # fmt: skip


@pytest.fixture(scope="module")
def numbers(golden):
    return load_file(golden / "tiny_vlm" / "golden.safetensors")


@pytest.fixture(scope="module")
def vlm(golden):
    return load_vlm(golden / "tiny_vlm")


@pytest.fixture(scope="module")
def batch(numbers):
    labels = torch.full_like(numbers["batch.labels"], -100)
    labels[:, 1:] = numbers["batch.labels"][:, :-1]  # the golden ones are shifted already
    return batch_of(numbers["batch.input_ids"], numbers["batch.attention_mask"], numbers["batch.images"], labels)


@pytest.fixture(scope="module")
def prompts(numbers):
    return batch_of(numbers["gen.input_ids"], numbers["gen.attention_mask"], numbers["batch.images"])


def test_every_size_of_the_table(golden):
    table = load_file(golden / "resize_table.safetensors")
    wrong = []
    for name, rows in table.items():
        tile, longest, flag = name[1:].replace("max", "").split("_")
        config = image_config(int(tile), int(longest), flag == "T")
        for height, width, new_height, new_width in rows.tolist():
            try:
                size = plan_image((width, height), config).resized_size
            except InputError:
                assert new_height > 8 * int(tile) or new_width > 8 * int(tile)  # beyond <row_8_col_8>
                continue
            if size != (new_width, new_height):
                wrong.append((name, width, height, size))
    assert wrong == []


@pytest.mark.parametrize("name", PREPROCESSING)
def test_tiles_are_upstreams_to_the_byte(golden, name):
    golden_config = json.loads((golden / "preprocess.json").read_text())["configs"][name]
    thumbnails = load_file(golden / "preprocess.safetensors")
    config = image_config(
        golden_config["vit_img_size"], golden_config["max_img_size"], golden_config["resize_to_max_side_len"]
    )
    for image_name, expected in golden_config["images"].items():
        picture = Image.open(golden / "images" / f"{image_name}.png").convert("RGB")
        processed = process_image(picture, config)
        assert list(processed.resized_size) == expected["resized_wh"], image_name
        assert list(processed.grid) == expected["grid_hw"]
        assert len(processed.tiles) == expected["n_tiles"]
        tiles = processed.tiles[int(processed.has_thumbnail) :]
        raw = [tile.contiguous().numpy().tobytes() for tile in tiles]
        if "tiles_sha256" in expected:
            assert [hashlib.sha256(tile).hexdigest() for tile in raw] == expected["tiles_sha256"]
        exact = f"{name}.{image_name}.thumbnail"
        if exact in thumbnails:
            torch.testing.assert_close(processed.tiles[0], thumbnails[exact], atol=2e-6, rtol=0)
        area = sum((b.right - b.left) * (b.bottom - b.top) for b in processed.boxes[int(processed.has_thumbnail) :])
        assert area == pytest.approx(picture.width * picture.height)


def test_hidden_states_logits_and_loss(vlm, batch, numbers, golden):
    tiles = numbers["batch.images"]
    with torch.no_grad():
        encoded = vlm.vision_encoder(tiles)
        torch.testing.assert_close(encoded, numbers["fwd.vit.out"], atol=2e-4, rtol=0)
        torch.testing.assert_close(vlm.MP(encoded), numbers["fwd.mp.out"], atol=2e-4, rtol=0)
        torch.testing.assert_close(vlm.embed(batch), numbers["fwd.lm.input_embeds"], atol=2e-4, rtol=0)
        torch.testing.assert_close(vlm.hidden(batch), numbers["fwd.lm.hidden"], atol=2e-4, rtol=0)
        logits = vlm(batch)
    torch.testing.assert_close(logits[..., ::8], numbers["fwd.logits_every8th"], atol=2e-4, rtol=0)
    expected = json.loads((golden / "tiny_vlm" / "golden.json").read_text())["loss_masked"]
    assert vlm.loss(batch).item() == pytest.approx(expected, rel=1e-5)
    targets = F.pad(batch.labels[:, 1:], (0, 1), value=-100)
    assert F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_ids_with_and_without_cache(vlm, prompts, numbers, use_cache):
    steps = [ids for ids, _ in generate_batch(vlm, prompts, max_new_tokens=24, use_cache=use_cache)]
    assert torch.equal(torch.stack(steps, 1), numbers["gen.greedy_ids"])


def test_one_sample_alone_gets_the_batchs_ids(vlm, prompts, numbers):
    row = prompts.attention_mask[3]
    alone = batch_of(prompts.input_ids[3:, row], row[row][None], numbers["batch.images"][-1:])
    steps = torch.stack([ids for ids, _ in generate_batch(vlm, alone, max_new_tokens=24)], 1)
    assert torch.equal(steps[0], numbers["gen.greedy_ids"][3])


def test_sampled_ids(vlm, prompts, numbers):
    steps = generate_batch(vlm, prompts, max_new_tokens=24, temperature=0.5, top_k=50, top_p=0.9, seed=123)
    assert torch.equal(torch.stack([ids for ids, _ in steps], 1), numbers["gen.sampled_ids_seed123"])


def test_the_end_token_ends(vlm, prompts, golden):
    eos = json.loads((golden / "tiny_vlm" / "golden.json").read_text())["fake_eos_id"]
    steps = torch.stack([ids for ids, _ in generate_batch(vlm, prompts, max_new_tokens=24, eos_token_id=eos)], 1)
    upstream = load_file(golden / "tiny_vlm" / "golden.safetensors")["gen.greedy_ids_fake_eos"]
    assert torch.equal(steps, upstream[:, : steps.shape[1]])
    ended = (steps == eos).any(1)
    assert steps.shape[1] == 24 or bool(ended.all())


def test_filter_of_logits(golden):
    cases = load_file(golden / "top_k_top_p.safetensors")
    for name in cases.keys() - {"logits"}:
        top_k, top_p = name[1:].split("_p")
        assert torch.equal(filter_logits(cases["logits"], int(top_k), float(top_p)), cases[name]), name


def test_gradients_of_the_first_step(golden, batch):
    vlm = load_vlm(golden / "tiny_vlm").train()
    vlm.loss(batch).backward()
    expected = load_file(golden / "tiny_vlm" / "train_fp32.safetensors")
    compared = 0
    for name, parameter in vlm.named_parameters():
        if f"grad.{name}" not in expected:
            continue
        kept = expected[f"grad.{name}"].flatten()
        ours = parameter.grad.flatten()
        ours = ours[:: len(ours) // len(kept)][: len(kept)]
        torch.testing.assert_close(ours, kept, atol=1e-4, rtol=2e-3, msg=lambda text, name=name: f"{name}: {text}")
        compared += 1
    assert compared >= 50


def test_losses_of_five_steps(golden, batch):
    log = json.loads((golden / "tiny_vlm" / "train.json").read_text())["fp32_accum1_5steps_max100"]["log"]
    vlm = load_vlm(golden / "tiny_vlm").train()
    groups = [vlm.MP, vlm.vision_encoder, vlm.decoder]
    optimizer = torch.optim.AdamW([{"params": group.parameters()} for group in groups], lr=1.0)
    for entry in log:
        loss = vlm.loss(batch)
        assert loss.item() == pytest.approx(entry["loss"], rel=1e-4)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vlm.parameters(), 1.0)
        for group, rate in zip(optimizer.param_groups, entry["lrs"], strict=True):
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()


def test_rotary_angles_before_and_beyond_the_trained_length(vlm, golden):
    expected = load_file(golden / "tiny_vlm" / "rope_beyond_max.safetensors")
    rotary = type(vlm.decoder.rotary_embd)(16, 100000.0, 60)
    for length in (59, 60, 61, 120):
        cos, sin = rotary(torch.arange(length)[None])
        torch.testing.assert_close(cos, expected[f"rope.cos_{length}"], atol=1e-6, rtol=0)
        torch.testing.assert_close(sin, expected[f"rope.sin_{length}"], atol=1e-6, rtol=0)


def test_oldest_format(golden):
    vlm = load_vlm(golden / "legacy_v01")
    numbers = load_file(golden / "legacy_v01" / "golden.safetensors")
    images = torch.full((3, 4), vlm.image_token_id)
    ids = torch.cat((images, numbers["batch.input_ids"]), 1)
    mask = torch.cat((torch.ones_like(images), numbers["batch.attention_mask"]), 1)
    with torch.no_grad():
        logits = vlm(batch_of(ids, mask, numbers["batch.image"]))[:, 4:]
    torch.testing.assert_close(logits[..., ::8], numbers["fwd.text_logits_every8th"], atol=2e-4, rtol=0)
    assert vlm.config.generation == "v0.1"
    prompt = torch.cat((images[:1], numbers["prompt.input_ids"]), 1)
    steps = generate_batch(vlm, batch_of(prompt, torch.ones_like(prompt), numbers["batch.image"][:1]), max_new_tokens=12)
    assert torch.equal(torch.stack([i for i, _ in steps], 1), numbers["prompt.greedy_ids"])
    sample = vlm.prepare(Conversation((Message("user", "What is it?", (Image.new("RGB", (9, 9)),)), Message("assistant", "Noise"))))
    assert vlm.tokenizer.decode(sample.input_ids[4:]) == "Question: What is it? Answer:Noise<|endoftext|>"
    assert vlm.tokenizer.decode(sample.input_ids[sample.loss_mask]) == "Noise<|endoftext|>"


def test_siglip_import(golden):
    _, encoder = import_siglip(golden / "tiny_siglip")
    numbers = load_file(golden / "backbones.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(encoder(numbers["siglip.x"]), numbers["siglip.out"], atol=1e-5, rtol=0)


def test_llama_import(golden):
    from model.language import build_mask

    _, decoder = import_llama(golden / "tiny_llama", extra_tokens=66)
    numbers = load_file(golden / "backbones.safetensors")
    ids = numbers["llama1090.ids"]
    mask = build_mask(torch.ones_like(ids).bool(), None, ids.shape[1])
    with torch.no_grad():
        hidden = decoder(decoder.token_embedding(ids), mask, torch.arange(ids.shape[1]).expand(ids.shape))
        logits = decoder.head(hidden)[..., :1024]
    torch.testing.assert_close(logits[..., ::8], numbers["llama1090.logits_base_every8th"], atol=2e-4, rtol=0)


def test_saved_and_loaded_again_is_the_same(vlm, batch, tmp_path):
    save_vlm(vlm, tmp_path / "again")
    again = load_vlm(tmp_path / "again")
    assert again.fingerprint == vlm.fingerprint
    with torch.no_grad():
        assert torch.equal(again(batch), vlm(batch))
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_tied_weights_under_either_name(golden, tmp_path):
    folder = tmp_path / "vlm"
    shutil.copytree(golden / "tiny_vlm", folder)
    shutil.copytree(golden / "tiny_tokenizer", tmp_path / "tiny_tokenizer")
    state = load_file(folder / "model.safetensors")
    state["decoder.token_embedding.weight"] = state.pop("decoder.head.weight")
    save_file(state, folder / "model.safetensors")
    assert load_vlm(folder).fingerprint == load_vlm(golden / "tiny_vlm").fingerprint


def broken(golden, tmp_path, change):
    folder = tmp_path / "vlm"
    shutil.copytree(golden / "tiny_vlm", folder)
    shutil.copytree(golden / "tiny_tokenizer", tmp_path / "tiny_tokenizer")
    change(folder)
    return folder


def edit_weights(change):
    def edit(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return edit


def edit_config(**values):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit_weights(lambda s: s.pop("MP.proj.weight")), "missing: MP.proj.weight"),
        (edit_weights(lambda s: s.update(odd=torch.zeros(1))), "not wanted: odd"),
        (edit_weights(lambda s: s.update({"MP.proj.weight": torch.zeros(2, 2)})), r"\(2, 2\) and should be \(96, 256\)"),
        (edit_config(lm_n_blocks=4), "missing: decoder.blocks.3"),
        (edit_config(lm_hidden_dim=97), "not a multiple"),
        (edit_config(mp_image_token_length=64), "image tokens"),
        (edit_config(vit_cls_flag=True), "class token"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold an object"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"PK"), "can't be read"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "can hold code"),
        (lambda folder: shutil.rmtree(folder.parent / "tiny_tokenizer"), "no tokenizer.json"),
    ],
)
def test_a_broken_checkpoint_is_named_in_one_sentence(golden, tmp_path, change, words):
    folder = broken(golden, tmp_path, change)
    with pytest.raises(InputError, match=words) as caught:
        load_vlm(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./missing", "no-such-name"])
def test_no_such_checkpoint(source):
    with pytest.raises(InputError, match="no folder"):
        load_vlm(source)


def test_no_labels_is_an_error_and_not_nan(vlm, prompts):
    with pytest.raises(InputError, match="no label|has a label"):
        vlm.loss(prompts)


def test_image_tokens_must_match_features(vlm, prompts, numbers):
    with pytest.raises(InputError, match="image tokens"):
        vlm(batch_of(prompts.input_ids, prompts.attention_mask, numbers["batch.images"][:-1]))
