"""One prompt to two models of different families: one scale for both, and the same from a shell and on the page."""

import json

import numpy as np
import pytest
from PIL import Image

from inspector.__main__ import main
from inspector.figures.model_comparison import show_models
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.row.prompt import Prompt, Turn
from inspector.session import ModelStore, Shown
from inspector.views.comparing import ComparingHandlers
from inspector.which_image.model_comparison import compare_answers
from model import OpenedImage, load_vlm

QUESTION = "In image 2, what colour is the shape?"
SETTINGS = GenerationSettings(max_new_tokens=4)


@pytest.fixture
def pictures(tmp_path):
    found = []
    for n, size in enumerate(((200, 90), (64, 64))):
        found.append(tmp_path / f"{n}.png")
        Image.effect_noise(size, 60 + n).convert("RGB").save(found[-1])
    return found


@pytest.fixture
def prompt(pictures):
    return Prompt(tuple(OpenedImage(Image.open(path).convert("RGB")) for path in pictures), (Turn(QUESTION),))


def test_both_are_asked_alone_and_laid_on_one_scale(embedded, tiny, prompt):
    other = load_vlm(tiny("llava").folder)
    *_, found = compare_answers(embedded, other, prompt, SETTINGS)
    for vlm, side in ((embedded, found.before), (other, found.after)):
        alone = ask_and_inspect(vlm, prompt, SETTINGS)
        assert (side.fingerprint, side.tokens) == (vlm.fingerprint, len(alone.row))
        assert side.answers == (alone.prompt.turns[0].assistant,)
        attention = attend(vlm, alone, alone.row_that_chose(alone.first_answer_position))
        assert side.image_shares == pytest.approx(attention.image_shares.mean(axis=0))
    # LLaVA has one square grid in the middle of each picture, and no thumbnail: all of an image's share lies in it.
    for share, grids in zip(found.after.image_shares, found.after.image_maps, strict=True):
        (grid,) = grids
        assert np.array(grid.shares).shape == (4, 4)
        assert np.sum(grid.shares) == pytest.approx(share, rel=1e-5)
        area = (grid.box.right - grid.box.left) * (grid.box.bottom - grid.box.top)
        assert grid.densities.mean() * area == pytest.approx(share, rel=1e-5)
    left, right = found.after.image_maps[0][0].box.left, found.after.image_maps[0][0].box.right
    assert (left, right) == pytest.approx((55, 145), abs=1)
    page = show_models(found, ("<one>", "two"))
    assert "<one>" not in page
    assert page.count("<img") == 4


def test_the_command_prints_both_and_refuses_another_number(tiny, pictures, capsys):
    images = [word for path in pictures for word in ("--image", str(path))]
    ask = ["compare", *images, "--ask", QUESTION, "--max-new-tokens", "4"]
    assert main([*ask, "--model", "embedded", "--model", str(tiny("idefics3").folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["questions"] == [QUESTION]
    one, two = found["models"]
    assert found["same_answers"] == [one["answers"] == two["answers"]]
    assert one["fingerprint"] != two["fingerprint"]
    assert {kind for side in (one, two) if side["which_image"] for kind in side["which_image"]} <= {
        "verdict",
        "dependence",
    }
    assert [len(side["image_maps"]) for side in (one, two)] == [2, 2]
    assert main([*ask, "--model", "embedded"]) == 2
    assert capsys.readouterr().err.startswith("1 models came by --model")


def test_the_page_compares_with_the_model_that_is_picked(embedded, tiny, prompt):
    store = ModelStore({"embedded": "embedded", "other": str(tiny("llava").folder)})
    inspection = ask_and_inspect(store.get("embedded"), prompt, SETTINGS)
    shown = Shown("embedded", inspection, 0, attend(embedded, inspection, 0), settings=SETTINGS)
    handlers = ComparingHandlers(store)
    steps = list(handlers.compare(shown, "other"))
    assert [bool(step["busy"]) for step in steps] == [True, True, True, False]
    assert f"<code>{store.get('other').fingerprint[:8]}</code>" in steps[-1]["value"]
    for page, model in ((None, "other"), (shown, "embedded")):
        (step,) = handlers.compare(page, model)
        assert "<table" not in step["value"]
