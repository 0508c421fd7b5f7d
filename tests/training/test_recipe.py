"""Recipes: read whole, refused in one sentence, written out again."""

import math

import pytest

from model import InputError
from model.training.recipe import RECIPES, Stage, build_recipe, read_recipe
from model.training.stages import rate_factor

STAGE = {
    "name": "one",
    "kind": "instruction",
    "steps": 5,
    "learning_rates": {"MP": 1e-3},
    "data": [{"source": "scenes"}],
}
TOML = """
title = "two"
[[stages]]
name = "first"
kind = "alignment"
steps = 10
learning_rates = { MP = 1e-3 }
data = [{ source = "scenes", weight = 2 }]
[[stages]]
name = "second"
kind = "instruction"
steps = 20
learning_rates = { MP = 1e-3, decoder = 5e-4 }
lora_rank = 4
data = [{ source = "scenes" }]
"""


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_every_recipe_that_ships_can_be_read_and_written_out_again(name, tmp_path):
    recipe = read_recipe(name)
    (tmp_path / "again.toml").write_text(recipe.to_toml())
    assert read_recipe(tmp_path / "again.toml") == recipe


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 to 10,000,000"),
        ({"steps": True}, "steps is True"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"batch_rows": 0}, "batch_rows is 0"),
        ({"learning_rates": {}}, "nothing trains"),
        ({"learning_rates": {"MP": math.nan}}, "the learning rate of MP is nan"),
        ({"learning_rates": {"MP": math.inf}}, "the learning rate of MP is inf"),
        ({"learning_rates": {"MP": 0}}, "it must lie above 0"),
        ({"learning_rates": {"MP": True}}, "the learning rate of MP is True"),
        ({"learning_rates": {"lm": 1e-3}}, "names “lm”; instruction trains vision_encoder, MP, decoder"),
        ({"learning_rates": 3}, "learning_rates must be a table"),
        ({"kind": "alignment", "learning_rates": {"decoder": 1e-3}}, "alignment trains MP"),
        ({"kind": "rlhf"}, "kind is 'rlhf'"),
        ({"final_rate": 2}, "final_rate is 2; it must be a number from 0 to 1"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
        ({"betas": [0.9]}, "betas is"),
        ({"betas": "high"}, "betas is 'high'"),
        ({"betas": [0.9, 1.0]}, "below 1"),
        ({"packing": "tight"}, "packing is 'tight'"),
        ({"head": "deep"}, "head is 'deep'"),
        ({"lora_rank": 2}, "the decoder has no learning rate"),
        ({"data": []}, "it has no data"),
        ({"data": "scenes"}, "data must be a list"),
        ({"data": ["scenes"]}, "names no source"),
        ({"data": [{"source": "scenes", "weight": math.inf}]}, "a data weight is inf"),
        ({"learning_rate": 1e-3}, "has the unknown key learning_rate; allowed are accumulate, batch_rows"),
    ],
)
def test_a_wrong_stage_is_named(change, sentence, tmp_path):
    with pytest.raises(InputError) as caught:
        build_recipe({"stages": [{**STAGE, **change}]}, tmp_path)
    assert sentence in str(caught.value)
    assert "one" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 1e20}, "steps is 1e+20; it must be a whole number from 1 to 10,000,000"),
        ({"steps": 10**400}, "steps is a whole number of 1329 bits; it must be"),
        ({"batch_rows": 100_000}, "batch_rows is 100000; it must be a whole number from 1 to 65,536"),
        ({"accumulate": 10**9}, "accumulate is 1000000000; it must be a whole number from 1 to 65,536"),
        ({"batch_rows": 4096, "accumulate": 64}, "batch_rows × accumulate = 262,144 rows; at most 65,536"),
        ({"batch_tokens": 0}, "batch_tokens is 0; it must be a whole number from 1 to 4,194,304"),
        ({"row_tokens": 10**9}, "row_tokens is 1000000000; it must be a whole number from 1 to 131,072"),
        ({"warmup_steps": 1e3}, "warmup_steps is 1000.0; it must be a whole number"),
        ({"lora_rank": 5000}, "lora_rank is 5000; it must be a whole number from 0 to 1,024"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e+300; it must be a number from 0 to 65,536"),
        ({"eval_every": -1}, "eval_every is -1; it must be a whole number from 0 to 10,000,000"),
        ({"eval_examples": 10**7}, "eval_examples is 10000000; it must be a whole number from 0 to 10,000"),
        ({"clip": math.inf}, "clip is inf; it must be a number from 0 to 1e+06"),
        ({"clip": 10**400}, "clip is a whole number of 1329 bits"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be a number from 0 to 100"),
        ({"weight_decay": True}, "weight_decay is True"),
        ({"save_every_s": "often"}, "save_every_s is 'often'"),
        ({"leak_share": [0.5]}, "leak_share is [0.5]"),
        ({"betas": [0.9, math.nan]}, "betas is (0.9, nan); it must be two numbers from 0 to below 1"),
        ({"betas": [True, 0.9]}, "betas is (True, 0.9)"),
        ({"betas": [[0.9], 0.9]}, "betas is ([0.9], 0.9)"),
        ({"learning_rates": {"MP": -1e-3}}, "the learning rate of MP is -0.001"),
        ({"learning_rates": {"MP": 10**400}}, "the learning rate of MP is a whole number of 1329 bits"),
        ({"learning_rates": {"MP": {"decoder": 1e-3}}}, "the learning rate of MP is {'decoder': 0.001}"),
        ({"learning_rates": {"MP": "1e-3"}}, "the learning rate of MP is '1e-3'"),
        ({"kind": ["instruction"]}, "kind is ['instruction']"),
        ({"packing": {"off": 1}}, "packing is {'off': 1}"),
        ({"data": [[{"source": "scenes"}]]}, "names no source"),
        ({"data": [{"source": {"name": "scenes"}}]}, "names no source"),
        ({"data": [{"source": "scenes", "weight": 1e300}]}, "a data weight is 1e+300"),
        ({"x" * 5000: 1}, "has the unknown key xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; allowed"),
    ],
)
def test_no_number_of_a_stage_is_without_a_bound(change, sentence, tmp_path):
    with pytest.raises(InputError) as caught:
        build_recipe({"stages": [{**STAGE, **change}]}, tmp_path)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["", " ", 3, ["a"], "a/b", "..\\b", "two\nlines", "x" * 101, "a\0b"])
