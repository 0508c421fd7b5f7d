"""Starting from published weights: SigLIP as the image encoder, a Llama-shaped model as the language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.config import VLMConfig
from model.errors import InputError
from model.language import LanguageModel
from model.vision import VisionEncoder

_VIT_NAMES = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_LM_NAMES = {
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.out_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}


class _Settings(dict[str, Any]):
    """A transformers configuration that says which key it lacks."""

    def __init__(self, values: dict[str, Any], folder: Path) -> None:
        super().__init__(values)
        self.folder = folder

    def __missing__(self, key: str) -> Any:
        raise InputError(f"{self.folder}/config.json has no {key}; it must be that of the model asked for.")


def import_siglip(folder: str | Path) -> tuple[dict[str, Any], VisionEncoder]:
    """The image encoder of a transformers SigLIP folder, and its settings under nanoVLM's ``vit_*`` names. The text
    tower and the pooling head are left out, as upstream does. InputError if a weight is missing."""
    folder = Path(folder)
    values = _read_config(folder)
    vision = _Settings(values.get("vision_config", values), folder)
    settings = {
        "vit_hidden_dim": vision["hidden_size"],
        "vit_inter_dim": vision["intermediate_size"],
        "vit_patch_size": vision["patch_size"],
        "vit_img_size": vision["image_size"],
        "vit_n_heads": vision["num_attention_heads"],
        "vit_dropout": vision.get("attention_dropout", 0.0),
        "vit_n_blocks": vision["num_hidden_layers"],
        "vit_ln_eps": vision.get("layer_norm_eps", 1e-6),
    }
    side = settings["vit_img_size"] // settings["vit_patch_size"]
    # Of the sizes that belong to no encoder any will do that go together.
    config = VLMConfig(
        **settings, mp_pixel_shuffle_factor=1, mp_image_token_length=side * side, max_img_size=settings["vit_img_size"]
    )
    source = {name.removeprefix("vision_model."): tensor for name, tensor in _read_shards(folder).items()}
    state: dict[str, Tensor] = {}
    try:
        state["patch_embedding.position_embedding"] = source["embeddings.position_embedding.weight"][None]
        for end in ("weight", "bias"):
            state[f"patch_embedding.conv.{end}"] = source[f"embeddings.patch_embedding.{end}"]
            state[f"layer_norm.{end}"] = source[f"post_layernorm.{end}"]
            for layer in range(config.vit_n_blocks):
                theirs, ours = f"encoder.layers.{layer}", f"blocks.{layer}"
                state[f"{ours}.attn.qkv_proj.{end}"] = torch.cat(
                    [source[f"{theirs}.self_attn.{name}_proj.{end}"] for name in "qkv"]
                )
                for their_name, our_name in _VIT_NAMES.items():
                    state[f"{ours}.{our_name}.{end}"] = source[f"{theirs}.{their_name}.{end}"]
    except KeyError as error:
        raise InputError(f"{folder} is no SigLIP checkpoint: it lacks {error.args[0]}.") from None
    encoder = VisionEncoder(config)
    encoder.load_state_dict(state)
    return settings, encoder.eval()


def import_llama(folder: str | Path, *, extra_tokens: int = 0, seed: int = 0) -> tuple[dict[str, Any], LanguageModel]:
    """The decoder of a transformers Llama folder (shards and an index are understood), and its settings under
    nanoVLM's ``lm_*`` names. ``extra_tokens`` rows are added to the embedding, drawn from N(0, 0.02²) with ``seed``.
    InputError if a weight is missing."""
    folder = Path(folder)
    values = _Settings(_read_config(folder), folder)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    settings = {
        "lm_hidden_dim": values["hidden_size"],
        "lm_inter_dim": values["intermediate_size"],
        "lm_rms_eps": values["rms_norm_eps"],
        # transformers 5 moved it into rope_parameters
        "lm_re_base": values.get("rope_theta", rope.get("rope_theta", 10000.0)),
        "lm_max_position_embeddings": values["max_position_embeddings"],
        "lm_base_vocab_size": values["vocab_size"],
        "extra_token_amount": extra_tokens,
        "lm_vocab_size": values["vocab_size"] + extra_tokens,
        "lm_n_heads": values["num_attention_heads"],
        "lm_n_kv_heads": values.get("num_key_value_heads", values["num_attention_heads"]),
        "lm_dropout": values.get("attention_dropout", 0.0),
        "lm_n_blocks": values["num_hidden_layers"],
        "lm_tie_weights": values.get("tie_word_embeddings", False),
    }
    config = VLMConfig(**settings)
    source = {name.removeprefix("model."): tensor for name, tensor in _read_shards(folder).items()}
    generator = torch.Generator().manual_seed(seed)

    def grow(weight: Tensor) -> Tensor:
        new = torch.randn(extra_tokens, weight.shape[1], generator=generator) * 0.02
        return torch.cat((weight.float(), new))

    decoder = LanguageModel(config)
    state: dict[str, Tensor] = {"rotary_embd.inv_freq": decoder.rotary_embd.inv_freq}
    try:
        state["token_embedding.weight"] = grow(source["embed_tokens.weight"])
        tied = config.lm_tie_weights
        state["head.weight"] = state["token_embedding.weight"] if tied else grow(source["lm_head.weight"])
        state["norm.weight"] = source["norm.weight"]
        for layer in range(config.lm_n_blocks):
            for their_name, our_name in _LM_NAMES.items():
                state[f"blocks.{layer}.{our_name}.weight"] = source[f"layers.{layer}.{their_name}.weight"]
    except KeyError as error:
        raise InputError(f"{folder} is no Llama checkpoint: it lacks {error.args[0]}.") from None
    decoder.load_state_dict(state)
    return settings, decoder.eval()


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} has no readable config.json ({error}).") from error


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    state: dict[str, Tensor] = {}
    for name in names:
        path = folder / Path(name).name
        if not path.is_file():
            raise InputError(f"{folder} lacks {name}; only safetensors files are read.")
        state |= load_file(path)
    return state
