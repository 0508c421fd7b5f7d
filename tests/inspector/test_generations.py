"""Every generation of nanoVLM, opened from a folder as the page and the command line open it."""

import json

import pytest
from PIL import Image

from inspector.__main__ import main
from inspector.figures.markup import show_provenance
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn
from model import OpenedImage, load_vlm, save_vlm
from tests.model.test_chat import tiny_of

SENTENCE = "v0.1: the image is no part of the token sequence; it is shown where the model sees it."


@pytest.fixture(params=["v0.1", "v0.2", "2025-07", "2025-08"])
def generation(request):
    return request.param


@pytest.fixture
def folder(golden, tmp_path, generation):
    if generation in ("v0.1", "2025-08"):
        return golden / ("legacy_v01" if generation == "v0.1" else "tiny_vlm")
    save_vlm(tiny_of(golden, generation), tmp_path / "model")
    return tmp_path / "model"


def test_the_page_names_it(folder, generation):
    vlm = load_vlm(folder)
    picture = OpenedImage(Image.new("RGB", (64, 64), "red"))
    inspection = ask_and_inspect(vlm, Prompt((picture,), (Turn("What colour?"),)), GenerationSettings(3))
    chip = show_provenance(vlm, inspection, "model")
    assert f"nanoVLM {generation}" in chip
    assert (SENTENCE in chip) == (generation == "v0.1")
    # The image has positions of its own in all of them: in the oldest one before all text, as the model sees it.
    places = [p for p, token in enumerate(inspection.row.input_ids.tolist()) if token == vlm.image_token_id]
    assert len(places) == sum(vlm.count_tokens(inspection.row.images[0]))
    assert (places[0] == 0) == (generation == "v0.1")


def test_the_command_line_names_it(folder, generation, tmp_path, capsys):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    picture = str(tmp_path / "red.png")
    line = ["inspect", "--model", str(folder), "--device", "cpu", "--image", picture, "--ask", "What?"]
    assert main([*line, "--max-new-tokens", "2"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert model["generation"] == generation
    assert model["notes"] == ([SENTENCE] if generation == "v0.1" else [])
