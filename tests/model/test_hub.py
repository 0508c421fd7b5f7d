"""Fetching from a hub that answers as the real one does, on this machine."""

import shutil
from pathlib import Path

import pytest

from model import InputError, load_vlm
from model.hub import FetchStoppedError, check_room, check_weights, fetch, look_up
from tests.stand_in_hub import COMMIT


@pytest.fixture
def llava(hub, copy_of) -> Path:
    folder = copy_of("llava")
    (folder / "modeling_llava.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    hub.repos["owner/llava"] = folder
    return folder


def test_a_checkpoint_is_looked_at_fetched_and_opened(hub, llava, tmp_path, tiny):
    found = look_up("owner/llava", endpoint=hub.endpoint)
    assert (found.commit, found.family) == (COMMIT, "llava")
    names = {file.name for file in found.files}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"modeling_llava.py", "pytorch_model.bin"}
    assert set(hub.sent) == {"config.json"}, "nothing large before it is asked for"
    told = []
    folder = fetch(found, told.append, endpoint=hub.endpoint, cache=tmp_path / "cache")
    assert told == sorted(told)
    assert told[-1] == found.nbytes == sum((llava / name).stat().st_size for name in names)
    assert {path.name for path in folder.iterdir()} == names
    assert load_vlm(folder).fingerprint == tiny("llava").vlm.fingerprint
    hub.sent.clear()
    fetch(found, told.append, endpoint=hub.endpoint, cache=tmp_path / "cache")
    assert hub.sent == {}, "what is here isn't fetched again"


def enlarge(folder):
    """Large enough to come in several pieces."""
    with (folder / "model.safetensors").open("ab") as file:
        file.write(bytes(30 << 20))
    return (folder / "model.safetensors").stat().st_size


def test_who_stops_has_the_whole_files_already(hub, llava, tmp_path):
    size = enlarge(llava)
    found = look_up("owner/llava", endpoint=hub.endpoint)

    def stop(count):
        if count > found.nbytes - size + (5 << 20):
            raise FetchStoppedError

    with pytest.raises(FetchStoppedError):
        fetch(found, stop, endpoint=hub.endpoint, cache=tmp_path / "cache")
    hub.sent.clear()
    told = []
    fetch(found, told.append, endpoint=hub.endpoint, cache=tmp_path / "cache")
    assert told[-1] == found.nbytes
    assert set(hub.sent) == {"model.safetensors"}


def test_a_connection_that_breaks_is_taken_up_in_the_middle(hub, llava, tmp_path, monkeypatch):
    size = enlarge(llava)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    found = look_up("owner/llava", endpoint=hub.endpoint)
    hub.break_after = 20 << 20
    folder = fetch(found, lambda _: None, endpoint=hub.endpoint, cache=tmp_path / "cache")
    assert (folder / "model.safetensors").read_bytes() == (llava / "model.safetensors").read_bytes()
    assert hub.sent["model.safetensors"] < 1.5 * size


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "no model “owner/gone”"), (403, "gated"), (503, "503")],
)
def test_what_the_hub_doesn_t_give_is_one_sentence(hub, status, words, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.repos["owner/gone"] = status
    with pytest.raises(InputError, match=words):
        look_up("owner/gone", endpoint=hub.endpoint)


def test_names_that_are_none_and_a_hub_that_isn_t_there(hub):
    with pytest.raises(InputError, match="owner/name"):
        look_up("no name at all", endpoint=hub.endpoint)
    hub.close()
    with pytest.raises(InputError, match="can't be reached"):
        look_up("owner/llava", endpoint=hub.endpoint)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": "{}", "weights.gguf": ""}, "GGUF"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "safetensors"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "LoRA"),
        ({"model.safetensors": ""}, "config.json"),
        ({"config.json": "[1]", "model.safetensors": ""}, "no object"),
        ({"config.json": "{", "model.safetensors": ""}, "no JSON"),
        ({"config.json": '{"model_type": "llama"}', "model.safetensors": ""}, "text model"),
        ({"config.json": '{"model_type": "paligemma", "vision": 1}', "model.safetensors": ""}, "can't be inspected"),
        (
            {"config.json": '{"model_type": "xyz", "vision": 1, "auto_map": {"a": "b"}}', "model.safetensors": ""},
            "needs code",
        ),
    ],
)
def test_what_can_t_be_opened_is_refused_before_weights_are_fetched(hub, tmp_path, files, words):
    folder = tmp_path / "repo"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    hub.repos["owner/other"] = folder
    with pytest.raises(InputError, match=words):
        look_up("owner/other", endpoint=hub.endpoint)
    assert not any(name.endswith("safetensors") for name in hub.sent)


def test_what_was_fetched_is_opened_without_the_hub(hub, llava, tmp_path, tiny, monkeypatch):
    cache = tmp_path / "cache"
    found = look_up("owner/llava", endpoint=hub.endpoint, cache=cache)
    fetch(found, lambda _: None, endpoint=hub.endpoint, cache=cache)
    # What is here needs no room.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    check_room(found, 1 << 40, cache=cache)
    hub.close()
    again = look_up("owner/llava", endpoint=hub.endpoint, cache=cache)
    assert (again.commit, again.family, again.nbytes) == (found.commit, found.family, found.nbytes)
    folder = fetch(again, lambda _: None, endpoint=hub.endpoint, cache=cache)
    assert load_vlm(folder).fingerprint == tiny("llava").vlm.fingerprint
    with pytest.raises(InputError, match="can't be reached"):
        look_up("owner/other", endpoint=hub.endpoint, cache=cache)


def test_weights_that_don_t_fit_the_memory_are_not_fetched(hub, llava, monkeypatch):
    found = look_up("owner/llava", endpoint=hub.endpoint)
    check_weights(found, device="cpu", dtype="auto", quantize=None)
    monkeypatch.setattr("model.hub.measure_free", lambda _: found.weight_bytes // 2)
    with pytest.raises(InputError, match="weights take"):
        check_weights(found, device="cpu", dtype="auto", quantize=None)
    check_weights(found, device="cpu", dtype="bfloat16", quantize=None)


def test_too_large_for_the_server_or_the_disk(hub, llava, monkeypatch, tmp_path):
    found = look_up("owner/llava", endpoint=hub.endpoint)
    check_room(found, 1 << 40, cache=tmp_path / "not" / "yet")
    with pytest.raises(InputError, match="smaller"):
        check_room(found, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(InputError, match="disk"):
        check_room(found, 1 << 40)
