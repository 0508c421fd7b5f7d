"""What a stage trains, and the golden training case through our own optimizer and step."""

import json

import pytest
import torch
from safetensors.torch import load_file

from model import load_vlm
from model.collator import Batch
from model.training.recipe import Stage
from model.training.stages import LanguageLoss, build_optimizer, build_stage, module_sizes, part_of


def make_stage(kind="instruction", **values) -> Stage:
    return Stage(
        **{
            "name": "s",
            "kind": kind,
            "steps": 5,
            "learning_rates": {"MP": 1e-3},
            "data": ({"source": "scenes"},),
            **values,
        }
    )


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        ("alignment", {"MP"}),
        ("instruction", {"MP", "decoder"}),
        ("instruction", {"decoder"}),
        ("instruction", {"vision_encoder", "MP", "decoder"}),
        ("contrastive", {"vision_encoder", "text"}),
        ("contrastive", {"text"}),
    ],
)
def test_exactly_what_has_a_learning_rate_trains(golden, kind, trained):
    vlm = load_vlm(golden / "tiny_vlm")
    rates = {part: 10.0**-n for n, part in enumerate(sorted(trained), start=2)}
    stage = make_stage(kind, learning_rates=rates)
    module = build_stage(stage, vlm, 0, vlm.tokenizer)
    assert {part_of(name) for name, p in module.named_parameters() if p.requires_grad} == trained
    for size in module_sizes(module):
        assert size.trainable == (size.parameters if size.module in trained else 0)
    groups = build_optimizer(stage, module).param_groups
    assert {group["name"]: group["lr"] for group in groups} == rates
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(
        size.trainable for size in module_sizes(module)
    )


def test_decay_spares_norms_biases_tables_and_temperatures(golden):
    vlm = load_vlm(golden / "tiny_vlm")
    everything = {"vision_encoder": 1e-3, "text": 1e-3}
    stage = make_stage("contrastive", learning_rates=everything, decay="matrices", weight_decay=0.3)
    module = build_stage(stage, vlm, 0, vlm.tokenizer)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = {
        names[id(p)]: group["weight_decay"]
        for group in build_optimizer(stage, module).param_groups
        for p in group["params"]
    }
    spared = {name.removeprefix("dual.") for name, decay in found.items() if decay == 0}
    assert {
        "log_temperature",
        "patch_log_temperature",
        "text.embedding.weight",
        "text.positions",
        "vision_encoder.patch_embedding.position_embedding",
        "vision_encoder.patch_embedding.conv.bias",
        "vision_encoder.blocks.0.ln1.weight",
    } <= spared
    assert all(found[f"dual.{name}"] == 0.3 for name in ("image_head.weight", "vision_encoder.blocks.0.mlp.fc1.weight"))
    assert {found[name] for name in found} == {0.0, 0.3}
    plain = build_optimizer(make_stage("contrastive", learning_rates=everything, weight_decay=0.3), module)
    (temperatures,) = (group["params"] for group in plain.param_groups if group["weight_decay"] == 0)
    assert {names[id(p)] for p in temperatures} == {"dual.log_temperature", "dual.patch_log_temperature"}
    assert {group["weight_decay"] for group in plain.param_groups} == {0.0, 0.3}


def test_a_temperature_beyond_its_bound_is_brought_back_and_can_leave_it(golden):
    """Below 0.01 it has no gradient: it would stay there for good."""
    vlm = load_vlm(golden / "tiny_vlm")
    stage = make_stage("contrastive", learning_rates={"text": 0.5}, weight_decay=0.0)
    module = build_stage(stage, vlm, 0, vlm.tokenizer)
    optimizer, temperature = build_optimizer(stage, module), module.dual.log_temperature
    places = []
    for _ in range(9):
        temperature.grad = torch.tensor(1.0)
        optimizer.step()
        places.append(temperature.exp().item())
    assert places[-2:] == [min(places)] * 2 == pytest.approx([0.01] * 2)
    assert module.dual.patch_log_temperature.exp().item() == pytest.approx(0.07)
    temperature.grad = None
    module.dual.bounded(temperature).backward()
    assert temperature.grad == 1


def test_the_golden_training_case(golden):
    """Five steps of upstream's, with its own schedule, through our loss and optimizer."""
    vlm = load_vlm(golden / "tiny_vlm")
    numbers = load_file(golden / "tiny_vlm" / "golden.safetensors")
    facts = json.loads((golden / "tiny_vlm" / "golden.json").read_text())
    tiles = [sum(images) for images in facts["tiles_per_sample"]]
    expected = load_file(golden / "tiny_vlm" / "train_fp32.safetensors")
    log = json.loads((golden / "tiny_vlm" / "train.json").read_text())["fp32_accum1_5steps_max100"]["log"]
    # The golden labels stand at the position before; ours at the token itself.
    labels = torch.full_like(numbers["batch.labels"], -100)
    labels[:, 1:] = numbers["batch.labels"][:, :-1]
    ids = numbers["batch.input_ids"]
    batch = Batch(
        ids,
        numbers["batch.attention_mask"].bool(),
        labels,
        torch.arange(ids.shape[1]).expand(ids.shape),
        torch.zeros_like(ids),
        numbers["batch.images"],
        torch.repeat_interleave(torch.arange(len(tiles)), torch.tensor(tiles)),
    )
    stage = make_stage(learning_rates={"MP": 5.12e-3, "vision_encoder": 5e-5, "decoder": 5e-5})
    module = build_stage(stage, vlm, 0, vlm.tokenizer).train()
    optimizer = build_optimizer(stage, module)
    count = int((labels != -100).sum())
    for step, entry in enumerate(log):
        for group in optimizer.param_groups:
            group["lr"] = dict(zip(("MP", "vision_encoder", "decoder"), entry["lrs"], strict=True))[group["name"]]
        assert isinstance(module, LanguageLoss)
        loss = module(batch) / count
        assert loss.item() == pytest.approx(entry["loss"], rel=1e-4 if step else 1e-5)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), stage.clip)
        assert norm.item() == pytest.approx(entry["grad_norm"], rel=1e-3)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for name, parameter in vlm.named_parameters():
        want = expected.get(
            f"param_after.{name}", expected.get(f"param_after.{name.replace('token_embedding', 'head')}")
        )
        found = parameter.detach().flatten()
        difference = ((found[::16] if parameter.numel() > 2048 else found) - want).abs()
        assert difference.quantile(0.99) < 5e-5, name  # AdamW: where a gradient is nearly nothing, its sign is chance
        assert difference.max() < 0.04, name
