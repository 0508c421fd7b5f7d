"""A model of another family than nanoVLM's as the trainer takes it: LoRA on its language model, its projector, and the
image encoder frozen.

Text, rows, positions, masks and what the encoder is given are the family's own, by the seam that analyses use; only
projector and language model are run here with gradients. What comes out is an adapter beside the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from model.chat import Conversation
from model.collator import IGNORE_LABEL, Batch, collate, shift_labels
from model.errors import InputError
from model.families.adapter import Adapter, fingerprint_adapter, peft_name, write_adapter
from model.families.nanovlm import VLM
from model.families.protocol import InspectableVLM
from model.image import ProcessedImage
from model.masks import find_documents
from model.sample import Row, Sample, see
from model.training.events import ModuleSize
from model.training.recipe import Recipe, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.families.transformers_vlm import TransformersVLM  # which takes long to import
    from model.generate import Step


@dataclass(frozen=True)
class TunedBatch(Batch):
    """``rows``: the samples with their places, unpadded. ``patches``: for each image of each row in order what the
    frozen encoder made of its parts, ``[part patch d]``, if that is known already."""

    rows: tuple[Row, ...] = ()
    patches: tuple[Tensor, ...] | None = None

    @property
    def images(self) -> tuple[ProcessedImage, ...]:
        return tuple(image for row in self.rows for image in row.images)


class TunedVLM(nn.Module):
    """``opened``, the model that lies at ``base``, with adapters of ``rank`` (0: none) on the linear maps ``targets``
    of its language model (none named: all of them). ``projects``: whether its projector is trained, too, and kept with
    the adapters. Parts have nanoVLM's names: ``MP`` (the projector), ``decoder``, ``vision_encoder``. Always in
    evaluation mode: what is kept of frozen parts must not hold one draw of a dropout for good."""

    def __init__(
        self,
        opened: TransformersVLM,
        base: str,
        *,
        rank: int,
        alpha: float = 0.0,
        targets: Sequence[str] = (),
        projects: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.opened, self.base = opened, base
        self.base_fingerprint = opened.fingerprint
        self._adapter = _describe(choose_maps(opened, targets), rank, alpha, base)
        projectors = opened.projectors
        self._saved = projectors if projects else {}
        if rank:
            from peft import inject_adapter_in_model

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                inject_adapter_in_model(self._adapter, opened.model)
        # A parameter goes by the first name that it is met under: the rest of the model is the encoder.
        self.MP = nn.ModuleList(projectors.values())
        self.decoder = nn.ModuleList([opened.text.model, opened.text.head])
        self.vision_encoder = opened.model
        self._recomputes = False
        self.eval()

    def train(self, mode: bool = True) -> TunedVLM:
        super().train(False)
        # A block of transformers keeps nothing for the way back where it is told so and is in training itself.
        for layer in self.opened.text.layers:
            layer.training = mode and self._recomputes
        return self

    def recompute(self, wanted: bool) -> None:
        """Whether blocks keep only what enters them; see ``checkpointing`` of :class:`model.training.recipe.Stage`."""
        if wanted:
            self.opened.model.activation_checkpointing_enable()
        self._recomputes = wanted

    # --- what the trainer asks of a model ---

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.opened.tokenizer

    @property
    def pad_token_id(self) -> int:
        return self.opened.pad_token_id

    @property
    def max_positions(self) -> int:
        return self.opened.max_positions

    @property
    def device(self) -> torch.device:
        return self.opened.device

    @property
    def fingerprint(self) -> str:
        """As that of what :meth:`save` writes, when it is opened."""
        return fingerprint_adapter(self.base_fingerprint, self.changes())

    def prepare(self, conversation: Conversation, add_generation_prompt: bool = False) -> Sample:
        return self.opened.prepare(conversation, add_generation_prompt)

    def generate(self, sample: Sample, *, max_new_tokens: int) -> Iterator[Step]:
        """Greedy; see :meth:`model.families.opened_vlm.OpenedVLM.generate`."""
        return self.opened.generate(sample, max_new_tokens=max_new_tokens)

    def collate(self, samples: Sequence[Sample], *, document_mask: bool = False) -> TunedBatch:
        """The samples side by side, padded on the left, on this model's device."""
        rows = tuple(sample if isinstance(sample, Row) else self.opened.place(sample) for sample in samples)
        # Pictures go to the encoder part by part, in their own sizes.
        batch = collate([replace(row, images=()) for row in rows], pad_token_id=self.pad_token_id)
        placed = TunedBatch(**{**vars(batch), "document_mask": document_mask}, rows=rows)
        moved: TunedBatch = placed.to(self.device)  # type: ignore[assignment]
        return moved

    def read_patches(self, image: ProcessedImage) -> Tensor:
        """``[part patch d]``: what the frozen encoder makes of an image's parts."""
        return torch.stack(self.opened.read_patches(self.opened.encoder_inputs(image)))

    def hidden(self, batch: TunedBatch) -> Tensor:
        """States ``[batch pos width]`` after the last norm."""
        return self.opened.read_rows(self._embed(batch), self._positions(batch), _see_batch(batch))

    def loss(self, batch: TunedBatch) -> Tensor:
        """As :meth:`model.families.nanovlm.VLM.loss`."""
        targets = shift_labels(batch.labels)
        trained = targets != IGNORE_LABEL
        return F.cross_entropy(self.opened.text.head(self._states(batch, trained)).float(), targets[trained])

    def _states(self, batch: TunedBatch, chosen: Tensor) -> Tensor:
        """Of :meth:`hidden`, those of the ``chosen [batch pos]`` positions alone, ``[chosen width]``: without padding
        and, where none is needed, without a mask. A label right behind what nobody attends to is predicted from that,
        which sees itself: that takes the mask, too."""
        attended = batch.attention_mask
        if needs_mask(self.opened, batch.rows, batch.document_mask) or bool((chosen & ~attended).any()):
            return self.hidden(batch)[chosen]
        documents = find_documents(attended, batch.segment_ids if batch.document_mask else None)
        positions = self._positions(batch)[:, attended][:, None]
        states = self.opened.read_rows(self._embed(batch)[attended][None], positions, documents)
        return states[0, chosen[attended]]

    @staticmethod
    def _positions(batch: TunedBatch) -> Tensor:
        """``[axes batch pos]``."""
        return batch.position_ids if batch.position_ids.ndim == 3 else batch.position_ids[None]

    def _embed(self, batch: TunedBatch) -> Tensor:
        """``[batch pos embed]``: token embeddings, with the projector's output at the image tokens."""
        opened = self.opened
        is_image = batch.input_ids == opened.image_token_id
        embeds: Tensor = opened.embedding(batch.input_ids.masked_fill(is_image, 0))
        embeds = F.pad(embeds, (0, opened.extra_layers * embeds.shape[-1]))
        images = batch.images
        if not images:
            return embeds
        patches = batch.patches or tuple(self.read_patches(image) for image in images)
        parts = iter(opened.project([part.to(embeds.device) for image in patches for part in image]))
        features = torch.cat(
            [
                own
                for image, seen in zip(images, patches, strict=True)
                for own in opened.arrange_features(image, [next(parts) for _ in seen])
            ]
        )
        if len(features) != int(is_image.sum()):
            raise InputError(
                f"The rows hold {int(is_image.sum())} image tokens and their images give {len(features)} features; "
                "each image token needs exactly one."
            )
        return embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))

    # --- keeping ---

    def changes(self) -> dict[str, Tensor]:
        """By peft's names: the adapters, and the projector if it is trained."""
        found = {name: tensor for name, tensor in self.opened.model.state_dict().items() if "lora_" in name}
        for path, module in self._saved.items():
            found |= {f"{path}.{name}": tensor for name, tensor in module.state_dict().items()}
        return {peft_name(name): tensor for name, tensor in found.items()}

    def save(self, folder: Path) -> None:
        """Into an empty folder, as peft has an adapter."""
        config = self._adapter
        scale = config.lora_alpha / config.r
        values = {**config.to_dict(), "modules_to_save": list(self._saved) or None, "inference_mode": True}
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
        write_adapter(folder, plain, Adapter(self.base, scale, self.changes(), self.base_fingerprint))


