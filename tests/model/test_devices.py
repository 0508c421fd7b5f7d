"""Where a model is put and in which numbers: the words that are known, and the sentences for all others."""

import types

import pytest
import torch

from inspector.__main__ import main
from model import InputError, load_vlm
from model.devices import choose_device, choose_dtype, list_devices, place
from tests.tiny_checkpoints import conversation, noise

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


def test_auto_takes_the_quickest_that_is_there(monkeypatch, two_gpus):
    assert choose_device("auto") == CUDA
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU


def test_a_device_of_several_is_named(two_gpus):
    assert list_devices()[:4] == ("cpu", "cuda", "cuda:0", "cuda:1")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"no device cuda:2 here; there is cpu, cuda, cuda:0, cuda:1"):
        choose_device("cuda:2")
    assert place("balanced", "auto", {}).balanced
    assert not place("cuda", "auto", {}).balanced


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:-1", "CUDA", "cpu ", "", "meta", 0, None, ["cpu"], "cuda:1\n"])
def test_other_words_for_a_device_are_refused(word):
    with pytest.raises(InputError, match="it must be auto, cpu, cuda"):
        choose_device(word)


def test_numbers_are_float32_on_the_cpu_and_else_the_checkpoints_own(monkeypatch, two_gpus):
    stored = {torch.bfloat16: 900, torch.float32: 100}
    assert choose_dtype("auto", CPU, stored) == torch.float32
    assert choose_dtype("auto", CUDA, stored) == torch.bfloat16
    assert choose_dtype("auto", CUDA, {torch.float32: 1}) == torch.float32
    assert choose_dtype("auto", CUDA, {torch.float8_e4m3fn: 1}) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert choose_dtype("auto", CUDA, stored) == torch.float16


@pytest.mark.parametrize("word", ["int8", "float64", "half", 16, None, torch.int8, torch.float64])
def test_other_words_for_numbers_are_refused(word):
    with pytest.raises(InputError, match="float32, bfloat16, float16"):
        choose_dtype(word, CPU, {})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--device", "cuda"], "There is no device cuda here; there is cpu"),
        (["--device", "balanced"], "balanced needs CUDA; there is cpu"),
        (["--device", "tpu"], "The device is 'tpu'"),
        (["--dtype", "int4"], "The dtype is 'int4'"),
        (["--quantize", "4bit"], "Weights are quantised (4bit) on a CUDA device alone"),
        (["--quantize", "3bit"], "it must be 4bit or 8bit"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without CUDA")
def test_a_command_says_what_is_wrong_in_one_line(options, sentence, capsys):
    assert main(["inspect", "--ask", "?", *options]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_quantising_needs_its_package(monkeypatch, two_gpus):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="bitsandbytes, which isn't installed"):
        place("cuda", "auto", {}, "8bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: types.SimpleNamespace())
    assert place("cuda", "auto", {}, "8bit").dtype_name == "8bit"


def test_a_nanovlm_is_put_on_one_device(two_gpus):
    with pytest.raises(InputError, match="fits one device and is not quantised here"):
        load_vlm("embedded", device="balanced")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_a_model_says_itself_what_it_computes_in(dtype, tiny):
    for source in ("embedded", tiny("llava").folder):
        vlm = load_vlm(source, device="cpu", dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        assert vlm.placement == f"{name} · cpu"
        assert str(vlm.dtype) == f"torch.{name}"
        sample = vlm.prepare(conversation([noise(40, 30)]), add_generation_prompt=True)
        assert len(list(vlm.generate(sample, max_new_tokens=2))) >= 1
