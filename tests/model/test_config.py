"""config.json of every version of nanoVLM is understood; a contradiction is one sentence."""

import dataclasses
import json
import logging

import pytest

from model import InputError, VLMConfig
from model.config import region_tokens


@pytest.fixture(scope="module")
def current(golden) -> dict:
    return json.loads((golden / "tiny_vlm" / "config.json").read_text())


@pytest.fixture(scope="module")
def legacy(golden) -> dict:
    return json.loads((golden / "legacy_v01" / "config.json").read_text())


def july_2025(current: dict) -> dict:
    tokens = {"image_token": "<|image|>", **region_tokens(4, 4)}
    values = current | {"vlm_extra_tokens": tokens, "extra_token_amount": 17, "lm_vocab_size": 1041}
    del values["resize_to_max_side_len"]
    return values


def june_2025(current: dict) -> dict:
    values = current | {
        "vlm_extra_tokens": {"image_token": "<|image|>"},
        "extra_token_amount": 1,
        "lm_vocab_size": 1025,
        "lm_eos_token_id": 0,
    }
    for key in ("resize_to_max_side_len", "max_img_size", "lm_chat_template"):
        del values[key]
    return values


def test_derived_values(current):
    config = VLMConfig.from_dict(current)
    assert config.generation == "2025-08"
    assert (config.tile_px, config.patch_px, config.cells_per_side, config.tokens_per_tile) == (64, 16, 2, 4)
    assert config.head_dim == 16
    assert config.image_token == "<|image|>"
    assert config.global_image_token == "<|global_image|>"
    assert config.region_token(7, 7) == "<row_8_col_8>"
    with pytest.raises(InputError, match="row_9_col_1"):
        config.region_token(8, 0)


def test_released_defaults():
    config = VLMConfig()
    assert (config.tile_px, config.patch_px, config.tokens_per_tile, config.lm_vocab_size) == (512, 16, 64, 49218)
    assert len(config.vlm_extra_tokens) == 66
    assert list(config.vlm_extra_tokens)[:3] == ["image_token", "global_image_token", "r1c1"]


def test_each_version_is_recognised_by_its_keys(current, legacy):
    assert VLMConfig.from_dict(july_2025(current)).generation == "2025-07"
    assert VLMConfig.from_dict(june_2025(current)).generation == "v0.2"
    assert VLMConfig.from_dict(legacy).generation == "v0.1"


def test_missing_keys_get_their_versions_values_and_not_todays(current, legacy):
    """Upstream fills them with today's defaults: 2,048 px and upscaling, for a model that saw 224 px."""
    old = VLMConfig.from_dict(legacy)
    assert (old.max_img_size, old.resize_to_max_side_len, old.splits_images) == (64, False, False)
    assert (old.lm_vocab_size, old.extra_token_amount, old.mp_image_token_length) == (1024, 0, 4)
    assert old.lm_chat_template is None
    assert old.image_token is None
    june = VLMConfig.from_dict(june_2025(current))
    assert (june.max_img_size, june.resize_to_max_side_len, june.splits_images) == (64, False, False)
    july = VLMConfig.from_dict(july_2025(current))
    assert (july.max_img_size, july.resize_to_max_side_len, july.splits_images) == (256, False, True)
    assert july.global_image_token is None


@pytest.mark.parametrize("version", ["2025-08", "2025-07", "v0.2", "v0.1"])
def test_a_version_writes_the_keys_that_it_read(version, current, legacy):
    values = {"2025-08": current, "2025-07": july_2025(current), "v0.2": june_2025(current), "v0.1": legacy}[version]
    config = VLMConfig.from_dict(values)
    assert config.to_dict() == values
    assert VLMConfig.from_dict(config.to_dict()) == config


def test_keys_keep_upstreams_order(current):
    assert list(VLMConfig.from_dict(current).to_dict()) == list(current)


def test_unknown_keys_warn_and_are_kept(current, caplog):
    with caplog.at_level(logging.WARNING):
        config = VLMConfig.from_dict(current | {"lm_flavour": "mint"})
    assert "lm_flavour" in caplog.text
    assert config.extra == {"lm_flavour": "mint"}
    assert config.to_dict()["lm_flavour"] == "mint"


def test_a_key_that_upstream_never_read_does_not_warn(current, caplog):
    with caplog.at_level(logging.WARNING):
        VLMConfig.from_dict(june_2025(current))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vit_hidden_dim": 66}, "vit_hidden_dim 66 .*vit_n_heads 4"),
        ({"lm_hidden_dim": 100}, "lm_hidden_dim 100 .*lm_n_heads 6"),
        ({"lm_n_kv_heads": 4}, "lm_n_heads 6 .*lm_n_kv_heads 4"),
        ({"vit_patch_size": 15}, "64 px.* 15 px"),
        ({"mp_pixel_shuffle_factor": 3}, "divide"),
        ({"mp_image_token_length": 49}, "mp_image_token_length.*49"),
        ({"vit_cls_flag": True}, "class token"),
        ({"vlm_extra_tokens": {"r1c1": "<row_1_col_1>"}}, "image_token"),
        ({"lm_n_blocks": 0}, "lm_n_blocks.*0"),
        ({"lm_n_blocks": -3}, "lm_n_blocks.*-3"),
        ({"lm_n_blocks": 2.5}, r"lm_n_blocks.*2\.5"),
        ({"vit_img_size": "512"}, "vit_img_size"),
        ({"vlm_extra_tokens": None}, "wrong type"),
        ({"vlm_extra_tokens": ["<|image|>"]}, "vlm_extra_tokens"),
        ({"vit_patch_size": 0}, "vit_patch_size"),
        ({"max_img_size": None}, "max_img_size"),
        ({"lm_chat_template": 5}, "lm_chat_template"),
        ({"lm_rms_eps": "small"}, "lm_rms_eps"),
        ({"lm_re_base": None}, "lm_re_base"),
        ({"lm_tie_weights": "yes"}, "lm_tie_weights"),
    ],
    ids=str,
)
def test_contradictions_are_one_sentence(current, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        VLMConfig.from_dict(current | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["vit_hidden_dim", "lm_hidden_dim", "vit_img_size", "lm_n_blocks"])
def test_another_models_configuration_is_refused(current, key):
    values = {name: value for name, value in current.items() if name != key}
    with pytest.raises(InputError, match=f"lacks {key}"):
        VLMConfig.from_dict(values)


@pytest.mark.parametrize(("text", "words"), [("", "JSON"), ("[1]", "object"), ("{", "JSON")])
def test_unreadable_files(tmp_path, text, words):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        VLMConfig.read(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="JSON"):
        VLMConfig.read(path)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        VLMConfig.read(tmp_path / "config.json")


def test_it_is_frozen(current):
    config = VLMConfig.from_dict(current)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.vit_hidden_dim = 1  # type: ignore[misc]