Trainee = VLM | TunedVLM
"""What the trainer can train."""


def _see_batch(batch: TunedBatch) -> Tensor:
    """``[batch 1 pos pos]`` bool: who sees whom. Padding sees itself: a softmax over nothing is no number."""
    width = batch.input_ids.shape[1]
    visible = torch.eye(width, dtype=torch.bool).repeat(len(batch.rows), 1, 1)
    for seen, row in zip(visible, batch.rows, strict=True):
        start = width - len(row)
        seen[start:, start:] |= see(row, batch.document_mask)
    return visible[:, None]


def measure_documents(samples: Sequence[Sample], document_mask: bool) -> list[int]:
    """Positions of each document of these rows; without ``document_mask`` a row is one."""
    if not document_mask:
        return [len(sample) for sample in samples]
    runs = (torch.unique_consecutive(sample.segment_ids, return_counts=True)[1] for sample in samples)
    return [length for counts in runs for length in counts.tolist()]


def needs_mask(opened: InspectableVLM, samples: Sequence[Sample], document_mask: bool) -> bool:
    """Whether a position of these rows doesn't see all of its document's past and nothing else: where images see one
    another both ways, and in layers that look back less far than a document reaches."""
    vlm = cast("TransformersVLM", opened)
    window = vlm.text.window
    if window is not None and max(measure_documents(samples, document_mask), default=0) > window:
        return True
    rows = (sample if isinstance(sample, Row) else vlm.place(sample) for sample in samples)
    return any(row.blocks is not None and bool((row.blocks >= 0).any()) for row in rows)


