"""The form begins where a model's checkpoint asks to begin, and follows the picked model until a person changes it."""

import json
import shutil
from pathlib import Path

import gradio as gr
import pytest

from inspector.__main__ import main
from inspector.bounds import Bounds
from inspector.row.ask import GenerationSettings
from inspector.server.blocks import GuardedBlocks
from inspector.session import ModelStore
from inspector.views.models import build_picker
from inspector.views.prompt import build_examples, build_prompt, read_settings
from inspector.views.prompting import PromptHandlers
from model import load_vlm

GREEDY = [32, 0.0, 0, 1.0]


def folder_asking(tiny, where: Path, **values) -> Path:
    folder = Path(shutil.copytree(tiny("llava").folder, where))
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_sample": True, **values}))
    return folder


@pytest.fixture
def warm(tiny, tmp_path):
    return folder_asking(tiny, tmp_path / "warm", temperature=0.7, top_k=20, top_p=0.8, max_new_tokens=48)


@pytest.fixture
def store(warm):
    return ModelStore({"warm": str(warm), "embedded": "embedded"}, device="cpu")


def build(store, bounds):
    with GuardedBlocks(bounds, False, analytics_enabled=False):
        return build_prompt(store, build_examples(), bounds, build_picker(store))


def test_the_form_begins_as_the_first_model_asks(store):
    view = build(store, Bounds())
    assert [setting.value for setting in view.settings] == [48, 0.7, 20, 0.8, 0]
    assert view.settings_begun.value == [48, 0.7, 20, 0.8]
    for name in ("temperature 0.7", "top_k 20", "top_p 0.8", "max_new_tokens 48"):
        assert name in view.settings_note.value
    asked = build(ModelStore({"embedded": "embedded"}), Bounds())
    assert [setting.value for setting in asked.settings] == [*GREEDY, 0]
    assert asked.settings_note.value == ""


def test_another_model_brings_its_own_and_leaves_what_a_person_changed(store, tmp_path):
    handlers = PromptHandlers(store, Bounds(), tmp_path)
    begun, note, *settings = handlers.follow("warm", GREEDY, *GREEDY)
    assert begun == settings == [48, 0.7, 20, 0.8]
    assert "temperature 0.7" in note
    begun, note, *settings = handlers.follow("embedded", begun, 48, 0.2, 20, 0.8)
    assert (begun, note) == (GREEDY, "")
    assert settings == [32, gr.skip(), 0, 1.0]


def test_what_a_checkpoint_asks_for_stays_within_the_form_and_the_server(tiny, tmp_path):
    folder = folder_asking(tiny, tmp_path / "odd", temperature=90.0, top_k=5000, top_p=1e-6, max_new_tokens=100_000)
    store, bounds = ModelStore({"odd": str(folder)}, device="cpu"), Bounds()
    view = build(store, bounds)
    assert [setting.value for setting in view.settings] == [min(128, bounds.answer_tokens), 2, 100, 0.001, 0]
    assert read_settings([setting.value for setting in view.settings], bounds).temperature == 2
    # A slider refuses what is beyond its ends; these are not.
    assert [setting.preprocess(setting.value) for setting in view.settings] == [128, 2, 100, 0.001, 0]
    asked = GenerationSettings.of_checkpoint(load_vlm(folder), bounds)
    assert (asked.max_new_tokens, asked.temperature, asked.top_k) == (bounds.answer_tokens, 5, 5000)


def test_the_command_line_is_greedy_unless_it_is_asked_as_the_checkpoint(warm, monkeypatch, capsys):
    found = []

    def ask(vlm, prompt, settings):
        found.append(settings)
        raise SystemExit(0)

    monkeypatch.setattr("inspector.__main__.ask_and_inspect", ask)
    line = ["inspect", "--model", str(warm), "--device", "cpu", "--ask", "What?", "--seed", "3"]
    for more in ([], ["--as-checkpoint"], ["--as-checkpoint", "--temperature", "0", "--max-new-tokens", "5"]):
        with pytest.raises(SystemExit):
            main([*line, *more])
    assert found == [
        GenerationSettings(seed=3),
        GenerationSettings(48, 0.7, 20, 0.8, 3),
        GenerationSettings(5, 0.0, 20, 0.8, 3),
    ]
