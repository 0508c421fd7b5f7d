"""Checkpoints of the hub: looked at before anything large is fetched, then fetched file by file, the small ones first.

Only what a checkpoint is opened from is fetched: configuration, tokenizer, image processor and safetensors, no pickle
and no code. Whole files stay in the hub's own cache (huggingface_hub's). A connection that breaks is taken up again in
the middle of a file; whoever stops in the middle of one has that one to fetch again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from model.devices import place
from model.errors import InputError
from model.families.checkpoint_files import CONFIG
from model.families.table import ENCODERS, find_family
from model.memory import MemoryNeed, check_memory, format_bytes, measure_free

TEXT_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template*",
    "adapter_config.json",
)
"""What lies beside the weights, of all families."""
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
_PATTERNS = (CONFIG, *WEIGHT_FILES, *TEXT_FILES)
_FAILURES = (HTTPError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError)
"""What asking the hub raises: its own answers, and what the connection does."""


class FetchStoppedError(Exception):
    """The person pressed Stop, or went away."""


@dataclass(frozen=True)
class HubFile:
    """``size`` in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class HubCheckpoint:
    """``files``: what is fetched, at ``commit``. ``family``: the ``model_type`` of config.json, “nanovlm” where it
    names none. ``stored``: the numbers that its weights are kept as, float32 where config.json doesn't say."""

    name: str
    commit: str
    files: tuple[HubFile, ...]
    family: str
    stored: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def weight_bytes(self) -> int:
        return sum(file.size for file in self.files if file.name.endswith(".safetensors"))

    @property
    def weights(self) -> int:
        """How many numbers the weights are; the headers of their files, some kilobytes, are counted with them."""
        return self.weight_bytes // self.stored.itemsize


def look_up(
    name: str, *, kinds: Collection[str] = (), endpoint: str | None = None, cache: Path | None = None
) -> HubCheckpoint:
    """What the checkpoint ``owner/name`` holds; its config.json is fetched and nothing else. Where the hub can't be
    reached, what is in its ``cache``. InputError where there is no such checkpoint, where it can't be reached and isn't
    here, or isn't one that is opened here, with what to do; ``kinds``: values of ``model_type`` that are, too."""
    try:
        found = HfApi(endpoint=endpoint).model_info(name, files_metadata=True)
        names = [file.rfilename for file in found.siblings or ()]
        _check_files(name, names)
        files = tuple(
            HubFile(file.rfilename, int(file.size or 0))
            for file in found.siblings or ()
            if any(fnmatch(file.rfilename, pattern) for pattern in _PATTERNS)
        )
        # By the branch's name: so the cache remembers which commit it was, for when the hub is out of reach.
        path = hf_hub_download(name, CONFIG, endpoint=endpoint, cache_dir=cache)
        commit = str(found.sha)
    except _FAILURES as error:
        folder = _find_cached(name, cache)
        if folder is None or isinstance(error, RepositoryNotFoundError | GatedRepoError | HFValidationError):
            _refuse(name, error)
        commit, path = folder.name, str(folder / CONFIG)
        files = tuple(HubFile(str(file.relative_to(folder)), file.stat().st_size) for file in folder.rglob("*.*"))
    try:
        config = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"The config.json of “{name}” is no JSON; use another checkpoint.") from None
    if not isinstance(config, dict):
        raise InputError(f"The config.json of “{name}” is no object; use another checkpoint.")
    if config.get("model_type") not in (*ENCODERS, *kinds):
        find_family(config)
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"), None)
    kept = stored if isinstance(stored, torch.dtype) else torch.float32
    return HubCheckpoint(name, commit, files, str(config.get("model_type") or "nanovlm"), kept)


def _find_cached(name: str, cache: Path | None) -> Path | None:
    """The folder of a checkpoint that was fetched before, weights included."""
    try:
        found = Path(snapshot_download(name, allow_patterns=list(_PATTERNS), local_files_only=True, cache_dir=cache))
    except (*_FAILURES, ValueError):
        return None
    return found if (found / CONFIG).is_file() and any(found.glob("model*.safetensors")) else None


def _check_files(name: str, names: Sequence[str]) -> None:
    weights = [file for file in names if file.endswith(".safetensors") and file.startswith("model")]
    if CONFIG in names and weights:
        return
    if any(file.endswith(".gguf") for file in names):
        why, what = "holds GGUF files, which are not read here", "the checkpoint that they were made from"
    elif "adapter_config.json" in names:
        why, what = "is an adapter (LoRA) without its model", "the merged model"
    elif CONFIG not in names:
        why, what = "has no config.json", "a checkpoint of a vision-language model"
    else:
        why, what = "has no safetensors, and other files of weights can hold code", "a checkpoint that has some"
    raise InputError(f"“{name}” {why}; use {what}.")


