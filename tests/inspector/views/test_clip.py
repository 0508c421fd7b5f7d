"""The CLIP tab: page and command line say the same numbers, and nothing stands for other images than are shown."""

import json
import re
from dataclasses import replace

import gradio as gr
import pytest
import torch

from inspector.__main__ import main
from inspector.bounds import Bounds
from inspector.encoder.head_comparison import compare_heads
from inspector.encoder.store import OWN, EncoderStore
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.views.clip import ClipHandlers, begin
from model import InputError
from tests.example_cases import example_prompt
from tests.tiny_encoders import build_encoder

CAPTIONS = ("a red circle", "a blue triangle", "a yellow rectangle")
LABELS = "red\nyellow\nblue"


@pytest.fixture(scope="module")
def handlers(store):
    return ClipHandlers(store, EncoderStore(), Bounds())


@pytest.fixture(scope="module")
def compared(handlers, shown):
    return handlers.compare(shown, None, OWN, "", LABELS, "a {}", "", 0)


def test_the_model_writes_captions_where_there_are_none(compared):
    assert tuple(compared[1].splitlines()) == CAPTIONS
    assert compared[2].splitlines() == ["red circle", "blue triangle", "yellow rectangle"]
    assert compared[-2].suggested == compared[1]


def test_page_and_command_line_say_the_same(compared, shown, tmp_path, capsys):
    arguments = ["clip"]
    for number, image in enumerate(shown.inspection.prompt.images):
        path = tmp_path / f"{number}.png"
        image.pixels.save(path)
        arguments += ["--image", str(path), "--text", CAPTIONS[number]]
    for label in LABELS.splitlines():
        arguments += ["--label", label]
    for phrase in compared[2].splitlines():
        arguments += ["--phrase", phrase]
    assert main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(json.dumps(compared[-1]))
    assert said["loss"] == pytest.approx((said["image_to_text"] + said["text_to_image"]) / 2)
    matrix = compared[4]["value"]
    assert all(f'data-copy="{cosine:.6g}"' in matrix for row in said["cosines"] for cosine in row)
    assert f'data-copy="{said["loss"]:.6g}"' in matrix


def test_a_patch_is_the_same_on_page_and_command_line(handlers, compared, shown, event, tmp_path, capsys):
    board, attention, now, facts = handlers.pick(shown, compared[-2], 1, event(image=2, patch=20))
    arguments = ["clip", "--patch", "3:2,4", "--layer", "1"]
    for number, image in enumerate(shown.inspection.prompt.images):
        image.pixels.save(tmp_path / f"{number}.png")
        arguments += ["--image", str(tmp_path / f"{number}.png")]
    assert main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert {key: said[key] for key in ("alike", "attention")} == json.loads(json.dumps(facts))
    assert board.count("cl-chosen") == 1
    assert attention["value"].count('class="cl-map"') == 4
    again, _ = handlers.change_layer(shown, now, 1)
    assert again["value"] == attention["value"]


def test_another_temperature_moves_the_loss_and_reads_no_image_anew(handlers, compared, shown):
    warm = handlers.compare(shown, compared[-2], OWN, compared[1], LABELS, "a {}", compared[2], 1.0)
    assert warm[-2].read is compared[-2].read
    assert warm[-1]["temperature"] == 1
    assert warm[-1]["loss"] > compared[-1]["loss"]


def test_captions_of_the_model_go_with_their_images_and_typed_ones_stay(handlers, compared, store, shown):
    inspection = ask_and_inspect(store.get("embedded"), example_prompt("two"), GenerationSettings(8))
    other = replace(shown, inspection=inspection)
    fresh = handlers.compare(other, compared[-2], OWN, compared[1], LABELS, "a {}", compared[2], 0)
    assert len(fresh[1].splitlines()) == 2
    assert fresh[1] != compared[1]
    typed = handlers.compare(other, compared[-2], OWN, "one\ntwo", LABELS, "a {}", "red circle", 0)
    assert (typed[1], typed[2]) == ("one\ntwo", "red circle")


def test_what_was_compared_goes_with_the_answer(handlers, compared, store, shown, event):
    assert not any("cl-" in str(part) for part in begin())
    inspection = ask_and_inspect(store.get("embedded"), example_prompt("two"), GenerationSettings(8))
    other = replace(shown, inspection=inspection)
    for page, state in ((other, compared[-2]), (shown, None), (None, compared[-2])):
        with pytest.raises(gr.Error, match="Compare"):
            handlers.pick(page, state, 0, event(image=0, patch=0))
    with pytest.raises(gr.Error):
        handlers.change_layer(shown, compared[-2], 0)  # no patch was chosen


