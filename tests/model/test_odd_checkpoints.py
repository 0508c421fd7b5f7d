"""Checkpoints that are damaged, absurd or made to be: each is refused in one sentence, and nothing large is built."""

import dataclasses
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from model import InputError, VLMConfig, load_vlm, plan_image
from model.checkpoint import empty_vlm

ROOT = Path(__file__).parent.parent / "golden"
CURRENT = json.loads((ROOT / "tiny_vlm" / "config.json").read_text())


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of its own to damage, with the tokenizer inside."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(ROOT / "tiny_vlm", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "tiny_tokenizer" / name, folder / name)
    return folder


def refused(folder) -> str:
    with pytest.raises(InputError) as caught:
        load_vlm(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700 + len(str(folder))
    return str(caught.value)


def edit_weights(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


# --- configuration ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_img_size": 200}, "max_img_size 200 .*vit_img_size 64"),
        ({"max_img_size": 32}, "max_img_size 32 .*vit_img_size 64"),
        ({"max_img_size": 0}, "max_img_size.*0"),
        ({"max_img_size": -64}, "max_img_size.*-64"),
        ({"max_img_size": 64 * 10**6}, "max_img_size.*64000000.*32,768"),
        ({"vit_n_blocks": True}, "vit_n_blocks.*True"),
        ({"vit_n_heads": True}, "vit_n_heads.*True"),
        ({"lm_hidden_dim": 10**9 + 2}, "lm_hidden_dim.*1000000002.*65,536"),
        ({"lm_n_blocks": 10**9}, "lm_n_blocks.*1000000000.*1,024"),
        ({"lm_vocab_size": 10**12}, "lm_vocab_size.*1000000000000"),
        ({"lm_inter_dim": 10**5000}, "lm_inter_dim.*16610"),
        ({"lm_hidden_dim": 65_532, "lm_inter_dim": 262_144, "lm_n_blocks": 1024}, r"2e\+11"),
        ({"vit_img_size": 10**7, "vit_patch_size": 10**6}, "vit_patch_size.*1000000"),
        ({"lm_hidden_dim": 90}, "15 .*even"),
        ({"lm_rms_eps": float("nan")}, "lm_rms_eps.*nan.*above 0"),
        ({"lm_re_base": float("inf")}, "lm_re_base.*inf"),
        ({"lm_re_base": 10**30}, "lm_re_base.*10+ "),
        ({"vit_ln_eps": -1e-6}, "vit_ln_eps.*-1e-06"),
        ({"vit_dropout": 1.5}, r"vit_dropout.*1\.5.*below 1"),
        ({"lm_tokenizer": 7}, "lm_tokenizer.*7"),
        ({"vlm_extra_tokens": {"image_token": 5}}, "vlm_extra_tokens.*'image_token', 5"),
        ({"vlm_extra_tokens": {"image_token": ""}}, "vlm_extra_tokens"),
        ({"extra_token_amount": "66"}, "extra_token_amount.*'66'"),
        ({"lm_base_vocab_size": [1]}, r"lm_base_vocab_size.*\[1\]"),
        ({"lm_eos_token_id": "abc"}, "lm_eos_token_id.*'abc'"),
        ({"lm_eos_token_id": 1090}, "lm_eos_token_id.*1090"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_size_that_cannot_be(changes, words):
    with pytest.raises(InputError, match=words) as caught:
        VLMConfig.from_dict(CURRENT | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("old", ["v0.1", "v0.2"])
def test_versions_that_never_cut_images_need_no_multiple(old):
    config = VLMConfig.from_dict(json.loads((ROOT / "legacy_v01" / "config.json").read_text()))
    assert (
        dataclasses.replace(
            config, generation=old, max_img_size=100, vlm_extra_tokens={"image_token": "<|image|>"}
        ).max_img_size
        == 100
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "object"),
        ("null", "object"),
        ('{"vit_hidden_dim": NaN}', "NaN"),
        ('{"other": -Infinity}', "-Infinity"),
        ('{"other": 1e999}', "1e999"),
        ("[" * 100_000, "JSON"),
        ('{"vit_hidden_dim": ' + "9" * 6000 + "}", "JSON"),
        (" " * (4 << 20) + "{}", "4,194,306"),
    ],
    ids=["list", "null", "NaN", "-Infinity", "1e999", "nesting", "digits", "huge"],
)
def test_a_config_that_is_none(folder, text, words):
    (folder / "config.json").write_text(text)
    assert words in refused(folder)


def test_a_config_that_is_a_folder(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "config.json" in refused(folder)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-4, 300),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=3), st.none()), max_size=2),
    st.sampled_from([10**9, 2**31, 2**63, 2**64, 10**400, 1e-300, float("nan"), float("-inf")]),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(sorted(CURRENT)), ODD, min_size=1, max_size=3),
    st.sets(st.sampled_from(["resize_to_max_side_len", "max_img_size", "vlm_extra_tokens"])),
)
def test_any_configuration_works_or_is_one_sentence(changes, left_out):
    values = {name: value for name, value in (CURRENT | changes).items() if name not in left_out}
    said = ""
    try:
        plan_image((100, 30), VLMConfig.from_dict(values))
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 500


