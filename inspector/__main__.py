"""The same facts without a browser: ``python -m inspector inspect --image A.png --ask "What colour?" --json -``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from inspector.analysis.inspection import GenerationSettings, ask_and_inspect, attend, describe
from inspector.analysis.prompt import LAYOUTS, Prompt, Turn
from model import InputError, load_vlm, open_image


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inspector", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="ask, and print everything the model saw")
    inspect.add_argument("--model", default="embedded", help="“embedded”, a checkpoint folder, or a hub id")
    inspect.add_argument("--image", action="append", default=[], metavar="FILE", help="repeat for several images")
    inspect.add_argument("--ask", action="append", required=True, metavar="TEXT", help="repeat for several turns")
    inspect.add_argument("--layout", choices=LAYOUTS, default="images-first")
    inspect.add_argument("--document-mask", action="store_true", help="packed samples can't see one another")
    inspect.add_argument("--max-new-tokens", type=int, default=32)
    inspect.add_argument("--temperature", type=float, default=0.0)
    inspect.add_argument("--top-k", type=int, default=0)
    inspect.add_argument("--top-p", type=float, default=1.0)
    inspect.add_argument("--seed", type=int, default=0)
    inspect.add_argument(
        "--position", type=int,
        help="row whose attention is read (default: the one whose output chose the answer's first token)",
    )  # fmt: skip
    inspect.add_argument("--json", default="-", metavar="FILE", help="where to write, - for standard output")
    return parser


def run_inspect(options: argparse.Namespace) -> dict:
    """The facts of one prompt; InputError for anything that can't be used."""
    settings = GenerationSettings(
        options.max_new_tokens, options.temperature, options.top_k, options.top_p, options.seed
    )
    images = tuple(open_image(path) for path in options.image)
    turns = tuple(Turn(text) for text in options.ask)
    prompt = Prompt(images, turns, options.layout, options.document_mask)
    vlm = load_vlm(options.model)
    inspection = ask_and_inspect(vlm, prompt, settings)
    first = inspection.row_that_chose(inspection.first_answer_position)
    position = first if options.position is None else options.position
    if not 0 <= position < len(inspection.row):
        raise InputError(f"--position is {position}; the row has the positions 0 to {len(inspection.row) - 1}.")
    return describe(vlm, inspection, attend(vlm, inspection, position))


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING)
    options = build_parser().parse_args(arguments)
    try:
        text = json.dumps(run_inspect(options), ensure_ascii=False, indent=None)
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
    except InputError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{options.json} can't be written ({error.strerror}); name another file.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
