"""What is counted of a model before it is trained, whatever its family; its weights needn't be there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from model.checkpoint import empty_vlm
from model.families.nanovlm import VLM
from model.families.protocol import InspectableVLM
from model.image import ProcessedImage
from model.training.batches import count_patches
from model.training.events import ModuleSize
from model.training.recipe import Stage
from model.training.stages import build_stage, module_sizes
from model.training.tuned import TunedVLM, count_trained

if TYPE_CHECKING:
    from model.families.transformers_vlm import TransformersVLM  # which takes long to import


@dataclass(frozen=True)
class ModelShape:
    """Of the image encoder its ``encoder_width``, ``encoder_inner`` and ``encoder_blocks``, and the ``features`` that
    it gives for a patch. Of the language model: ``width``, ``inner``, and what all ``queries`` and ``keys`` of a
    position have. ``inner``: of the feed-forward layers. ``normed``: what goes into a block's norms at a position but
    the two that every block has, those of queries and keys for one. ``tuned``: another family than nanoVLM's, which
    saves an adapter, not the whole."""

    encoder_width: int
    encoder_inner: int
    encoder_blocks: int
    features: int
    width: int
    inner: int
    queries: int
    keys: int
    head_dim: int
    blocks: int
    vocabulary: int
    normed: int = 0
    tuned: bool = False


def shape_of(vlm: InspectableVLM | TunedVLM) -> ModelShape:
    if isinstance(vlm, VLM):
        config = vlm.config
        return ModelShape(
            config.vit_hidden_dim,
            config.vit_inter_dim,
            config.vit_n_blocks,
            config.vit_hidden_dim,
            config.lm_hidden_dim,
            config.lm_inter_dim,
            config.lm_n_heads * config.head_dim,
            config.lm_n_kv_heads * config.head_dim,
            config.head_dim,
            config.lm_n_blocks,
            config.lm_vocab_size,
            normed=(config.lm_n_heads + config.lm_n_kv_heads) * config.head_dim if config.lm_qk_norm else 0,
        )
    opened = vlm.opened if isinstance(vlm, TunedVLM) else cast("TransformersVLM", vlm)
    vision, text = opened.config.vision_config, opened.text
    queries, keys = text.n_heads * text.head_dim, text.n_kv_heads * text.head_dim
    block = text.layers[0]
    normed = queries + keys if hasattr(block.self_attn, "q_norm") else 0
    normed += 2 * text.width if hasattr(block, "post_feedforward_layernorm") else 0
    # Qwen2-VL calls what its encoder puts out its hidden size.
    width = int(getattr(vision, "embed_dim", None) or vision.hidden_size)
    return ModelShape(
        width,
        int(getattr(vision, "intermediate_size", None) or width * vision.mlp_ratio),
        len(opened.vision_blocks),
        width * (1 + opened.extra_layers),
        text.width,
        int(text.config.intermediate_size),
        queries,
        keys,
        text.head_dim,
        text.n_layers,
        opened.embedding.num_embeddings,
        normed,
        tuned=True,
    )


def count_patches_of(vlm: InspectableVLM, image: ProcessedImage) -> int:
    """The image encoder's positions for all parts of an image."""
    if isinstance(vlm, VLM):
        return len(image.boxes) * count_patches(vlm.config)
    sides = [part.shape[1:] for part in vlm.encoder_inputs(image)]
    return sum((height // vlm.patch_px) * (width // vlm.patch_px) for height, width in sides)


def size_modules(vlm: InspectableVLM | TunedVLM, stage: Stage) -> tuple[ModuleSize, ...]:
    """What ``stage`` would train of a model like ``vlm``, by building it without memory: ``vlm`` stays as it is."""
    if isinstance(vlm, TunedVLM):  # it has its adapters
        return module_sizes(build_stage(stage, vlm, 0, vlm.tokenizer))
    if not isinstance(vlm, VLM):
        return count_trained(cast("TransformersVLM", vlm), stage)
    empty = empty_vlm(vlm.config, vlm.tokenizer)
    with torch.device("meta"):
        return module_sizes(build_stage(stage, empty, 0, vlm.tokenizer))
