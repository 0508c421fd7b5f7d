"""What a stage trains, by which loss, at which rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from transformers import PreTrainedTokenizerFast

from model.checkpoint import copy_vlm
from model.clip import DualEncoder
from model.collator import IGNORE_LABEL, Batch
from model.errors import InputError
from model.families.nanovlm import VLM
from model.losses import info_nce, retrieval_accuracy
from model.sample import Sample
from model.training.batches import PairBatch
from model.training.events import ModuleSize
from model.training.exchange import gather_rows, share_out
from model.training.recipe import MODULES, Stage
from model.training.sharding import Sharded, is_shared, join, shard
from model.training.tuned import Trainee, TunedVLM

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "gate_proj", "up_proj", "down_proj")


class LanguageLoss(nn.Module):
    """The VLM under the next-token loss. Returns the SUM over labels, so that steps, processes and packs of different
    sizes weigh every token alike."""

    def __init__(self, vlm: Trainee) -> None:
        super().__init__()
        self.vlm = vlm

    def forward(self, batch: Batch) -> Tensor:
        labels = count_labels(batch)
        vlm: Any = self.vlm  # each takes batches of its own making
        if not labels:
            # A process without labels of its own still takes part in the exchange of gradients.
            states: Tensor = vlm.hidden(batch)
            if isinstance(vlm, VLM):
                states = vlm.decoder.head(states[:, :1])
            loss: Tensor = states.sum() * 0.0
        else:
            loss = vlm.loss(batch) * labels
        if loss.requires_grad or not torch.is_grad_enabled():
            return loss
        # Rows without images leave a projector that trains alone out: their loss teaches it nothing, which is no fault.
        return loss + sum(0.0 * weight.sum() for weight in self.parameters() if weight.requires_grad)


class ContrastiveLoss(nn.Module):
    """The dual encoder under InfoNCE: captions against pictures, and phrases against patches where there are any.
    Returns the mean loss times the number of pairs. Where several processes share a batch, each embeds its own pictures
    and its share of the texts, and the contrast is between those of all."""

    def __init__(self, dual: DualEncoder) -> None:
        super().__init__()
        self.dual = dual

    def forward(self, batch: PairBatch) -> Tensor:
        return self.measure(batch)[0] * len(batch)

    def measure(self, batch: PairBatch) -> tuple[Tensor, float, float]:
        """Loss, and how often the nearest caption and the nearest phrase are the right ones."""
        encoder = self.dual.vision_encoder
        # A process without a picture of its own still has texts, and its share of the encoder's weights to lend.
        tiles = batch.tiles if len(batch.tiles) else encoder.blank()
        return self.contrast(encoder(tiles)[: len(batch.tiles)], batch)

    def contrast(self, patches: Tensor, batch: PairBatch) -> tuple[Tensor, float, float]:
        """:meth:`measure` of ``patches [pair patch d]``, what the encoder made of the batch's tiles."""
        dual = self.dual
        owners = batch.process_of_pair
        images, captions = dual.embed_images(patches), self._embed_texts(batch.captions, batch)
        if owners is not None:
            images = gather_rows(images, owners)
        loss = info_nce(images, captions, batch.caption_of_tile, dual.bounded(dual.log_temperature))
        caption_accuracy = retrieval_accuracy(images, captions, batch.caption_of_tile)
        phrase_accuracy = float("nan")
        if len(batch.phrases) > 1:
            pairs, numbers = batch.patch_places.unbind(dim=1)
            if owners is None:
                places = dual.embed_patches(patches[pairs, numbers])
            else:
                here = owners == dist.get_rank()
                own = here[pairs]
                chosen = patches[here.cumsum(0)[pairs[own]] - 1, numbers[own]]
                places = gather_rows(dual.embed_patches(chosen), owners[pairs])
            phrases = self._embed_texts(batch.phrases, batch)
            loss = loss + info_nce(places, phrases, batch.phrase_of_place, dual.bounded(dual.patch_log_temperature))
            phrase_accuracy = retrieval_accuracy(places, phrases, batch.phrase_of_place)
        return loss, caption_accuracy, phrase_accuracy

    def _embed_texts(self, texts: Sequence[str], batch: PairBatch) -> Tensor:
        """Unit vectors ``[text width]``, of which each process that shares the batch makes some."""
        if batch.process_of_pair is None:
            return self.dual.embed_texts(texts)
        own = texts[dist.get_rank() :: dist.get_world_size()]
        # Without a text of its own a process lets one go through, of which nothing is used: all tell alike.
        embedded = self.dual.embed_texts(own or texts[:1])[: len(own)]
        return gather_rows(embedded, share_out(len(texts)))

    @torch.no_grad()
    def choose_captions(self, batch: PairBatch) -> Tensor:
        """``[pair caption]``: the softmax over the batch's captions of each picture."""
        dual = self.dual
        images, captions = dual.embed_images(dual.vision_encoder(batch.tiles)), dual.embed_texts(batch.captions)
        return (images @ captions.T / dual.bounded(dual.log_temperature).exp()).softmax(dim=1)


