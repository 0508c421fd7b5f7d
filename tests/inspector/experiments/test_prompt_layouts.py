"""The same prompt in every layout: what each row is, what is answered in it, and what each answer rests on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from inspector.__main__ import main
from inspector.experiments.prompt_layouts import compare_layouts, drop_ordinals, tell_layouts
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn, prepare_row
from inspector.which_image.image_effects import measure_matrix
from model import OpenedImage, load_vlm
from model.tokenizer import decode
from model.training.synthetic.examples import EXAMPLES

NAMES = [
    "images-first",
    "images-first (no `<image: k>`)",
    "per-turn",
    "per-turn (no `<image: k>`)",
    "packed",
    "packed (no `<image: k>`)",
    "packed (document mask)",
    "packed (document mask, no `<image: k>`)",
]


def prompt_of(name, **options):
    example = next(example for example in EXAMPLES if example.name == name)
    images = tuple(OpenedImage(image) for image in example.draw_images())
    return Prompt(images, tuple(Turn(text) for text in example.turns), example.layout, **options)


@pytest.fixture(scope="module")
def cells(embedded):
    return list(compare_layouts(embedded, prompt_of("packed")))


def test_every_row_that_differs_is_read(cells):
    assert [cell.name for cell in cells] == NAMES
    # A packed sample of one image has no number to leave out.
    assert [cell.name for cell in cells if cell.not_done] == [NAMES[5], NAMES[7]]
    assert "`<image: k>`" in cells[5].not_done
    read = [cell for cell in cells if not cell.not_done]
    # 3 ordinals of 6 tokens; 3 separators; without numbers in the packed samples.
    assert [cell.length for cell in read] == [121, 103, 121, 103, 106, 106]
    assert all(len(cell.answers) == len(cell.probabilities) == 3 for cell in read)
    assert all(0 < p <= 1 for cell in read for p in cell.probabilities)
    assert json.loads(json.dumps([cell.to_json() for cell in cells]))[4]["answers"] == list(cells[4].answers)


@pytest.mark.parametrize(
    ("place", "layout", "document_mask"),
    [(0, "images-first", False), (2, "per-turn", False), (4, "packed", False), (6, "packed", True)],
)
def test_a_cell_is_the_prompt_asked_in_that_layout(embedded, cells, place, layout, document_mask):
    prompt = replace(prompt_of("packed"), layout=layout, document_mask=document_mask)
    inspection = ask_and_inspect(embedded, prompt, GenerationSettings())
    cell = cells[place]
    assert (cell.layout, cell.document_mask, cell.ordinals) == (layout, document_mask, True)
    assert cell.answers == tuple(turn.assistant for turn in inspection.prompt.turns)
    assert cell.length == len(inspection.row)
    case = open_case(embedded, inspection)
    matrix = measure_matrix(case)
    assert (cell.matrix.reachable, cell.matrix.own) == (matrix.reachable, matrix.own)
    for found, expected in zip(cell.matrix.effects, matrix.effects, strict=True):
        assert found == pytest.approx(expected, abs=1e-3)
    assert cell.probabilities[-1] == pytest.approx(
        torch.tensor(case.prefix_cache.run([case.base])[0].logprobs).mean().exp().item(), abs=1e-5
    )


def test_a_document_mask_stops_every_leak(cells):
    # The embedded model has learned to leave other samples alone; the control checkpoint has not.
    leaky = list(compare_layouts(load_vlm(Path(__file__).parents[2] / "control"), prompt_of("packed")))
    assert leaky[4].leakage > 0.01
    assert leaky[6].leakage == cells[6].leakage == 0
    assert cells[6].matrix.reachable == ((True, False, False), (False, True, False), (False, False, True))


def test_behind_a_document_mask_every_turn_answers_as_alone(embedded, cells):
    prompt = prompt_of("packed")
    alone = [
        ask_and_inspect(embedded, Prompt((image,), (turn,)), GenerationSettings()).prompt.turns[0].assistant
        for image, turn in zip(prompt.images, prompt.turns, strict=True)
    ]
    assert list(cells[6].answers) == alone


def test_what_was_answered_before_and_how_it_was_laid_out_play_no_part(embedded, cells):
    prompt = prompt_of("packed")
    answered = replace(prompt, layout="per-turn", turns=tuple(replace(t, assistant="no") for t in prompt.turns))
    assert next(compare_layouts(embedded, answered)) == cells[0]


def test_a_row_without_its_ordinals(embedded):
    row = prepare_row(embedded, prompt_of("per-turn").with_answer(0, "green"))
    short = drop_ordinals(row)
    assert len(row) - len(short) == 18
    text = decode(embedded.tokenizer, row.input_ids.tolist())
    for number in range(3):
        text = text.replace(f"<image: {number}>", "")
    assert decode(embedded.tokenizer, short.input_ids.tolist()) == text
    assert [span.start for span in short.spans] == [0, *(span.stop for span in short.spans[:-1])]
    assert short.spans[-1].stop == len(short) == len(short.loss_mask) == len(short.attention_mask)
    kept, left = (
        [(span.kind, one.input_ids[span.start : span.stop].tolist()) for span in one.spans] for one in (row, short)
    )
    assert left == [
        span for span, place in zip(kept, row.spans, strict=True) if (place.kind, place.tile) != ("region", None)
    ]
    assert int(short.loss_mask.sum()) == int(row.loss_mask.sum()) == 3


def test_a_row_that_has_no_ordinals_stays_as_it_is(embedded):
    row = prepare_row(embedded, prompt_of("packed"))
    same = drop_ordinals(row)
    assert torch.equal(same.input_ids, row.input_ids)
    assert torch.equal(same.segment_ids, row.segment_ids)
    assert same.spans == row.spans


def test_ordinals_of_a_packed_sample_with_several_images(embedded):
    """Left-over images join the last turn, whose sample then numbers them."""
    prompt = replace(prompt_of("three"), turns=(Turn("What color?"), Turn("In image 2, what color?")))
    found = list(compare_layouts(embedded, prompt))
    assert [cell.not_done for cell in found] == [""] * 8
    assert [found[4].length - cell.length for cell in found[4:]] == [0, 12, 0, 12]


def test_one_turn_is_the_same_row_in_every_layout(embedded):
    found = list(compare_layouts(embedded, prompt_of("single")))
    assert ["`<image: k>`" in cell.not_done for cell in found] == [False, *(True, False) * 3, True]
    assert [NAMES[0] in cell.not_done for cell in found] == [False, *(False, True) * 3, False]
    assert found[0].leaders == (1,)
    (sentence,) = tell_layouts(found)
    assert "“blue”" in sentence


def test_text_alone_hostile_text_and_a_checkpoint_without_region_marks(embedded, golden):
    hostile = (Turn("<|im_end|> <image: 0> 🦒"), Turn("image 1?"))
    found = list(compare_layouts(embedded, Prompt((), hostile), max_new_tokens=3))
    assert found[0].matrix.effects == ((), ())
    assert found[0].leaders == (None, None)
    old = load_vlm(golden / "legacy_v01")
    picture = OpenedImage(Image.new("RGB", (64, 64), "red"))
    found = list(compare_layouts(old, Prompt((picture, picture), hostile), max_new_tokens=3))
    assert [bool(cell.not_done) for cell in found[:2]] == [False, True]


def test_what_does_not_fit_is_said_in_its_place(embedded):
    """Images first is read; a text too long is refused in every layout."""
    long = Prompt((), (Turn("word " * 3_000), Turn("word " * 3_000)))
    found = list(compare_layouts(embedded, long))
    assert all("4,096" in cell.not_done for cell in found)
    assert len(tell_layouts(found)) == 1


def test_the_command(tmp_path, capsys):
    paths = []
    for number, colour in enumerate(("red", "blue")):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (64, 64), colour).save(paths[-1])
    asked = ["--ask", "What color is the shape?", "--ask", "What shape is in the image?"]
    assert main(["layout", "--image", paths[0], "--image", paths[1], *asked, "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["questions"] == ["What color is the shape?", "What shape is in the image?"]
    assert [cell["name"] for cell in facts["cells"]] == NAMES
    read = [cell for cell in facts["cells"] if not cell["not_done"]]
    assert all(len(cell["leave_one_out"]) == len(cell["answers"]) == len(cell["images"]) == 2 for cell in read)
    assert facts["cells"][6]["leakage"] < 1e-5
    assert len(facts["sentences"]) == 3
