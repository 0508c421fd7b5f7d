"""Names of models: each stands for one set of weights, also where a run went on in the same folder."""

import os
from dataclasses import replace

import pytest

from inspector.export.report import study
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.session import SECRET, ModelStore
from model import InputError, load_vlm
from model.checkpoint import save_vlm
from model.training.recipe import read_recipe
from tests.example_cases import example_prompt


@pytest.fixture
def run(tmp_path, embedded):
    """A stopped run's model, and what makes another of it as a resumed run does."""
    folder = tmp_path / "model"
    save_vlm(embedded, folder)

    def go_on():
        vlm = load_vlm("embedded")
        vlm.decoder.norm.weight.data *= 1.25
        before = (folder / "model.safetensors").stat().st_mtime_ns
        save_vlm(vlm, folder)
        os.utime(folder / "model.safetensors", ns=(before + 10**9, before + 10**9))
        return vlm

    return folder, go_on


def test_a_run_that_went_on_has_another_name(run, embedded):
    folder, go_on = run
    store = ModelStore({"embedded": "embedded"})
    first = store.admit("the run's id", folder, "a run")
    assert first.startswith(SECRET)
    assert "the run's id" not in first
    assert store.admit("the run's id", folder, "a run") == first
    assert store.admit("another id", folder, "a run") != first
    assert store.get(first).fingerprint == embedded.fingerprint
    other = go_on()
    second = store.admit("the run's id", folder, "a run")
    assert second != first
    assert store.get(second).fingerprint == other.fingerprint
    # The old weights are still in memory, so the old name goes on meaning them.
    assert store.get(first).fingerprint == embedded.fingerprint


def test_a_name_whose_weights_are_gone_is_refused(run, embedded):
    folder, go_on = run
    store = ModelStore({"embedded": "embedded"})
    name = store.admit("the run's id", folder, "a run")
    other = go_on()
    store.private_bytes = 0
    store.admit("the run's id", folder, "a run")  # the old weights leave the memory
    with pytest.raises(InputError, match=rf"#{other.fingerprint[:8]}.*#{embedded.fingerprint[:8]}"):
        store.get(name)


def test_a_study_of_two_models_is_refused(run, embedded):
    _, go_on = run
    other = go_on()
    inspection = ask_and_inspect(embedded, example_prompt("three"), GenerationSettings(4))
    for begin in (lambda: open_case(other, inspection), lambda: list(study(other, inspection))):
        with pytest.raises(InputError) as refusal:
            begin()
        sentence = str(refusal.value)
        assert f"#{other.fingerprint[:8]}" in sentence
        assert "Ask" in sentence
        assert sentence.count(". ") == 0


def test_a_model_of_another_family_is_a_base_too(tiny):
    folder = tiny("llava").folder
    store = ModelStore({"embedded": "embedded", "llava": str(folder)})
    assert [store.kind_of(name) for name in ("embedded", "llava")] == ["nanoVLM", "llava"]
    assert store.get_base(replace(read_recipe("freezing"), base=str(folder))) is store.get("llava")
