"""The model from nothing: the shape of the embedded one, a tokenizer made for its tasks, fresh weights."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from model.config import VLMConfig, region_tokens
from model.families.nanovlm import VLM
from model.training.synthetic import scenes as sc
from model.training.synthetic.easy_vqa import read_easy_vqa

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EXTRA_TOKENS = {"image_token": "<|image|>", "global_image_token": "<|global_image|>", **region_tokens(3, 3)}

# More words than the tasks need, so that a person's own question is not cut into letters, and words to be taught.
_COMMON_WORDS = """
    the a an of in on at is are was it its this that these those there here and or not no yes to from with
    without for by as be do does did have has had can you i we they he she how many much what which who when
    where why image images picture pictures photo shape shapes color colour colors colours circle circles
    rectangle rectangles triangle triangles square big small large tiny left right top bottom middle center
    above below between same different first second third fourth fifth last all any each every one two three
    four five six zero list describe tell me show count number name answer question please system user
    assistant red green blue black gray grey teal brown yellow white orange purple pink background contain
    contains present side star stars heart hearts cross crosses diamond diamonds ring rings moon moons hexagon
    pentagon arrow arrows cyan magenta lime navy olive maroon violet gold
"""


def scratch_config(base_vocab_size: int) -> VLMConfig:
    """The embedded model's shape: 64-px tiles of 16 image tokens, at most 3 × 3 of them; about 2.7 M weights."""
    return VLMConfig(
        vit_hidden_dim=128,
        vit_inter_dim=512,
        vit_patch_size=8,
        vit_img_size=64,
        vit_n_heads=4,
        vit_n_blocks=4,
        vit_model_type="trained from nothing",
        lm_hidden_dim=192,
        lm_inter_dim=512,
        lm_re_base=10000,
        lm_max_position_embeddings=4096,
        lm_max_length=4096,
        lm_base_vocab_size=base_vocab_size,
        extra_token_amount=len(EXTRA_TOKENS),
        lm_vocab_size=base_vocab_size + len(EXTRA_TOKENS),
        lm_n_heads=4,
        lm_n_kv_heads=2,
        lm_n_blocks=4,
        lm_model_type="trained from nothing",
        lm_tokenizer="embedded",
        mp_pixel_shuffle_factor=2,
        mp_image_token_length=16,
        max_img_size=192,
        resize_to_max_side_len=False,
        vlm_extra_tokens=EXTRA_TOKENS,
        vlm_load_backbone_weights=False,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the words of the tasks: every one of them is a single piece with and without a space before
    it, digits stand alone, and all 256 bytes are there, so any text can be written. Ids 0 to 2 are SPECIAL_TOKENS."""
    rng = np.random.default_rng(0)
    words = set(_COMMON_WORDS.split())
    for _ in range(3000):
        scene = sc.random_scene(rng, sc.CANVAS_SIZES[int(rng.integers(len(sc.CANVAS_SIZES)))])
        group = sc.different_scenes(rng, int(rng.integers(2, sc.MAX_IMAGES + 1)))
        for question, answer, _ in (*sc.scene_turns(rng, scene, 4), *sc.multi_image_turns(rng, group, 4)):
            words.update("".join(c if c.isalpha() else " " for c in f"{question} {answer}").split())
    for picture in read_easy_vqa("train")[:500]:
        for question, answer, _ in picture.turns:
            words.update([*question.rstrip("?").split(), answer])
    lines = [form for word in sorted(words) for form in (word, " " + word, word.capitalize())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL_TOKENS[2],
        pad_token=SPECIAL_TOKENS[2],
        bos_token=SPECIAL_TOKENS[1],
        unk_token=SPECIAL_TOKENS[0],
        clean_up_tokenization_spaces=False,
        extra_special_tokens=dict(EXTRA_TOKENS),
    )


def new_vlm(seed: int) -> VLM:
    """The untrained model of the embedded shape."""
    tokenizer = build_tokenizer()
    return fresh_vlm(scratch_config(len(tokenizer) - len(EXTRA_TOKENS)), tokenizer, seed)


def fresh_vlm(config: VLMConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> VLM:
    """An untrained model. Embeddings have standard deviation 1, as large as the image features; the last norm is
    scaled down so that the tied head's logits don't begin far too large."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vlm = VLM(config, tokenizer)
        with torch.no_grad():
            vlm.decoder.norm.weight.fill_(0.25 * vlm.config.lm_hidden_dim**-0.5)
            vlm.vision_encoder.patch_embedding.position_embedding.normal_(std=0.3)
            nn.init.normal_(vlm.MP.proj.weight, std=vlm.MP.proj.in_features**-0.5)
    return vlm.eval()
