"""What a VLM is made of, and which part learns when."""

from __future__ import annotations

import torch

from inspector.lessons.shown_prompt import ShownPrompt, count_of, size_of

WORDS = 2000
"""So many token embeddings at most are looked at beside those of image tokens."""


def describe_pipeline(shown: ShownPrompt) -> str:
    vlm, row = shown.vlm, shown.inspection.row
    width = shown.embeds.shape[-1]
    end = (
        f"{count_of(len(row), 'position')} of {width:,} numbers each, text and image alike, go through "
        f"{vlm.n_layers} layers of {vlm.n_heads} attention heads; the last one chooses the next token, "
        f"{shown.token(_next(shown))} here."
    )
    if not shown.images:
        return f"Without an image only the language model is at work: {end}"
    parts = [part for image in row.images for part in vlm.encoder_inputs(image)]
    shapes = sorted({tuple(part.shape) for part in parts})
    given = " or ".join("[" + " ".join(f"{side:,}" for side in shape) + "]" for shape in shapes[:2])
    tokens = shown.kinds["image"]
    size = f"{'the first of ' if shown.images > 1 else ''}{size_of(row.images[0].original_size)}"
    return (
        f"{count_of(shown.images, 'image')} ({size}) → {count_of(len(parts), 'input')} of the image "
        f"encoder, {given} each → projector → {count_of(tokens, 'image token')}. {end[0].upper()}{end[1:]}"
    )


def describe_projector(shown: ShownPrompt) -> str:
    if not shown.images:
        return "This prompt has no image, so the projector (the multimodal projector) has nothing to do; add one."
    weights = shown.parts["projector"]
    is_image = shown.is_image()
    image = shown.embeds[is_image].float()
    step = max(1, shown.vlm.tokenizer.vocab_size // WORDS)
    ids = torch.arange(0, shown.vlm.tokenizer.vocab_size, step)
    words = shown.vlm.embed_ids(ids[ids != shown.vlm.image_token_id]).float()
    near = torch.nn.functional.normalize(image, dim=-1) @ torch.nn.functional.normalize(words, dim=-1).T
    lengths = image.norm(dim=-1).median(), words.norm(dim=-1).median()
    return (
        f"The projector ({count_of(weights, 'weight')}) turns what the image encoder found into vectors of "
        f"{image.shape[-1]:,} numbers, the width of the language model's word embeddings, so that both stand in one "
        f"row. Measured here: its {len(image):,} outputs have a median length of {float(lengths[0]):.2f} "
        f"({float(lengths[1]):.2f} for {len(words):,} word embeddings), and the nearest of those words has a median "
        f"cosine of {float(near.amax(dim=-1).median()):.2f} (a word itself would have 1). LLaVA's "
        "was one linear map, LLaVA-1.5's a small MLP; nanoVLM merges neighbouring patches "
        "(pixel shuffle) before its linear map."
    )


def describe_first_stage(shown: ShownPrompt) -> str:
    return (
        f"Stage 1 trains the projector alone: {_share(shown, 'projector')}; image encoder and language model are "
        "frozen. The questions ask for a description and the answer is the image's caption (LLaVA drew them from a "
        "list that GPT-4 had been asked for). In Train, “alignment” does that to this model."
    )


def describe_second_stage(shown: ShownPrompt) -> str:
    return (
        f"Stage 2 unfreezes the language model: {_share(shown, 'projector', 'language model')}, on conversations "
        "(instructions with their answers) instead of captions. In Train, “instruction” goes on where stage 1 ended."
    )


def describe_frozen_encoder(shown: ShownPrompt) -> str:
    return (
        f"In LLaVA's recipe the image encoder is frozen throughout: {_share(shown, 'image encoder')} never change, so "
        "an image's features can be computed once and kept. nanoVLM itself trains all three parts, each with a "
        "learning rate of its own; this app's Train tab has both."
    )


def _share(shown: ShownPrompt, *names: str) -> str:
    count, whole = sum(shown.parts[name] for name in names), sum(shown.parts.values())
    return f"{count:,} of {whole:,} weights ({count / whole:.1%})"


def _next(shown: ShownPrompt) -> int:
    position = shown.inspection.first_answer_position
    return shown.inspection.table.ids[position]
