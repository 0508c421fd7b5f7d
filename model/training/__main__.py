"""``python -m model.training run RECIPE --out RUN``: train by a recipe, go on with a run, look at a recipe's data."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load_nanovlm, load_vlm, save_vlm
from model.devices import add_placement
from model.encoders.text_tower import WEIGHTS as TOWER_WEIGHTS
from model.encoders.text_tower import copy_tower, find_tower
from model.errors import InputError
from model.families.nanovlm import VLM
from model.training.assembly import open_base
from model.training.cpu import bound_memory
from model.training.evaluation.accuracy import measure
from model.training.evaluation.card import CURVES, compare_freezing, curves_json, draw_curves, read_curves, write_card
from model.training.evaluation.stage_losses import measure_stages, write_losses
from model.training.evaluation.text_tower import measure_tower, put_section, write_section
from model.training.events import DoneEvent, EvalEvent, Event, StartEvent, StepEvent
from model.training.memory_estimate import draw_step, estimate_stage
from model.training.recipe import read_recipe
from model.training.runs import METRICS, MODEL, RECIPE, TOWER, RunFolder, write_text
from model.training.stage_data import open_stage_data, report_stage
from model.training.synthetic.teaching import teach_word
from model.training.synthetic.word import parse_word
from model.training.trainer import Trainer
from model.training.tuned import TunedVLM


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train by a recipe")
    run.add_argument(
        "recipe",
        nargs="?",
        help="a TOML file, or the name of one in model/training/recipes; with --resume the run's own",
    )
    run.add_argument("--out", type=Path, required=True, help="the run's folder")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeat")
    run.add_argument("--resume", action="store_true", help="go on from the folder's last state")
    run.add_argument(
        "--keep-request",
        action="store_true",
        help="with --resume: follow what the folder's control file asks for already; without it that is forgotten",
    )
    run.add_argument("--quiet", action="store_true", help="print nothing; metrics.jsonl has everything")
    check = commands.add_parser("check", help="look at a recipe's data before training on them; prints JSON")
    check.add_argument("recipe", help="a TOML file, or the name of one in model/training/recipes")
    check.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeat")
    check.add_argument("--sample", type=int, default=1000, metavar="N", help="examples of each source (0: all)")
    teach = commands.add_parser("teach", help="teach it the name of one more colour or shape; prints JSON")
    teach.add_argument("word", help="such as purple or star")
    teach.add_argument("--rgb", help="what a colour looks like: 128,0,128 or #800080")
    teach.add_argument("--shape", help="what a shape looks like: star, heart, cross and so on")
    teach.add_argument("--out", type=Path, required=True, help="the run's folder")
    teach.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeat")
    teach.add_argument("--prompts", type=int, default=60, help="held-out prompts of every family")
    evaluate = commands.add_parser("evaluate", help="accuracy per family of questions, as JSON; models of small scenes")
    evaluate.add_argument("model", help="“embedded”, a checkpoint folder, or a hub id")
    add_placement(evaluate, quantize=False)
    card = commands.add_parser("card", help="measure a run's model and put it, with its card, into a folder")
    card.add_argument("run", type=Path, help="the run's folder")
    card.add_argument("--into", type=Path, required=True, help="checkpoint folder that is written")
    card.add_argument(
        "--freezing",
        type=Path,
        nargs=2,
        metavar=("FROZEN", "TRAINED"),
        help="the folders of two runs of the recipe “freezing”, for a section of the card",
    )
    card.add_argument("--note", action="append", default=[], metavar="TEXT", help="a paragraph for the card; repeat")
    tower = commands.add_parser("tower", help="measure a run's text tower and put it beside a checkpoint, on its card")
    tower.add_argument("run", type=Path, help="the folder of a run whose last stage is contrastive")
    tower.add_argument("--into", type=Path, required=True, help="folder of a checkpoint with the same image encoder")
    losses = commands.add_parser("losses", help="a model's loss on what each stage of a recipe holds out, as JSON")
    losses.add_argument("recipe", help="a TOML file, or the name of one in model/training/recipes")
    losses.add_argument("--model", default="embedded", help="“embedded”, a checkpoint folder, or a hub id")
    losses.add_argument("--each", type=int, default=400, metavar="N", help="examples of each stage")
    losses.add_argument("--into", type=Path, help="checkpoint folder on whose card it is written")
    for command in (evaluate, card):
        command.add_argument("--easy-limit", type=int, default=0, metavar="N", help="easy-VQA test pictures (0: all)")
        command.add_argument("--each", type=int, default=200, metavar="N", help="questions per family of scenes")
    return parser


def describe(event: Event) -> str | None:
    """One line for people; None for what they need not see."""
    if isinstance(event, StartEvent):
        trained = ", ".join(f"{size.module} {size.trainable:,} of {size.parameters:,}" for size in event.trainable)
        return f"[{event.stage}] {event.kind}, {event.steps} steps, {event.precision}; trained: {trained}"
    if isinstance(event, StepEvent) and (event.step % 10 == 0 or event.step == event.steps):
        return (
            f"[{event.stage}] {event.step}/{event.steps} loss {event.loss:.4f} |g| {event.gradient_norm:.2f} "
            f"{event.tokens_per_s:,.0f}/s, {event.waited_s:.2f} s for its rows, {event.eta_s:.0f} s to go"
        )
    if isinstance(event, EvalEvent):
        shares = ", ".join(f"{family} {share:.2f}" for family, share in event.accuracy.items())
        if not math.isfinite(event.loss):
            return f"[{event.stage}] {event.step} held out: nothing to measure on"
        return f"[{event.stage}] {event.step} held out: loss {event.loss:.4f}; {shares}"
    if isinstance(event, DoneEvent):
        return f"{event.status}: {event.path}, fingerprint {event.fingerprint[:16]}"
    return None


def run(options: argparse.Namespace) -> None:
    """Trains to the end. Ctrl-C and SIGTERM save, keep and end it after the step it is in; the second Ctrl-C at once.
    InputError for anything that can't be used."""
    if options.resume:
        # The recipe as it was run: a changed file would not go on but begin something else.
        recipe = read_recipe(options.out / RECIPE, options.set)
    elif options.recipe is None:
        raise InputError("Name a recipe to run, or add --resume to go on with the run in the folder.")
    else:
        recipe = read_recipe(options.recipe, options.set)
    bound_memory()
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    trainer = Trainer(recipe, options.out, resume=options.resume, keep_request=options.keep_request)
    with stopping(trainer):
        for event in trainer.run():
            line = describe(event)
            if line and trainer.is_main and not options.quiet:
                print(line, flush=True)
    if trainer.is_main and not options.quiet:
        print("\n".join(trainer.describe_data()), flush=True)