def count_labels(batch: Batch) -> int:
    """How many positions of the batch are predicted from the one before them and trained on."""
    return int((batch.labels[:, 1:] != IGNORE_LABEL).sum())


def count_row_labels(samples: Sequence[Sample]) -> int:
    """As :func:`count_labels`, of the batch that these will be: what stands first in a row without padding is predicted
    from nothing."""
    width = max(map(len, samples))
    return sum(int(sample.loss_mask[int(len(sample) == width) :].sum()) for sample in samples)


def model_name(name: str) -> str:
    """The model's own name of a parameter of a stage's module, adapters or not."""
    return name.removeprefix("vlm.").removeprefix("dual.").replace(".base_layer.", ".")


def part_of(name: str) -> str:
    """The recipe's name for the part that a parameter of a stage's module belongs to."""
    first = model_name(name).split(".", 1)[0]
    return first if first in MODULES else "text"


def belongs_to_model(name: str) -> bool:
    """Whether a parameter of a stage's module is one of the VLM's, neither an adapter's nor the text tower's."""
    return part_of(name) in MODULES and "lora_" not in name


def build_stage(stage: Stage, vlm: Trainee, seed: int, tokenizer: PreTrainedTokenizerFast) -> nn.Module:
    """The module that computes the stage's loss, with exactly the parts of ``stage.learning_rates`` unfrozen."""
    module: nn.Module
    if isinstance(vlm, TunedVLM):
        module = LanguageLoss(vlm)  # it has its adapters
    elif stage.kind == "contrastive":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = ContrastiveLoss(DualEncoder(vlm.vision_encoder, tokenizer, head=stage.head))
    else:
        if stage.lora_rank:
            add_lora(vlm, stage, seed)
        module = LanguageLoss(vlm)
    for name, parameter in module.named_parameters():
        wanted = part_of(name) in stage.learning_rates
        if stage.lora_rank and part_of(name) == "decoder":
            wanted = "lora_" in name
        parameter.requires_grad_(wanted)
    if isinstance(vlm, TunedVLM):
        vlm.recompute(stage.checkpointing)
    else:
        vlm.decoder.recompute = vlm.vision_encoder.recompute = stage.checkpointing
    return module


def shard_stage(stage: Stage, module: nn.Module, accelerator: Accelerator) -> Sharded:
    """``module``, which :func:`build_stage` made of a nanoVLM, with its weights shared out among the processes. A
    frozen image encoder stays whole: it is asked outside of the step, for features that are kept."""
    if isinstance(module, ContrastiveLoss):
        return shard(module, tuple(module.dual.vision_encoder.blocks), (), accelerator)
    assert isinstance(module, LanguageLoss)
    assert isinstance(module.vlm, VLM)
    encoder, decoder = module.vlm.vision_encoder, module.vlm.decoder
    if "vision_encoder" in stage.learning_rates:
        return shard(module, (*encoder.blocks, *decoder.blocks), (), accelerator)
    return shard(module, tuple(decoder.blocks), tuple(encoder.parameters()), accelerator)


