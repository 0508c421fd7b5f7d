"""Where a model computes, and in which numbers: words of a command line made into torch's, or refused in a sentence.

    device   auto (CUDA if there is one, else Apple's MPS, else the CPU), cpu, cuda, cuda:N, mps, balanced
    dtype    auto, float32, bfloat16, float16

``auto`` numbers are float32 on the CPU and elsewhere what the checkpoint is stored in. On a CPU, identities that must
hold fail by thousands of times as much in bfloat16, and a small model is no quicker for it; large products are, where
the CPU has instructions for them (AVX-512 BF16, AMX). ``python -m benchmarks precision`` measures both on the machine
at hand.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from model.errors import InputError
from model.values import name_value

BALANCED = "balanced"
"""Over all CUDA devices, layer by layer, by accelerate."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTISATIONS = {"4bit": 0.5, "8bit": 1.0}
"""Bytes of a quantised weight, without the scales beside them."""


@dataclass(frozen=True)
class Placement:
    """``device``: the one that the model's inputs are on. ``balanced``: its layers are spread over all CUDA devices.
    ``quantize``: None, or one of :data:`QUANTISATIONS`, for the language model's weights."""

    device: torch.device
    dtype: torch.dtype
    balanced: bool = False
    quantize: str | None = None

    @property
    def device_name(self) -> str:
        return BALANCED if self.balanced else str(self.device)

    @property
    def dtype_name(self) -> str:
        return self.quantize or str(self.dtype).removeprefix("torch.")

    @property
    def bytes_per_weight(self) -> float:
        return QUANTISATIONS.get(self.quantize or "", self.dtype.itemsize)


def place(
    device: torch.device | str,
    dtype: torch.dtype | str,
    stored: Mapping[torch.dtype, int],
    quantize: str | None = None,
) -> Placement:
    """Where and how a checkpoint is to be computed; ``stored``: the bytes of its weights by their type. InputError for
    a word that isn't known, and for a device that isn't there."""
    found = choose_device(device)
    if quantize is not None:
        _check_quantize(quantize, found)
    return Placement(found, choose_dtype(dtype, found, stored), device == BALANCED, quantize)


def choose_device(device: torch.device | str) -> torch.device:
    """InputError as for :func:`place`."""
    if isinstance(device, torch.device):
        device = str(device)
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|mps|balanced|cuda(:\d{1,3})?", device):
        raise InputError(f"The device is {name_value(device)}; it must be auto, cpu, cuda, cuda:N, mps or {BALANCED}.")
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    wanted = "cuda" if device == BALANCED else device
    there = list_devices()
    if wanted not in there:
        need = f"{device} needs CUDA" if device == BALANCED else f"There is no device {device} here"
        raise InputError(f"{need}; there is {', '.join(there)}.")
    return torch.device(wanted)


def list_devices() -> tuple[str, ...]:
    """The devices of this machine, as they may be asked for."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return tuple(found)


def choose_dtype(dtype: torch.dtype | str, device: torch.device, stored: Mapping[torch.dtype, int]) -> torch.dtype:
    """InputError as for :func:`place`."""
    if isinstance(dtype, torch.dtype):
        if dtype not in DTYPES.values():
            raise InputError(f"Nothing is computed in {dtype} here; choose {', '.join(DTYPES)} or auto.")
        return dtype
    if dtype != "auto":
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise InputError(f"The dtype is {name_value(dtype)}; it must be auto, {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    if device.type == "cpu":
        return torch.float32
    own = max(stored, key=lambda kind: stored[kind], default=torch.float32)
    if own not in DTYPES.values():  # eight-bit floats, say, in which nothing is added up
        own = torch.bfloat16
    return torch.float16 if own == torch.bfloat16 and not _knows_bfloat16(device) else own


def describe_placement(model: nn.Module, dtype: torch.dtype) -> str:
    """“float32 · cpu”: the numbers that a model computes in and where its weights are, read off these themselves."""
    weights = list(model.parameters())
    packed = next((f"{bits} of " for bits, kinds in _PACKED if any(w.dtype in kinds for w in weights)), "")
    devices = dict.fromkeys(str(weight.device) for weight in weights)
    return f"{packed}{str(dtype).removeprefix('torch.')} · {', '.join(sorted(devices))}"


_PACKED = (("4bit", (torch.uint8,)), ("8bit", (torch.int8,)))


def _knows_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _check_quantize(quantize: str, device: torch.device) -> None:
    if quantize not in QUANTISATIONS:
        raise InputError(f"The quantisation is {name_value(quantize)}; it must be {' or '.join(QUANTISATIONS)}.")
    if device.type != "cuda":
        raise InputError(
            f"Weights are quantised ({quantize}) on a CUDA device alone, and this is {device.type}; leave --quantize "
            "out."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"Weights are quantised ({quantize}) by the package bitsandbytes, which isn't installed; install it or "
            "leave --quantize out."
        )


def add_placement(parser: argparse.ArgumentParser, *, quantize: bool = True) -> None:
    """Adds the options of :func:`place`, the same for every command. What they are given is looked at there."""
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
    if quantize:
        parser.add_argument("--quantize", metavar="BITS", help="4bit or 8bit: on CUDA, with the package bitsandbytes")
