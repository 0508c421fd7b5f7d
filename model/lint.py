"""What makes training silently wrong, found in a batch before it is trained on."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from model.chat import Conversation, Message
from model.collator import Batch
from model.families.protocol import InspectableVLM
from model.sample import Sample


@dataclass(frozen=True)
class Finding:
    """One thing that a training run would stumble over: ``severity`` is "error", "warning" or "note"."""

    severity: str
    rule: str
    sentence: str


def lint_batch(
    vlm: InspectableVLM, samples: tuple[Sample, ...], batch: Batch, texts: tuple[str, ...] = ()
) -> tuple[Finding, ...]:
    """Looks for what makes training silently wrong. ``texts``: what people typed, searched for special tokens."""
    found: list[Finding] = []
    ends, has_ends = vlm.eos_ids, _writes_ends(vlm)
    if not has_ends and any(span.kind == "answer" for sample in samples for span in sample.spans):
        found.append(
            Finding(
                "note",
                "no-end-token",
                "The chat template writes no end token behind an answer; training has to put "
                f"{vlm.token_text(ends[0])} there, or the model won't learn to stop.",
            )
        )
    for number, sample in enumerate(samples, start=1):
        name = f"Sample {number}"
        count = int(sample.loss_mask.sum())
        if not count:
            found.append(
                Finding(
                    "error",
                    "all-labels-ignored",
                    f"{name} has no label: all {len(sample)} are −100, so it "
                    "teaches nothing (a batch of such samples has loss NaN upstream).",
                )
            )
        for span in sample.spans:
            if span.kind != "answer":
                continue
            if not bool(sample.loss_mask[span.start]):
                found.append(
                    Finding(
                        "error",
                        "first-answer-token",
                        f"{name}: the first token of the answer at position {span.start} has no label.",
                    )
                )
            after = span.stop
            if not has_ends:
                continue
            if after >= len(sample) or int(sample.input_ids[after]) not in ends or not bool(sample.loss_mask[after]):
                found.append(
                    Finding(
                        "error",
                        "last-answer-token",
                        f"{name}: the end token after the answer at position "
                        f"{after} is missing or has no label, so the model won't learn to stop.",
                    )
                )
        sizes = {
            (image, tile): count
            for image, processed in enumerate(sample.images)
            for tile, count in enumerate(vlm.count_tokens(processed))
        }
        expected = sum(sizes.values())
        tokens = int((sample.input_ids == vlm.image_token_id).sum())
        if tokens != expected:
            found.append(
                Finding(
                    "error",
                    "image-token-count",
                    f"{name} has {tokens} image tokens for {expected} features of its tiles.",
                )
            )
        for span in sample.spans:
            whole = sizes.get((span.image or 0, span.tile or 0))
            if span.kind == "image" and len(span) != whole:
                found.append(
                    Finding(
                        "error",
                        "truncated-image",
                        f"{name}: the run of image tokens at position {span.start} has {len(span)} of {whole}.",
                    )
                )
        if sample.images and not any(span.kind in ("text", "answer") for span in sample.spans):
            found.append(Finding("warning", "no-text", f"{name} has images and no text."))
    special = [token for token in vlm.tokenizer.get_added_vocab() if any(token in text for text in texts)]
    if special:
        found.append(
            Finding(
                "note",
                "special-text",
                f"The text holds {', '.join(sorted(special))} as characters; here "
                "they stay plain text, upstream would read them as special tokens.",
            )
        )
    odd = sorted(
        {char for text in texts for char in text if unicodedata.category(char) in ("Cc", "Cf", "Co")} - {"\n", "\t"}
    )
    if odd:
        names = ", ".join(f"U+{ord(char):04X}" for char in odd[:5])
        found.append(Finding("note", "invisible-text", f"The text holds invisible characters ({names})."))
    padded = int((batch.segment_ids == -1).sum())
    if batch.input_ids.numel() and padded > batch.input_ids.numel() / 2:
        share = padded / batch.input_ids.numel()
        found.append(
            Finding(
                "warning",
                "padding",
                f"{share:.0%} of the batch is padding; pack samples, or batch those of similar length.",
            )
        )
    return tuple(found)


def _writes_ends(vlm: InspectableVLM) -> bool:
    """Whether the chat template writes an end token behind an answer that is given."""
    sample = vlm.prepare(Conversation((Message("user", "a"), Message("assistant", "a"))))
    stop = max(span.stop for span in sample.spans if span.kind == "answer")
    return any(token_id in vlm.eos_ids for token_id in sample.input_ids[stop:].tolist())
