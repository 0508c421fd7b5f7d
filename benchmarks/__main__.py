"""``python -m benchmarks``: times and memory as ratios against a stated baseline of the same run.

model        prefill and decode against transformers' modules; a read-out of attention against a plain forward
which-image  the dependence of an answer against one whole hooked forward per intervention
training     a training step against a plain loop
page         how soon the page is usable and answers
memory       what images leave behind in a session and take while they are opened, against keeping their pixels
"""

from __future__ import annotations

import argparse
import importlib

import torch

PARTS = ("model", "which-image", "training", "page", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, default="model")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    importlib.import_module(f"benchmarks.{options.part.replace('-', '_')}").main(options.repeats)


if __name__ == "__main__":
    main()
