"""Tiny random checkpoints of the Qwen-VL families (see tests/tiny_checkpoints.py)."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from tests.tiny_checkpoints import text_settings

# As these checkpoints write it: a system turn of the template's own, an image between two marks.
QWEN_CHAT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3_CHAT = QWEN_CHAT.replace(
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}",
    "",
)
_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_NAMES = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")


def build_qwen2_vl(tokenizer_of: Callable[[list[str]], Any]) -> tuple[Any, Any]:
    vision = {"depth": 2, "embed_dim": 48, "hidden_size": 64, "num_heads": 4, "patch_size": 14}
    return _build(tokenizer_of, "Qwen2VL", vision, _plain_rope(), chat=QWEN_CHAT, cell=28)


def build_qwen2_5_vl(tokenizer_of: Callable[[list[str]], Any], **text: Any) -> tuple[Any, Any]:
    """Windows of 4 × 4 patches in the first layers of its encoder, the last sees everything."""
    vision = {
        "depth": 3,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": 64,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [2],
    }
    return _build(tokenizer_of, "Qwen2_5_VL", vision, {**_plain_rope(), **text}, chat=QWEN_CHAT, cell=28)


def build_qwen3_vl(
    tokenizer_of: Callable[[list[str]], Any], *, deep: tuple[int, ...] = (0, 1, 2), **text: Any
) -> tuple[Any, Any]:
    vision = {
        "depth": 4,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": 64,
        "patch_size": 16,
        "deepstack_visual_indexes": list(deep),
        "num_position_embeddings": 64,
    }
    rope = {"rope_type": "default", "mrope_section": [3, 3, 2], "mrope_interleaved": True, "rope_theta": 10000.0}
    settings = {"num_hidden_layers": 4, "head_dim": 16, "rope_parameters": rope, **text}
    return _build(tokenizer_of, "Qwen3VL", vision, settings, chat=QWEN3_CHAT, cell=32)


def _plain_rope() -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}


def _build(
    tokenizer_of: Callable[[list[str]], Any],
    family: str,
    vision: dict[str, Any],
    text: dict[str, Any],
    *,
    chat: str,
    cell: int,
) -> tuple[Any, Any]:
    tokenizer = tokenizer_of(list(_MARKS))
    config = getattr(transformers, f"{family}Config")(
        text_config=text_settings(tokenizer, **text),
        vision_config=vision,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        **dict(zip(_NAMES, tokenizer.convert_tokens_to_ids(list(_MARKS)), strict=True)),
    )
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=cell // 2, size={"shortest_edge": 4 * cell * cell, "longest_edge": 48 * cell * cell}
    )
    processor = getattr(transformers, f"{family}Processor")(
        image_processor=images, tokenizer=tokenizer, video_processor=None, chat_template=chat
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForConditionalGeneration")(config).eval(), processor
