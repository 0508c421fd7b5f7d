"""A photograph with a model that only knows drawn shapes: what the page can still show of it is said beside it."""

import numpy as np
import pytest
from PIL import Image

from inspector.bounds import Bounds
from inspector.figures.before_after import NOTHING_HELD_OUT, show_comparison
from inspector.figures.training import show_evaluation
from inspector.images.image_file import SHELF
from inspector.runs.progress import Progress
from inspector.session import ModelStore
from inspector.views.prompt import EMBEDDED_NAME, is_photograph, plan_images, say_beyond
from model.training.synthetic.examples import EXAMPLES


@pytest.fixture
def photograph(tmp_path):
    """As many colours as a picture from a camera has."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_drawn_scenes_are_no_photographs(tmp_path, photograph):
    for example in EXAMPLES:
        for number, image in enumerate(example.draw_images()):
            path = tmp_path / f"{example.name}-{number}.png"
            image.save(path)
            assert not is_photograph(SHELF.find(str(path)))
    assert is_photograph(SHELF.find(photograph))


def test_only_a_photograph_is_spoken_of_and_only_where_the_model_knows_none(store, tiny, tmp_path, photograph):
    folder = str(tiny("llava").folder)
    both = ModelStore({EMBEDDED_NAME: EMBEDDED_NAME, "other": folder})
    for models, pick in ((store, "--model"), (both, "pick other under Models")):
        assert pick in say_beyond(models, EMBEDDED_NAME)
        assert 'role="note"' in plan_images(models, EMBEDDED_NAME, [(photograph, None)], Bounds())[1]
    assert 'role="note"' not in plan_images(both, "other", [(photograph, None)], Bounds())[1]
    plain = tmp_path / "plain.png"
    Image.new("RGB", (64, 64), "red").save(plain)
    assert 'role="note"' not in plan_images(store, EMBEDDED_NAME, [(str(plain), None)], Bounds())[1]


def test_data_without_a_held_out_part_are_said_to_have_none():
    progress = Progress(evaluations=({"at": 4, "accuracy": {}, "answers": []},))
    assert "<ul" not in show_evaluation(progress)
    assert "Step 4" in show_evaluation(progress)
    assert NOTHING_HELD_OUT in show_comparison(None, None, over=True)
    assert NOTHING_HELD_OUT not in show_comparison(None, None, "loading both models")
