"""Checkpoints that people open: allowed or not, told byte by byte, one at a time, and stopped with whoever waits."""

import pytest

from inspector.encoder.store import OWN, EncoderStore
from inspector.server.fetching import Fetcher, read_allowed
from inspector.session import ModelStore
from model import InputError, load_vlm
from tests.tiny_encoders import build_encoder


@pytest.fixture
def store():
    return ModelStore({"embedded": "embedded"})


@pytest.fixture
def fetcher(hub, tiny, tmp_path):
    hub.repos["owner/llava"] = tiny("llava").folder
    return Fetcher(None, 1 << 30, endpoint=hub.endpoint, cache=tmp_path / "cache")


def test_a_checkpoint_is_fetched_loaded_and_named(store, fetcher, tiny):
    *steps, last = fetcher.open(store, EncoderStore(), " owner/llava ")
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total > 1000
    assert last.model == "owner/llava"
    assert store.names == ("embedded", "owner/llava")
    assert store.get("owner/llava").fingerprint == tiny("llava").vlm.fingerprint
    embedded, llava = store.list_models()
    assert (llava.family, llava.weights) == ("LLaVA", tiny("llava").vlm.n_parameters)
    assert llava.need is not None
    # Not loaded: counted in its file, which has 24 rotary angles besides the weights.
    assert (embedded.family, embedded.weights) == ("nanoVLM", load_vlm("embedded").n_parameters + 24)
    assert embedded.need.weights == 4 * embedded.weights
    again = list(fetcher.open(store, EncoderStore(), "owner/llava"))[-1]
    assert again.model == "owner/llava"
    assert len(store.names) == 2


def test_a_folder_of_this_machine(store, fetcher, tiny):
    *_, last = fetcher.open(store, EncoderStore(), str(tiny("qwen3 vl").folder))
    assert last.model == tiny("qwen3 vl").folder.name
    assert store.get(last.model).family == "Qwen3-VL"


def test_what_is_not_allowed_is_not_asked_for(store, hub, tiny):
    hub.repos["owner/llava"] = tiny("llava").folder
    for allowed in (frozenset(), frozenset({"owner/other"})):
        for source in ("owner/llava", str(tiny("llava").folder)):
            with pytest.raises(InputError, match="allowed are"):
                next(Fetcher(allowed, 1 << 30, endpoint=hub.endpoint).open(store, EncoderStore(), source))
    assert hub.sent == {}
    assert store.names == ("embedded",)


def test_one_at_a_time_and_whoever_goes_frees_the_place(store, fetcher, hub):
    first = fetcher.open(store, EncoderStore(), "owner/llava")
    next(first)
    with pytest.raises(InputError, match="Another checkpoint"):
        next(fetcher.open(store, EncoderStore(), "owner/llava"))
    first.close()
    assert list(fetcher.open(store, EncoderStore(), "owner/llava"))[-1].model == "owner/llava"


@pytest.mark.parametrize("source", ["", "owner/gone"])
def test_what_can_t_be_opened_leaves_the_list_as_it_was(store, fetcher, source):
    with pytest.raises(InputError):
        list(fetcher.open(store, EncoderStore(), source))
    assert store.names == ("embedded",)
    assert not fetcher._busy.locked()


def test_a_checkpoint_that_does_not_load_leaves_the_list_as_it_was(store, fetcher, hub, copy_of):
    folder = copy_of("llava")
    (folder / "model.safetensors").write_bytes(b"no weights")
    hub.repos["owner/broken"] = folder
    with pytest.raises(InputError):
        list(fetcher.open(store, EncoderStore(), "owner/broken"))
    assert store.names == ("embedded",)


def test_what_the_option_says():
    assert read_allowed(None, True) == read_allowed("", False) == frozenset()
    assert read_allowed("*", False) is None
    assert read_allowed("a/b, c/d", True) == {"a/b", "c/d"}
    with pytest.raises(InputError, match="owner/name"):
        read_allowed("*", True)


def test_a_model_that_cannot_be_counted_says_why(tmp_path):
    (tmp_path / "broken").mkdir()
    store = ModelStore({"broken": str(tmp_path / "broken"), "owner/name": "owner/name"})
    broken, far = store.list_models()
    assert "has no config.json" in broken.family
    assert str(tmp_path) not in broken.family
    assert (broken.need, far.need, far.weights) == (None, None, 0)


@pytest.mark.parametrize("hub_id", [True, False])
def test_an_encoder_of_images_and_texts_goes_to_the_clip_tab(store, fetcher, hub, tmp_path, embedded, hub_id):
    folder = build_encoder("clip", tmp_path / "own clip").folder
    hub.repos["owner/clip"] = folder
    source, name = ("owner/clip", "owner/clip") if hub_id else (str(folder), "own clip")
    encoders = EncoderStore()
    *_, last = fetcher.open(store, encoders, source)
    assert (last.model, last.encoder) == ("", name)
    assert (encoders.names, store.names) == ((OWN, name), ("embedded",))
    assert encoders.get(name, embedded).name == "CLIP"
    *_, again = fetcher.open(store, encoders, source)
    assert (again.encoder, encoders.names) == (name, (OWN, name))


def test_an_encoder_that_can_t_be_opened_is_not_offered(store, fetcher, tmp_path):
    folder = build_encoder("siglip", tmp_path / "broken").folder
    (folder / "model.safetensors").unlink()
    encoders = EncoderStore()
    with pytest.raises(InputError):
        list(fetcher.open(store, encoders, str(folder)))
    assert (encoders.names, store.names) == ((OWN,), ("embedded",))


def test_few_encoders_stay_in_memory_and_all_can_be_used(tmp_path, embedded):
    folders = [str(build_encoder("clip", tmp_path / name).folder) for name in ("a", "b", "c")]
    encoders = EncoderStore(folders)
    first = encoders.get("a", embedded)
    assert encoders.get("a", embedded) is first
    for name in ("b", "c"):
        encoders.get(name, embedded)
    assert encoders.get("a", embedded) is not first
    assert encoders.get("a", embedded).fingerprint == first.fingerprint
