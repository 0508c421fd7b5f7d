"""The self-checks hold in every precision that can be chosen, and their limits are those of that precision."""

import pytest

from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.which_image.self_checks import LIMITS
from inspector.which_image.study import study_answer
from model import load_vlm
from model.devices import DTYPES
from tests.example_cases import example_prompt


def test_every_precision_has_a_limit():
    assert LIMITS.keys() == set(DTYPES.values())


@pytest.mark.parametrize("name", ["embedded", "idefics3", "llava"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_checks_hold_in_half_precision(name, dtype, tiny):
    vlm = load_vlm(name if name == "embedded" else tiny(name).folder, device="cpu", dtype=dtype)
    inspection = ask_and_inspect(vlm, example_prompt("two"), GenerationSettings(6))
    *_, found = study_answer(vlm, inspection, max_new_tokens=6)
    count = len(found.case.answer_ids)
    assert all(check.ok for check in found.checks), [check for check in found.checks if not check.ok]
    assert {check.limit for check in found.checks} == {0.0, LIMITS[DTYPES[dtype]] * max(1, count)}
