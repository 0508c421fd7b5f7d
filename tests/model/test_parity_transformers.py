"""Our encoder and decoder against transformers' own classes with the same random weights, through our importers; and
the importers against upstream's."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from model import InputError
from model.backbones import VisionOptions, import_language, import_vision
from model.masks import build_mask

RAW = VisionOptions(normalise=False)
"""Pixels as nanoVLM hands them to SigLIP."""


@pytest.fixture(scope="module", params=[(64, 16, 3), (56, 14, 2)], ids=["64px", "56px"])
def siglip(request, tmp_path_factory):
    side, patch, heads = request.param
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=heads,
        image_size=side,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    theirs = SiglipVisionModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)  # biases and norms must count too
    folder = tmp_path_factory.mktemp("siglip")
    theirs.save_pretrained(folder)
    return theirs, folder, side


def test_image_encoder(siglip):
    theirs, folder, side = siglip
    settings, ours = import_vision(folder, RAW)
    tiles = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tiles).last_hidden_state
        torch.testing.assert_close(ours(tiles), expected, atol=1e-5, rtol=1e-5)
    assert settings["vit_img_size"] == side


@pytest.fixture(scope="module", params=[(4, 4, False), (6, 2, True), (4, 1, True)], ids=["mha", "gqa-tied", "mqa-tied"])
def llama(request, tmp_path_factory):
    heads, kv_heads, tied = request.param
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=120,
        hidden_size=heads * 8,
        intermediate_size=72,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        bos_token_id=1,
        eos_token_id=2,
    )
    theirs = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder, max_shard_size="40KB")
    return theirs, folder


def our_logits(decoder, ids, attention_mask):
    mask = build_mask(attention_mask, None, ids.shape[1])
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    return decoder.head(decoder(decoder.token_embedding(ids), mask, positions))


def test_decoder(llama):
    theirs, folder = llama
    settings, ours = import_language(folder)
    assert settings["lm_re_base"] == 100000.0
    assert settings["lm_tie_weights"] == theirs.config.tie_word_embeddings
    ids = torch.randint(0, 120, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(our_logits(ours, ids, torch.ones_like(ids).bool()), expected, atol=2e-5, rtol=1e-5)


def test_decoder_with_left_padding(llama):
    theirs, folder = llama
    _, ours = import_language(folder)
    ids = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(2))
    attention_mask = torch.ones_like(ids)
    attention_mask[1, :5] = 0
    with torch.no_grad():
        positions = torch.arange(12).expand(2, -1)
        expected = theirs(ids, attention_mask=attention_mask, position_ids=positions).logits
        logits = our_logits(ours, ids, attention_mask.bool())
    seen = attention_mask.bool()
    torch.testing.assert_close(logits[seen], expected[seen], atol=2e-5, rtol=1e-5)
    assert logits.isfinite().all()


def test_new_rows_leave_the_old_logits_alone_and_are_small(llama):
    theirs, folder = llama
    _, ours = import_language(folder, extra_tokens=40, seed=3)
    _, again = import_language(folder, extra_tokens=40, seed=3)
    _, other = import_language(folder, extra_tokens=40, seed=4)
    new = ours.token_embedding.weight[120:]
    assert torch.equal(new, again.token_embedding.weight[120:])
    assert not torch.equal(new, other.token_embedding.weight[120:])
    assert new.std().item() == pytest.approx(0.02, rel=0.1)
    ids = torch.randint(0, 120, (1, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = our_logits(ours, ids, torch.ones_like(ids).bool())
        torch.testing.assert_close(logits[..., :120], theirs(ids).logits, atol=2e-5, rtol=1e-5)
    assert logits.shape[-1] == 160


def test_upstreams_import_of_siglip(golden):
    numbers = load_file(golden / "backbones.safetensors")
    settings, encoder = import_vision(golden / "tiny_siglip", RAW)
    expected = json.loads((golden / "backbones.json").read_text())["siglip"]["cfg_after"]
    assert settings == {name: expected[name] for name in settings}
    with torch.no_grad():
        torch.testing.assert_close(encoder(numbers["siglip.x"]), numbers["siglip.out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "extra"), [("1090", 66), ("1024", 0)])
def test_upstreams_import_of_a_sharded_llama(golden, name, extra):
    numbers = load_file(golden / "backbones.safetensors")
    settings, decoder = import_language(golden / "tiny_llama", extra_tokens=extra)
    expected = json.loads((golden / "backbones.json").read_text())[f"tiny_llama_{name}"]
    for key in settings.keys() & expected["cfg_after"].keys():
        assert settings[key] == expected["cfg_after"][key], key
    assert (decoder.head.weight is decoder.token_embedding.weight) == expected["tied_after"]
    ids = numbers[f"llama{name}.ids"]
    with torch.no_grad():
        logits = our_logits(decoder, ids, torch.ones_like(ids).bool())[..., :1024:8]
    torch.testing.assert_close(logits, numbers[f"llama{name}.logits_base_every8th"], atol=2e-4, rtol=0)


def test_a_missing_shard_and_a_foreign_checkpoint_are_named(golden, tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(golden / "tiny_llama", folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00003"):
        import_language(folder)
    with pytest.raises(InputError, match=r"config\.json"):
        import_vision(tmp_path)
    shutil.copy(golden / "tiny_siglip" / "model.safetensors", tmp_path / "model.safetensors")
    shutil.copy(golden / "tiny_llama" / "config.json", tmp_path / "config.json")
    with pytest.raises(InputError, match=r"no whole llama checkpoint: it lacks embed_tokens\.weight"):
        import_language(tmp_path)
    with pytest.raises(InputError):
        import_vision(tmp_path)
