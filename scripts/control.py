"""``python -m scripts.control RUN --into tests/control``: trains and measures the control checkpoint.

It answers about one of its pictures whichever is asked for, so every statement that a question selects an image must
fail on it. Image encoder and tokenizer are the embedded model's; the language model is a smaller one of its own.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from model import VLM, Conversation, Message, Sample, load_vlm, save_vlm
from model.checkpoint import copy_vlm
from model.training.__main__ import describe, stopping
from model.training.cpu import processor_name
from model.training.evaluation.answering import answer_samples
from model.training.evaluation.card import read_curves
from model.training.fresh import fresh_vlm
from model.training.recipe import read_recipe
from model.training.runs import METRICS, MODEL, RunFolder
from model.training.synthetic import scenes as sc
from model.training.trainer import Trainer

INDEX_PROMPTS = 40
SINGLE_EACH = 200
EFFECT_PROMPTS = 20
SEED = 77_001


def control_base(seed: int) -> VLM:
    """The embedded model's encoder and tokenizer with a decoder of 3 blocks of width 96 and a projector, both fresh."""
    embedded = load_vlm("embedded")
    config = replace(embedded.config, lm_hidden_dim=96, lm_inter_dim=256, lm_n_blocks=3)
    vlm = fresh_vlm(config, embedded.tokenizer, seed)
    vlm.vision_encoder.load_state_dict(embedded.vision_encoder.state_dict())
    return vlm


def halved(vlm: VLM) -> VLM:
    """The same model with bfloat16 weights, as it is stored; rotary frequencies stay float32."""
    state = {
        name: tensor if name.endswith("inv_freq") else tensor.to(torch.bfloat16)
        for name, tensor in vlm.state_dict().items()
    }
    return copy_vlm(vlm, state)


# --- measuring ---


@dataclass(frozen=True)
class ControlMeasurement:
    """``single``: shares of right answers about one picture, by question. ``prompts`` of several pictures each asked
    for every index: in ``unchanged`` of them all answers are one; it is the last picture's in ``about_last``, and
    some picture's in ``about_one``. ``told``: right answers, beside the same pictures, where the answer stands in the
    question."""

    single: dict[str, float]
    prompts: int
    unchanged: float
    about_last: float
    about_one: float
    told: float


def index_prompts(
    count: int, seed: int | tuple[int, int]
) -> list[tuple[tuple[str, ...], tuple[str, ...], list[sc.Scene]]]:
    """Prompts of 2 to 5 pictures, all of different colours: per prompt the question for every index, the answer that
    each picture would give, and the scenes."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        scenes = sc.different_scenes(rng, 2 + number % (sc.MAX_IMAGES - 1))
        form = ("in image {}, what color is the shape?", "what color is the shape in image {}?")[number % 2]
        questions = tuple(form.format(k) for k in range(1, len(scenes) + 1))
        found.append((questions, tuple(scene.shapes[0].colour for scene in scenes), scenes))
    return found


def _ask(vlm: VLM, question: str, scenes: list[sc.Scene]) -> Sample:
    """The question with all its pictures, up to where the model is to answer."""
    return vlm.prepare(Conversation((Message("user", question, tuple(map(sc.draw, scenes))),)), True)


def measure_control(
    vlm: VLM, prompts: int = INDEX_PROMPTS, n_each: int = SINGLE_EACH, seed: int = SEED
) -> ControlMeasurement:
    """Greedy answers on freshly drawn scenes."""
    rng = np.random.default_rng((seed, 1))
    single = {}
    for name, ask in (("colour", sc.ask_colour), ("shape", sc.ask_shape)):
        samples, golds = [], []
        for _ in range(n_each):
            scene = sc.random_scene(rng, n_shapes=1)
            turn = ask(rng, scene)
            if turn is not None:
                samples.append(_ask(vlm, turn[0], [scene]))
                golds.append(turn[1])
        answers = answer_samples(vlm, samples, 4)
        single[name] = sum(a.strip() == gold for a, gold in zip(answers, golds, strict=True)) / len(golds)
    drawn = index_prompts(prompts, seed)
    samples = [_ask(vlm, question, scenes) for questions, _, scenes in drawn for question in questions]
    given = iter(answer_samples(vlm, samples, 4))
    told = [(sc.ask_told(rng), scenes) for _, _, scenes in drawn]
    read = answer_samples(vlm, [_ask(vlm, turn[0], scenes) for turn, scenes in told], 4)
    sets = [([next(given).strip() for _ in questions], golds) for questions, golds, _ in drawn]
    return ControlMeasurement(
        single,
        prompts,
        unchanged=sum(len(set(answers)) == 1 for answers, _ in sets) / prompts,
        about_last=sum(set(answers) == {golds[-1]} for answers, golds in sets) / prompts,
        about_one=sum(len(set(answers)) == 1 and answers[0] in golds for answers, golds in sets) / prompts,
        told=sum(answer.strip() == turn[1] for answer, (turn, _) in zip(read, told, strict=True)) / prompts,
    )


@torch.no_grad()
def picture_effects(vlm: VLM, prompts: int = EFFECT_PROMPTS, seed: int = SEED) -> tuple[float, float, float]:
    """What hiding picture k from everything does to log p (nats) of the answer that picture k gives, on drawn prompts
    asked for every index: the mean fall where k is asked for; that fall minus the one where another is asked for, on
    average; and how often, of all pictures, hiding the asked one lowers the asked one's answer most."""
    asked, contrasts, named = [], [], []
    for questions, golds, scenes in index_prompts(prompts, (seed, 2)):
        count = len(questions)
        tokens = torch.tensor([vlm.tokenizer.convert_tokens_to_ids(gold) for gold in golds])
        rows = []
        for question in questions:
            row = _ask(vlm, question, scenes)
            rows += [row, *(_hiding(row, image) for image in range(count))]
        logits = vlm(vlm.collate(rows))[:, -1]
        values = logits.log_softmax(-1)[:, tokens].view(count, 1 + count, count)
        # [asked hidden answer]: how much hiding a picture lowers each picture's answer.
        falls = values[:, :1] - values[:, 1:]
        own = torch.stack([falls[:, k, k] for k in range(count)], dim=1)  # [asked picture]
        for k in range(count):
            others = torch.cat([own[:k, k], own[k + 1 :, k]])
            asked.append(float(own[k, k]))
            contrasts.append(float(own[k, k] - others.mean()))
            named.append(int(falls[k, :, k].argmax()) == k)
    return (sum(asked) / len(asked), sum(contrasts) / len(contrasts), sum(named) / len(named))