def test_weights_are_those_that_are_built(golden, embedded):
    for vlm in (embedded, load_vlm(golden / "tiny_vlm")):
        matrices = {p.data_ptr(): p.numel() for p in vlm.parameters() if p.dim() > 1}
        assert vlm.config.weights == sum(matrices.values())


def test_the_largest_shape_is_counted_without_being_built(embedded):
    config = dataclasses.replace(
        embedded.config, lm_hidden_dim=24_576, lm_n_heads=192, lm_n_kv_heads=8, lm_inter_dim=65_536, lm_n_blocks=8
    )
    assert all(parameter.is_meta for parameter in empty_vlm(config, embedded.tokenizer).parameters())


# --- weights ---


def test_values_that_are_no_numbers_are_named_and_counted(folder):
    def spoil(state):
        state["decoder.norm.weight"][:3] = torch.nan
        state["MP.proj.weight"][0, 0] = torch.inf

    edit_weights(folder, spoil)
    sentence = refused(folder)
    assert "MP.proj.weight (1 of 24,576), decoder.norm.weight (3 of 96)" in sentence
    assert "NaN or infinite" in sentence


def test_one_nan_in_both_tied_matrices_is_named(folder):
    def spoil(state):
        state["decoder.head.weight"][5, 5] = torch.nan
        state["decoder.token_embedding.weight"] = state["decoder.head.weight"].clone()

    edit_weights(folder, spoil)
    assert "decoder.head.weight (1 of 104,640)" in refused(folder)


def test_values_that_the_wanted_kind_of_number_cannot_hold(folder):
    edit_weights(folder, lambda state: state["MP.proj.weight"].fill_(1e30))
    assert load_vlm(folder).MP.proj.weight[0, 0] == 1e30
    with pytest.raises(InputError, match=r"MP\.proj\.weight.*\(24,576 of 24,576\)"):
        load_vlm(folder, dtype=torch.float16)


@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.bool, torch.complex64], ids=str)
def test_weights_that_are_no_floats(folder, kind):
    edit_weights(folder, lambda state: state.update({"MP.proj.weight": state["MP.proj.weight"].to(kind)}))
    assert f"no floating-point numbers: MP.proj.weight is {str(kind).removeprefix('torch.')}" in refused(folder)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_float_is_taken(folder, kind):
    edit_weights(folder, lambda state: state.update({name: each.to(kind) for name, each in state.items()}))
    assert load_vlm(folder).MP.proj.weight.dtype == torch.float32


def weights_file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        weights_file(b"{}", length=2**63),
        weights_file(b"{}", length=10**9),
        weights_file(b"{}", length=1),
        weights_file(b"[]"),
        weights_file(b"{" * 1000),
        weights_file(b"\xff\xff"),
        weights_file(b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}', bytes(4)),
        weights_file(b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 4]}}', bytes(4)),
        weights_file(b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
        weights_file(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', bytes(4)),
        weights_file(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}', bytes(4)),
    ],
)
def test_a_header_that_lies(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refused(folder)


def test_an_empty_file_of_weights_lacks_all(folder):
    (folder / "model.safetensors").write_bytes(weights_file(b"{}"))
    assert "and 55 more" in refused(folder)


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 100, 5_000, 100_000])
def test_weights_cut_off_anywhere(folder, cut):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:cut])
    assert "cut off" in refused(folder)


# --- tokenizer ---


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"model": 5}', "[" * 100_000, "\0" * 100])
def test_a_tokenizer_that_is_none(folder, text):
    (folder / "tokenizer.json").write_text(text)
    assert "No tokenizer could be read" in refused(folder)


def test_a_tokenizer_too_large_to_be_one(folder):
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate((200 << 20) + 1)
    assert "209,715,201 bytes" in refused(folder)


def test_an_id_beyond_the_vocabulary(folder):
    definition = json.loads((folder / "tokenizer.json").read_text())
    last = max(definition["model"]["vocab"], key=definition["model"]["vocab"].get)
    definition["model"]["vocab"][last] = 10**6
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    assert "the id 1000000 and lm_vocab_size is 1090" in refused(folder)


@pytest.mark.parametrize("text", ["[]", "null", '{"eos_token": 5}', '{"extra_special_tokens": [1]}', "{"])
def test_an_odd_tokenizer_config(folder, text):
    (folder / "tokenizer_config.json").write_text(text)
    refused(folder)
