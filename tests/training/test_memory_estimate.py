"""The estimate of a run's memory against what autograd keeps and what the run's own process took."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model import load_vlm
from model.training.accelerator import choose_precision
from model.training.assembly import open_base
from model.training.batches import FeatureCache, RowMaker, make_pairs, with_features
from model.training.memory_estimate import draw_step, estimate_stage
from model.training.recipe import build_recipe
from model.training.stage_data import open_stage_data, stage_seed
from model.training.stages import build_stage, module_sizes
from model.training.trainer import Trainer
from tests.tiny_checkpoints import (
    build_gemma3,
    build_idefics3,
    build_llava,
    byte_tokenizer,
    piece_tokenizer,
    processors_without_video,
    write_checkpoint,
)

SCENES = {"source": "scenes", "set": "single", "count": 60, "pictures": 64}
TILES = {"source": "scenes", "set": "tiles"}
SETTINGS = [
    {"kind": "alignment", "learning_rates": {"MP": 1e-3}},
    {"kind": "instruction", "learning_rates": {"MP": 1e-3, "decoder": 1e-3}},
    {"kind": "instruction", "learning_rates": {"decoder": 1e-3}, "lora_rank": 8},
    {"kind": "instruction", "learning_rates": {"vision_encoder": 1e-4, "MP": 1e-4, "decoder": 1e-4}},
    {"kind": "contrastive", "learning_rates": {"vision_encoder": 1e-3, "text": 1e-3}, "data": [TILES]},
]


def make(precision="fp32", base="embedded", **stage):
    table = {"name": "s", "steps": 2, "batch_rows": 8, "eval_every": 0, "data": [SCENES], **stage}
    return build_recipe({"base": base, "stages": [table], "precision": precision}, Path())


def kept_bytes(vlm, recipe):
    """What autograd keeps for the way back of the first step, weights aside."""
    stage = recipe.stages[0]
    data = open_stage_data(recipe, 0, getattr(vlm, "config", None))
    module = build_stage(stage, vlm, 0, vlm.tokenizer).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    seen = {}
    cast = torch.autocast("cpu", torch.bfloat16, enabled=choose_precision(recipe.precision) == "bf16")

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    if stage.kind == "contrastive":
        items = [data.mixture.draw(n) for n in range(stage.batch_rows)]
        batch = make_pairs(vlm, items, np.random.default_rng(0))
    else:
        samples = RowMaker(vlm, stage, data.mixture, stage_seed(recipe, 0)).take(0).samples
        cache = None if "vision_encoder" in stage.learning_rates else FeatureCache(vlm)
        with cast:
            batch = with_features(vlm.collate(samples, document_mask=stage.packing == "document"), cache)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), cast:
        module(batch)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", SETTINGS)
def test_activations_are_what_autograd_keeps(precision, stage):
    recipe = make(precision, **stage)
    vlm = load_vlm("embedded")
    step = draw_step(vlm, recipe, 0, open_stage_data(recipe, 0, vlm.config))
    found = estimate_stage(vlm, recipe, 0, open_stage_data(recipe, 0, vlm.config), step)
    assert found.activations == pytest.approx(kept_bytes(vlm, recipe), rel=0.15)


WIDE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8}
MADE = {
    "smolvlm": lambda: build_idefics3(byte_tokenizer, smol=True, num_key_value_heads=2, **WIDE),
    "llava": lambda: build_llava(piece_tokenizer("first"), num_key_value_heads=2, **WIDE),
    "gemma3": lambda: build_gemma3(byte_tokenizer([]), num_key_value_heads=2, **WIDE),
}


@pytest.fixture(scope="module", params=list(MADE))
def wide(request, tmp_path_factory):
    """A folder with a small model of another family, whose language model is wide enough to count."""
    folder = tmp_path_factory.mktemp("wide")
    with processors_without_video():
        write_checkpoint(*MADE[request.param](), folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "alignment", "learning_rates": {"MP": 1e-3}},
        {"kind": "instruction", "learning_rates": {"decoder": 1e-3}, "lora_rank": 8},
        {
            "kind": "instruction",
            "learning_rates": {"MP": 1e-3, "decoder": 1e-3},
            "lora_rank": 4,
            "packing": "document",
            "row_tokens": 900,
            "batch_rows": 4,
        },
    ],
)
def test_activations_of_other_families_are_what_autograd_keeps(wide, precision, stage):
    recipe = make(precision, base=str(wide), **stage)
    tuned = open_base(recipe)
    data = open_stage_data(recipe, 0, None)
    step = draw_step(tuned.opened, recipe, 0, data)
    found = estimate_stage(tuned, recipe, 0, data, step)
    assert found.activations == pytest.approx(kept_bytes(tuned, recipe), rel=0.15)
    sizes = module_sizes(build_stage(recipe.stages[0], tuned, 0, tuned.tokenizer))
    assert found.weights == 4 * sum(size.parameters for size in sizes)
    assert found.gradients == found.kept == 4 * sum(size.trainable for size in sizes)
    # Shared out among two, all but a frozen encoder is there half.
    half = estimate_stage(tuned, recipe, 0, data, step, 2)
    assert half.gradients == found.gradients // 2
    assert half.weights - found.weights // 2 == pytest.approx(2 * sizes[0].parameters, abs=8)


def test_the_parts_are_counted_from_the_shapes(embedded):
    recipe = make(**SETTINGS[1])
    data = open_stage_data(recipe, 0, embedded.config)
    found = estimate_stage(embedded, recipe, 0, data, draw_step(embedded, recipe, 0, data))
    whole = 4 * sum(parameter.numel() for parameter in embedded.parameters())
    frozen = 4 * sum(parameter.numel() for parameter in embedded.vision_encoder.parameters())
    assert (found.weights, found.gradients, found.kept) == (whole, whole - frozen, whole - frozen)
    assert found.optimizer == 2 * (whole - frozen)
    # 2 steps of 8 rows of one tile of 64 patches of 128 numbers.
    assert found.features == 16 * 64 * 128 * 4


def test_what_is_computed_again_is_not_kept(embedded):
    found = []
    for flag in (False, True):
        recipe = make(**SETTINGS[1], checkpointing=flag)
        data = open_stage_data(recipe, 0, embedded.config)
        found.append(estimate_stage(embedded, recipe, 0, data, draw_step(embedded, recipe, 0, data)).activations)
    assert found[1] < found[0] / 2


def test_a_run_keeps_the_estimate_beside_what_it_took(tmp_path):
    trainer = Trainer(make(**SETTINGS[0]), tmp_path / "run")
    for _ in trainer.run():
        pass
    memory = trainer.folder.read_run()["memory"]
    assert memory["peak"] > memory["stages"]["s"]["weights"] > 0
    assert memory["stages"]["s"]["total"] > memory["stages"]["s"]["activations"]
