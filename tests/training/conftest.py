"""A small recipe on the golden checkpoint: steps of a few milliseconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.training.recipe import Recipe, build_recipe

SCENES = {"source": "scenes", "set": "single", "count": 60, "turns": 2, "pictures": 8}


@pytest.fixture(scope="session")
def make_recipe(golden: Path) -> Callable[..., Recipe]:
    """`make_recipe(stage, stage, seed=1)`: each stage a dict of what differs from three steps of instruction."""

    def make(*stages: dict[str, Any], **values: Any) -> Recipe:
        common = {
            "kind": "instruction",
            "steps": 3,
            "batch_rows": 2,
            "learning_rates": {"MP": 1e-3, "decoder": 1e-3},
            "data": [SCENES],
            "eval_every": 0,
            "eval_examples": 2,
            "save_every_s": 1e9,
        }
        tables = [{"name": f"part {n}", **common, **stage} for n, stage in enumerate(stages or ({},))]
        return build_recipe({"base": str(golden / "tiny_vlm"), "precision": "fp32", "stages": tables, **values}, Path())

    return make
