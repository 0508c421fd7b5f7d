"""``python -m benchmarks moved-images``: does the verdict follow a picture that is moved to another place?

Prompts of 2 to 4 drawn pictures of different colours. The pictures are put in another order in which the asked one has
another place, and the question names that place. The verdict follows if it names the image of that place. The embedded
model answers such questions rightly in 998 of 1,000 cases, so what is counted here is the instrument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.study import WhichImage, study_answer
from model import VLM, OpenedImage, load_vlm
from model.training.synthetic.scenes import COLOUR_NAMES, SINGLE_TILE, draw, random_scene

PROMPTS = 60
SEED = 13
MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class MovedPrompt:
    """``place`` (from 1): where the asked picture stands now; ``colour``: of its shape, the right answer."""

    prompt: Prompt
    place: int
    colour: str


def draw_prompts(count: int = PROMPTS, seed: int = SEED) -> Iterator[MovedPrompt]:
    """2, 3 and 4 pictures in turn; the asked one never stands where it stood."""
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        n = 2 + number % 3
        colours = [str(colour) for colour in rng.permutation(COLOUR_NAMES)[:n]]
        pictures = [OpenedImage(draw(random_scene(rng, SINGLE_TILE, 1, colour=colour))) for colour in colours]
        asked = int(rng.integers(n))
        place = int((asked + rng.integers(1, n)) % n)
        others = [int(k) for k in rng.permutation([k for k in range(n) if k != asked])]
        order = [*others[:place], asked, *others[place:]]
        word = ("color", "colour")[number % 2]
        question = f"In image {place + 1}, what {word} is the shape?"
        yield MovedPrompt(Prompt(tuple(pictures[k] for k in order), (Turn(question),)), place + 1, colours[asked])


def judge_moved(vlm: VLM, moved: MovedPrompt) -> WhichImage:
    """The study as far as its verdict is final."""
    inspection = ask_and_inspect(vlm, moved.prompt, GenerationSettings(MAX_NEW_TOKENS))
    for found in study_answer(vlm, inspection, max_new_tokens=MAX_NEW_TOKENS):
        if found.step == "swaps":
            return found
    raise AssertionError("the study of an answer has swaps")


def main(repeats: int) -> None:
    vlm = load_vlm("embedded")
    for seed in range(SEED, SEED + max(1, repeats)):
        followed = right = selected = 0
        kinds: Counter[str] = Counter()
        lines = []
        for number, moved in enumerate(draw_prompts(seed=seed)):
            found = judge_moved(vlm, moved)
            assert found.verdict is not None
            assert found.dependence is not None
            kinds[found.verdict.kind] += 1
            right += found.dependence.answer.strip() == moved.colour
            selected += found.verdict.kind == "selected" and found.verdict.image == moved.place
            if found.verdict.image == moved.place:
                followed += 1
            else:
                lines.append(f"  prompt {number}, image {moved.place} ({moved.colour}): {found.verdict.sentence}")
        print(
            f"seed {seed}: the verdict follows the picture in {followed} of {PROMPTS} prompts, “selected” {selected}; "
            f"answers right {right}; {dict(kinds)}"
        )
        print("\n".join(lines))
