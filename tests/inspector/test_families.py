"""The same analyses on models of other families: nothing above the seam knows which it is."""

import json
from dataclasses import replace

import pytest
import torch

from inspector.experiments.image_edits import run_edits
from inspector.experiments.occlusion import cut_regions, measure_regions
from inspector.export.report import study_whole
from inspector.figures.payload import viewer_payload
from inspector.ground_truth.run import choose_size, run_battery
from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect, inspect
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.self_checks import PIXELS_CHECK
from inspector.which_image.study import study_answer
from model import OpenedImage
from tests import tiny_checkpoints as made

NAMES = (
    "idefics3",
    "llava",
    "llava always",
    "llava next",
    "onevision",
    "internvl",
    "qwen2.5 vl",
    "qwen3 vl",
    "gemma3 rest",
    "gemma3 wide",
)
IMAGES = tuple(OpenedImage(made.noise(*size, seed=n)) for n, size in enumerate([(100, 60), (64, 64), (150, 100)]))
TURNS = (Turn("What colour is the first one?"), Turn("And the second?"))


@pytest.fixture(params=NAMES)
def vlm(request, tiny):
    return tiny(request.param).vlm


def ask(vlm, layout="images-first", turns=TURNS, document_mask=False):
    return ask_and_inspect(vlm, Prompt(IMAGES, turns, layout, document_mask), GenerationSettings(4))


@pytest.mark.parametrize("layout", ["images-first", "per-turn", "packed"])
def test_every_check_holds(vlm, layout):
    inspection = ask(vlm, layout)
    assert inspection.faithful
    *_, found = study_answer(vlm, inspection)
    assert [(check.name, check.value) for check in found.checks if not check.ok] == []
    assert PIXELS_CHECK in [check.name for check in found.checks]
    json.dumps(found.to_json())


def test_rows_are_told_without_nanovlm_s_rules(vlm):
    *_, found = study_answer(vlm, ask(vlm, "per-turn"))
    assert found.structure.row.kind == "one image per turn"
    assert not any("nanoVLM" in sentence for sentence in found.to_json()["structure"]["sentences"])


def test_every_mark_around_an_image_is_taken_away_with_it(tiny):
    vlm = tiny("idefics3").vlm
    *_, found = study_answer(vlm, ask(vlm))
    for image in found.structure.images:
        assert sorted((*image.tokens, *image.marks)) == list(range(image.start, image.stop))
        assert image.tiles[-1].name == ("thumbnail" if len(image.tiles) > 1 else "r1c1")


def test_every_experiment_runs_or_says_why_not(vlm):
    known = study_whole(vlm, ask(vlm), max_new_tokens=4)
    assert known.found.verdict is not None
    json.dumps(known.facts)


def test_no_verdict_where_images_get_past_the_cuts(tiny, monkeypatch):
    """A model that adds a bit of what stands before to every state, as recurrent layers do: no mask reaches that."""
    vlm = tiny("llava").vlm.convert(torch.float32)
    decode = vlm.decode

    def leak(embeds, position_ids, visible, cache=None, tap=None):
        states = decode(embeds, position_ids, visible, cache, tap)
        return states + embeds.mean() * 100 if embeds.shape[1] > 100 else states

    monkeypatch.setattr(vlm, "decode", leak)
    *_, found = study_answer(vlm, ask(vlm))
    failed = next(check for check in found.checks if check.name == PIXELS_CHECK)
    assert not failed.ok
    assert (found.verdict.kind, found.verdict.image, found.verdict.final) == ("unclear", None, True)
    assert found.verdict.sentence.startswith("Nothing can be told: with every image cut off")


