"""``python -m benchmarks``: times and memory as ratios against a stated baseline of the same run.

model        prefill and decode against transformers' modules; a read-out of attention against a plain forward
sides        who reads a token, and a stretch of tokens, against the plain pass at 4,096 tokens
which-image  the dependence of an answer against one whole hooked forward per intervention
moved-images does the verdict follow a picture that is moved to another place, in 60 drawn prompts
words        are a drawn shape's own colour and kind among the words on its patches, by layer
families     a read-out of transformers' models against SDPA and eager attention; which-image on one of them
precision    errors of the self-checks in float32, bfloat16 and float16, and what these take on this CPU
training     a training step against a plain loop
upstream     a training step against nanoVLM's own, of a clone that --repository names
run-memory   what nine runs take at most, against what was estimated before
page         how soon the page is usable and answers
turns        how long one person waits for others on a public server
uploads      how long others wait while somebody uploads 150 MB of JSON
memory       what images leave behind in a session and take while they are opened, against keeping their pixels
pages        what two hundred pages leave behind that were opened, asked and closed
limits       memory of a public server with as much as possible at its limit, beside what the bounds add up to
soak         a public server under many people for half an hour (exit status 1 if it gets slow, fails or grows)
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch

PARTS = (
    "model",
    "scale",
    "sides",
    "which-image",
    "moved-images",
    "words",
    "families",
    "precision",
    "training",
    "upstream",
    "run-memory",
    "page",
    "turns",
    "uploads",
    "memory",
    "pages",
    "limits",
    "soak",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, default="model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=30, help="of the soak")
    parser.add_argument("--clients", type=int, default=20, help="of the soak")
    parser.add_argument("--layers", type=int, default=2, help="of the families' models; 0: as many as fit in memory")
    parser.add_argument("--tokens", type=int, nargs="+", help="of the families' rows, instead of 1,000 and 4,096")
    parser.add_argument("--repository", type=Path, help="of upstream: a clone of nanoVLM")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if options.part == "soak":
        sys.exit(0 if importlib.import_module("benchmarks.soak").soak(options.minutes, options.clients) else 1)
    if options.part == "families":
        part = importlib.import_module("benchmarks.families")
        part.main(options.repeats, options.layers, options.tokens or part.TOKENS)
        return
    if options.part == "upstream":
        if options.repository is None:
            parser.error("upstream needs --repository, a folder with a clone of nanoVLM")
        importlib.import_module("benchmarks.upstream").main(options.repeats, options.repository)
        return
    importlib.import_module(f"benchmarks.{options.part.replace('-', '_')}").main(options.repeats)


if __name__ == "__main__":
    main()
