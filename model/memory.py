"""What a model will take, against what is free: known before anything is loaded, and said in one sentence when there
is too little, before or in the middle of a computation.

Weights are counted from the headers of the safetensors files, keys and values from the configuration. Nothing here is
measured but what is free.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from model.devices import Placement
from model.errors import InputError

PLANNED_POSITIONS = 4096
"""The prompt that is planned for where none is named; fewer where a model reads no more."""
_KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_MOST_HEADER_BYTES = 100 << 20
"""What safetensors allows itself."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class StoredWeights:
    """``count`` numbers in the safetensors files of a checkpoint, and their ``bytes_by_dtype``."""

    count: int
    bytes_by_dtype: Mapping[torch.dtype, int]


@dataclass(frozen=True)
class MemoryNeed:
    """In bytes, computed from the checkpoint's files. ``keys_values`` and ``features`` are those of one prompt of
    ``positions``, the latter as if every position were an image's; None where the configuration doesn't say.
    ``free``: measured, on the device; None where that can't be known. ``count``: how many numbers the weights are, 0
    where the files weren't read."""

    weights: int
    keys_values: int | None
    features: int | None
    positions: int
    device: str
    dtype: str
    free: int | None
    count: int = 0

    @property
    def fits(self) -> bool:
        """Whether the weights do."""
        return self.free is None or self.weights <= self.free

    def __str__(self) -> str:
        parts = [f"weights {format_bytes(self.weights)} in {self.dtype}"]
        if self.keys_values is not None:
            parts.append(f"keys and values of {self.positions:,} tokens {format_bytes(self.keys_values)}")
        if self.features is not None:
            parts.append(f"image features at most {format_bytes(self.features)}")
        free = "unknown" if self.free is None else format_bytes(self.free)
        return f"Computed: {', '.join(parts)}. Free on {self.device} before loading: {free}."


def format_bytes(count: int) -> str:
    """As people read it, in powers of ten."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def estimate_memory(folder: Path, placement: Placement, positions: int | None = None) -> MemoryNeed:
    """What the checkpoint in ``folder`` takes; the prompt is of ``positions`` (:data:`PLANNED_POSITIONS` if None)."""
    stored = read_stored(folder)
    shape = _read_shape(folder)
    positions = min(positions or PLANNED_POSITIONS, shape.get("positions", PLANNED_POSITIONS))
    keys_values = features = None
    if {"layers", "kv_heads", "head_dim"} <= shape.keys():
        heads = shape["layers"] * shape["kv_heads"] * shape["head_dim"]
        keys_values = 2 * heads * positions * placement.dtype.itemsize
    if "width" in shape:
        features = positions * shape["width"] * placement.dtype.itemsize
    return MemoryNeed(
        weights=int(stored.count * placement.bytes_per_weight),
        keys_values=keys_values,
        features=features,
        positions=positions,
        device=placement.device_name,
        dtype=placement.dtype_name,
        free=measure_free(placement),
        count=stored.count,
    )


def check_memory(need: MemoryNeed) -> None:
    """InputError if the weights don't fit what is free, with the numbers."""
    if not need.fits:
        assert need.free is not None
        shorter = " --dtype bfloat16," if need.dtype == "float32" else ""
        raise InputError(
            f"The weights take {format_bytes(need.weights)} in {need.dtype} and {format_bytes(need.free)} are free on "
            f"{need.device}; use{shorter} another device or a smaller model."
        )


def read_stored(folder: Path) -> StoredWeights:
    """From the headers alone, no weight is read. What can't be read counts nothing: loading says what is wrong."""
    count, by_dtype = 0, dict[torch.dtype, int]()
    for path in sorted(folder.glob("model*.safetensors")):
        for kind, numbers in _read_header(path):
            count += numbers
            dtype = _KINDS.get(kind)
            if dtype is not None:
                by_dtype[dtype] = by_dtype.get(dtype, 0) + numbers * dtype.itemsize
    return StoredWeights(count, by_dtype)


def _read_header(path: Path) -> Iterator[tuple[str, int]]:
    """(kind, numbers) of each tensor; none of a header that can't be true."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if 0 < size <= _MOST_HEADER_BYTES else {}
        most = 2 * path.stat().st_size  # the shortest kinds have half a byte
        for name, entry in header.items():
            if name != "__metadata__" and 0 <= (numbers := math.prod(map(int, entry["shape"]))) <= most:
                yield str(entry["dtype"]), numbers
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return


def _read_shape(folder: Path) -> dict[str, int]:
    """``layers``, ``kv_heads``, ``head_dim``, ``width`` and ``positions`` of the language model, as far as config.json
    states them: nanoVLM's, or a transformers family's, whose text model has a part of its own."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        text = config.get("text_config") or config
        found = {
            "layers": text.get("num_hidden_layers", text.get("lm_n_blocks")),
            "heads": text.get("num_attention_heads", text.get("lm_n_heads")),
            "kv_heads": text.get("num_key_value_heads", text.get("lm_n_kv_heads")),
            "head_dim": text.get("head_dim"),
            "width": text.get("hidden_size", text.get("lm_hidden_dim")),
            "positions": text.get("max_position_embeddings", text.get("lm_max_position_embeddings")),
        }
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    known = {name: value for name, value in found.items() if isinstance(value, int) and 0 < value < 1 << 32}
    known.setdefault("kv_heads", known.get("heads", 0))
    if "width" in known and "heads" in known:
        known.setdefault("head_dim", known["width"] // known["heads"])
    return {name: value for name, value in known.items() if value}


def measure_free(placement: Placement) -> int | None:
    """Free bytes now: of the device, or of all CUDA devices together; None where that can't be known."""
    if placement.device.type == "cuda":
        if placement.balanced:
            return sum(torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count()))
        return int(torch.cuda.mem_get_info(placement.device)[0])
    if placement.device.type == "mps":
        return max(0, int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory()))
    return measure_free_ram()


def measure_free_ram(root: Path = Path("/")) -> int | None:
    """What this process may still take of the machine's memory: what Linux calls available, less where a container
    bounds it. None on other systems."""
    free: list[int] = []
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        return None
    group = root / "sys/fs/cgroup"
    try:
        most = int((group / "memory.max").read_text())  # “max” without a bound
        used = int((group / "memory.current").read_text())
        # Pages of files count as used there, and make way for whoever needs memory.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free.append(most - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass
    return max(0, min(free)) if free else None


# --- in the middle of a computation ---

_RELEASES: list[Callable[[], None]] = []
_releasing = threading.Lock()


def release_when_short(release: Callable[[], None]) -> None:
    """Has ``release`` called when a computation runs out of memory: what is only kept to be quick goes then."""
    _RELEASES.append(release)


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory ran out. On the CPU torch raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


@contextmanager
def refuse_shortage() -> Iterator[None]:
    """Where memory runs out in here, everything that can go goes, and InputError says so."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        release_memory(error)
        raise InputError(
            "The memory didn't suffice for this, and it was stopped; ask with fewer or smaller images or a shorter "
            "text, or open a smaller model."
        ) from None


def release_memory(error: BaseException | None = None) -> None:
    """Lets go of what is kept to be quick, and of what the frames of ``error`` still hold."""
    with _releasing:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        for release in _RELEASES:
            release()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def guard_memory(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``function`` within :func:`refuse_shortage`."""

    @functools.wraps(function)
    def guarded(*args: _P.args, **named: _P.kwargs) -> _R:
        with refuse_shortage():
            return function(*args, **named)

    return guarded
