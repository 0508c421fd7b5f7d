"""Words on patches: the lens is the model's own head, a state is its own nearest, and the truth of drawn scenes."""

import json

import pytest
import torch

from inspector.__main__ import main
from inspector.experiments.patch_words import (
    BankStore,
    choose_sentences,
    describe_found,
    find_word,
    measure_words,
)
from inspector.row.ask import inspect
from inspector.row.embedded_row import read_states
from inspector.row.prompt import Prompt, Turn
from inspector.row.row_store import ROWS
from model import STREAMS, InputError, OpenedImage
from model.losses import unit
from model.training.synthetic.examples import EXAMPLES
from tests.tiny_checkpoints import BUILDERS


def pictures():
    return tuple(map(OpenedImage, next(e for e in EXAMPLES if e.name == "single").draw_images()))


@pytest.fixture(scope="module")
def blue(embedded):
    return inspect(embedded, Prompt(pictures(), (Turn("What is this?", "blue"),)))


@pytest.mark.parametrize("name", [*BUILDERS, "embedded"])
def test_the_lens_of_the_last_layer_gives_the_models_own_logits(tiny, embedded, name):
    vlm = embedded if name == "embedded" else tiny(name).vlm
    read = ROWS.read(vlm, inspect(vlm, Prompt(pictures(), (Turn("What is it?", "red"),))).row, False)
    positions, last = range(len(read)), vlm.n_layers - 1
    states = read_states(vlm, read, positions, range(vlm.n_layers))
    kept = read.has_state
    torch.testing.assert_close(vlm.read_out(states[last][kept]), vlm.logits(read.states), atol=1e-3, rtol=1e-3)
    attention = read_states(vlm, read, positions, [last], "attention")[last]
    mlp = read_states(vlm, read, positions, [last], "mlp")[last]
    # Between layers nothing is added but image features of deeper layers (DeepStack), which only Qwen3-VL has.
    own = (read.row.input_ids != vlm.image_token_id) | (name != "qwen3 vl")
    torch.testing.assert_close((states[last - 1] + attention + mlp)[own], states[last][own], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_state_is_its_own_nearest(embedded, stream):
    bank = BankStore(1 << 27).get(embedded, stream)
    assert len(bank.words) == 3 * len(choose_sentences(embedded)) == 72
    states = unit(bank.states.float())
    assert torch.allclose((states * states).sum(-1), torch.ones(states.shape[:2]), atol=1e-5)


def test_banks_are_bounded(embedded):
    store = BankStore(limit=1)
    first = store.get(embedded, "residual")
    assert store.get(embedded, "residual") is first
    store.get(embedded, "mlp")
    assert store.get(embedded, "residual") is not first


def test_the_blue_shape_is_named_on_its_cells(embedded, blue):
    found = measure_words(embedded, blue, 1)
    lens, _ = found.count("Blue")
    assert 0 < lens <= len(found.cells) == 16
    assert found.count("xylophone") == (0, 0)
    counts = find_word(embedded, blue, "blue")
    assert counts[1] == found.count("blue")
    assert describe_found("x", [(0, 0), (2, 0)]) == {
        "word": "x",
        "logit_lens": {"first_layer": 1, "cells": [0, 2]},
        "nearest": {"first_layer": None, "cells": [0, 0]},
    }
    for cell in found.cells:
        assert len(cell.lens) == len(cell.nearest) == 5
        assert len({one.text for one in cell.nearest}) == 5
        assert [one.value for one in cell.nearest] == sorted((one.value for one in cell.nearest), reverse=True)


def test_the_pass_that_is_looked_into_stays_as_it_is(embedded, blue):
    read = ROWS.read(embedded, blue.row, False)
    before = read.states.clone()
    measure_words(embedded, blue, 0)
    assert torch.equal(ROWS.read(embedded, blue.row, False).states, before)


@pytest.mark.parametrize(
    ("layer", "stream", "word"), [(4, "residual", "4"), (-1, "residual", "-1"), (True, "mlp", "layer"), (0, "x", "x")]
)
def test_what_is_not_there_is_refused(embedded, blue, layer, stream, word):
    with pytest.raises(InputError, match=word):
        measure_words(embedded, blue, layer, stream)


def test_without_an_image_or_a_word_nothing_is_looked_for(embedded, blue):
    with pytest.raises(InputError):
        measure_words(embedded, inspect(embedded, Prompt((), (Turn("What?", "red"),))))
    with pytest.raises(InputError):
        find_word(embedded, blue, " ")


def test_the_command_prints_the_same(embedded, blue, tmp_path, capsys):
    path = tmp_path / "a.png"
    next(e for e in EXAMPLES if e.name == "single").draw_images()[0].save(path)
    asked = ["words", "--image", str(path), "--ask", "What is this?", "--answer", "blue", "--layer", "1"]
    assert main([*asked, "--word", "blue"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = facts.pop("found")
    assert facts == json.loads(json.dumps(measure_words(embedded, blue, 1).to_json()))
    assert found["logit_lens"]["cells"][1] == measure_words(embedded, blue, 1).count("blue")[0]