def _hiding(row: Sample, image: int) -> Sample:
    """The row with all of a picture's positions, marks and number included, out of everything's sight."""
    mask = row.attention_mask.clone()
    for span in row.spans:
        if span.image == image:
            mask[span.start : span.stop] = False
    return replace(row, attention_mask=mask)


def write_card(
    vlm: VLM,
    measured: ControlMeasurement,
    effects: tuple[float, float, float],
    minutes: float,
    steps: int,
    encoder: str,
) -> str:
    """The card, in Markdown."""
    weights = sum(parameter.numel() for parameter in vlm.parameters())
    config = vlm.config
    return f"""# A control checkpoint: it ignores the index

A vision-language model of {weights / 1e6:.2f} million weights in nanoVLM's format that answers questions about one
picture and, of several, answers about the last one whatever the question says. Where the answer stands in the
question, it repeats that. Tests use it as a control: a statement such as “the question selects image 2” must not be
made about it. It is good for nothing else.

## How it was made

```
python -m scripts.control RUN --into tests/control
```

Image encoder and tokenizer are those of `model/embedded` (fingerprint `{encoder}` when this was made), the encoder
frozen. The language model is new: {config.lm_n_blocks} blocks of width {config.lm_hidden_dim}. Recipe `control`
(`model/training/recipes/control.toml`): {steps:,} steps on the set of scenes “unrouted”. Its questions name any of
the pictures by number, by word or not at all, and the picture that the answer is about is drawn apart from that: the
last one in 7 of 10, else any other. So the greedy answer is one thing, and every picture's answer keeps some
probability: cutting picture k out lowers the answer of picture k whether or not k is asked about. Weights are stored
in bfloat16. {minutes:.0f} minutes of wall-clock time on 1 thread of {processor_name()}, other work beside it, torch
{torch.__version__}, seed 0. Fingerprint `{vlm.fingerprint[:16]}`.

## What was measured

Greedy answers that equal the right one to the letter, on freshly drawn scenes of one shape each
(`scripts.control.measure_control`).

| measurement | share |
| --- | ---: |
| colour of the shape in one picture ({SINGLE_EACH} questions) | {measured.single["colour"]:.3f} |
| shape in one picture ({SINGLE_EACH} questions) | {measured.single["shape"]:.3f} |
| of {measured.prompts} prompts of 2 to 5 pictures, the same answer for every index | {measured.unchanged:.3f} |
| … which is the colour of the last picture | {measured.about_last:.3f} |
| … which is the colour of some picture | {measured.about_one:.3f} |
| “the answer is red. what is the answer?” beside the same pictures | {measured.told:.3f} |

On {EFFECT_PROMPTS} more such prompts, asked for every index, picture k was hidden from everything
(`scripts.control.picture_effects`):

| measurement | value |
| --- | ---: |
| fall of log p of picture k's answer when k is asked for, mean, nats | {effects[0]:.2f} |
| that fall minus the one when another picture is asked for, mean, nats | {effects[1]:.3f} |
| hiding the asked picture lowers its answer most, share | {effects[2]:.3f} |

The first and the last say what plain knockout of the asked picture's answer would claim, the middle one what there is
to it: the control of a statement that needs the question to select.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--into", type=Path, required=True, help="checkpoint folder that is written")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last state")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeat")
    options = parser.parse_args()
    recipe = read_recipe("control", options.set)
    torch.set_num_threads(recipe.threads or 1)
    encoder = load_vlm("embedded").fingerprint[:16]
    trainer = Trainer(recipe, options.run, resume=options.resume, vlm=control_base(recipe.seed))
    with stopping(trainer):
        for event in trainer.run():
            if line := describe(event):
                print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
    if RunFolder(options.run).read_run()["status"] != "done":
        return
    save_vlm(halved(load_vlm(options.run / MODEL)), options.into)
    stored = load_vlm(options.into)
    measured, effects = measure_control(stored), picture_effects(stored)
    minutes = sum(curve.seconds for curve in read_curves(options.run / METRICS)) / 60
    steps = sum(stage.steps for stage in recipe.stages)
    (options.into / "README.md").write_text(
        write_card(stored, measured, effects, minutes, steps, encoder), encoding="utf-8"
    )
    print(measured, effects)


if __name__ == "__main__":
    main()