def test_another_model_s_own_encoder_reads_the_same_images_anew(store, handlers, compared, shown, event, monkeypatch):
    other = store.get("embedded").redraw(1)
    monkeypatch.setattr(store, "get", lambda name: other)
    with pytest.raises(gr.Error, match="Compare"):
        handlers.pick(shown, compared[-2], 0, event(image=0, patch=0))
    fresh = handlers.compare(shown, compared[-2], OWN, "", LABELS, "a {}", "", 0)[-2]
    assert fresh.used != compared[-2].used
    assert not torch.allclose(fresh.read.encoded[0].patches, compared[-2].read.encoded[0].patches)


@pytest.mark.parametrize(
    ("captions", "labels", "templates"),
    [("one", LABELS, "a {}"), ("", "red", "a {}"), ("", "red\nred", "a {}"), ("", "x" * 10_240 + "\ny", "a {}")],
)
def test_what_cannot_be_compared_is_refused(handlers, shown, captions, labels, templates):
    with pytest.raises(gr.Error):
        handlers.compare(shown, None, OWN, captions, labels, templates, "", 0)


def test_what_nobody_pressed_is_said_on_the_page_and_keeps_what_is_there(handlers, compared, shown):
    looked = handlers.look(shown, None, OWN, "", LABELS, "a {}", "", 0)
    assert looked[-1] == compared[-1]
    refused = handlers.look(shown, None, OWN, "", "red", "a {}", "", 0)
    assert "red" in refused[3]
    assert len(refused) == len(compared)
    assert [part for part in refused[4:] if part != gr.skip()] == []
    unasked = handlers.look(None, None, OWN, "", LABELS, "a {}", "", 0)
    assert unasked[3] == gr.skip()
    assert "vi-empty" in handlers.compare(shown, None, OWN, "", "", "a {}", "", 0)[5]["value"]


def test_an_encoder_of_its_own_is_offered_and_used(store, shown, tmp_path):
    build_encoder("siglip", tmp_path / "tiny-siglip")
    encoders = EncoderStore([str(tmp_path / "tiny-siglip")])
    assert encoders.names == (OWN, "tiny-siglip")
    handlers = ClipHandlers(store, encoders, Bounds())
    found = handlers.compare(shown, None, "tiny-siglip", "", LABELS, "a {}", "", 0)
    assert found[-1]["loss_kind"] == "sigmoid"
    assert found[-1]["zero_shot"]["yes"] is not None
    with pytest.raises(InputError, match="no encoder"):
        EncoderStore(["embedded"])
    with pytest.raises(InputError, match="nothing"):
        encoders.get("nothing", store.get("embedded"))


def test_without_a_text_tower_patches_are_left(handlers, shown, event, monkeypatch):
    monkeypatch.setattr("model.encoders.opening.find_tower", lambda vlm: None)
    found = handlers.compare(shown, None, OWN, "", LABELS, "a {}", "", 0)
    assert found[-1]["missing"]
    assert "loss" not in found[-1]
    board, _, _, facts = handlers.pick(shown, found[-2], 0, event(image=0, patch=3))
    assert "cl-chosen" in board
    assert len(facts["attention"]["heads"]) == 4


def test_heads_are_compared_and_the_model_stays_as_it_is(embedded):
    before = embedded.fingerprint
    first, last = compare_heads(embedded, steps=2, rows=6)
    assert embedded.fingerprint == before
    assert all(weight.grad is None for weight in embedded.parameters())
    assert [one.head for one in last.results] == ["linear", "mlp"]
    assert [a.loss > b.loss for a, b in zip(first.results, last.results, strict=True)] == [True, True]
    assert last.results[1].weights - last.results[0].weights == 3 * (128 * 128 + 128)
    assert re.search(r"2 steps of 6 pairs", last.sentence)


def test_the_panel_and_the_command_show_the_same_heads(handlers, shown, monkeypatch, capsys):
    def short(vlm):
        return compare_heads(vlm, steps=1, rows=6)

    monkeypatch.setattr("inspector.views.clip.compare_heads", short)
    monkeypatch.setattr("inspector.__main__.compare_heads", short)
    *_, (panel, facts) = handlers.train_heads(shown)
    assert main(["clip", "--heads"]) == 0
    said = json.loads(capsys.readouterr().out)["heads"]
    assert {**said, "seconds": 0, "sentence": ""} == json.loads(json.dumps({**facts, "seconds": 0, "sentence": ""}))
    assert panel["busy"] == ""
    assert panel["value"].count("cl-own") == 12  # six pictures under either head
    with pytest.raises(gr.Error):
        list(handlers.train_heads(None))


def test_heads_need_an_encoder_for_drawn_scenes(tiny):
    with pytest.raises(InputError, match="64 px"):
        next(compare_heads(tiny("llava").vlm))