@contextlib.contextmanager
def stopping(trainer: Trainer) -> Iterator[None]:
    """Signals that ask a program to end ask the trainer to stop, the first time."""

    def ask(number: int, frame: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        trainer.stop()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check(options: argparse.Namespace) -> None:
    """Prints, for every stage and each of its sources, a report of the data, and under “memory” what each stage will
    take, in bytes. InputError as :func:`run`."""
    recipe = read_recipe(options.recipe, options.set)
    base = open_base(recipe)
    vlm = base.opened if isinstance(base, TunedVLM) else base
    found: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    for index, stage in enumerate(recipe.stages):
        reports = report_stage(vlm, recipe, index, options.sample)
        found[stage.name] = [report if isinstance(report, dict) else report.to_json() for report in reports]
        data = open_stage_data(recipe, index, vlm.config if isinstance(vlm, VLM) else None)
        memory[stage.name] = estimate_stage(base, recipe, index, data, draw_step(vlm, recipe, index, data)).to_json()
    print(json.dumps({**found, "memory": memory}, indent=2, ensure_ascii=False))


def teach(options: argparse.Namespace) -> None:
    """Trains a word and prints what that did as JSON; progress goes to stderr. InputError as :func:`run`."""
    spec = parse_word(options.word, options.rgb, options.shape)
    for event in teach_word(spec, options.out, options.set, options.prompts):
        if isinstance(event, dict):
            print(json.dumps(event, indent=2, ensure_ascii=False))
        elif line := describe(event):
            print(line, file=sys.stderr, flush=True)


def evaluate(options: argparse.Namespace) -> None:
    """Prints the measurement of a model as JSON. InputError for a broken checkpoint."""
    measured = measure(
        load_vlm(options.model, device=options.device, dtype=options.dtype),
        easy_limit=options.easy_limit,
        n_each=options.each,
    )
    print(json.dumps(measured.to_json(), ensure_ascii=False))


def make_card(options: argparse.Namespace) -> None:
    """Measures the model of a run and writes checkpoint, card, loss curves and recipe into a folder."""
    vlm = load_nanovlm(options.run / MODEL)
    recipe = read_recipe(options.run / RECIPE)
    curves = read_curves(options.run / METRICS)
    freezing = compare_freezing(*options.freezing) if options.freezing else ""
    measured = measure(vlm, easy_limit=options.easy_limit, n_each=options.each)
    made = f"python -m model.training card RUN --into model/embedded --each {options.each}"
    made += f" --easy-limit {options.easy_limit}" if options.easy_limit else ""
    made += " --freezing FROZEN TRAINED" if options.freezing else ""
    commands = (str(RunFolder(options.run).read_run()["command"]), made)
    save_vlm(vlm, options.into)
    write_text(options.into / "curves.svg", draw_curves(curves))
    write_text(options.into / CURVES, curves_json(curves))
    write_text(options.into / "README.md", write_card(vlm, recipe, commands, curves, measured, freezing, options.note))
    for goal, reached in measured.goals():
        print(f"{goal.name:40} {reached:.3f}  wanted {goal.accuracy:.2f}")


def keep_tower(options: argparse.Namespace) -> None:
    """Copies a run's text tower beside a checkpoint and writes on its card how well it does. InputError where the tower
    belongs to another image encoder."""
    vlm = load_nanovlm(options.into)
    copy_tower(options.run / TOWER, vlm, options.into)
    dual = find_tower(vlm)
    if dual is None:
        raise InputError(
            f"The text tower in {options.run} was trained with another image encoder than the one in {options.into}; "
            "name the checkpoint that the run began from."
        )
    scores = measure_tower(vlm, dual)
    command = str(RunFolder(options.run).read_run()["command"]).replace(str(options.run), "RUN")
    made = (command, f"python -m model.training tower RUN --into {options.into}")
    nbytes = (options.into / TOWER_WEIGHTS).stat().st_size
    section = write_section(scores, read_curves(options.run / METRICS)[-1], made, nbytes)
    card = options.into / "README.md"
    write_text(card, put_section(card.read_text(encoding="utf-8"), section))
    for score in scores:
        print(f"{score.name:60} {score.accuracy:.3f}" + (f"  wanted {score.wanted:.2f}" if score.wanted else ""))


def measure_losses(options: argparse.Namespace) -> None:
    """Prints the losses and puts them on a card. InputError for anything that can't be used."""
    found = list(measure_stages(load_nanovlm(options.model), read_recipe(options.recipe), options.each))
    print(json.dumps([vars(one) for one in found], indent=1, ensure_ascii=False))
    if options.into is not None:
        command = f"python -m model.training losses {options.recipe} --each {options.each} --into {options.into}"
        card = options.into / "README.md"
        write_text(card, put_section(card.read_text(encoding="utf-8"), write_losses(found, command)))


COMMANDS = {
    "run": run,
    "check": check,
    "teach": teach,
    "evaluate": evaluate,
    "card": make_card,
    "tower": keep_tower,
    "losses": measure_losses,
}


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        COMMANDS[options.command](options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
