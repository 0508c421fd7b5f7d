"""``python -m model.training run RECIPE --out RUN``: train by a recipe, go on with a run, look at a recipe's data."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from model.errors import InputError
from model.training.events import DoneEvent, EvalEvent, Event, StartEvent, StepEvent
from model.training.recipe import read_recipe
from model.training.runs import RECIPE
from model.training.teaching import parse_word, teach_word
from model.training.trainer import Trainer


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train by a recipe")
    run.add_argument("recipe", help="a TOML file, or the name of one in model/training/recipes")
    run.add_argument("--out", type=Path, required=True, help="the run's folder")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeat")
    run.add_argument("--resume", action="store_true", help="go on from the folder's last state")
    run.add_argument("--quiet", action="store_true", help="print nothing; metrics.jsonl has everything")
    teach = commands.add_parser("teach", help="teach it the name of one more colour or shape; prints JSON")
    teach.add_argument("word", help="such as purple or star")
    teach.add_argument("--rgb", help="what a colour looks like: 128,0,128 or #800080")
    teach.add_argument("--shape", help="what a shape looks like: star, heart, cross and so on")
    teach.add_argument("--out", type=Path, required=True, help="the run's folder")
    teach.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeat")
    teach.add_argument("--prompts", type=int, default=60, help="held-out prompts of every family")
    return parser


def describe(event: Event) -> str | None:
    """One line for people; None for what they need not see."""
    if isinstance(event, StartEvent):
        trained = ", ".join(f"{size.module} {size.trainable:,} of {size.parameters:,}" for size in event.trainable)
        return f"[{event.stage}] {event.kind}, {event.steps} steps, {event.precision}; trained: {trained}"
    if isinstance(event, StepEvent) and (event.step % 10 == 0 or event.step == event.steps):
        return (f"[{event.stage}] {event.step}/{event.steps} loss {event.loss:.4f} |g| {event.gradient_norm:.2f} "
                f"{event.tokens_per_s:,.0f}/s, {event.eta_s:.0f} s to go")  # fmt: skip
    if isinstance(event, EvalEvent):
        shares = ", ".join(f"{family} {share:.2f}" for family, share in event.accuracy.items())
        return f"[{event.stage}] {event.step} held out: loss {event.loss:.4f}; {shares}"
    if isinstance(event, DoneEvent):
        return f"{event.status}: {event.path}, fingerprint {event.fingerprint[:16]}"
    return None


def run(options: argparse.Namespace) -> None:
    """Trains to the end. InputError for anything that can't be used."""
    if options.resume and (options.out / RECIPE).is_file():
        # The recipe as it was run: a changed file would not go on but begin something else.
        recipe = read_recipe(options.out / RECIPE, options.set)
    else:
        recipe = read_recipe(options.recipe, options.set)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    trainer = Trainer(recipe, options.out, resume=options.resume)
    for event in trainer.run():
        line = describe(event)
        if line and trainer.is_main and not options.quiet:
            print(line, flush=True)


def teach(options: argparse.Namespace) -> None:
    """Trains a word and prints what that did as JSON; progress goes to stderr. InputError as :func:`run`."""
    spec = parse_word(options.word, options.rgb, options.shape)
    for event in teach_word(spec, options.out, options.set, options.prompts):
        if isinstance(event, dict):
            print(json.dumps(event, indent=2, ensure_ascii=False))
        elif line := describe(event):
            print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        {"run": run, "teach": teach}[options.command](options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
