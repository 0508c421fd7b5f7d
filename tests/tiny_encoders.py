"""Tiny random checkpoints of encoders of images and texts, with transformers' own model, image processor and
tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from model.encoders.opening import load_encoder
from model.encoders.protocol import ImageTextEncoder
from tests.tiny_checkpoints import byte_tokenizer

NAMES = ("clip", "siglip", "siglip2")
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_VISION, "max_position_embeddings": 24}


@dataclass(frozen=True)
class TinyEncoder:
    """Ours, and theirs from the same folder."""

    ours: ImageTextEncoder
    folder: Path
    theirs: Any
    images: Any
    tokenizer: Any

    @torch.no_grad()
    def run(self, pictures: list[Image.Image], texts: list[str]) -> Any:
        """Transformers' output for these, with its loss where there are as many of both."""
        inputs = self.images(pictures, return_tensors="pt")
        text = self.tokenizer(texts, padding="max_length", truncation=True, max_length=24, return_tensors="pt")
        ids = {"input_ids": text["input_ids"]}
        if type(self.theirs).__name__ == "CLIPModel":
            ids["attention_mask"] = text["attention_mask"]
        return self.theirs(**ids, **inputs, return_loss=len(pictures) == len(texts))


def build_encoder(name: str, folder: Path) -> TinyEncoder:
    tokenizer = byte_tokenizer([])
    ends = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**_TEXT, **ends, "vocab_size": len(tokenizer) + 8}  # SigLIP 2 adds a token of its own
    if name == "clip":
        vision = {**_VISION, "image_size": 32, "patch_size": 8}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        kind, images = (
            transformers.CLIPModel,
            transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        )
    elif name == "siglip":
        vision = {**_VISION, "image_size": 32, "patch_size": 8}
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        kind, images = transformers.SiglipModel, transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    else:
        vision = {**_VISION, "num_patches": 16, "patch_size": 8}
        config = transformers.Siglip2Config(text_config=text, vision_config=vision)
        kind, images = (
            transformers.Siglip2Model,
            transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        for weight in model.parameters():  # theirs begin so alike that nothing could be told apart
            weight.data.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return TinyEncoder(load_encoder(folder, device="cpu"), folder, model, images, tokenizer)
