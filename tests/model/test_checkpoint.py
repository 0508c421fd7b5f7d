"""Saving is all or nothing, loading is strict, and nobody is asked about a local folder."""

import dataclasses
import hashlib
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model import VLM, Conversation, InputError, Message, load_vlm, save_vlm
from model import checkpoint as checkpoint_module


@pytest.fixture(scope="module")
def vlm(golden):
    return load_vlm(golden / "tiny_vlm")


@pytest.fixture
def folder(golden, tmp_path):
    """A checkpoint of its own to damage, with the tokenizer inside."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(golden / "tiny_vlm", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(golden / "tiny_tokenizer" / name, folder / name)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def refused(source, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_vlm(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_the_round_trip_is_bit_identical(vlm, tmp_path):
    save_vlm(vlm, tmp_path / "copy")
    again = load_vlm(tmp_path / "copy")
    assert again.config == vlm.config
    assert again.fingerprint == vlm.fingerprint
    ours, theirs = vlm.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    text = "a  1 café <|im_end|> 日本語\n\t12"
    assert again.tokenizer.encode(text) == vlm.tokenizer.encode(text)
    assert again.tokenizer.get_added_vocab() == vlm.tokenizer.get_added_vocab()


def test_a_saved_checkpoint_looks_like_upstreams(vlm, golden, tmp_path):
    save_vlm(vlm, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text()) == json.loads(
        (golden / "tiny_vlm" / "config.json").read_text()
    )
    with (
        safe_open(tmp_path / "copy" / "model.safetensors", "pt") as ours,
        safe_open(golden / "tiny_vlm" / "model.safetensors", "pt") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys())
        assert "decoder.token_embedding.weight" not in ours.keys()  # noqa: SIM118 (not a dict)
        assert ours.metadata()["decoder.token_embedding.weight"] == "decoder.head.weight"


@pytest.mark.parametrize("name", ["decoder.head.weight", "decoder.token_embedding.weight", "both"])
def test_tied_weights_load_under_either_name(folder, vlm, name):
    def rename(state):
        weight = state.pop("decoder.head.weight")
        for each in ("decoder.head.weight", "decoder.token_embedding.weight"):
            if name in (each, "both"):
                state[each] = weight.clone()

    edit_weights(folder, rename)
    loaded = load_vlm(folder)
    assert loaded.decoder.head.weight is loaded.decoder.token_embedding.weight
    assert torch.equal(loaded.decoder.head.weight, vlm.decoder.head.weight)
    assert loaded.fingerprint == vlm.fingerprint


def test_two_different_tied_matrices_are_refused(folder):
    edit_weights(folder, lambda s: s.update({"decoder.token_embedding.weight": s["decoder.head.weight"] + 1}))
    assert "lm_tie_weights" in refused(folder)


def test_an_untied_model_keeps_two_matrices(folder, tmp_path):
    edit_config(folder, lm_tie_weights=False)
    edit_weights(folder, lambda s: s.update({"decoder.token_embedding.weight": s["decoder.head.weight"] * 2}))
    loaded = load_vlm(folder)
    assert torch.equal(loaded.decoder.token_embedding.weight, loaded.decoder.head.weight * 2)
    save_vlm(loaded, tmp_path / "again")
    assert load_vlm(tmp_path / "again").fingerprint == loaded.fingerprint


def test_an_untied_model_without_its_second_matrix_is_refused(folder):
    edit_config(folder, lm_tie_weights=False)
    assert "missing: decoder.token_embedding.weight" in refused(folder)


def test_all_faults_are_named_at_once(folder):
    def spoil(state):
        del state["MP.proj.weight"]
        state["vision_encoder.cls_token"] = torch.zeros(1, 1, 64)
        state["decoder.norm.weight"] = torch.zeros(95)

    edit_weights(folder, spoil)
    sentence = refused(folder)
    assert "missing: MP.proj.weight" in sentence
    assert "not wanted: vision_encoder.cls_token" in sentence
    assert "decoder.norm.weight is (95,)" in sentence
    assert "config.json" in sentence


def test_many_faults_are_counted(folder):
    edit_config(folder, lm_n_blocks=9)
    assert "more" in refused(folder)


class Exploding:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_named_and_never_opened(folder, tmp_path, monkeypatch):
    import pickle

    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Exploding()))
    sentence = refused(folder)
    assert "pytorch_model.bin" in sentence
    assert "safetensors" in sentence
    shutil.copy(folder / "pytorch_model.bin", folder / "model.safetensors")
    assert "model.safetensors" in refused(folder)
    assert not (tmp_path / "exploded").exists()


def test_cut_off_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "cut off" in refused(folder)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(folder):
    def cut(state):
        state["decoder.head.weight"] = state["decoder.head.weight"][:1080].clone()

    edit_weights(folder, cut)
    edit_config(folder, lm_vocab_size=1080)
    assert "1090 tokens" in refused(folder)


def test_the_hub_is_never_asked_about_a_local_folder(folder, monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(checkpoint_module, "snapshot_download", forbidden)
    load_vlm(folder)
    load_vlm(str(folder))
    # Nor for a tokenizer that isn't there: its name in the configuration is a hub id.
    edit_config(folder, lm_tokenizer="HuggingFaceTB/SmolLM2-360M-Instruct")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    sentence = refused(folder)
    assert "tokenizer.json" in sentence
    assert "HuggingFaceTB/SmolLM2-360M-Instruct" in sentence


def test_a_configuration_cannot_point_at_other_folders(folder, tmp_path, golden):
    secret = tmp_path / "elsewhere" / "tok"
    shutil.copytree(golden / "tiny_tokenizer", secret)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    edit_config(folder, lm_tokenizer=str(secret))
    assert "tokenizer.json" in refused(folder)
    edit_config(folder, lm_tokenizer="../elsewhere/tok")
    assert "tokenizer.json" in refused(folder)


def test_a_named_tokenizer_wins(folder, golden):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert len(load_vlm(folder, tokenizer=golden / "tiny_tokenizer").tokenizer) == 1090


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("cannot reach it\nsecond line"),
        HTTPError("peer closed connection (received 1000 bytes, expected 1000000)"),
        HTTPError(""),
    ],
    ids=["offline", "cut in the middle", "too slow"],
)
def test_an_unreachable_hub_id(error, monkeypatch):
    def offline(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(checkpoint_module, "snapshot_download", offline)
    assert "someone/some-model" in refused("someone/some-model")


@pytest.mark.parametrize("source", ["", "nothing-here", "./nothing/here", "a/b/c", Path("owner/name")])
def test_no_such_folder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no folder" in refused(source)


def test_a_file_in_place_of_a_folder(folder):
    assert "no folder" in refused(folder / "config.json")


def test_saving_over_an_older_checkpoint_replaces_it(vlm, folder, tmp_path):
    changed = load_vlm(folder)
    with torch.no_grad():
        changed.MP.proj.weight.add_(1)
    save_vlm(changed, folder)
    assert load_vlm(folder).fingerprint == changed.fingerprint != vlm.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failed_save_leaves_what_was_there(vlm, folder, tmp_path, monkeypatch):
    changed = load_vlm(folder)
    with torch.no_grad():
        changed.MP.proj.weight.add_(1)
    before = contents(folder)

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_vlm(changed, folder)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


_KILLED = """
import os, sys
import torch
from model import checkpoint, load_vlm, save_vlm
vlm = load_vlm(sys.argv[1])
with torch.no_grad():
    vlm.MP.proj.weight.add_(1)