def _describe(maps: Mapping[str, nn.Module], rank: int, alpha: float, base: str) -> Any:
    """peft's description of adapters on linear ``maps``."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank or 1,
        # peft calls it whole, but only ever divides it by the rank.
        lora_alpha=alpha or 2 * rank or 1,  # type: ignore[arg-type]
        lora_dropout=0.0,
        bias="none",
        # By their whole names: the encoder has maps that are called the same. Without any, peft's word for it.
        target_modules=list(maps) if rank else "dummy-target-modules",
        base_model_name_or_path=base,
    )


def tune(opened: TransformersVLM, recipe: Recipe) -> TunedVLM:
    """``opened``, the recipe's base, ready for its stages. InputError where they want what isn't trained here."""
    check_tuning(opened, recipe)
    stage = next((stage for stage in recipe.stages if stage.lora_rank), recipe.stages[0])
    return TunedVLM(
        opened,
        str(folder.resolve()) if (folder := Path(recipe.base).expanduser()).is_dir() else recipe.base,
        rank=stage.lora_rank,
        alpha=stage.lora_alpha,
        targets=stage.lora_targets,
        projects=any("MP" in one.learning_rates for one in recipe.stages),
        seed=recipe.seed,
    )


def check_tuning(opened: TransformersVLM, recipe: Recipe) -> None:
    """InputError for a recipe that a model of this family can't go through, with the first reason."""
    if opened.adapted:
        raise InputError(
            "This model is a base and an adapter, and what is trained from it would be an adapter to an adapter, which "
            "nothing reads; begin with its base, or merge the two and save them first."
        )
    for stage in recipe.stages:
        who = f"Stage “{stage.name}”: a {opened.name} model"
        if stage.kind == "contrastive" or "vision_encoder" in stage.learning_rates:
            raise InputError(f"{who} keeps its image encoder as it is; train MP (the projector) and decoder (by LoRA).")
        if "decoder" in stage.learning_rates and not stage.lora_rank:
            raise InputError(
                f"{who} has its language model trained by LoRA alone; set lora_rank, or leave decoder out."
            )
        if stage.packing != "off" and not opened.text.shifts:
            raise InputError(
                f"{who} has rotary angles that change with the length of the row, so samples can't share one; set "
                "packing to “off”."
            )
        if stage.lora_rank:
            choose_maps(opened, stage.lora_targets)
    adapted = [stage for stage in recipe.stages if stage.lora_rank]
    if len({(stage.lora_rank, stage.lora_alpha, stage.lora_targets) for stage in adapted}) > 1:
        raise InputError(
            f"The stages {', '.join(f'“{stage.name}”' for stage in adapted)} have different lora_rank, lora_alpha or "
            "lora_targets; what comes out is one adapter, so give all of them the same."
        )


def choose_maps(opened: TransformersVLM, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear maps of the language model's blocks that are called so, all if none is named, by their whole names.
    InputError for a name that none has."""
    place = next(name for name, module in opened.model.named_modules() if module is opened.text.model)
    maps = {
        name: module for name, module in opened.text.model.named_modules(prefix=place) if isinstance(module, nn.Linear)
    }
    known = {name.rpartition(".")[2] for name in maps}
    if unknown := sorted(set(targets) - known):
        raise InputError(f"lora_targets names {', '.join(unknown)}; the language model has {', '.join(sorted(known))}.")
    return {name: module for name, module in maps.items() if name.rpartition(".")[2] in (targets or known)}


def count_trained(opened: TransformersVLM, stage: Stage) -> tuple[ModuleSize, ...]:
    """What ``stage`` would train of each part, and what it has; nothing is made for it."""
    parts = opened.count_parts()
    projector = sum(weight.numel() for module in opened.projectors.values() for weight in module.parameters())
    maps = choose_maps(opened, stage.lora_targets).values() if stage.lora_rank else ()
    adapters = sum(stage.lora_rank * (one.in_features + one.out_features) for one in maps)
    decoder = parts["language model"] + adapters
    return (
        ModuleSize("vision_encoder", opened.n_parameters + adapters - projector - decoder, 0),
        ModuleSize("MP", projector, projector if "MP" in stage.learning_rates else 0),
        ModuleSize("decoder", decoder, adapters if "decoder" in stage.learning_rates else 0),
    )
