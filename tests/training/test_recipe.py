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
        ({"steps": True}, "steps.*True"),
        ({"steps": 1.5}, r"steps.*1\.5"),
        ({"batch_rows": 0}, "batch_rows.*0"),
        ({"learning_rates": {"MP": math.nan}}, "learning rate.*MP.*nan"),
        ({"learning_rates": {"MP": math.inf}}, "learning rate.*MP.*inf"),
        ({"learning_rates": {"MP": 0}}, "above 0"),
        ({"learning_rates": {"MP": True}}, "learning rate.*MP.*True"),
        ({"learning_rates": 3}, "learning_rates"),
        ({"kind": "alignment", "learning_rates": {"decoder": 1e-3}}, "MP"),
        ({"kind": "rlhf"}, "kind.*'rlhf'"),
        ({"final_rate": 2}, "final_rate.*2.*1"),
        ({"weight_decay": math.nan}, "weight_decay.*nan"),
        ({"betas": [0.9]}, "betas"),
        ({"betas": "high"}, "betas.*'high'"),
        ({"betas": [0.9, 1.0]}, "below 1"),
        ({"packing": "tight"}, "packing.*'tight'"),
        ({"head": "deep"}, "head.*'deep'"),
        ({"lora_rank": 2}, "decoder"),
        ({"checkpointing": 1}, "checkpointing is 1.*true or false"),
        ({"data": []}, "no data"),
        ({"data": "scenes"}, "data.*list"),
        ({"data": ["scenes"]}, "source"),
        ({"data": [{"source": "scenes", "weight": math.inf}]}, "weight.*inf"),
        ({"steps": 1e20}, r"steps.*1e\+20.*10,000,000"),
        ({"steps": 10**400}, "steps.*1329"),
        ({"batch_rows": 100_000}, "batch_rows.*100000.*65,536"),
        ({"accumulate": 10**9}, "accumulate.*1000000000.*65,536"),
        ({"batch_tokens": 0}, "batch_tokens.*0.*4,194,304"),
        ({"row_tokens": 10**9}, "row_tokens.*1000000000.*131,072"),
        ({"warmup_steps": 1e3}, r"warmup_steps.*1000\.0"),
        ({"lora_rank": 5000}, "lora_rank.*5000.*1,024"),
        ({"lora_alpha": 1e300}, r"lora_alpha.*1e\+300.*65,536"),
        ({"eval_every": -1}, "eval_every.*-1.*10,000,000"),
        ({"eval_examples": 10**7}, "eval_examples.*10000000.*10,000"),
        ({"clip": math.inf}, r"clip.*inf.*1e\+06"),
        ({"clip": 10**400}, "clip.*1329"),
        ({"weight_decay": -0.1}, r"weight_decay.*-0\.1.*100"),
        ({"weight_decay": True}, "weight_decay.*True"),
        ({"save_every_s": "often"}, "save_every_s.*'often'"),
        ({"leak_share": [0.5]}, r"leak_share.*\[0\.5\]"),
        ({"betas": [0.9, math.nan]}, r"betas.*\(0\.9, nan\).*below 1"),
        ({"betas": [True, 0.9]}, r"betas.*\(True, 0\.9\)"),
        ({"betas": [[0.9], 0.9]}, r"betas.*\(\[0\.9\], 0\.9\)"),
        ({"learning_rates": {"MP": -1e-3}}, r"learning rate.*MP.*-0\.001"),
        ({"learning_rates": {"MP": 10**400}}, "learning rate.*MP.*1329"),
        ({"learning_rates": {"MP": {"decoder": 1e-3}}}, r"MP.*\{'decoder': 0\.001\}"),
        ({"learning_rates": {"MP": "1e-3"}}, "learning rate.*MP.*'1e-3'"),
        ({"kind": ["instruction"]}, r"kind.*\['instruction'\]"),
        ({"packing": {"off": 1}}, r"packing.*\{'off': 1\}"),
        ({"data": [[{"source": "scenes"}]]}, "source"),
        ({"data": [{"source": {"name": "scenes"}}]}, "source"),
        ({"data": [{"source": "scenes", "weight": 1e300}]}, r"weight.*1e\+300"),
        ({"x" * 5000: 1}, "key x{40};"),
    ],
)
def test_a_wrong_stage_is_named_and_no_number_is_without_a_bound(change, sentence, tmp_path):
    with pytest.raises(InputError, match=f"“one”.*{sentence}") as caught:
        build_recipe({"stages": [{**STAGE, **change}]}, tmp_path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["", " ", 3, ["a"], "a/b", "..\\b", "two\nlines", "x" * 101, "a\0b"])
def test_a_stage_is_called_by_what_can_be_part_of_a_file_s_name(name, tmp_path):
    with pytest.raises(InputError, match="1 to 100 letters"):
        build_recipe({"stages": [{**STAGE, "name": name}]}, tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"), [("seed = " + "9" * 5000, "TOML"), ("a = " + "[" * 3000 + "]" * 3000, "TOML")]
)
def test_toml_that_no_reader_ends_with(tmp_path, text, sentence):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"threads": 1e6}, r"threads.*1000000\.0.*1,024"),
        ({"threads": 1_000_000}, "threads.*1000000.*1,024"),
        ({"cache_mib": -1}, "cache_mib.*-1.*1,048,576"),
        ({"seed": 2**53}, "seed.*9007199254740992.*9,007,199,254,740,991"),
        ({"seed": 2**64}, "seed.*18446744073709551616"),
        ({"seed": True}, "seed.*True"),
        ({"title": "x" * 301}, "301"),
        ({"base": "a\0b"}, "base is 'a"),
        ({"stages": "many"}, "a list"),
        ({"stages": [STAGE, STAGE]}, "share"),
        ({"stages": [{"name": "bare"}]}, "bare.*kind"),
        ({"seed": -1}, "seed.*-1"),
        ({"base": 3}, "base.*3"),
        ({"precision": "fp8"}, "precision.*'fp8'"),
        ({"tracker": "wandb"}, "tracker.*'wandb'"),
        ({"epochs": 3}, "epochs"),
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
        ("steps", "key=value"),
        ("=3", "key=value"),
        ("stages.third.steps=3", "third"),
        ("stages.5.steps=3", "“5”"),
        ("title.x.y=1", "no value"),
        ("stages.0=1", "no value"),
        ("stages.0.steps=many", "steps.*'many'"),
        ("stages.0.speed=1", "speed"),
        ("stages.0.data.0.source.x.y=1", "no value"),
    ],
)
def test_a_wrong_override_is_named(override, sentence, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(TOML)
    with pytest.raises(InputError, match=sentence):
        read_recipe(path, [override])


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(InputError, match="embedded"):
        read_recipe(tmp_path / "none.toml")
    for content in (b"a = ", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(InputError, match="TOML"):
            read_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize("steps", range(1, 101))
def test_the_rate_never_exceeds_its_peak_and_short_jobs_train(steps):
    stage = Stage(**{**STAGE, "data": ({"source": "scenes"},), "steps": steps, "warmup_steps": 20})
    factors = [rate_factor(stage, step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1
    assert factors.index(1) <= steps / 10
