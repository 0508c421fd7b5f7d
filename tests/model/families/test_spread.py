"""What accelerate hangs on the layers of a model that is spread over devices leaves every pass as it is."""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.which_image.study import study_answer
from model import load_vlm
from tests.example_cases import example_prompt


@pytest.mark.parametrize("name", ["idefics3", "llava"])
def test_hooks_that_move_inputs_change_nothing(name, tiny):
    facts = []
    for spread in (False, True):
        vlm = load_vlm(tiny(name).folder)
        if spread:
            hooked = [*vlm.text.layers, vlm.text.head, vlm.embedding, *vlm.vision_blocks]
            for module in hooked:
                add_hook_to_module(module, AlignDevicesHook(execution_device=torch.device("cpu")), append=True)
        inspection = ask_and_inspect(vlm, example_prompt("two"), GenerationSettings(4))
        *_, found = study_answer(vlm, inspection, max_new_tokens=4)
        assert all(check.ok for check in found.checks)
        facts.append((inspection.row.input_ids.tolist(), found.dependence.logprob, found.dependence.shapley))
    assert facts[0] == facts[1]
