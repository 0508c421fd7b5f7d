"""Tiny random checkpoints of other families, with transformers' own model, image processor and processor classes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
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
        return self.processor(text=[written], images=images or None, return_tensors="pt", add_special_tokens=special)

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
    features = [part for image in row.images for part in vlm.encode(vlm.encoder_inputs(image))]
    return vlm.embed_ids(row.input_ids, torch.cat(features) if features else None)


def causal(row: Row) -> torch.Tensor:
    return torch.ones(len(row), len(row), dtype=torch.bool).tril()[None, None]


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
    "llava text": lambda: build_llava(byte_tokenizer(["<image>"]), chat=STRING_CHAT),
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
