"""Tiny random checkpoints of other families, with transformers' own model, image processor and processor classes."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.processing_utils import ProcessorMixin

from model import Conversation, InspectableVLM, Message, OpenedImage, Row, load_vlm
from model.sample import see

# As the checkpoints of these families write it.
IDEFICS3_CHAT = (
    "<|im_start|>{% for message in messages %}{{message['role'].capitalize()}}{% if message['content'][0]['type'] == "
    "'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAVA_CHAT = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', "
    "'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TRIMMING_CHAT = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n'}}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>' }}{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
    "{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRING_CHAT = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen's checkpoints write it: a system turn of the template's own, an image between two marks.
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
QWEN_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_IDS = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
# Gemma 3's format: what a system turn says stands before the first question, and the assistant is called "model".
GEMMA3_CHAT = (
    "{{ bos_token }}{% set ns = namespace(before='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.before = (m.content if m.content is string else m.content[0].text) + '\n\n' %}{% else %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ ns.before }}{% set ns.before = '' %}"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_turn>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QUESTION = "What colour is it? 1234"


@dataclass(frozen=True)
class Tiny:
    """A checkpoint folder, transformers' model and processor of it, and ours."""

    folder: Path
    model: Any
    processor: Any

    @property
    def vlm(self) -> InspectableVLM:
        return _open(self.folder)

    def inputs(self, images: list[Image.Image], text: str = QUESTION, history: tuple[tuple[str, str], ...] = ()) -> Any:
        """What the family's own processor makes of a prompt, the images before the first text."""
        turns = [*({"role": role, "content": [{"type": "text", "text": said}]} for role, said in history)]
        turns.append({"role": "user", "content": [{"type": "text", "text": text}]})
        turns[0]["content"][:0] = [{"type": "image"} for _ in images]
        template = self.processor.chat_template
        # SmolVLM's processor can't do this without its video part; it is the tokenizer's doing in all of them.
        write = partial(
            self.processor.tokenizer.apply_chat_template,
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
        )
        try:
            written = write(turns)
        except TypeError:  # a template that knows of texts alone
            written = write(
                [{**one, "content": "".join(part.get("text", "<image>") for part in one["content"])} for one in turns]
            )
        bos = self.processor.tokenizer.bos_token
        special = not (bos and written.startswith(bos))  # as apply_chat_template does where it makes ids itself
        # Only a list of lists tells this family that the images belong together.
        given = [images] if images and "Onevision" in type(self.processor).__name__ else images or None
        return self.processor(text=[written], images=given, return_tensors="pt", add_special_tokens=special)

    def row(self, images: list[Image.Image], text: str = QUESTION, history: tuple[tuple[str, str], ...] = ()) -> Row:
        return self.vlm.place(self.vlm.prepare(conversation(images, text, history), True))


def conversation(
    images: list[Image.Image], text: str = QUESTION, history: tuple[tuple[str, str], ...] = ()
) -> Conversation:
    """The images before the first text."""
    messages = [Message(role, said) for role, said in history] + [Message("user", text)]
    messages[0] = Message(messages[0].role, messages[0].text, tuple(map(OpenedImage, images)))
    return Conversation(tuple(messages))


@cache
def _open(folder: Path) -> InspectableVLM:
    return load_vlm(folder)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def embeds_of(vlm: InspectableVLM, row: Row) -> torch.Tensor:
    features = [
        part for image in row.images for part in vlm.arrange_features(image, vlm.encode(vlm.encoder_inputs(image)))
    ]
    return vlm.embed_ids(row.input_ids, torch.cat(features) if features else None)


def causal(row: Row) -> torch.Tensor:
    """The past, and in some families all of an image's own tokens."""
    return see(row, False)[None, None]


def decode_in_parts(vlm: InspectableVLM, row: Row, stops: Sequence[int]) -> torch.Tensor:
    """The states of the row, read behind a cache up to each of ``stops`` in turn."""
    embeds, visible, kept = embeds_of(vlm, row)[None], causal(row), vlm.new_cache(len(row))
    parts = [
        vlm.decode(embeds[:, start:stop], row.position_ids[:, start:stop], visible[:, :, start:stop, :stop], kept)
        for start, stop in pairwise((0, *stops))
    ]
    assert kept.length == len(row)
    return torch.cat(parts, dim=1)


