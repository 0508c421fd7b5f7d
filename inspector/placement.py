"""The options that say where and in which numbers models are computed: the same for every command and for the app."""

from __future__ import annotations

import argparse


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``, ``--dtype`` and ``--quantize``. What they are given is looked at by :mod:`model.devices`,
    which says in one sentence what is wrong."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="D",
        help="auto, cpu, cuda, cuda:N, mps, or balanced: over all GPUs (default: auto)",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="T",
        help="auto, float32, bfloat16 or float16 (default: auto, float32 on the CPU and else the checkpoint's own)",
    )
    parser.add_argument("--quantize", metavar="BITS", help="4bit or 8bit: on CUDA, with the package bitsandbytes")
