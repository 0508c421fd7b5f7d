"""What the operating system says of the processor."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """What the processor is called."""
    return _read_entry("model name") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """The instruction sets that it has, by Linux's names (``amx_bf16``, ``avx512f``); empty on other systems."""
    return frozenset(_read_entry("flags").split())


def _read_entry(name: str) -> str:
    """The first value of ``name`` in Linux's list of processors; "" where there is none."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