def check_moved_keys(vlm: InspectableVLM, row: Row, by: int = 7) -> None:
    """Keys that are turned are those of a row that stands elsewhere, and back."""
    caches = [vlm.new_cache(len(row)) for _ in range(2)]
    for kept, offset in zip(caches, (0, by), strict=True):
        vlm.decode(embeds_of(vlm, row)[None], row.position_ids + offset, causal(row), kept)
    torch.testing.assert_close(vlm.rotate_keys(caches[0].keys, by), caches[1].keys, rtol=0, atol=1e-5)
    torch.testing.assert_close(vlm.rotate_keys(caches[1].keys, -by), caches[0].keys, rtol=0, atol=1e-5)


def write_checkpoint(model: Any, processor: Any, folder: Path, **options: Any) -> None:
    """As save_pretrained writes it; a processor with a video part can't be saved without one."""
    model.save_pretrained(folder, **options)
    if getattr(processor, "video_processor", 0) == 0:
        processor.save_pretrained(folder)
        return
    processor.tokenizer.chat_template = processor.chat_template
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": type(processor).__name__}))


@contextmanager
def processors_without_video() -> Iterator[None]:
    """Processors with a video part ask for torchvision's classes and for words for numbers; images need neither."""
    from transformers.models.smolvlm import processing_smolvlm

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda self, *_, **__: None)
        patched.setattr(processing_smolvlm, "num2words", str)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        yield


def byte_tokenizer(extra: list[str]) -> Any:
    """A byte-level tokenizer of 1,024 tokens with more special tokens."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(Path(__file__).parent / "golden/tiny_tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": extra})
    return tokenizer


def piece_tokenizer(scheme: str) -> Any:
    """Like Llama's: pieces with ▁ for blanks, one before the text (``scheme``: first, always), unknown characters as
    bytes, <s> put before a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    words = "USER: What colour is it? ASSISTANT: The shape is red. And this? 0 1 2 3 4 5 6 7 8 9"
    tokenizer.train_from_iterator([words] * 20, trainer)
    # Bytes are pieces like others; only the first three are special.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return fast


def text_settings(tokenizer: Any, **more: Any) -> dict[str, Any]:
    settings = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    return {**settings, **more}


def vision_settings(**more: Any) -> dict[str, Any]:
    settings = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    return {**settings, **more}


def build_idefics3(
    tokenizer_of: Callable[[list[str]], Any],
    *,
    smol: bool = False,
    chat: str = IDEFICS3_CHAT,
    rows: int = 6,
    **text: Any,
) -> tuple[Any, Any]:
    marks = [f"<row_{row}_col_{col}>" for row in range(1, rows + 1) for col in range(1, rows + 1)]
    tokenizer = tokenizer_of(["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *marks])
    kind = "SmolVLM" if smol else "Idefics3"
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision_settings(image_size=64, patch_size=8),
        text_config=transformers.LlamaConfig(**text_settings(tokenizer, **text)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=2,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )
    images = getattr(transformers, f"{kind}ImageProcessor")(
        size={"longest_edge": 256}, max_image_size={"longest_edge": 64}
    )
    more = {"video_processor": None} if smol else {}
    processor = getattr(transformers, f"{kind}Processor")(
        image_processor=images, tokenizer=tokenizer, image_seq_len=16, chat_template=chat, **more
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval(), processor


def build_llava(
    tokenizer: Any, *, chat: str | None = LLAVA_CHAT, strategy: str = "default", text: str = "Llama", **settings: Any
) -> Any:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision_settings(image_size=56, patch_size=14)),
        text_config=getattr(transformers, f"{text}Config")(**text_settings(tokenizer, **settings)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-2,
        image_seq_length=16,
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=chat,
    )
    torch.manual_seed(0)
    return transformers.LlavaForConditionalGeneration(config).eval(), processor


def build_anyres(
    tokenizer: Any, *, onevision: bool, sizes: tuple[tuple[int, int], ...], most: int = 9, **settings: Any
) -> tuple[Any, Any]:
    """LLaVA-NeXT with CLIP and Llama, or LLaVA-OneVision with SigLIP and Qwen2."""
    kind = "LlavaOnevision" if onevision else "LlavaNext"
    vision = vision_settings(image_size=56, patch_size=14)
    grid = [list(pair) for pair in sizes]
    more = {"vision_aspect_ratio": f"anyres_max_{most}"} if onevision else {}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=transformers.SiglipVisionConfig(**vision)
        if onevision
        else transformers.CLIPVisionConfig(**vision),
        text_config=getattr(transformers, f"{'Qwen2' if onevision else 'Llama'}Config")(
            **text_settings(tokenizer, **settings)
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full" if onevision else "default",
        vision_feature_layer=-1 if onevision else -2,
        image_grid_pinpoints=grid,
        tie_word_embeddings=settings.get("tie_word_embeddings", False),
        **more,
    )
    size = {"height": 56, "width": 56} if onevision else {"shortest_edge": 56}
    crop = {} if onevision else {"crop_size": {"height": 56, "width": 56}}
    images = getattr(transformers, f"{kind}ImageProcessorPil")(size=size, image_grid_pinpoints=grid, **crop)
    chat = TRIMMING_CHAT.replace("<image>", "<image>\n").replace(" | trim", "")
    strategy = config.vision_feature_select_strategy
    if onevision:
        processor = transformers.LlavaOnevisionProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            video_processor=None,
            num_image_tokens=16,
            vision_feature_select_strategy=strategy,
            chat_template=chat,
            vision_aspect_ratio=f"anyres_max_{most}",
        )
    else:
        processor = transformers.LlavaNextProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=14,
            vision_feature_select_strategy=strategy,
            num_additional_image_tokens=1,
            chat_template=chat,
        )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    torch.nn.init.normal_(model.model.image_newline)
    return model, processor