def check_room(
    checkpoint: HubCheckpoint, most: int | None = None, *, cache: Path | None = None, before: int = 0
) -> int:
    """The bytes that are still to be fetched. InputError if it has more than ``most`` bytes, or the disk of the hub's
    ``cache`` has too little left once ``before`` bytes of others are there."""
    if most is not None and checkpoint.nbytes > most:
        raise InputError(
            f"“{checkpoint.name}” has {format_bytes(checkpoint.nbytes)}; at most {format_bytes(most)} are fetched "
            "here, use a smaller one."
        )
    folder = cache or Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = max(0, shutil.disk_usage(folder).free - before)
    missing = sum(file.size for file in checkpoint.files if not _is_here(checkpoint, file, cache))
    if missing > free:
        raise InputError(
            f"“{checkpoint.name}” has {format_bytes(missing)} to fetch and the disk has {format_bytes(free)} left; "
            "make room or use a smaller one."
        )
    return missing


def _is_here(checkpoint: HubCheckpoint, file: HubFile, cache: Path | None) -> bool:
    return isinstance(
        try_to_load_from_cache(checkpoint.name, file.name, cache_dir=cache, revision=checkpoint.commit), str
    )


def check_weights(
    checkpoint: HubCheckpoint, *, device: torch.device | str, dtype: torch.dtype | str, quantize: str | None
) -> None:
    """InputError if its weights won't fit what is free there: before they are fetched."""
    placement = place(device, dtype, {checkpoint.stored: checkpoint.weight_bytes}, quantize)
    weights = int(checkpoint.weight_bytes / checkpoint.stored.itemsize * placement.bytes_per_weight)
    free = measure_free(placement)
    check_memory(MemoryNeed(weights, None, None, 0, placement.device_name, placement.dtype_name, free))


def fetch(
    checkpoint: HubCheckpoint, tell: Callable[[int], None], *, endpoint: str | None = None, cache: Path | None = None
) -> Path:
    """The folder with the checkpoint's files. ``tell`` is called with the bytes that are there so far, in the thread
    that fetches; it may raise :class:`FetchStoppedError`, and the next time files that are whole aren't fetched again.
    InputError if the connection breaks for good."""
    done = 0
    folder = Path()
    for file in sorted(checkpoint.files, key=lambda file: file.size):
        try:
            path = hf_hub_download(
                checkpoint.name,
                file.name,
                revision=checkpoint.commit,
                endpoint=endpoint,
                cache_dir=cache,
                tqdm_class=_make_bar(tell, done),
            )
        except _FAILURES as error:
            _refuse(checkpoint.name, error, done)
        done += file.size
        tell(done)
        folder = Path(path).parents[file.name.count("/")]
    return folder


def _refuse(name: str, error: Exception, done: int = 0) -> NoReturn:
    if isinstance(error, GatedRepoError):
        sentence = f"“{name}” is gated; accept its terms on the hub and log in here (hf auth login), or use another."
    elif isinstance(error, RepositoryNotFoundError):
        sentence = f"The hub has no model “{name}” that can be seen from here; check its name, owner/name."
    elif isinstance(error, HFValidationError):
        sentence = f"“{name[:80]}” is no name of the hub; write it as owner/name."
    elif isinstance(error, OSError) and getattr(error, "errno", None) == 28:
        sentence = f"The disk is full, and “{name}” was not fetched whole; make room and press Open again."
    elif isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code >= 500:
        sentence = f"The hub answered {error.response.status_code} for “{name}”; try again later."
    else:
        sentence = f"The hub can't be reached, and “{name}” is not here; check the connection and try again."
    if done:
        sentence += f" {format_bytes(done)} were fetched already and are not fetched again."
    raise InputError(sentence) from error


def _make_bar(tell: Callable[[int], None], before: int) -> type[Any]:
    """What huggingface_hub takes for the class of a progress bar, as far as it uses one; ``tell`` is called with
    ``before`` and the bytes of the file that are there."""

    class Bar:
        def __init__(self, *_: Any, initial: float = 0, total: float | None = None, **__: Any) -> None:
            self.n, self.total = float(initial), total

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            tell(before + int(self.n))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def close(self) -> None:
            """Nothing is drawn."""

        def refresh(self, *_: Any, **__: Any) -> None:
            """Nothing is drawn."""

        set_description = set_description_str = set_postfix_str = refresh

    return Bar
