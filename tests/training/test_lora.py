"""LoRA through peft: the base stays, merged is unmerged, both ways of keeping it give the same model."""

import pytest
import torch
from peft import PeftModel
from PIL import Image

from model import Conversation, Message, load_vlm
from model.training.recipe import Stage
from model.training.stages import adapter_state, build_stage, plain_vlm
from model.training.trainer import Trainer


@pytest.fixture
def run(make_recipe, tmp_path):
    """Three steps on the decoder's adapters, and the checkpoint from before."""
    recipe = make_recipe({"lora_rank": 2, "lora_alpha": 6.0, "learning_rates": {"MP": 1e-3, "decoder": 1e-2}})
    trainer = Trainer(recipe, tmp_path / "run")
    list(trainer.run())
    return trainer, load_vlm(recipe.base)


@torch.no_grad()
def logits(vlm, base):
    image = Image.new("RGB", (64, 64), (200, 40, 90))
    messages = (Message("user", "What is shown?", (image,)), Message("assistant", "a red circle"))
    return vlm.eval()(vlm.collate([base.prepare(Conversation(messages))]))


def test_merged_is_unmerged(golden):
    stage = Stage("s", "instruction", 1, {"decoder": 1e-3}, ({"source": "scenes"},), lora_rank=3)
    vlm, base = load_vlm(golden / "tiny_vlm"), load_vlm(golden / "tiny_vlm")
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    build_stage(stage, vlm, 0, vlm.tokenizer)
    assert torch.equal(logits(vlm, base), logits(base, base))  # B begins at zero
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    changed = logits(vlm, base)
    assert (changed - logits(base, base)).abs().max() > 0.1
    torch.testing.assert_close(logits(plain_vlm(vlm), base), changed, atol=2e-4, rtol=0)
    for name, tensor in vlm.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, before[name.replace(".base_layer.", ".")]), name


def test_the_checkpoint_and_the_adapter_give_the_same_logits(run):
    trainer, base = run
    folder = trainer.folder.path
    merged = logits(load_vlm(folder / "model"), base)
    assert (merged - logits(base, base)).abs().max() > 1e-3
    wrapped = load_vlm(trainer.recipe.base)
    wrapped.MP.load_state_dict(trainer.vlm.MP.state_dict())
    PeftModel.from_pretrained(wrapped.decoder, str(folder / "adapter"))  # puts adapters into the decoder it is given
    adapted = {name: p for name, p in wrapped.decoder.named_parameters() if "lora_B" in name}
    assert len(adapted) == 21
    assert all(p.abs().max() > 0 for p in adapted.values())
    torch.testing.assert_close(logits(wrapped, base), merged, atol=2e-4, rtol=0)
    assert {key.split(".")[-2] for key in adapter_state(wrapped)} == {"lora_A", "lora_B"}


def test_encoder_and_embeddings_are_untouched(run):
    trainer, base = run
    after = load_vlm(trainer.folder.path / "model").state_dict()
    changed = {name for name, tensor in base.state_dict().items() if not torch.equal(tensor, after[name])}
    assert changed == {"MP.proj.weight"} | {
        f"decoder.blocks.{n}.{part}.weight"
        for n in range(3)
        for part in (
            "attn.q_proj",
            "attn.k_proj",
            "attn.v_proj",
            "attn.out_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    }
