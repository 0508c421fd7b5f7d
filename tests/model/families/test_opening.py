"""Which checkpoints are opened, and in what words others are refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from inspector.__main__ import main
from model import VLM, InputError, load_vlm
from model.checkpoint import load_nanovlm
from model.families.checkpoint_files import KNOWN_TEXT
from model.families.table import FAMILIES, find_family
from tests import tiny_checkpoints as made


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_every_family_of_the_table_is_there():
    for kind in FAMILIES:
        assert find_family({"model_type": kind}).image_processors


def test_shards_are_read_together(tiny, tmp_path):
    checkpoint = tiny("idefics3")
    made.write_checkpoint(checkpoint.model, checkpoint.processor, tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert load_vlm(tmp_path).n_parameters == checkpoint.vlm.n_parameters
    states = (load_vlm(tmp_path).model.state_dict(), checkpoint.vlm.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(InputError, match=r"lacks 1 of \d+ files of its weights \(model-00002-of"):
        load_vlm(tmp_path)


def test_an_index_names_files_beside_it_alone(copy_of):
    folder = copy_of("idefics3")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(InputError, match="only safetensors files beside it"):
        load_vlm(folder)


def test_pickles_are_not_read(copy_of):
    folder = copy_of("llava")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"pytorch_model\.bin can hold code and is not read"):
        load_vlm(folder)


def spoil(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_are_no_numbers_are_named(copy_of):
    folder = copy_of("idefics3")
    spoil(folder, lambda state: state["model.text_model.norm.weight"].__setitem__(3, float("nan")))
    with pytest.raises(InputError, match=r"NaN or infinite\): model\.text_model\.norm\.weight \(1 of 64\)"):
        load_vlm(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("model.connector.modality_projection.proj.weight"), "missing: model.connector"),
        (lambda state: state.update({"model.odd": torch.zeros(3)}), "not wanted: model.odd"),
        (lambda state: state.update({"lm_head.weight": torch.zeros(3, 64)}), "lm_head.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(copy_of, change, sentence):
    folder = copy_of("idefics3")
    spoil(folder, change)
    with pytest.raises(InputError) as refused:
        load_vlm(folder)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "qwen3_5", "vision_config": {}}, "linear attention"),
        ({"model_type": "lfm2_vl"}, "linear attention or convolutions"),
        ({"model_type": "mllama"}, "cross-attention"),
        ({"model_type": "paligemma"}, "everything before its answer sees everything"),
        ({"model_type": "llama", "hidden_size": 3}, "This is a text model (llama)"),
        ({"model_type": "internvl_chat", "auto_map": {"AutoModel": "x.y"}, "vision_config": {}}, "none is ever run"),
        ({"model_type": "newest_vl", "vision_config": {}}, "is not known here; supported are nanoVLM and"),
        ({"model_type": 3}, "it must be text"),
        ({"model_type": "llava", "quantization_config": {"quant_method": "awq"}}, "stored quantised (awq)"),
    ],
)
def test_other_families_are_refused_with_the_reason(tmp_path, config, sentence, capsys):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as refused:
        load_vlm(tmp_path)
    assert sentence in str(refused.value)
    assert main(["inspect", "--model", str(tmp_path), "--ask", "What?"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "sentence"),
    [("adapter_config.json", "adapter (LoRA) without its base model"), ("model-q4.gguf", "GGUF files are not read")],
)
def test_folders_of_another_kind_say_what_they_are(tmp_path, file, sentence):
    (tmp_path / file).write_text("{}")
    with pytest.raises(InputError) as refused:
        load_vlm(tmp_path)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [("adapter_config.json", "adapter (LoRA) without its base model"), ("model-q4.gguf", "GGUF files are not read")],
)
def test_a_config_beside_them_makes_no_checkpoint_of_them(copy_of, file, sentence):
    folder = copy_of("idefics3")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / file).write_bytes(b"{}")
    with pytest.raises(InputError) as refused:
        load_vlm(folder)
    assert "has no model.safetensors" in str(refused.value)
    assert sentence in str(refused.value)


def test_a_file_of_weights_that_was_cut_off_is_refused(copy_of):
    weights = copy_of("idefics3") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(InputError, match=r"can't be loaded \(.*"):
        load_vlm(weights.parent)


def test_a_tokenizer_of_another_model_is_refused(copy_of):
    folder = copy_of("idefics3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="it is not this checkpoint's tokenizer"):
        load_vlm(folder)


def test_a_checkpoint_without_settings_for_images_is_refused(copy_of):
    folder = copy_of("llava")
    (folder / "processor_config.json").unlink()
    with pytest.raises(InputError, match="no settings for images"):
        load_vlm(folder)


def test_several_end_tokens_end_an_answer(copy_of):
    folder = copy_of("idefics3")
    path = folder / "generation_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, 1027], "do_sample": True, "top_k": 7})
    )
    vlm = load_vlm(folder)
    assert vlm.eos_ids == (2, 1027, vlm.image_token_id)
    assert vlm.generation_defaults["top_k"] == 7


def test_training_is_for_nanovlm_alone(tiny, golden):
    assert isinstance(load_nanovlm(golden / "tiny_vlm"), VLM)
    with pytest.raises(InputError, match=r"a LLaVA model.*nanoVLM's alone"):
        load_nanovlm(tiny("llava").folder)


def test_a_checkpoint_without_a_template_gets_vicuna_s(copy_of, tiny):
    folder = copy_of("llava")
    (folder / "chat_template.jinja").unlink()
    vlm = load_vlm(folder)
    row = vlm.prepare(made.conversation([made.noise(9, 9)], "What?", (("user", "Red?"), ("assistant", "Yes."))), True)
    text = vlm.decode_text([i for i in row.input_ids.tolist() if i != vlm.image_token_id])
    assert text == "<s> USER: \nRed? ASSISTANT: Yes.</s>USER: What? ASSISTANT:"


def test_the_fingerprint_is_of_config_and_weights(copy_of, tiny):
    folder = copy_of("idefics3")
    assert load_vlm(folder).fingerprint == tiny("idefics3").vlm.fingerprint
    change_config(folder, note="another")
    assert load_vlm(folder).fingerprint != tiny("idefics3").vlm.fingerprint
    spoil(folder, lambda state: state["lm_head.weight"].__setitem__((0, 0), 0.5))
    assert len({load_vlm(folder).fingerprint, tiny("idefics3").vlm.fingerprint}) == 2


def test_transformers_models_are_imported_when_one_is_opened():
    code = (
        "import sys\nimport app, inspector.__main__\nfrom model import load_vlm\nload_vlm('embedded')\n"
        "print([name for name in sys.modules if 'modeling_' in name or name.startswith('model.families.transformers')])"
    )
    home = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=home, capture_output=True, text=True, timeout=120, check=True
    )
    assert found.stdout.strip() == "[]"


def test_transformers_talks_as_before(tiny, copy_of):
    library = transformers.utils.logging
    before = library.get_verbosity(), library.is_progress_bar_enabled()
    load_vlm(copy_of("llava"))
    assert (library.get_verbosity(), library.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("text", "settings"),
    [("Gemma2", {"head_dim": 16}), ("GPTNeoX", {"num_key_value_heads": 4}), ("Phi", {"num_key_value_heads": 4})],
)
def test_a_language_model_that_is_not_read_here_is_refused_at_load(tmp_path, text, settings):
    made.write_checkpoint(*made.build_llava(made.byte_tokenizer(["<image>"]), text=text, **settings), tmp_path)
    with pytest.raises(InputError, match=KNOWN_TEXT):
        load_vlm(tmp_path)


def test_a_language_model_whose_norms_stand_elsewhere_is_refused_at_load(tmp_path):
    made.write_checkpoint(*made.build_llava(made.byte_tokenizer(["<image>"]), text="Olmo2"), tmp_path)
    with pytest.raises(InputError, match="norm before the MLP"):
        load_vlm(tmp_path)