def test_regions_tile_what_the_model_sees(vlm):
    inspection = ask(vlm, turns=TURNS[:1])
    case = open_case(vlm, inspection, max_new_tokens=4)
    for block, processed in zip(case.structure.images, inspection.row.images, strict=True):
        (rows, cols), parts = cut_regions(case, block)
        boxes = [box for box, _ in parts]
        assert len(parts) == rows * cols
        seen = processed.seen
        left, right = (0, processed.original_size[0]) if seen is None else (seen.left, seen.right)
        assert (boxes[0].left, boxes[-1].right) == pytest.approx((left, right))
        placed = {position for grid in inspection.row.grids for position in grid.positions}
        held = [position for _, positions in parts for position in positions]
        assert sorted(held) == sorted(placed & set(block.tokens))
    *_, found = measure_regions(case, 1, 0.1)
    assert found.tokens is not None


@pytest.mark.parametrize("layout", ["images-first", "packed"])
def test_an_edit_is_the_edited_prompt_read_anew(vlm, layout):
    """To keep all of an image hides nothing more, and all of an image cut is the image taken away."""
    case = open_case(vlm, ask(vlm, layout), max_new_tokens=4)
    number = case.reachable[-1].number
    picture = IMAGES[number - 1].pixels.copy()
    width, height = picture.size
    part, whole = (f"{sides[0]},0,{sides[1]},{height}" for sides in ((width // 3, width), (0, width)))
    study = run_edits(case, [f"image {number}: black {part}", f"image {number}: keep {whole}"])
    picture.paste((0, 0, 0), (width // 3, 0, width, height))
    images = (*IMAGES[: number - 1], OpenedImage(picture), *IMAGES[number:])
    anew = open_case(vlm, inspect(vlm, replace(case.prompt, images=images)), max_new_tokens=4)
    (expected,) = anew.prefix_cache.run([anew.base])
    for step in study.steps:
        assert step.pixels.logprob == pytest.approx(expected.logprob, abs=1e-3)
        assert step.pixels.answer == anew.text(anew.greedy_ids)
        assert 0 < step.tokens < len(case.find_reachable(number).tokens)
    assert study.steps[0].tokens == study.steps[1].tokens
    (ablated,) = case.prefix_cache.run([ImageAblations(case).of_answer(frozenset({number}))])
    (black,) = run_edits(case, [f"image {number}: black {whole}"]).steps
    assert black.cut.logprob == pytest.approx(ablated.logprob, abs=1e-3)


def test_the_page_s_viewer_knows_every_cell(vlm):
    inspection = ask(vlm)
    payload = viewer_payload(vlm, inspection, ["a", "b", "c"], "key")
    json.dumps(payload)
    for image, processed in zip(payload["images"], inspection.row.images, strict=True):
        assert len(image["tiles"]) == len(processed.boxes)
        assert (image["seen"] is None) == (processed.seen is None)
        assert (image["thumbnail"] is None) == (not processed.has_thumbnail)
        for tile in image["tiles"]:
            rows, cols, step = tile["cells"]
            ids = inspection.row.input_ids[tile["start"] : tile["start"] + rows * step]
            assert step - cols == int(vlm.name == "LLaVA-NeXT" and tile["name"] != "thumbnail")
            assert bool((ids == vlm.image_token_id).all())


def test_the_battery_is_tried_on_any_model(tiny):
    vlm = tiny("llava text").vlm
    *_, last = run_battery(vlm, cells=["ordinal digit"], n_each=2)
    assert last.battery.finished
    json.dumps(last.battery.to_json())


@pytest.mark.parametrize(
    ("name", "enlarged"), [("llava", 1), ("qwen2.5 vl", 2), ("internvl", 2), ("idefics3", 4), ("gemma3", 8)]
)
def test_scenes_are_as_large_as_the_model_likes_them(tiny, name, enlarged):
    assert choose_size(tiny(name).vlm) == enlarged


def test_an_empty_prompt_of_images_is_a_text(vlm):
    prompt = replace(Prompt(IMAGES, TURNS[:1]), images=())
    *_, found = study_answer(vlm, ask_and_inspect(vlm, prompt, GenerationSettings(4)))
    assert all(check.ok for check in found.checks)
