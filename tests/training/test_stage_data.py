"""What a stage trains on and holds out; sets of examples that are made by number."""

import pytest

from model import InputError, load_vlm
from model.training.evaluation.held_out import _choose_shown
from model.training.recipe import build_recipe
from model.training.stage_data import draw_evenly, draw_held_out, open_stage_data, stage_seed
from model.training.synthetic.easy_vqa import EasySet
from model.training.synthetic.scene_sets import read_scene_set
from model.training.synthetic.word import read_word_set

SCENES = {"source": "scenes", "set": "single", "count": 60, "turns": 2, "pictures": 8}


@pytest.mark.parametrize(
    "make",
    [
        lambda: read_scene_set({"set": "single", "count": 5, "pictures": 6}),
        lambda: read_word_set({"word": "purple", "count": 5, "pictures": 64}),
        lambda: EasySet("test", turns=100, limit=5),
    ],
)
def test_examples_by_number(make):
    examples, again = make(), make()
    assert len(examples) == 5
    texts = [[m.text for m in example.conversation.messages] for example in examples]
    assert texts == [[m.text for m in again[n].conversation.messages] for n in range(5)]
    assert [[m.text for m in example.conversation.messages] for example in examples[3:0:-2]] == [texts[3], texts[1]]
    assert examples[9:] == []
    for beyond in (5, -1):
        with pytest.raises(IndexError, match=rf"5 .* {beyond}\."):
            examples[beyond]


def test_as_many_from_each_source_and_what_cannot_be_read_is_left_out():
    class Damaged(list):
        def __getitem__(self, index):
            if index == 1:
                raise InputError("x.png is damaged.")
            return super().__getitem__(index)

    found = draw_evenly([["a"] * 9, [], ["b"] * 9], 4, seed=3)
    assert found == ("a", "a", "b", "b")
    assert sorted(draw_evenly([Damaged(range(3))], 9, 0)) == [0, 2]
    assert draw_evenly([["a"]], 0, 0) == draw_evenly([[]], 5, 0) == ()
    assert draw_evenly([range(50)], 5, 1) != draw_evenly([range(50)], 5, 2)


def test_a_later_comparison_asks_what_the_run_was_measured_on(make_recipe, golden):
    config = load_vlm(golden / "tiny_vlm").config
    recipe = make_recipe({}, {"eval_examples": 3}, seed=4)
    assert (stage_seed(recipe, 0), stage_seed(recipe, -1)) == (4, 1004)
    data = open_stage_data(recipe, 1, config)
    assert data.counts == {"single": 57}
    held = draw_held_out(recipe, -1, config, 3)
    assert [e.conversation.messages[0].text for e in held] == [e.conversation.messages[0].text for e in data.held_out]
    held = {id(example) for example in draw_held_out(recipe, -1, config, 99)}
    assert len(held) == 3  # one in 20 of 60


def test_tables_of_their_own_are_held_out_whole(make_recipe, golden):
    config = load_vlm(golden / "tiny_vlm").config
    recipe = make_recipe({"held_out": [{**SCENES, "count": 7, "seed": 9}], "eval_examples": 99})
    data = open_stage_data(recipe, 0, config)
    assert (data.counts, len(data.held_out)) == ({"single": 60}, 7)
    nothing = {"source": "captions", "path": "nowhere"}
    with pytest.raises(InputError, match="nowhere"):
        open_stage_data(
            build_recipe(
                {
                    "stages": [
                        {
                            "name": "s",
                            "kind": "instruction",
                            "steps": 1,
                            "learning_rates": {"MP": 1e-3},
                            "data": [nothing],
                        }
                    ]
                },
                golden,
            ),
            0,
            config,
        )


def test_the_answers_that_are_shown_are_of_as_many_kinds_as_there_are():
    assert _choose_shown(["a"] * 12 + ["b", "c"]) == [0, 1, 2, 3, 4, 5, 12, 13]
    assert _choose_shown(list("abcdefghij")) == list(range(8))
    assert _choose_shown(["a", "b"]) == [0, 1]