def build_optimizer(stage: Stage, module: nn.Module) -> torch.optim.AdamW:
    """AdamW with a group for each part, and one more for what doesn't decay: temperatures, and what ``decay`` of
    :class:`model.training.recipe.Stage` spares. Temperatures stay within their bound."""
    temperatures = {f"dual.{name}" for name in DualEncoder.TEMPERATURES}
    embeddings = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            # Places of patches and tokens are tables, too, and have a leading axis of one or stand alone.
            table = id(parameter) in embeddings or name.endswith(("position_embedding", "class_embedding", "positions"))
            spared = name in temperatures or (stage.decay == "matrices" and (table or parameter.ndim < 2))
            decay = 0.0 if spared else stage.weight_decay
            groups.setdefault((part_of(name), decay, is_shared(parameter)), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "lr": stage.learning_rates[part], "weight_decay": decay, "name": part}
            for (part, decay, _), parameters in groups.items()
        ],
        betas=stage.betas,
        fused=True,  # one walk over the weights instead of a dozen
    )
    # The fused kernel doesn't say that it wrote into the weights, and a fingerprint is taken anew only where they did.
    optimizer.register_step_post_hook(
        lambda stepped, *_: increment_version([one for group in stepped.param_groups for one in group["params"]])
    )
    if isinstance(module, ContrastiveLoss):
        dual = module.dual
        optimizer.register_step_post_hook(lambda *_: dual.bound_temperatures())
    return optimizer


def rate_factor(stage: Stage, step: int) -> float:
    """What the peak learning rate is multiplied by for step ``step`` (from 0): 0 to 1, never more. The warm-up takes
    at most a tenth of the steps, so that a short job still trains."""
    warmup = min(stage.warmup_steps, stage.steps // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, stage.steps - warmup)
    return stage.final_rate + (1 - stage.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def module_sizes(module: nn.Module) -> tuple[ModuleSize, ...]:
    """Parameters and trained parameters of every part, in the order of the data's way through the model."""
    sizes: dict[str, list[int]] = {}
    for name, parameter in module.named_parameters():
        size = sizes.setdefault(part_of(name), [0, 0])
        size[0] += parameter.numel()
        size[1] += parameter.numel() if parameter.requires_grad else 0
    order = {part: n for n, part in enumerate(MODULES)}
    return tuple(ModuleSize(part, *sizes[part]) for part in sorted(sizes, key=lambda part: order.get(part, 9)))


# --- LoRA ---


def add_lora(vlm: VLM, stage: Stage, seed: int) -> None:
    """Low-rank adapters on every linear map of the decoder's blocks (Hu et al. 2021), through peft."""
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(lora_config(stage), vlm.decoder.blocks)


def lora_config(stage: Stage) -> Any:
    """peft's description of the adapter; ``lora_alpha`` 0 means twice the rank."""
    from peft import LoraConfig

    # peft calls it whole, but only ever divides it by the rank.
    alpha: Any = stage.lora_alpha or 2 * stage.lora_rank
    targets = list(stage.lora_targets or LORA_TARGETS)
    if unknown := sorted(set(targets) - set(LORA_TARGETS)):
        raise InputError(
            f"Stage “{stage.name}”: lora_targets names {', '.join(unknown)}; the language model has "
            f"{', '.join(LORA_TARGETS)}."
        )
    return LoraConfig(r=stage.lora_rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets, bias="none")


def adapter_state(vlm: VLM) -> dict[str, Tensor]:
    """The adapters' weights as ``peft.PeftModel.from_pretrained(vlm.decoder, folder)`` reads them."""
    return {
        f"base_model.model.{name.replace('.default.', '.')}": join(tensor)
        for name, tensor in vlm.decoder.state_dict().items()
        if "lora_" in name
    }


def merged_state(vlm: VLM) -> dict[str, Tensor]:
    """The weights by nanoVLM's names, whole, adapters added into the maps that they belong to."""
    found = {name: join(tensor) for name, tensor in vlm.state_dict().items()}
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in found.items() if "lora_" not in name}
    for name, module in vlm.named_modules():
        if hasattr(module, "base_layer"):
            up, down = (found[f"{name}.lora_{matrix}.default.weight"] for matrix in "BA")
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = weight + (up @ down * module.scaling["default"]).to(weight.dtype)
    return state


def plain_vlm(vlm: VLM) -> VLM:
    """A copy of the model without adapters, to be saved or used; its weights are its own, and whole. Where they are
    shared out, all processes must ask for it."""
    return copy_vlm(vlm, merged_state(vlm))


def rates(optimizer: torch.optim.Optimizer) -> Mapping[str, float]:
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
