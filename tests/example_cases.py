"""Answers to study, from the app's examples, and the long road to their log p: the whole row in one pass."""

from collections.abc import Iterable

import torch

from inspector.interventions.target import Case, open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.image_effects import Dependence
from model import VLM, Cut, OpenedImage, Tap
from model.training.synthetic.examples import EXAMPLES


def example_prompt(name: str, **options: object) -> Prompt:
    """``options`` replace fields of the prompt."""
    example = next(example for example in EXAMPLES if example.name == name)
    images = tuple(OpenedImage(image) for image in example.draw_images())
    fields = {"images": images, "turns": tuple(Turn(text) for text in example.turns), "layout": example.layout}
    return Prompt(**{**fields, **options})


def example_case(vlm: VLM, name: str, turn: int | None = None, **options: object) -> Case:
    return open_case(vlm, ask_and_inspect(vlm, example_prompt(name, **options), GenerationSettings()), turn)


def made_up(*shapley: float, logprob: float = -0.1, floor: float = 0.1, interaction: float = 0.0) -> Dependence:
    """Of the answer “red”: every measure of an image is its Shapley value."""
    pairs = tuple(tuple(0.0 if a == b else interaction for b in range(len(shapley))) for a in range(len(shapley)))
    total, noise = logprob - sum(shapley), (floor, 24, 17, 32)
    return Dependence("red", 1, logprob, total, shapley, None, shapley, shapley, pairs, *noise)


@torch.no_grad()
def whole_row(case: Case, cuts: Iterable[Cut] = ()) -> float:
    """log p of the answer in one pass over the whole row, its edges cut by a tap."""
    batch = case.vlm.collate([case.prefix_cache.row], document_mask=case.prefix_cache.document_mask)
    logprobs = case.vlm(batch, Tap(cuts=tuple(cuts)))[0].log_softmax(dim=-1)
    return sum(logprobs[p - 1, case.prefix_cache.ids[p]].item() for p in range(*case.target.scored))
