"""The loss of finished weights on what each stage of a recipe holds out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from accelerate import Accelerator

from model.families.nanovlm import VLM
from model.training.evaluation.held_out import HeldOut
from model.training.recipe import Recipe
from model.training.stage_data import draw_held_out, stage_seed

HEADING = "## What is held out, measured again"


@dataclass(frozen=True)
class StageLoss:
    """``loss``: mean in nats per label over ``examples`` that the stage holds out."""

    stage: str
    examples: int
    loss: float


def measure_stages(vlm: VLM, recipe: Recipe, each: int) -> Iterator[StageLoss]:
    """Of every language stage, up to ``each`` examples, drawn evenly from its sources. Pictures of files are left out:
    finished weights may have been trained on them, whatever is held out today. InputError for data that can't be
    read."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    for index, stage in enumerate(recipe.stages):
        if stage.kind == "contrastive":
            continue
        drawn = [example for example in draw_held_out(recipe, index, vlm.config, each) if not example.source]
        unasked = replace(stage, eval_examples=0)
        loss = HeldOut(vlm, accelerator, unasked, drawn, stage_seed(recipe, index), None).measure(vlm).loss
        if loss is not None:
            yield StageLoss(stage.name, len(drawn), loss)


def write_losses(losses: Sequence[StageLoss], command: str) -> str:
    """A section of the card, in Markdown; ``command`` made it."""
    return "\n".join(
        [
            HEADING,
            "",
            (
                "The column “held out” above and the circles of the curves were taken while these weights were made. "
                "Questions were held out then, not pictures: many a held-out picture had been trained on with another "
                "question. Below are the shipped weights on what the same stages hold out today: scenes of which no "
                "picture is trained on. (easy-VQA's training pictures are left out, for these weights know them all; "
                "its test split is in the table of answers.) What the language stage asked, pictures told in words, is "
                "rehearsed by no later one."
            ),
            "",
            "```",
            command,
            "```",
            "",
            "| stage | examples of drawn scenes | held out, nats |",
            "| --- | ---: | ---: |",
            *(f"| {one.stage} | {one.examples} | {one.loss:.4f} |" for one in losses),
        ]
    )
