"""The row of tokens and the batch: what a notebook prints as input_ids, attention_mask, labels and images."""

from __future__ import annotations

from collections import Counter

from inspector.lessons.shown_prompt import ShownPrompt, count_of, list_of
from model.collator import IGNORE_LABEL

_KINDS = {
    "image": "for images",
    "region": "for tile markers",
    "text": "that a person typed",
    "answer": "of the answer",
    "special": "for special tokens",
    "role": "for role names and line breaks of the template",
    "separator": "for separators",
    "padding": "for padding",
}


def describe_tensors(shown: ShownPrompt) -> str:
    batch = shown.inspection.batch
    shapes = [
        f"{name} {list(tensor.shape)}"
        for name, tensor in (
            ("input_ids", batch.input_ids),
            ("attention_mask", batch.attention_mask),
            ("labels", batch.labels),
            ("images", batch.tiles),
        )
    ]
    return (
        f"This prompt as a batch of one row: {list_of(shapes)}. The first three have one entry per token; images holds "
        "the pixels of all tiles, in the order of their tokens, scaled to what the encoder was trained on."
    )


def describe_input_ids(shown: ShownPrompt) -> str:
    parts = [f"{count:,} {_KINDS[kind]}" for kind, count in shown.kinds.most_common()]
    return (
        f"input_ids are {len(shown.inspection.row):,} numbers, one per token: {list_of(parts)}. Each is a place in the "
        f"vocabulary of {shown.vlm.tokenizer.vocab_size:,}; at image tokens it is a placeholder "
        f"(id {shown.vlm.image_token_id}), and the image's vectors are put there."
    )


def describe_padding(shown: ShownPrompt) -> str:
    batch = shown.padded
    lengths = batch.attention_mask.sum(dim=1).tolist()
    pad = shown.vlm.pad_token_id
    known = f"{shown.token(pad)} (id {pad})"
    if len(lengths) == 1:
        return (
            f"This prompt is one row of {lengths[0]:,} tokens, and a batch of one row needs no padding. Shorter rows "
            f"are filled up on the left: beside a row twice as long, this one would begin with "
            f"{count_of(lengths[0], 'time', 'times')} {known}, 0 in the attention mask, so that nothing sees them."
        )
    width = batch.input_ids.shape[1]
    short = min(range(len(lengths)), key=lambda n: lengths[n])
    end = " — the token that ends a message is the padding token too" if pad in shown.vlm.eos_ids else ""
    return (
        f"The {len(lengths)} samples are {list_of([f'{n:,}' for n in lengths])} tokens long and the batch is {width:,} "
        f"wide: row {short + 1} begins with {count_of(width - lengths[short], 'time', 'times')} {known}{end}. They are "
        "0 in the attention mask, so nothing sees them."
    )


def describe_padding_side(shown: ShownPrompt) -> str:
    lengths = shown.padded.attention_mask.sum(dim=1).tolist()
    rows = f"these {len(lengths)} rows, {list_of([f'{n:,}' for n in lengths])} tokens long, all end"
    if len(lengths) == 1:
        rows = f"this row, {lengths[0]:,} tokens long, ends together with a longer one beside it,"
    return (
        f"The tokenizer says padding_side = “{shown.vlm.tokenizer.padding_side}”, and that is never used here: it only "
        f"makes ids of text. The collator pads afterwards, on the left, so that {rows} where the next token is to come."
    )


def describe_roles(shown: ShownPrompt) -> str:
    names = Counter(mark.name for mark in shown.structure.marks)
    wrote = list_of([f"“{name}” × {count}" for name, count in names.most_common(6)])
    template = shown.kinds["special"] + shown.kinds["role"]
    return (
        f"The chat template wrote {count_of(template, 'token')} around what was typed: {wrote}. They mark whose turn "
        f"it is; a person typed {count_of(shown.kinds['text'], 'token')}."
    )


def describe_turns(shown: ShownPrompt) -> str:
    questions = len(shown.structure.questions)
    turns = "with their answers, one after the other" if questions > 1 else "(“Add turn” asks a further one)"
    return (
        f"This row has {count_of(shown.images, 'image')} and {count_of(questions, 'question')} {turns}. A visual "
        "question answering sample often has one image at its beginning and many questions "
        "about it; each later question also sees the earlier ones and their answers. nanoVLM puts all images of a "
        "sample before its first question."
    )


def describe_labels(shown: ShownPrompt) -> str:
    labels = shown.inspection.batch.labels
    ids = labels[labels != IGNORE_LABEL].tolist()
    trained, named = len(ids), ""
    if len(ids) <= 8:
        named = f" ({list_of([shown.token(token) for token in ids])})"
    return (
        f"labels hold the id where a token is trained on and {IGNORE_LABEL} elsewhere: {trained:,} of "
        f"{labels.numel():,} here, the assistant's words and what ends them{named}. Each is compared with the "
        "prediction of the position before it; that shift happens in the loss and not in the batch."
    )


def describe_attention_mask(shown: ShownPrompt) -> str:
    attended = shown.inspection.row.attention_mask
    padded = shown.padded.attention_mask
    in_batch = f"{int((~padded).sum()):,} of {padded.numel():,} entries when these turns are padded to a batch"
    if len(padded) == 1:
        in_batch = "on padding, which this prompt, one row, doesn't have"
    pad = shown.vlm.pad_token_id
    real = int(((shown.inspection.row.input_ids == pad) & attended).sum())
    return (
        f"attention_mask is 0 where nobody may look: {in_batch}, and "
        f"{int((~attended).sum()):,} of {len(attended):,} in the row as it is. "
        f"{shown.token(pad)} stands {count_of(real, 'time', 'times')} in the row as a real token: there the mask is 1. "
        "Separators between packed samples are masked like padding."
    )