def test_a_stage_is_called_by_what_can_be_part_of_a_file_s_name(name, tmp_path):
    with pytest.raises(InputError, match="a name is a text of 1 to 100 letters on one line"):
        build_recipe({"stages": [{**STAGE, "name": name}]}, tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed = " + "9" * 5000, "no valid TOML"),
        ("a = " + "[" * 3000 + "]" * 3000, "no valid TOML"),
    ],
)
def test_toml_that_no_reader_ends_with(tmp_path, text, sentence):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"threads": 1e6}, "threads is 1000000.0; it must be a whole number from 0 to 1,024"),
        ({"threads": 1_000_000}, "threads is 1000000; it must be a whole number from 0 to 1,024"),
        ({"cache_mib": -1}, "cache_mib is -1; it must be a whole number from 0 to 1,048,576"),
        ({"seed": 2**53}, "seed is 9007199254740992; it must be a whole number from 0 to 9,007,199,254,740,991"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": True}, "seed is True"),
        ({"title": "x" * 301}, "title has 301 letters"),
        ({"base": "a\0b"}, "base is 'a"),
        ({"stages": []}, "no stage"),
        ({"stages": "many"}, "must be a list"),
        ({"stages": [STAGE, STAGE]}, "share a name"),
        ({"stages": [{"name": "bare"}]}, "“bare” lacks kind"),
        ({"seed": -1}, "seed is -1"),
        ({"base": 3}, "base is 3"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"tracker": "wandb"}, "tracker is 'wandb'"),
        ({"epochs": 3}, "unknown key epochs"),
    ],
)
def test_a_wrong_recipe_is_named(change, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        build_recipe({"stages": [STAGE], **change}, tmp_path)


def test_overrides_reach_every_depth(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(TOML)
    recipe = read_recipe(
        path,
        [
            "stages.0.steps=7",
            "stages.second.learning_rates.MP=2e-3",
            "base=embedded",
            "stages.first.data.0.weight=3",
            "title = of my own",
            "seed=4",
        ],
    )
    assert recipe.stages[0].steps == 7
    assert recipe.stages[1].learning_rates == {"MP": 2e-3, "decoder": 5e-4}
    assert (recipe.base, recipe.title, recipe.seed) == ("embedded", "of my own", 4)
    assert recipe.stages[0].data[0]["weight"] == 3


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("steps", "no key=value"),
        ("=3", "no key=value"),
        ("stages.third.steps=3", "there is no “third”"),
        ("stages.5.steps=3", "there is no “5”"),
        ("title.x.y=1", "names no value"),
        ("stages.0=1", "names no value"),
        ("stages.0.steps=many", "steps is 'many'"),
        ("stages.0.speed=1", "unknown key speed"),
        ("stages.0.data.0.source.x.y=1", "names no value"),
    ],
)
def test_a_wrong_override_is_named(override, sentence, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(TOML)
    with pytest.raises(InputError, match=sentence):
        read_recipe(path, [override])


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(InputError, match=r"can't be read .*embedded"):
        read_recipe(tmp_path / "none.toml")
    for content in (b"a = ", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(InputError, match="no valid TOML"):
            read_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize("steps", range(1, 101))
def test_the_rate_never_exceeds_its_peak_and_short_jobs_train(steps):
    stage = Stage(**{**STAGE, "data": ({"source": "scenes"},), "steps": steps, "warmup_steps": 20})
    factors = [rate_factor(stage, step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1
    assert factors.index(1) <= steps / 10
