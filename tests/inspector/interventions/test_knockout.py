"""Edges cut by hand: the language of cuts, and the answer without them."""

import pytest
import torch

from inspector.interventions.knockout import compose_cut, name_position, read_cut, run_lab
from inspector.interventions.target import image_keys, open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn
from model import Cut, InputError, OpenedImage, Tap
from model.training.synthetic.examples import EXAMPLES

BY_NAME = {example.name: example for example in EXAMPLES}


def study(vlm, name, **changes):
    example = BY_NAME[name]
    images = tuple(OpenedImage(picture) for picture in example.draw_images())
    prompt = Prompt(images, tuple(Turn(text) for text in example.turns), example.layout, **changes)
    return open_case(vlm, ask_and_inspect(vlm, prompt, GenerationSettings()))


@pytest.fixture(scope="module")
def three(embedded):
    return study(embedded, "three")


@pytest.fixture(scope="module")
def tiles(embedded):
    return study(embedded, "tiles")


def test_a_cut_is_read_and_written_in_one_way(three):
    cut = read_cut(three, "  Image 2,image 3 ordinal →  question @heads 2,0,1 @layers 1-2,0")
    assert cut.text == "image 2, image 3 ordinal -> question @layers 0-2 @heads 0-2"
    assert cut.layers == {0, 1, 2}
    assert cut.heads == {0, 1, 2}
    two, last = three.structure.images[1:]
    assert cut.keys == (*image_keys(two), *range(*last.ordinal))
    assert cut.rows[0] == three.target.start
    assert read_cut(three, cut.text) == cut


def test_what_can_be_hidden_by_name(tiles, three):
    parts = [f"image 1 tile {tile}" for tile in ("thumbnail", "r1c1", "r1c2", "r1c3", "r2c1", "r2c2", "r2c3")]
    for case, names in (
        (tiles, ["image 1", *parts, "image 1 marks", "question 1", "template"]),
        (three, ["image 1", "image 3", "image 1 marks", "image 1 ordinal", "question 1", "template"]),
    ):
        for name in names:
            assert read_cut(case, f"{name} -> later").keys
    assert len(read_cut(tiles, ", ".join(parts) + " -> later").keys) == len(read_cut(tiles, "image 1 -> later").keys)


def test_a_position_has_the_smallest_name_that_it_is_in(tiles, three):
    run = tiles.structure.images[0].tiles[2]
    assert name_position(tiles.structure, run.start) == "image 1 tile r1c2"
    assert run.start in read_cut(tiles, "image 1 tile r1c2 -> later").keys
    image = three.structure.images[0]
    assert name_position(three.structure, image.tokens[0]) == "image 1"
    assert name_position(three.structure, image.ordinal[0]) == "image 1 ordinal"
    assert name_position(three.structure, 0) == "tokens 0"
    with pytest.raises(InputError, match=r"position 91.* 90"):
        name_position(three.structure, 91)


def test_composing(three):
    assert compose_cut(["image 1"], "later", [], [], three.vlm) == "image 1 -> later"
    assert compose_cut(["image 1"], "later", [0, 1, 2, 3], [1], three.vlm) == "image 1 -> later @heads 1"
    assert compose_cut(["image 1", "tokens 3"], "answer", [3, 0, 1], [], three.vlm) == (
        "image 1, tokens 3 -> answer @layers 0-1,3"
    )
    with pytest.raises(InputError, match="chosen"):
        compose_cut([], "later", [], [], three.vlm)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no cut"),
        ("image 3", "no cut"),
        ("image 1 -> question -> answer", "no cut"),
        ("image 9 -> question", "image 9.* 3"),
        ("question 2 -> answer", "turn 2.* 1"),
        ("banana -> question", "“banana” in"),
        ("image 1 -> moon", "“moon” in"),
        ("image 1 tile r7c7 -> question", "r7c7.*r1c1"),
        ("image 1 -> question @layers 4", "“4”.* 3"),
        ("image 1 -> question @layers 2-1", "2-1"),
        ("image 1 -> question @heads 0-", "understood"),
        ("image 1 -> question @wings 1", "@wings 1"),
        ("image 1 -> question @heads 1 @heads 2", "twice"),
        ("question 1 -> image 1", "nothing"),
        ("separators -> later", "“separators”"),
        ("tokens 5-900 -> later", "0 to 90"),
        ("image 1," * 80 + "image 1 -> later", "500"),
    ],
)
def test_a_line_that_is_no_cut_gets_a_sentence(three, text, words):
    with pytest.raises(InputError, match=words) as caught:
        read_cut(three, text)
    assert "\n" not in str(caught.value)


def test_at_most_twenty_cuts(three):
    with pytest.raises(InputError, match=r"21 cuts.* 20"):
        run_lab(three, ["image 1 -> question"] * 21)


def test_the_cut_image_changes_the_answer_and_another_does_not(three):
    lab = run_lab(three, ["image 1 -> question", "image 3 -> later"])
    assert [trial.cuts for trial in lab.trials] == [0, 1, 2]
    assert [trial.answer for trial in lab.trials[:2]] == ["yellow", "yellow"]
    assert lab.flipped
    assert lab.change < -1
    assert lab.trials[0].logprob == pytest.approx(three.prefix_cache.run([three.base])[0].logprob, abs=1e-5)
    alone = run_lab(three, [])
    assert (alone.trials[0].answer, alone.change) == ("yellow", 0)


def whole_pass(case, texts):
    """log p of the answer in one pass over the whole row without the cut edges; a position keeps itself."""
    row, cuts = case.prefix_cache.row, []
    for text in texts:
        cut = read_cut(case, text)
        # A cut never takes a position's own edge, so rows that are keys too are cut one by one.
        for position in (p for p in cut.rows if p < len(row)):
            keys = [key for key in cut.keys if key != position]
            cuts.append(Cut([position], keys, cut.layers, cut.heads))
    with torch.no_grad():
        hidden = case.vlm.hidden(case.vlm.collate([row]), Tap(cuts=tuple(cuts)))[0]
        first, stop = case.target.scored
        logprobs = case.vlm.decoder.head(hidden[first - 1 : stop - 1]).float().log_softmax(dim=-1)
    return sum(float(logprobs[n, token]) for n, token in enumerate(case.answer_ids))


@pytest.mark.parametrize(
    "text",
    [
        "image 2 -> later",
        "image 1 -> image 3 @layers 1",
        "template -> question @heads 0,3",
        "tokens 4-60 -> answer @layers 0-1 @heads 2",
    ],
)
def test_replayed_or_read_whole_a_cut_is_the_same(three, text):
    assert run_lab(three, [text]).trials[-1].logprob == pytest.approx(whole_pass(three, [text]), abs=1e-4)


def test_everything_hidden_leaves_each_position_itself(three, embedded):
    texts = ["tokens 0-89 -> later", "images -> later"]
    trials = run_lab(three, texts).trials
    assert trials[-1].logprob == pytest.approx(whole_pass(three, texts), abs=1e-4)
    packed = study(embedded, "packed", document_mask=True)
    assert len(run_lab(packed, ["separators -> later", "tokens 0-60 -> later"]).trials) == 3


def test_rows_that_can_t_see_what_is_hidden_lose_nothing(embedded):
    turns = study(embedded, "per-turn")
    first = open_case(embedded, ask_and_inspect(embedded, turns.prompt, GenerationSettings()), 1)
    assert run_lab(first, ["image 2 -> later"]).change == 0
