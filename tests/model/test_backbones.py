"""Parts of other families: features and logits as transformers' own classes compute them, and what can't be a part."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from model import InputError
from model.backbones import VisionOptions, import_language, import_vision
from model.masks import build_mask

VISION = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 14,
}
TEXT = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def stir(model):
    """Norms and biases as no fresh model has them, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model.eval()


def save(model, folder, **processor):
    model.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def clip(act="quick_gelu"):
    config = transformers.CLIPVisionConfig(**VISION, intermediate_size=80, hidden_act=act)
    return stir(transformers.CLIPVisionModel(config))


def dinov2():
    return stir(transformers.Dinov2Model(transformers.Dinov2Config(**VISION, mlp_ratio=2)))


def siglip():
    return stir(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION, intermediate_size=80)))


def pixels(side=56):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(7))


def normalised(x, mean, std):
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


CLIP_PIXELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_clip_behind_the_block_before_the_last_one_as_llava_reads_it(tmp_path, act):
    theirs = clip(act)
    settings, ours = import_vision(save(theirs, tmp_path))
    with torch.no_grad():
        expected = theirs(normalised(pixels(), *CLIP_PIXELS), output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(ours(pixels()), expected, atol=1e-5, rtol=1e-5)
    assert settings["vit_n_blocks"] == 2
    assert settings["vit_post_norm"] is False


def test_a_whole_clip_checkpoint_gives_its_image_encoder(tmp_path):
    text = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        vision_config={**VISION, "intermediate_size": 80}, text_config={**text, "vocab_size": 64}, projection_dim=16
    )
    theirs = stir(transformers.CLIPModel(config))
    _, ours = import_vision(save(theirs, tmp_path), VisionOptions(feature_layer=-1))
    with torch.no_grad():
        last = theirs.vision_model(normalised(pixels(), *CLIP_PIXELS)).last_hidden_state
        expected = theirs.vision_model.post_layernorm(last)[:, 1:]
        torch.testing.assert_close(ours(pixels()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [56, 84], ids=["its own size", "places interpolated"])
def test_dinov2(tmp_path, side):
    theirs = dinov2()
    _, ours = import_vision(save(theirs, tmp_path), VisionOptions(tile_px=side))
    with torch.no_grad():
        expected = theirs(normalised(pixels(side), *IMAGENET)).last_hidden_state[:, 1:]
        torch.testing.assert_close(ours(pixels(side)), expected, atol=1e-5, rtol=1e-5)


def test_siglip_with_the_pixels_that_its_processor_names(tmp_path):
    theirs = siglip()
    _, ours = import_vision(save(theirs, tmp_path, image_mean=[0.4, 0.5, 0.6], image_std=[0.5, 0.25, 0.5]))
    with torch.no_grad():
        expected = theirs(normalised(pixels(), (0.4, 0.5, 0.6), (0.5, 0.25, 0.5))).last_hidden_state
        torch.testing.assert_close(ours(pixels()), expected, atol=1e-5, rtol=1e-5)


ROPE3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LANGUAGES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "llama 3": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"rope_parameters": ROPE3}),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 24}),
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_language_models(tmp_path, name):
    config, model, more = LANGUAGES[name]
    torch.manual_seed(3)
    theirs = stir(model(config(**TEXT, **more)))
    settings, ours = import_language(save(theirs, tmp_path), extra_tokens=8)
    ids = torch.randint(3, 120, (2, 60), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(60).expand(2, -1)
    with torch.no_grad():
        mask = build_mask(torch.ones_like(ids).bool(), None, 60, torch.float32)
        logits = ours.head(ours(ours.token_embedding(ids), mask, positions))
        torch.testing.assert_close(logits[..., :120], theirs(ids).logits, atol=5e-5, rtol=1e-5)
    assert settings["lm_vocab_size"] == 128


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, attention_bias=True)), "biases"),
        (
            lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**TEXT, sliding_window=16)),
            "16 positions",
        ),
        (
            lambda: transformers.LlamaForCausalLM(
                transformers.LlamaConfig(
                    **TEXT, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
                )
            ),
            "of the kind yarn",
        ),
        (dinov2, "holds a dinov2 model, which isn't read as the language model"),
    ],
    ids=["biases", "windows", "yarn", "an encoder"],
)
def test_what_is_no_language_model_of_ours_is_refused(tmp_path, make, sentence):
    with pytest.raises(InputError, match=sentence):
        import_language(save(make(), tmp_path))


def test_what_is_no_encoder_of_ours_is_refused(tmp_path, tiny):
    (tmp_path / "llama").mkdir()
    save(transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)), tmp_path / "llama")
    with pytest.raises(InputError, match="holds a llama model, which isn't read as the image encoder"):
        import_vision(tmp_path / "llama")
    with pytest.raises(InputError, match="It is a vision-language model itself"):
        import_vision(tiny("llava").folder)
    folder = tmp_path / "clip"
    folder.mkdir()
    save(clip(), folder)
    for options, sentence in (
        (VisionOptions(feature_layer=-4), "has the layers −3 to −1"),
        (
            VisionOptions(tile_px=60),
            "60 px, which is no multiple of its patches of 14 px; name a tile_px that is one, such as 56",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            import_vision(folder, options)


def test_weights_that_are_no_numbers_or_of_another_shape_are_named(tmp_path):
    folder = save(siglip(), tmp_path)
    state = load_file(folder / "model.safetensors")
    name = next(key for key in state if key.endswith("layers.1.mlp.fc1.weight"))
    save_file({**state, name: state[name].fill_(float("nan"))}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        import_vision(folder)
    save_file({**state, name: torch.zeros(3, 3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="should be"):
        import_vision(folder)
