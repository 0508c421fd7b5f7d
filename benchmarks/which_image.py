"""``python -m benchmarks which-image``: what the tests of one answer cost, three images and three turns.

The baseline runs one whole hooked forward for each intervention, its image features kept: the same numbers, the plain
way. Random weights: only shapes matter. One prefill is the unit that the whole is quoted in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from PIL import Image

from benchmarks.timing import embedded_tokenizer, measure
from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.prefix_cache import PrefixCache
from inspector.interventions.target import Case, image_keys, is_answered, open_case
from inspector.row.ask import inspect
from inspector.row.embedded_row import reread_row
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.image_effects import measure_dependence, measure_matrix
from inspector.which_image.noise_floor import NOISE_DRAWS
from inspector.which_image.question_contrast import measure_selection
from inspector.which_image.verdict import name_leader
from model import VLM, Cut, OpenedImage, Tap, VLMConfig, load_vlm
from model.masks import build_mask

SHAPE = {
    "vit_hidden_dim": 192,
    "vit_inter_dim": 384,
    "vit_patch_size": 16,
    "vit_img_size": 256,
    "vit_n_heads": 3,
    "vit_n_blocks": 2,
    "lm_hidden_dim": 576,
    "lm_inter_dim": 1536,
    "lm_n_heads": 9,
    "lm_n_kv_heads": 3,
    "lm_n_blocks": 10,
    "mp_pixel_shuffle_factor": 2,
    "mp_image_token_length": 64,
    "max_img_size": 512,
    "resize_to_max_side_len": False,
}
"""nanoVLM 222M's decoder with a third of its layers (the ratio does not depend on how many), a small encoder."""


def open_example() -> Case:
    """Three images of five tiles each, one per turn: a row of more than 1,000 tokens."""
    torch.manual_seed(0)
    template = load_vlm("embedded").config.lm_chat_template
    vlm = VLM(VLMConfig(**SHAPE, lm_chat_template=template), embedded_tokenizer()).eval()
    images = tuple(OpenedImage(Image.effect_noise((512, 512), 40 + n).convert("RGB")) for n in range(3))
    turns = tuple(Turn(f"In image {n}, what colour is the shape?", "red") for n in (1, 2, 3))
    # Answers of a few tokens, as such questions get them: random weights would not stop.
    return open_case(vlm, inspect(vlm, Prompt(images, turns, "per-turn")), max_new_tokens=3)


@torch.no_grad()
def run_naively(case: Case) -> float:
    """As many whole forwards as there are interventions: every set of images (leave-one-out among them), every turn
    without every image that it can see (the last turn's are those of the sets), every draw of the noise floor."""
    sets = 2 ** len(case.reachable)
    questions = [question for question in case.structure.questions if is_answered(question)][:-1]
    cells = sum(len(question.reachable) for question in questions)
    total = 0.0
    for _ in range(sets + cells + NOISE_DRAWS):
        image = case.structure.images[0]
        cut = Cut(range(image.stop, len(case.prefix_cache.row)), image_keys(image))
        total += float(_forward(case, Tap(cuts=(cut,)))[-1].sum())
    return total


def _forward(case: Case, tap: Tap | None) -> torch.Tensor:
    row = case.prefix_cache.row
    mask = build_mask(row.attention_mask[None], None, len(row))
    hidden = case.vlm.decoder(case.prefix_cache.embeds[None], mask, torch.arange(len(row))[None], tap=tap)
    return case.vlm.decoder.head(hidden[0, -8:])


def main(repeats: int) -> None:
    case = open_example()
    tokens = len(case.prefix_cache.row)
    interventions = (
        2 ** len(case.reachable) + sum(len(q.reachable) for q in case.structure.questions[:-1]) + NOISE_DRAWS
    )

    def reread() -> Case:
        return replace(case, prefix_cache=PrefixCache(case.vlm, case.prefix_cache.read_row))

    def ours() -> object:
        fresh = reread()
        ablations = ImageAblations(fresh)
        return measure_dependence(fresh, ablations), measure_matrix(fresh, ablations)

    def naive() -> object:
        return run_naively(case)

    def once() -> object:
        with torch.no_grad():
            return _forward(case, None)

    def panels() -> object:
        fresh = reread()
        ablations = ImageAblations(fresh)
        dependence = measure_dependence(fresh, ablations)
        measure_matrix(fresh, ablations)
        return measure_selection(fresh, name_leader(dependence) or 1, ablations)

    print(f"{tokens:,} tokens, 3 images, 3 turns, {interventions} interventions, {SHAPE['lm_n_blocks']} layers")
    mine, theirs = measure(ours, naive, max(1, repeats // 2))
    print(
        f"dependence and matrix {mine:.2f} s, one forward per intervention {theirs:.2f} s: {theirs / mine:.1f} × faster"
    )
    mine, theirs = measure(panels, once, repeats)
    print(f"dependence, matrix and selection {mine:.2f} s, one prefill {theirs:.2f} s: {mine / theirs:.2f} prefills")
    for name, step in steps(reread()):
        start = time.perf_counter()
        step()
        print(f"  {name:12} {(time.perf_counter() - start) / theirs:.2f} prefills")


def steps(case: Case) -> list[tuple[str, Callable[[], object]]]:
    """The parts of the whole, for a look at where the time goes."""
    ablations = ImageAblations(case)
    return [
        ("reading", lambda: reread_row(case.vlm, case.prefix_cache.read_row, ())),
        ("dependence", lambda: measure_dependence(case, ablations)),
        ("matrix", lambda: measure_matrix(case, ablations)),
        ("selection", lambda: measure_selection(case, 3, ablations)),
    ]
