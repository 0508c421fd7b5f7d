"""Checkpoints of other families at a real size with random weights, to be tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.timing import embedded_tokenizer

_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}IMAGE{% elif 'text' in part %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_smolvlm(folder: Path) -> None:
    """SmolVLM-256M's shape with the embedded model's tokens in its vocabulary: 228 M weights, tiles of 512 px, up to
    2 × 2 of them and the thumbnail."""
    marks = [f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)]
    tokenizer = embedded_tokenizer()
    names = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *marks]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    config = transformers.SmolVLMConfig(
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        text_config=transformers.LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            **_ends(tokenizer),
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=4,
        tie_word_embeddings=True,
    )
    settings = {"size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 512}}
    _write(transformers.SmolVLMForConditionalGeneration, config, tokenizer, settings, "<image>", folder)


def write_qwen2_5_vl(folder: Path) -> None:
    """Qwen2.5's 0.5B language model with half of its layers, and an encoder of a quarter of Qwen2.5-VL's: 272 M
    weights, 44 M of them the 49,280 tokens."""
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = embedded_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    ids = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 12,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
            **_ends(tokenizer),
        },
        vision_config={
            "depth": 8,
            "hidden_size": 640,
            "intermediate_size": 1720,
            "num_heads": 8,
            "out_hidden_size": 896,
            "fullatt_block_indexes": [3, 7],
        },
        tie_word_embeddings=True,
        **dict(zip(ids, tokenizer.convert_tokens_to_ids(marks), strict=True)),
    )
    settings = {"size": {"shortest_edge": 448 * 448, "longest_edge": 1024 * 1024}}
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    _write(transformers.Qwen2_5_VLForConditionalGeneration, config, tokenizer, settings, image, folder)


def _ends(tokenizer: Any) -> dict[str, Any]:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return {
        "vocab_size": 49_280,
        "max_position_embeddings": 8192,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _write(model: Any, config: Any, tokenizer: Any, settings: dict[str, Any], image: str, folder: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model(config).save_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(_CHAT.replace("IMAGE", image))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