write = checkpoint.save_file
def killed(state, path, metadata=None):
    write(state, path, metadata=metadata)
    os.truncate(path, 1000)
    os._exit(9)
checkpoint.save_file = killed
save_vlm(vlm, sys.argv[1])
"""


def test_a_process_killed_while_writing_leaves_what_was_there(vlm, folder):
    before = contents(folder)
    root = Path(checkpoint_module.__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", _KILLED, str(folder)], cwd=root, check=False, timeout=120)
    assert result.returncode == 9
    assert contents(folder) == before
    assert load_vlm(folder).fingerprint == vlm.fingerprint


def test_fingerprint_follows_weights_and_configuration(folder, vlm):
    loaded = load_vlm(folder)
    first = loaded.fingerprint
    assert len(first) == 64
    assert first == loaded.fingerprint == vlm.fingerprint
    with torch.no_grad():
        loaded.MP.proj.weight[0, 0] += 1e-3
    assert loaded.fingerprint != first
    other = VLM(dataclasses.replace(vlm.config, lm_rms_eps=1e-6), vlm.tokenizer)
    other.load_state_dict(vlm.state_dict())
    assert other.fingerprint != first


def test_half_precision_keeps_rotary_angles_in_float32(golden, vlm):
    half = load_vlm(golden / "tiny_vlm", dtype=torch.bfloat16)
    assert half.MP.proj.weight.dtype == torch.bfloat16
    assert half.decoder.rotary_embd.inv_freq.dtype == torch.float32
    sample = vlm.prepare(Conversation((Message("user", "hello"),)))
    with torch.no_grad():
        expected = vlm(vlm.collate([sample]))
        logits = half(half.collate([sample])).float()
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_loading_ends_in_evaluation_mode_and_draws_nothing(golden):
    state = torch.random.get_rng_state()
    loaded = load_vlm(golden / "tiny_vlm")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not loaded.training
    assert all(not tensor.is_meta for tensor in loaded.state_dict().values())


def test_the_embedded_model_is_a_folder_like_any_other(embedded):
    assert load_vlm(checkpoint_module.EMBEDDED).fingerprint == embedded.fingerprint
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(contents(checkpoint_module.EMBEDDED))