SQUARES = tuple((56 * rows, 56 * cols) for rows in range(1, 4) for cols in range(1, 4))


def build_qwen2_vl() -> tuple[Any, Any]:
    vision = {"depth": 2, "embed_dim": 48, "hidden_size": 64, "num_heads": 4, "patch_size": 14}
    return _build_qwen("Qwen2VL", vision, _qwen_rope(), chat=QWEN_CHAT, cell=28)


def build_qwen2_5_vl(**text: Any) -> tuple[Any, Any]:
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
    return _build_qwen("Qwen2_5_VL", vision, {**_qwen_rope(), **text}, chat=QWEN_CHAT, cell=28)


def build_qwen3_vl(*, deep: tuple[int, ...] = (0, 1, 2), **text: Any) -> tuple[Any, Any]:
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
    return _build_qwen("Qwen3VL", vision, settings, chat=QWEN3_CHAT, cell=32)


def _qwen_rope() -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}


def _build_qwen(
    family: str,
    vision: dict[str, Any],
    text: dict[str, Any],
    *,
    chat: str,
    cell: int,
) -> tuple[Any, Any]:
    tokenizer = byte_tokenizer(list(QWEN_MARKS))
    config = getattr(transformers, f"{family}Config")(
        text_config=text_settings(tokenizer, **text),
        vision_config=vision,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        **dict(zip(QWEN_IDS, tokenizer.convert_tokens_to_ids(list(QWEN_MARKS)), strict=True)),
    )
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=cell // 2, size={"shortest_edge": 4 * cell * cell, "longest_edge": 48 * cell * cell}
    )
    processor = getattr(transformers, f"{family}Processor")(
        image_processor=images, tokenizer=tokenizer, video_processor=None, chat_template=chat
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForConditionalGeneration")(config).eval(), processor


def build_gemma3(
    tokenizer: Any, *, side: int = 56, tokens: int = 4, tied: bool = True, pans: bool = False, **text: Any
) -> Any:
    marks = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.bos_token = tokenizer.bos_token or "<|im_start|>"
    for name, token in zip(("boi", "eoi", "image"), marks[2:], strict=True):
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    # A window far shorter than a row, and than some of its images.
    shape = {"num_hidden_layers": 7, "head_dim": 24, "query_pre_attn_scalar": 30, "sliding_window": 11, **text}
    settings = text_settings(tokenizer, **shape, tie_word_embeddings=tied)
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**settings),
        vision_config=vision_settings(image_size=side, patch_size=14),
        mm_tokens_per_image=tokens,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=tied,
    )
    panning = {
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": 16,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    }
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(
            size={"height": side, "width": side}, **(panning if pans else {})
        ),
        tokenizer=tokenizer,
        image_seq_length=tokens,
        chat_template=GEMMA3_CHAT,
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    # The projection begins at zeros, with which all images are one.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    return model, processor


def build_internvl(
    tokenizer: Any, *, text: str = "Qwen2", most: int = 6, chat: str | None = None, **settings: Any
) -> tuple[Any, Any]:
    marks = ("start_image_token", "<img>"), ("end_image_token", "</img>"), ("context_image_token", "<IMG_CONTEXT>")
    for name, token in (*marks, ("video_token", "<video>")):
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    config = transformers.InternVLConfig(
        vision_config=vision_settings(image_size=[56, 56], patch_size=[14, 14]),
        text_config=getattr(transformers, f"{text}Config")(**text_settings(tokenizer, **settings)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=settings.get("tie_word_embeddings", False),
    )
    # The checkpoints say False, and are cut all the same.
    images = transformers.GotOcr2ImageProcessor(
        size={"height": 56, "width": 56}, crop_to_patches=False, min_patches=1, max_patches=most
    )
    processor = transformers.InternVLProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=None,
        image_seq_length=4,
        chat_template=chat or TRIMMING_CHAT.replace("<image>", "<IMG_CONTEXT>\n").replace(" | trim", ""),
    )
    torch.manual_seed(0)
    return transformers.InternVLForConditionalGeneration(config).eval(), processor


INTERNVL_MARKS = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]

BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "idefics3": lambda: build_idefics3(byte_tokenizer),
    "smolvlm": lambda: build_idefics3(byte_tokenizer, smol=True, tie_word_embeddings=True),
    "idefics3 trims": lambda: build_idefics3(byte_tokenizer, chat=TRIMMING_CHAT, num_attention_heads=8),
    "idefics3 few marks": lambda: build_idefics3(byte_tokenizer, rows=2, num_key_value_heads=4),
    "llava": lambda: build_llava(piece_tokenizer("first")),
    "llava always": lambda: build_llava(piece_tokenizer("always"), strategy="full", num_key_value_heads=1),
    "gemma3": lambda: build_gemma3(byte_tokenizer([])),
    "gemma3 rest": lambda: build_gemma3(
        piece_tokenizer("first"), side=70, num_hidden_layers=3, num_key_value_heads=1, tied=False, pans=True
    ),
    "gemma3 wide": lambda: build_gemma3(
        byte_tokenizer([]),
        side=112,
        tokens=16,
        num_key_value_heads=4,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        num_hidden_layers=3,
    ),
    "llava next": lambda: build_anyres(
        byte_tokenizer(["<image>"]), onevision=False, sizes=((56, 112), (112, 56), (112, 112), (168, 56), (56, 168))
    ),
    "onevision": lambda: build_anyres(byte_tokenizer(["<image>", "<video>"]), onevision=True, sizes=SQUARES),
    "onevision shrinks": lambda: build_anyres(
        byte_tokenizer(["<image>", "<video>"]), onevision=True, sizes=SQUARES, most=2, tie_word_embeddings=True
    ),
    "llava text": lambda: build_llava(byte_tokenizer(["<image>"]), chat=STRING_CHAT),
    "qwen2 vl": build_qwen2_vl,
    "qwen2.5 vl": build_qwen2_5_vl,
    "qwen3 vl": build_qwen3_vl,
    "qwen3 vl tied": lambda: build_qwen3_vl(deep=(2, 0), tie_word_embeddings=True, num_key_value_heads=1),
    "internvl": lambda: build_internvl(byte_tokenizer(INTERNVL_MARKS)),
    "internvl qwen3": lambda: build_internvl(
        byte_tokenizer(INTERNVL_MARKS), text="Qwen3", most=12, head_dim=32, tie_word_embeddings=True
    ),
}
"""The families, and other shapes of them. One line for each."""


def build(name: str, folder: Path) -> Tiny:
    model, processor = BUILDERS[name]()
    write_checkpoint(model, processor, folder)
    return Tiny(folder, model, processor)
